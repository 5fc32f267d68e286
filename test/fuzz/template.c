/*-------------------------------------------------------------------------
 *
 * template.c
 *		Fuzz target: a mail from a template, from sources and values that nobody
 *		has looked at.
 *
 * Input: an octet for the format and what is around, then texts, a NUL after each:
 * subject, body, layout, a partial, and three values.  Without a layout it is the
 * default one, in which a mail from Markdown has no script, whatever came.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fuzz.h"
#include "base/text.h"
#include "template/layout.h"
#include "template/mail.h"

/* A list of the same object many times, which has itself as a member. */
static bool
member(const KlmValue *object, const char *name, int length, KlmValue *member)
{
	if (length == 0 || name[0] == 'z')
		return false;
	*member = ((const KlmValue *) object->data)[(unsigned char) name[0] % 5];
	return true;
}

static void
element(const KlmValue *list, int number, KlmValue *element)
{
	*element = ((const KlmValue *) list->data)[number % 5];
}

static char *
json(const KlmValue *value)
{
	return pstrdup("{}");
}

static const KlmReader reader = {member, element, json};
static KlmTemplate *partial;

static const KlmTemplate *
find_partial(void *data, const char *name)
{
	return name[0] == 'n' ? NULL : partial;
}

static KlmTemplate *
compiled(const char *source)
{
	KlmSourceError error;
	KlmTemplate *template = klm_mustache_compile(source, &error);

	if (template == NULL)
	{
		HOLDS(error.error.sqlstate == ERRCODE_SYNTAX_ERROR ||
			  error.error.sqlstate == ERRCODE_PROGRAM_LIMIT_EXCEEDED);
		HOLDS(error.error.message[0] != '\0');
		HOLDS(error.line >= 0 && error.column >= 0);
	}
	return template;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, Size size)
{
	KlmBrand	brand = {.name = "Brand"};
	KlmMailSource source = {0};
	KlmMailInput input = {.email = "a@x.example", .timestamp = "now", .brand = &brand,
	.partial = find_partial};
	KlmFormats	formats = {0};
	KlmValue	values[5];
	KlmMail		mail;
	KlmNotes	notes = {0};
	KlmError	error;
	bool		default_layout;
	char	   *layout;

	if (size < 1)
		return 0;
	source.format = data[0] & 1 ? KLM_BODY_HTML : KLM_BODY_MARKDOWN;
	formats.locale = data[0] & 4 ? "ja" : data[0] & 8 ? "de" : NULL;
	input.locale = formats.locale;
	input.formats = &formats;
	if (data[0] & 16)
		input.unsubscribe_url = "https://x.example/u";
	if (data[0] & 32)
		brand = (KlmBrand) {.logo_url = "https://x.example/l.png", .color = "#ffd400", .footer = "f", .postal_address = "p"};
	source.notes_of_layout = (data[0] & 64) != 0;
	data++;
	size--;
	source.subject = compiled(fuzz_text(&data, &size));
	source.body = compiled(fuzz_text(&data, &size));
	layout = fuzz_text(&data, &size);
	default_layout = layout[0] == '\0';
	source.layout = compiled(default_layout ? klm_default_layout : layout);
	partial = compiled(fuzz_text(&data, &size));
	for (int i = 0; i < 3; i++)
		values[i] = klm_value_text(fuzz_text(&data, &size));
	values[2].kind = KLM_NUMBER;
	values[3] = (KlmValue) {.kind = KLM_LIST, .count = 3, .reader = &reader, .data = values};
	values[4] = (KlmValue) {.kind = KLM_OBJECT, .count = 1, .reader = &reader, .data = values};
	input.variables = values[4];
	if (source.subject && source.body && source.layout)
	{
		if (klm_mail_render(&source, &input, &mail, &notes, &error))
		{
			HOLDS(strlen(mail.html) <= KLM_MAX_OUTPUT && strlen(mail.text) <= 2 * KLM_MAX_OUTPUT);
			HOLDS(strpbrk(mail.subject, "\r\n") == NULL);
			if (default_layout && source.format == KLM_BODY_MARKDOWN && !source.body->allows_html)
			{
				HOLDS(strstr(mail.html, "<script") == NULL && strstr(mail.html, "=\"javascript:") == NULL);
				HOLDS(strstr(mail.html, "</html>") == mail.html + strlen(mail.html) - strlen("</html>\n"));
			}
		}
		else
			HOLDS(error.sqlstate == ERRCODE_INVALID_PARAMETER_VALUE ||
				  error.sqlstate == ERRCODE_PROGRAM_LIMIT_EXCEEDED);
	}
	fuzz_free_all();
	return 0;
}
