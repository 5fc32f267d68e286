/*-------------------------------------------------------------------------
 *
 * html_to_text.c
 *		A readable plain text for an HTML body.
 *
 * Pure: palloc and StringInfo.
 *
 * One pass, no recursion, a few bytes of output for each of input: hostile HTML
 * costs no more than its length.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "base/text.h"
#include "message/html_to_text.h"
#include "message/syntax.h"

#define LIST_DEPTH 16
#define QUOTE_DEPTH 8
#define TAG_NAME 16

typedef struct TextMaker
{
	StringInfo	out;
	int			breaks;			/* line breaks due before the next text: 0, 1 or 2 */
	bool		line_start;		/* nothing on the present line yet */
	bool		space;			/* a space is due */
	bool		cell;			/* a sign between two table cells is due */
	bool		preformatted;
	int			quote;			/* depth of blockquote */
	int			list;			/* depth of lists, also beyond LIST_DEPTH */
	int			numbers[LIST_DEPTH];	/* of the next item; 0 in an unordered list */
	bool		item;			/* an item's sign is due */
	const char *href;			/* of the open link; NULL: none */
	Size		href_length;
	int			link_start;		/* where its text starts in out */
	char		skip[TAG_NAME]; /* the element whose content is not shown; "" if none */
	int			skip_depth;
} TextMaker;

static void text_put(TextMaker *maker, const char *text, Size length);
static void text_break(TextMaker *maker, int breaks);
static void text_open_tag(TextMaker *maker, const char *name, const char *start, const char *end);
static void text_close_tag(TextMaker *maker, const char *name);
static void text_end_link(TextMaker *maker);
static bool text_attribute(const char *start, const char *end, const char *name,
						   const char **value, Size *length);
static void text_html(TextMaker *maker, const char *html, Size length, bool attribute);

/* Is the name one of the words? */
static bool
is_one_of(const char *name, const char *words)
{
	Size		length = strlen(name);
	const char *pos = words;

	/* "<!doctype" has no name. */
	while (length > 0 && (pos = strstr(pos, name)) != NULL)
	{
		if ((pos == words || pos[-1] == ' ') && (pos[length] == ' ' || pos[length] == '\0'))
			return true;
		pos += length;
	}
	return false;
}

/* Where the tag that starts at pos ends, quotes respected; NULL if nowhere. */
static const char *
tag_end(const char *pos, const char *end)
{
	char		quote = '\0';

	for (; pos < end; pos++)
	{
		if (quote != '\0')
		{
			if (*pos == quote)
				quote = '\0';
		}
		else if (*pos == '>')
			return pos;
		else if ((*pos == '"' || *pos == '\'') && pos[-1] == '=')
			quote = *pos;
	}
	return NULL;
}

char *
klm_mime_text_from_html(const char *html)
{
	StringInfoData out;
	TextMaker	maker = {.out = &out, .line_start = true};
	const char *end = html + strlen(html);
	const char *pos = html;

	initStringInfo(&out);
	while (pos < end)
	{
		const char *open = memchr(pos, '<', end - pos);
		const char *name_start;
		const char *close;
		char		name[TAG_NAME];
		bool		closing;
		int			i;

		if (open == NULL)
			open = end;
		if (maker.skip[0] == '\0')
			text_html(&maker, pos, open - pos, false);
		pos = open;
		if (pos == end)
			break;

		if (end - pos >= 4 && memcmp(pos, "<!--", 4) == 0)
		{
			close = strstr(pos + 4, "-->");
			pos = close != NULL ? close + 3 : end;
			continue;
		}
		closing = (pos[1] == '/');
		name_start = pos + (closing ? 2 : 1);
		if (!klm_is_alnum((unsigned char) *name_start) && !closing && *name_start != '!' &&
			*name_start != '?')
		{
			if (maker.skip[0] == '\0')
				text_put(&maker, "<", 1);
			pos++;
			continue;
		}
		close = tag_end(name_start, end);
		if (close == NULL)
			break;				/* a tag without an end is none */
		for (i = 0; i < TAG_NAME - 1 && klm_is_alnum((unsigned char) name_start[i]); i++)
			name[i] = pg_ascii_tolower((unsigned char) name_start[i]);
		name[i] = '\0';
		pos = close + 1;

		if (maker.skip[0] != '\0')
		{
			if (strcmp(name, maker.skip) != 0)
				continue;
			maker.skip_depth += closing ? -1 : 1;
			if (maker.skip_depth > 0)
				continue;
			maker.skip[0] = '\0';
			continue;
		}
		if (closing)
			text_close_tag(&maker, name);
		else
			text_open_tag(&maker, name, name_start + i, close);

		/* What these contain is no markup: go to their end. */
		if (!closing && is_one_of(name, "script style title textarea"))
		{
			Size		length = strlen(name);

			while ((pos = strstr(pos, "</")) != NULL &&
				   pg_strncasecmp(pos + 2, name, length) != 0)
				pos += 2;
			if (pos == NULL)
				break;
		}
	}
	if (maker.href != NULL)
		text_end_link(&maker);
	if (out.len > 0)
		appendStringInfoChar(&out, '\n');
	return out.data;
}

/* Text as it is: what is due goes before it. */
static void
text_put(TextMaker *maker, const char *text, Size length)
{
	StringInfo	out = maker->out;
	int			i;

	if (length == 0)
		return;
	if (maker->breaks > 0 && out->len > 0)
	{
		while (maker->breaks-- > 0)
			appendStringInfoChar(out, '\n');
		maker->line_start = true;
	}
	maker->breaks = 0;
	if (maker->line_start)
	{
		int			depth = Min(maker->list, LIST_DEPTH);

		for (i = 0; i < Min(maker->quote, QUOTE_DEPTH); i++)
			appendStringInfoString(out, "> ");
		for (i = 0; i < depth - (maker->item ? 1 : 0); i++)
			appendStringInfoString(out, "  ");
		if (maker->item && depth > 0)
		{
			if (maker->numbers[depth - 1] == 0)
				appendStringInfoString(out, "- ");
			else
				appendStringInfo(out, "%d. ", maker->numbers[depth - 1]++);
		}
	}
	else if (maker->cell)
		appendStringInfoString(out, " | ");
	else if (maker->space)
		appendStringInfoChar(out, ' ');
	maker->line_start = maker->item = maker->cell = maker->space = false;
	appendBinaryStringInfo(out, text, length);
}

static void
text_break(TextMaker *maker, int breaks)
{
	maker->breaks = Max(maker->breaks, breaks);
	maker->space = maker->cell = false;
}

static void
text_open_tag(TextMaker *maker, const char *name, const char *start, const char *end)
{
	const char *value;
	Size		length;

	/* Hidden: the text that only a list of mails shall show, and the like. */
	if (is_one_of(name, "div span table section") &&
		(text_attribute(start, end, "hidden", &value, &length) ||
		 text_attribute(start, end, "style", &value, &length)))
	{
		bool		hidden = (value == NULL);
		const char *pos;

		for (pos = value; !hidden && pos + 8 <= value + length; pos++)
			if (pg_strncasecmp(pos, "display:", 8) == 0)
			{
				pos += 8;
				while (pos < value + length && *pos == ' ')
					pos++;
				hidden = (pos + 4 <= value + length && pg_strncasecmp(pos, "none", 4) == 0);
			}
		if (hidden)
		{
			strcpy(maker->skip, name);
			maker->skip_depth = 1;
			return;
		}
	}

	if (strcmp(name, "br") == 0)
	{
		maker->breaks = Min(maker->breaks + 1, 2);
		maker->space = maker->cell = false;
	}
	else if (is_one_of(name, "p h1 h2 h3 h4 h5 h6 table blockquote pre dl"))
	{
		text_break(maker, name[0] == 't' ? 1 : 2);
		if (strcmp(name, "blockquote") == 0)
			maker->quote++;
		else if (strcmp(name, "pre") == 0)
			maker->preformatted = true;
	}
	else if (is_one_of(name, "ul ol"))
	{
		text_break(maker, maker->list == 0 ? 2 : 1);
		if (maker->list < LIST_DEPTH)
			maker->numbers[maker->list] = (name[0] == 'o') ? 1 : 0;
		maker->list++;
	}
	else if (strcmp(name, "li") == 0)
	{
		text_break(maker, 1);
		maker->item = true;
	}
	else if (is_one_of(name, "td th"))
	{
		if (!maker->line_start && maker->breaks == 0)
			maker->cell = true;
	}
	else if (strcmp(name, "hr") == 0)
	{
		text_break(maker, 1);
		text_put(maker, "----------", 10);
		text_break(maker, 1);
	}
	else if (strcmp(name, "a") == 0)
	{
		if (maker->href != NULL)
			text_end_link(maker);
		if (text_attribute(start, end, "href", &value, &length) && length > 0)
		{
			maker->href = value;
			maker->href_length = length;
			maker->link_start = maker->out->len;
		}
	}
	else if (strcmp(name, "img") == 0)
	{
		if (text_attribute(start, end, "alt", &value, &length))
			text_html(maker, value, length, true);
	}
	else if (is_one_of(name, "template svg"))
	{
		strcpy(maker->skip, name);
		maker->skip_depth = 1;
	}
	else if (is_one_of(name, "div tr section article header footer main nav aside address dt dd "
					   "form fieldset figure figcaption center body html tbody thead tfoot "
					   "caption"))
		text_break(maker, 1);
}

static void
text_close_tag(TextMaker *maker, const char *name)
{
	if (is_one_of(name, "p h1 h2 h3 h4 h5 h6 table blockquote pre dl"))
	{
		text_break(maker, name[0] == 't' ? 1 : 2);
		if (strcmp(name, "blockquote") == 0 && maker->quote > 0)
			maker->quote--;
		else if (strcmp(name, "pre") == 0)
			maker->preformatted = false;
	}
	else if (is_one_of(name, "ul ol"))
	{
		if (maker->list > 0)
			maker->list--;
		maker->item = false;
		text_break(maker, maker->list == 0 ? 2 : 1);
	}
	else if (strcmp(name, "a") == 0)
	{
		if (maker->href != NULL)
			text_end_link(maker);
	}
	else if (is_one_of(name, "li div tr section article header footer main nav aside address dt dd "
					   "form fieldset figure figcaption center body html tbody thead tfoot "
					   "caption"))
		text_break(maker, 1);
}

/* " (url)" behind a link's text, unless the text says as much. */
static void
text_end_link(TextMaker *maker)
{
	StringInfo	out = maker->out;
	const char *href = maker->href;
	StringInfoData url;
	const char *shown;
	Size		shown_length;
	const char *bare;
	Size		bare_length;
	TextMaker	decoder = {.out = &url, .preformatted = true};

	maker->href = NULL;
	if (pg_strncasecmp(href, "http:", 5) != 0 && pg_strncasecmp(href, "https:", 6) != 0 &&
		pg_strncasecmp(href, "mailto:", 7) != 0 && pg_strncasecmp(href, "tel:", 4) != 0)
		return;

	initStringInfo(&url);
	text_html(&decoder, href, maker->href_length, true);
	bare = url.data;
	if (pg_strncasecmp(bare, "mailto:", 7) == 0)
		bare += 7;
	else if (pg_strncasecmp(bare, "tel:", 4) == 0)
		bare += 4;
	else
		bare = strstr(bare, "//") != NULL ? strstr(bare, "//") + 2 : bare;
	bare_length = strlen(bare);
	if (bare_length > 0 && bare[bare_length - 1] == '/')
		bare_length--;

	shown = out->data + maker->link_start;
	while (*shown == '\n' || *shown == ' ')
		shown++;
	shown_length = strlen(shown);
	if (shown_length > 0 && shown[shown_length - 1] == '/')
		shown_length--;

	if (shown_length >= bare_length && bare_length > 0 &&
		memcmp(shown + shown_length - bare_length, bare, bare_length) == 0 &&
		(shown_length == bare_length || shown[shown_length - bare_length - 1] == '/' ||
		 shown[shown_length - bare_length - 1] == ':'))
		;
	else if (shown_length == 0)
		text_put(maker, url.data, url.len);
	else
	{
		bool		pending_breaks = (maker->breaks > 0);
		int			breaks = maker->breaks;

		/* The URL belongs to the text before, not to what a block ended. */
		maker->breaks = 0;
		maker->space = true;
		maker->cell = false;
		text_put(maker, "(", 1);
		appendBinaryStringInfo(out, url.data, url.len);
		appendStringInfoChar(out, ')');
		if (pending_breaks)
			maker->breaks = breaks;
	}
	pfree(url.data);
}

/* The raw value (NULL if it has none) of a tag's attribute. */
static bool
text_attribute(const char *start, const char *end, const char *name,
			   const char **value, Size *length)
{
	const char *pos = start;
	Size		name_length = strlen(name);

	while (pos < end)
	{
		const char *attribute;
		bool		match;

		while (pos < end && (*pos == ' ' || *pos == '\t' || *pos == '\n' || *pos == '\r' ||
							 *pos == '\f' || *pos == '/'))
			pos++;
		attribute = pos;
		while (pos < end && strchr(" \t\n\r\f/=", *pos) == NULL)
			pos++;
		match = (pos - attribute == name_length &&
				 pg_strncasecmp(attribute, name, name_length) == 0);
		while (pos < end && (*pos == ' ' || *pos == '\t' || *pos == '\n' || *pos == '\r'))
			pos++;
		*value = NULL;
		*length = 0;
		if (pos < end && *pos == '=')
		{
			pos++;
			while (pos < end && (*pos == ' ' || *pos == '\t' || *pos == '\n' || *pos == '\r'))
				pos++;
			if (pos < end && (*pos == '"' || *pos == '\''))
			{
				char		quote = *pos++;

				*value = pos;
				while (pos < end && *pos != quote)
					pos++;
				*length = pos - *value;
				if (pos < end)
					pos++;
			}
			else
			{
				*value = pos;
				while (pos < end && strchr(" \t\n\r\f", *pos) == NULL)
					pos++;
				*length = pos - *value;
			}
		}
		if (match)
			return true;
	}
	return false;
}

/* Text of HTML: entities decoded, white space as HTML has it. */
static void
text_html(TextMaker *maker, const char *html, Size length, bool attribute)
{
	const char *end = html + length;
	const char *pos = html;

	while (pos < end)
	{
		const char *start = pos;
		uint32		ch;

		while (pos < end && (unsigned char) *pos > 0x20 && (unsigned char) *pos < 0x7F &&
			   *pos != '&')
			pos++;
		if (pos > start)
		{
			text_put(maker, start, pos - start);
			continue;
		}
		if (*pos == '&')
		{
			pos = klm_html_entity(pos, end, &ch);
			if (ch == 0)
				continue;
		}
		else
		{
			ch = klm_utf8_next(&pos, end);
			if (ch == ' ' || ch == '\t' || ch == '\n' || ch == '\r' || ch == '\f')
			{
				if (!maker->preformatted || attribute)
				{
					if (!maker->line_start && maker->breaks == 0)
						maker->space = true;
				}
				else if (ch == '\n')
					maker->breaks = Min(maker->breaks + 1, 2);
				else if (ch != '\r')
					text_put(maker, ch == '\t' ? "    " : " ", ch == '\t' ? 4 : 1);
				continue;
			}
		}

		if (ch < 0x20 || (ch >= 0x7F && ch <= 0x9F) || ch == 0xAD || ch == 0x34F ||
			ch == 0x200B || ch == 0x2060 || ch == 0xFEFF ||
			(attribute && ch == ' '))
			continue;
		if (ch == 0xA0)
			text_put(maker, " ", 1);
		else
		{
			unsigned char utf8[5];

			if (ch < 0x80)
			{
				utf8[0] = ch;
				text_put(maker, (char *) utf8, 1);
			}
			else if (ch < 0x800)
			{
				utf8[0] = 0xC0 | (ch >> 6);
				utf8[1] = 0x80 | (ch & 0x3F);
				text_put(maker, (char *) utf8, 2);
			}
			else if (ch < 0x10000)
			{
				utf8[0] = 0xE0 | (ch >> 12);
				utf8[1] = 0x80 | ((ch >> 6) & 0x3F);
				utf8[2] = 0x80 | (ch & 0x3F);
				text_put(maker, (char *) utf8, 3);
			}
			else
			{
				utf8[0] = 0xF0 | (ch >> 18);
				utf8[1] = 0x80 | ((ch >> 12) & 0x3F);
				utf8[2] = 0x80 | ((ch >> 6) & 0x3F);
				utf8[3] = 0x80 | (ch & 0x3F);
				text_put(maker, (char *) utf8, 4);
			}
		}
	}
}

/* Latin 1 in order, from U+00A0; then others that mail is written with. */
static const char latin1_entities[] =
"nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr "
"deg plusmn sup2 sup3 acute micro para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest "
"Agrave Aacute Acirc Atilde Auml Aring AElig Ccedil Egrave Eacute Ecirc Euml Igrave Iacute Icirc "
"Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml times Oslash Ugrave Uacute Ucirc Uuml Yacute "
"THORN szlig agrave aacute acirc atilde auml aring aelig ccedil egrave eacute ecirc euml igrave "
"iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash ugrave uacute ucirc "
"uuml yacute thorn yuml ";

static const struct
{
	const char *name;
	uint32		ch;
}			other_entities[] = {
	{"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''},
	{"hellip", 0x2026}, {"mdash", 0x2014}, {"ndash", 0x2013}, {"lsquo", 0x2018},
	{"rsquo", 0x2019}, {"sbquo", 0x201A}, {"ldquo", 0x201C}, {"rdquo", 0x201D},
	{"bdquo", 0x201E}, {"lsaquo", 0x2039}, {"rsaquo", 0x203A}, {"bull", 0x2022},
	{"dagger", 0x2020}, {"Dagger", 0x2021}, {"permil", 0x2030}, {"prime", 0x2032},
	{"Prime", 0x2033}, {"euro", 0x20AC}, {"trade", 0x2122}, {"larr", 0x2190},
	{"uarr", 0x2191}, {"rarr", 0x2192}, {"darr", 0x2193}, {"harr", 0x2194},
	{"ensp", 0xA0}, {"emsp", 0xA0}, {"thinsp", 0xA0}, {"zwnj", 0x200C}, {"zwj", 0x200D},
	{"OElig", 0x152}, {"oelig", 0x153}, {"Scaron", 0x160}, {"scaron", 0x161},
	{"Yuml", 0x178}, {"fnof", 0x192}, {"circ", 0x2C6}, {"tilde", 0x2DC},
	{"minus", 0x2212}, {"ne", 0x2260}, {"le", 0x2264}, {"ge", 0x2265}, {"infin", 0x221E},
	{"asymp", 0x2248}, {"sum", 0x2211}, {"radic", 0x221A}, {"check", 0x2713},
	{"star", 0x2606}, {"starf", 0x2605}, {"hearts", 0x2665},
};

/* Windows-1252 where ISO 8859-1 has controls: how browsers read &#150;. */
static const uint16 windows_1252[32] = {
	0x20AC, 0, 0x201A, 0x192, 0x201E, 0x2026, 0x2020, 0x2021, 0x2C6, 0x2030, 0x160, 0x2039,
	0x152, 0, 0x17D, 0, 0, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x2DC,
	0x2122, 0x161, 0x203A, 0x153, 0, 0x17E, 0x178
};

const char *
klm_html_entity(const char *pos, const char *end, uint32 *ch)
{
	const char *start = pos + 1;
	const char *stop = start;
	char		name[12];
	int			i;

	*ch = '&';
	if (start < end && *start == '#')
	{
		bool		hex = (start + 1 < end && (start[1] == 'x' || start[1] == 'X'));
		uint32		value = 0;

		start += hex ? 2 : 1;
		for (stop = start; stop < end; stop++)
		{
			int			digit;

			if (*stop >= '0' && *stop <= '9')
				digit = *stop - '0';
			else if (hex && pg_ascii_tolower((unsigned char) *stop) >= 'a' &&
					 pg_ascii_tolower((unsigned char) *stop) <= 'f')
				digit = pg_ascii_tolower((unsigned char) *stop) - 'a' + 10;
			else
				break;
			if (value < 0x110000)
				value = value * (hex ? 16 : 10) + digit;
		}
		if (stop == start)
			return pos + 1;
		if (value >= 0x80 && value <= 0x9F)
			value = windows_1252[value - 0x80];
		if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
			value = 0xFFFD;
		*ch = value;
		return stop < end && *stop == ';' ? stop + 1 : stop;
	}

	while (stop < end && stop - start < (int) sizeof(name) - 2 &&
		   klm_is_alnum((unsigned char) *stop))
		stop++;
	if (stop == start || stop == end || *stop != ';')
		return pos + 1;
	memcpy(name, start, stop - start);
	name[stop - start] = '\0';
	for (i = 0; i < lengthof(other_entities); i++)
		if (strcmp(name, other_entities[i].name) == 0)
		{
			*ch = other_entities[i].ch;
			return stop + 1;
		}
	name[stop - start] = ' ';
	name[stop - start + 1] = '\0';
	for (i = 0, start = latin1_entities; *start != '\0'; i++)
	{
		if (strncmp(start, name, strlen(name)) == 0)
		{
			*ch = 0xA0 + i;
			return stop + 1;
		}
		start = strchr(start, ' ') + 1;
	}
	return pos + 1;
}
