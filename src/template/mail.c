/*-------------------------------------------------------------------------
 *
 * mail.c
 *		A mail from a template: subject, HTML and text.
 *
 * Pure: palloc and StringInfo.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/text.h"
#include "message/header_check.h"
#include "message/html_to_text.h"
#include "template/html.h"
#include "template/layout.h"
#include "template/mail.h"

/* Characters of the text that lists of mail show beside a subject. */
#define PREHEADER_CHARS 110
/* And of a wide window. */
#define PADDED_CHARS 160

/* One scope for all: the variables, their defaults, what is built in. */
typedef struct Root
{
	const KlmMailInput *input;
	KlmValue	built_in;
} Root;

static bool
root_member(const KlmValue *object, const char *name, int length, KlmValue *member)
{
	const Root *root = object->data;
	const KlmValue *scopes[] = {&root->input->variables, &root->input->defaults, &root->built_in};
	bool		found = false;

	/* A null counts as missing, so that a default stands in its place. */
	for (int i = 0; i < lengthof(scopes); i++)
	{
		if (scopes[i]->kind != KLM_OBJECT ||
			!scopes[i]->reader->member(scopes[i], name, length, member))
			continue;
		found = true;
		if (member->kind != KLM_NULL)
			break;
	}
	return found;
}

static void
root_element(const KlmValue *list, int number, KlmValue *element)
{
	*element = klm_value_text(NULL);
}

static char *
root_json(const KlmValue *value)
{
	const Root *root = value->data;

	return root->input->variables.kind == KLM_OBJECT ?
		root->input->variables.reader->json(&root->input->variables) : pstrdup("");
}

static const KlmReader root_reader = {root_member, root_element, root_json};

/* The offset in the source of one in what was rendered from it. */
static int
source_offset(StringInfo places, int offset)
{
	const KlmPlace *place = (const KlmPlace *) places->data;
	int			count = places->len / sizeof(KlmPlace);
	int			found = -1;

	for (int i = 0; i < count && place[i].output <= offset; i++)
		found = place[i].source + (offset - place[i].output);
	return found;
}

/* Render with values held, and note where what comes from. */
static bool
render_held(KlmRendering *rendering, const KlmTemplate *template, KlmNotes *notes, StringInfo held,
			StringInfo places, KlmError *error)
{
	bool		ok;

	initStringInfo(held);
	initStringInfo(places);
	rendering->places = notes ? places : NULL;
	ok = klm_mustache_render(rendering, template, held, error);
	rendering->places = NULL;
	return ok;
}

static void
place_notes(KlmNotes *notes, StringInfo places)
{
	if (notes == NULL)
		return;
	for (KlmNote *note = notes->last; note; note = note->next)
		note->offset = source_offset(places, note->offset);
}

/* HTML with its values held: the author's, or a layout. */
static bool
fill_html(KlmRendering *rendering, const KlmTemplate *template, StringInfo out, KlmNotes *notes,
		  KlmError *error)
{
	StringInfoData held;
	StringInfoData places;
	KlmHtml		html;

	if (!render_held(rendering, template, notes, &held, &places, error))
		return false;
	klm_html_begin(&html, rendering->holder, out, notes);
	klm_note_source(notes, held.data, held.len);
	klm_html_add(&html, held.data, held.len);
	klm_html_end(&html);
	place_notes(notes, &places);
	pfree(places.data);
	pfree(held.data);
	if (out->len > KLM_MAX_OUTPUT)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
						"Show fewer items, or shorter texts.",
						"over %d kB as rendered", KLM_MAX_OUTPUT / 1024);
	return true;
}

/* The first sentences of a text, for what mail programs show in their lists. */
static char *
make_preheader(const char *text)
{
	StringInfoData out;
	const char *pos = text;
	const char *end;
	int			shown = 0;

	/* A heading, which is underlined, says what the subject says. */
	end = strstr(text, "\n\n");
	if (end != NULL && end > text && (end[-1] == '=' || end[-1] == '-'))
		pos = end;
	initStringInfo(&out);
	end = text + strlen(text);
	while (pos < end && shown < PREHEADER_CHARS)
	{
		const char *from = pos;
		uint32		ch = klm_utf8_next(&pos, end);

		if (ch == '\n' || ch == ' ')
		{
			if (out.len > 0 && out.data[out.len - 1] != ' ')
				appendStringInfoChar(&out, ' ');
			continue;
		}
		/* Nobody wants to read the address of a link there. */
		if (ch == 'h' && (strncmp(from, "https://", 8) == 0 || strncmp(from, "http://", 7) == 0))
			break;
		appendBinaryStringInfo(&out, from, pos - from);
		shown++;
	}
	while (out.len > 0 && strchr(" (:", out.data[out.len - 1]) != NULL)
		out.data[--out.len] = '\0';
	return out.data;
}

/*
 * One of the author's own, with what cannot be seen behind it: lists of mail would
 * go on with the body, in which may be what they are not to show.
 */
static char *
pad_preheader(const char *text)
{
	StringInfoData out;
	const char *pos = text;
	const char *end = text + strlen(text);

	initStringInfo(&out);
	appendStringInfoString(&out, text);
	for (int shown = 0; text[0] != '\0' && shown < PADDED_CHARS; shown++)
	{
		if (pos < end)
			(void) klm_utf8_next(&pos, end);
		else
			/* no joiner, no break */
			appendStringInfoString(&out, "\xE2\x80\x8C\xC2\xA0");
	}
	return out.data;
}

/* What the default layout has below the content, in the text. */
static void
put_footer(StringInfo text, const KlmMailInput *input)
{
	const KlmBrand *brand = input->brand;
	const char *parts[] = {brand->footer, brand->postal_address ? brand->name : NULL,
	brand->postal_address};
	bool		begun = false;

	while (text->len > 0 && text->data[text->len - 1] == '\n')
		text->data[--text->len] = '\0';
	for (int i = 0; i < lengthof(parts); i++)
	{
		if (parts[i] == NULL)
			continue;
		appendStringInfo(text, "%s\n%s", begun ? "" : "\n\n--", parts[i]);
		begun = true;
	}
	if (input->unsubscribe_url)
		appendStringInfo(text, "%s\n%s: %s", begun ? "" : "\n\n--", klm_unsubscribe_word(input->locale),
						 input->unsubscribe_url);
	appendStringInfoChar(text, '\n');
}

/* A body of HTML that is a page already? */
static bool
is_page(const KlmTemplate *body)
{
	for (const char *pos = body->source; (pos = strchr(pos, '<')) != NULL; pos++)
		if (pg_strncasecmp(pos, "<html", 5) == 0 && (pos[5] == '>' || pos[5] == ' ' || pos[5] == '\n'))
			return true;
	return false;
}

static bool
render_subject(KlmRendering *rendering, const KlmMailSource *source, KlmMail *mail, KlmError *error)
{
	StringInfoData out;

	initStringInfo(&out);
	rendering->mode = KLM_PLAIN;
	if (!klm_mustache_render(rendering, source->subject, &out, error) ||
		!klm_mime_check_subject(out.data, error))
	{
		if (error)
			error->message = psprintf("subject: %s", error->message);
		return false;
	}
	mail->subject = out.data;
	return true;
}

/* The content, HTML and text. */
static bool
render_body(KlmRendering *rendering, const KlmMailSource *source, const KlmMailInput *input,
			StringInfo html, StringInfo text, KlmNotes *notes, KlmError *error)
{
	KlmHolder	holder = {0};
	const char *color = input->brand->color ? input->brand->color : KLM_BRAND_COLOR;
	KlmMarkdown markdown = {
		.holder = &holder, .raw_html = source->body->allows_html,
		.rtl = strcmp(klm_direction(input->locale), "rtl") == 0,
		.link_color = klm_link_color(input->brand->color), .button_color = color,
		.button_text_color = klm_color_on(color), .notes = notes
	};

	rendering->mode = KLM_HELD;
	rendering->holder = &holder;
	if (source->format == KLM_BODY_HTML)
	{
		if (!fill_html(rendering, source->body, html, notes, error))
			return false;
		if (source->plain_text == NULL)
			appendStringInfoString(text, klm_mime_text_from_html(html->data));
	}
	else
	{
		StringInfoData held;
		StringInfoData places;

		if (!render_held(rendering, source->body, notes, &held, &places, error) ||
			!klm_markdown_render(&markdown, held.data, held.len, html, text, error))
			return false;
		place_notes(notes, &places);
		pfree(places.data);
		pfree(held.data);
	}
	if (source->plain_text)
	{
		resetStringInfo(text);
		rendering->mode = KLM_PLAIN;
		if (!klm_mustache_render(rendering, source->plain_text, text, error))
			return false;
	}
	return true;
}

bool
klm_mail_render(const KlmMailSource *source, const KlmMailInput *input, KlmMail *mail,
				KlmNotes *notes, KlmError *error)
{
	KlmNotes   *of_body = source->notes_of_layout ? NULL : notes;
	KlmNotes   *of_layout = source->notes_of_layout ? notes : NULL;
	const char *color = input->brand->color ? input->brand->color : KLM_BRAND_COLOR;
	KlmPair		brand[] = {
		{"name", klm_value_text(input->brand->name)},
		{"logo_url", klm_value_text(input->brand->logo_url)},
		{"color", klm_value_text(color)},
		{"postal_address", klm_value_text(input->brand->postal_address)},
		{"footer", klm_value_text(input->brand->footer)}
	};
	KlmPair		pairs[] = {
		{"email", klm_value_text(input->email)},
		{"timestamp", klm_value_text(input->timestamp)},
		{"brand", klm_value_pairs(brand, lengthof(brand))},
		{"unsubscribe_url", klm_value_text(input->unsubscribe_url)},
	};
	Root		root = {.input = input, .built_in = klm_value_pairs(pairs, lengthof(pairs))};
	KlmValue	scope = {.kind = KLM_OBJECT, .reader = &root_reader, .data = &root};
	KlmValue	scopes[2] = {scope};
	KlmRendering rendering = {
		.scopes = scopes, .scope_count = 1, .partial = input->partial,
		.partial_data = input->partial_data, .formats = input->formats
	};
	StringInfoData html;
	StringInfoData text;
	StringInfoData page;

	initStringInfo(&html);
	initStringInfo(&text);
	initStringInfo(&page);
	if (!render_subject(&rendering, source, mail, error) ||
		!render_body(&rendering, source, input, &html, &text, of_body, error))
		return false;
	mail->html = html.data;
	mail->preheader = NULL;
	if (source->format != KLM_BODY_HTML || !is_page(source->body))
	{
		KlmHolder	holder = {0};
		KlmValue	preheader;
		KlmPair		parts[] = {
			{"content", klm_value_text(html.data)},
			{"subject", klm_value_text(mail->subject)},
			{"lang", klm_value_text(input->locale ? input->locale : "en")},
			{"dir", klm_value_text(klm_direction(input->locale))},
			{"unsubscribe", klm_value_text(klm_unsubscribe_word(input->locale))},
			{"preheader", klm_value_text(NULL)}
		};

		if (klm_mustache_find(scopes, 1, "preheader", strlen("preheader"), &preheader) &&
			preheader.kind == KLM_STRING)
		{
			mail->preheader = pnstrdup(preheader.text, preheader.length);
			parts[lengthof(parts) - 1].value = klm_value_text(pad_preheader(mail->preheader));
		}
		else
		{
			mail->preheader = make_preheader(text.data);
			parts[lengthof(parts) - 1].value = klm_value_text(mail->preheader);
		}
		scopes[1] = klm_value_pairs(parts, lengthof(parts));
		rendering.scope_count = 2;
		rendering.mode = KLM_HELD;
		rendering.holder = &holder;
		if (!fill_html(&rendering, source->layout, &page, of_layout, error))
			return false;
		mail->html = page.data;
		if (source->plain_text == NULL)
			put_footer(&text, input);
	}
	mail->text = text.data;
	return true;
}
