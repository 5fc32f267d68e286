/*-------------------------------------------------------------------------
 *
 * html.c
 *		HTML that an author wrote, with held values put in where they stand.
 *
 * Pure: palloc and StringInfo.  One pass.
 *
 * A value in a text or an attribute is escaped, in an attribute that is a URL it
 * goes through klm_put_url() (the attribute is empty where that refuses), in a
 * style only what is harmless is kept.  In a tag's or an attribute's name, in a
 * script and in an attribute that is one, it is left out, and a note says so.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "template/html.h"

static void begin_value(KlmHtml *html, char quote);
static void end_value(KlmHtml *html);

void
klm_html_begin(KlmHtml *html, const KlmHolder *holder, StringInfo out, KlmNotes *notes)
{
	memset(html, 0, sizeof(*html));
	html->holder = holder;
	html->out = out;
	html->notes = notes;
	html->link_start = -1;
	initStringInfo(&html->value);
	initStringInfo(&html->url);
}

static bool
is_space(char ch)
{
	return ch == ' ' || ch == '\t' || ch == '\n' || ch == '\r' || ch == '\f';
}

static bool
is_one_of(const char *name, const char *const *names, int count)
{
	for (int i = 0; i < count; i++)
		if (strcmp(name, names[i]) == 0)
			return true;
	return false;
}

static bool
is_url(const char *attribute)
{
	static const char *const names[] = {"href", "src", "action", "background", "poster", "cite",
	"formaction", "data", "longdesc", "srcset", "xlink:href"};

	return is_one_of(attribute, names, lengthof(names));
}

static bool
is_script(const char *attribute)
{
	return strncmp(attribute, "on", 2) == 0 || strcmp(attribute, "srcdoc") == 0;
}

static bool
is_raw_text(const char *element)
{
	static const char *const names[] = {"style", "script", "title", "textarea"};

	return is_one_of(element, names, lengthof(names));
}

/* A letter of a name, in lower case; what is longer than any that matters is cut. */
static void
add_letter(char *name, Size size, char ch)
{
	Size		length = strlen(name);

	if (length + 1 < size)
	{
		name[length] = pg_ascii_tolower((unsigned char) ch);
		name[length + 1] = '\0';
	}
}

static void
note_misplaced(KlmHtml *html, const char *where)
{
	klm_note_place(html->notes, html->tag);
	klm_note(html->notes, KLM_NOTE_MISPLACED, where);
}

/* A value, not one of an attribute. */
static void
put_value(KlmHtml *html, const KlmHeldValue *value)
{
	switch (html->state)
	{
		case KLM_HTML_TEXT:
			if (value->raw)
				appendBinaryStringInfo(html->out, value->text, value->length);
			else
				klm_put_lines(html->out, value->text, value->length);
			break;
		case KLM_HTML_COMMENT:
			klm_put_escaped(html->out, value->text, value->length);
			break;
		case KLM_HTML_RAWTEXT:
			if (strcmp(html->element, "style") == 0)
				klm_put_style(html->out, value->text, value->length);
			else if (strcmp(html->element, "script") == 0)
				note_misplaced(html, "a script");
			else
				klm_put_escaped(html->out, value->text, value->length);
			break;
		default:
			note_misplaced(html, "a tag");
			break;
	}
}

/* Entities of an attribute that matter in a URL. */
static void
append_decoded(StringInfo out, const char *text, int length)
{
	const char *end = text + length;

	while (text < end)
	{
		if (end - text >= 5 && memcmp(text, "&amp;", 5) == 0)
		{
			appendStringInfoChar(out, '&');
			text += 5;
		}
		else
			appendStringInfoChar(out, *text++);
	}
}

static void
begin_value(KlmHtml *html, char quote)
{
	html->state = KLM_HTML_VALUE;
	html->quote = quote;
	resetStringInfo(&html->value);
}

/* Does a note ask for this attribute's URL? */
static bool
has_url(const KlmHtml *html)
{
	return html->notes != NULL && html->url.len == 0 &&
		((strcmp(html->element, "a") == 0 && strcmp(html->attribute, "href") == 0) ||
		 (strcmp(html->element, "img") == 0 && strcmp(html->attribute, "src") == 0));
}

/* A URL without a value of ours passes as it is, and may be none that mail can have. */
static void
note_written_url(KlmHtml *html)
{
	StringInfoData url;

	initStringInfo(&url);
	klm_note_place(html->notes, html->tag);
	if (html->url.data[0] != '#' &&
		!klm_put_url(html->holder, &url, html->url.data, html->url.len, html->element[0] == 'i'))
		klm_note(html->notes, KLM_NOTE_REFUSED_URL, html->url.data);
	pfree(url.data);
}

/* The attribute's value is whole: write it, always in quotes where it holds a value of ours. */
static void
end_value(KlmHtml *html)
{
	const char *text = html->value.data;
	const char *end = text + html->value.len;
	const char *at;
	const char *next;
	char		quote = html->quote ? html->quote : '"';

	html->state = KLM_HTML_TAG;
	if (klm_held_next(html->holder, text, end, &at, &next) == NULL)
	{
		if (has_url(html))
		{
			append_decoded(&html->url, text, end - text);
			note_written_url(html);
		}
		if (html->quote)
			appendStringInfoChar(html->out, quote);
		appendBinaryStringInfo(html->out, text, end - text);
		if (html->quote)
			appendStringInfoChar(html->out, quote);
		return;
	}
	appendStringInfoChar(html->out, quote);
	if (is_script(html->attribute))
		note_misplaced(html, "a script");
	else if (is_url(html->attribute))
	{
		StringInfoData written;
		StringInfoData url;

		initStringInfo(&written);
		initStringInfo(&url);
		append_decoded(&written, text, end - text);
		if (klm_put_url(html->holder, &url, written.data, written.len,
						strcmp(html->attribute, "href") != 0))
			klm_put_escaped(html->out, url.data, url.len);
		if (has_url(html))
			appendBinaryStringInfo(&html->url, url.data, url.len);
		pfree(written.data);
		pfree(url.data);
	}
	else
	{
		while (text < end)
		{
			const KlmHeldValue *value = klm_held_next(html->holder, text, end, &at, &next);

			appendBinaryStringInfo(html->out, text, at - text);
			if (value != NULL && strcmp(html->attribute, "style") == 0)
				klm_put_style(html->out, value->text, value->length);
			else if (value != NULL)
				klm_put_escaped(html->out, value->text, value->length);
			text = next;
		}
	}
	appendStringInfoChar(html->out, quote);
}

/* What an author would want to know about the tag that ends. */
static void
note_tag(KlmHtml *html)
{
	klm_note_place(html->notes, html->tag);
	if (strcmp(html->element, "script") == 0)
		klm_note(html->notes, KLM_NOTE_SCRIPT, NULL);
	else if (strcmp(html->element, "img") == 0 && !html->has_alt)
		klm_note(html->notes, KLM_NOTE_NO_ALT, NULL);
	else if (strcmp(html->element, "a") == 0)
	{
		html->link_start = html->out->len;
		html->link_url = pstrdup(html->url.data);
	}
	else if (strcmp(html->element, "/a") == 0 && html->link_start >= 0)
	{
		klm_note_link(html->notes, html->out->data + html->link_start, html->link_url);
		html->link_start = -1;
	}
	klm_note_http(html->notes, html->url.data);
}

/* Behind the ">" of a tag. */
static void
end_tag(KlmHtml *html)
{
	html->state = KLM_HTML_TEXT;
	if (html->notes != NULL)
		note_tag(html);
	if (is_raw_text(html->element))
		html->state = KLM_HTML_RAWTEXT;
}

/* Behind the name of an attribute. */
static void
end_name(KlmHtml *html)
{
	html->has_alt |= strcmp(html->attribute, "alt") == 0;
	if (is_script(html->attribute))
	{
		klm_note_place(html->notes, html->tag);
		klm_note(html->notes, KLM_NOTE_SCRIPT, NULL);
	}
}

/* Is text at pos this, whatever the case of its letters? */
static bool
is_at(const char *pos, const char *end, const char *what)
{
	return end - pos >= strlen(what) && pg_strncasecmp(pos, what, strlen(what)) == 0;
}

/* What begins with "<" in a text: a tag, a comment, or the sign itself; where it ends. */
static const char *
open_tag(KlmHtml *html, const char *from, const char *end)
{
	const char *pos = from + 1;

	html->element[0] = html->attribute[0] = '\0';
	html->tag = from;
	html->has_alt = false;
	resetStringInfo(&html->url);
	/* <!--[if mso]> and <![endif]--> are for Outlook, and what stands between is HTML. */
	if (is_at(from, end, "<!--[if") || is_at(from, end, "<!--<![endif]") ||
		is_at(from, end, "<![endif]"))
	{
		const char *close = memchr(from, '>', end - from);

		pos = close ? close + 1 : end;
	}
	else if (is_at(from, end, "<!--"))
	{
		pos = from + 4;
		html->state = KLM_HTML_COMMENT;
	}
	else if (pos < end && (strchr("/!", *pos) != NULL ||
						   (pg_ascii_tolower((unsigned char) *pos) >= 'a' &&
							pg_ascii_tolower((unsigned char) *pos) <= 'z')))
	{
		while (pos < end && !is_space(*pos) && *pos != '>' && (*pos != '/' || pos == from +
															   1))
		{
			const char *at;
			const char *next;

			/* The value would be a part of the name. */
			if (klm_held_next(html->holder, pos, Min(end, pos + 14), &at, &next) &&
				at == pos)
				break;
			add_letter(html->element, sizeof(html->element), *pos++);
		}
		html->state = KLM_HTML_TAG;
	}
	return pos;
}

/*
 * One character, a token of several, or text up to at, before the next
 * placeholder; where it ends.
 */
static const char *
step(KlmHtml *html, const char *pos, const char *at, const char *end)
{
	const char *from = pos;
	char		ch = *pos++;

	if (ch != '<' && (html->state == KLM_HTML_TEXT || html->state == KLM_HTML_RAWTEXT))
	{
		const char *open = memchr(from, '<', at - from);

		pos = open ? open : at;
		appendBinaryStringInfo(html->out, from, pos - from);
		return pos;
	}

	switch (html->state)
	{
		case KLM_HTML_TEXT:
			pos = open_tag(html, from, end);
			break;
		case KLM_HTML_COMMENT:
			if (is_at(from, end, "-->"))
			{
				pos = from + 3;
				html->state = KLM_HTML_TEXT;
			}
			break;
		case KLM_HTML_RAWTEXT:
			if (ch == '<' && pos < end && *pos == '/' && is_at(pos + 1, end, html->element))
				html->state = KLM_HTML_TEXT;
			if (html->state == KLM_HTML_TEXT)
				return step(html, from, at, end);
			break;
		case KLM_HTML_TAG:
			if (ch == '>')
				end_tag(html);
			else if (!is_space(ch) && ch != '/')
			{
				html->attribute[0] = '\0';
				add_letter(html->attribute, sizeof(html->attribute), ch);
				html->state = KLM_HTML_NAME;
			}
			break;
		case KLM_HTML_NAME:
			if (ch == '=')
				html->state = KLM_HTML_EQUALS;
			else if (ch == '>')
				end_tag(html);
			else if (is_space(ch) || ch == '/')
			{
				/* The "=" may stand apart. */
				const char *peek = pos;

				while (peek < end && is_space(*peek))
					peek++;
				if (peek == end || *peek != '=')
					html->state = KLM_HTML_TAG;
			}
			else
				add_letter(html->attribute, sizeof(html->attribute), ch);
			if (html->state != KLM_HTML_NAME)
				end_name(html);
			break;
		case KLM_HTML_EQUALS:
			if (is_space(ch))
				break;
			if (ch == '>')
				end_tag(html);
			else if (ch == '"' || ch == '\'')
			{
				begin_value(html, ch);
				return pos;
			}
			else
			{
				begin_value(html, '\0');
				return from;
			}
			break;
		case KLM_HTML_VALUE:
			if (html->quote)
			{
				const char *close = memchr(from, html->quote, at - from);

				pos = close ? close : at;
				appendBinaryStringInfo(&html->value, from, pos - from);
				if (close)
					end_value(html);
				return close ? close + 1 : at;
			}
			if (is_space(ch) || ch == '>')
			{
				end_value(html);
				return from;
			}
			appendStringInfoChar(&html->value, ch);
			return pos;
	}
	if (pos == from + 1)
		appendStringInfoCharMacro(html->out, ch);
	else
		appendBinaryStringInfo(html->out, from, pos - from);
	return pos;
}

void
klm_html_add(KlmHtml *html, const char *text, int length)
{
	const char *end = text + length;
	const char *at;
	const char *next;
	const KlmHeldValue *value = klm_held_next(html->holder, text, end, &at, &next);

	while (text < end)
	{
		if (text < at)
		{
			/* A token never takes a placeholder along, but for Outlook's conditions. */
			text = step(html, text, at, end);
			if (text > at)
				value = klm_held_next(html->holder, text, end, &at, &next);
			continue;
		}
		if (html->state == KLM_HTML_EQUALS)
			begin_value(html, '\0');
		if (html->state == KLM_HTML_VALUE)
			appendBinaryStringInfo(&html->value, at, next - at);
		else
			put_value(html, value);
		text = next;
		value = klm_held_next(html->holder, text, end, &at, &next);
	}
}

void
klm_html_end(KlmHtml *html)
{
	if (html->state != KLM_HTML_TEXT)
	{
		klm_note_place(html->notes, html->tag);
		klm_note(html->notes, KLM_NOTE_OPEN_TAG, NULL);
	}
	if (html->state == KLM_HTML_VALUE)
		end_value(html);
	pfree(html->value.data);
	pfree(html->url.data);
}
