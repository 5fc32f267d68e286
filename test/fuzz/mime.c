/*-------------------------------------------------------------------------
 *
 * mime.c
 *		Fuzz target: what a caller puts into a message, also in bytes that are
 *		no UTF-8.
 *
 * Input: seven texts, a NUL after each: HTML, text, subject, a header's value, an
 * attachment's file name, content type and Content-ID.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fuzz.h"
#include "base/text.h"
#include "message/compose.h"
#include "message/html_to_text.h"

int
LLVMFuzzerTestOneInput(const uint8 *data, Size size)
{
	static const char *const names[] = {"X-Test", "References", "List-Unsubscribe", "Comments"};
	char	   *html = fuzz_text(&data, &size);
	char	   *text = fuzz_text(&data, &size);
	char	   *subject = fuzz_text(&data, &size);
	char	   *value = fuzz_text(&data, &size);
	KlmAttachment attachment = {.filename = fuzz_text(&data, &size)};
	char	   *type = fuzz_text(&data, &size);
	char	   *id = fuzz_text(&data, &size);
	KlmContent	content = {.message_id = "id@example.com", .subject = subject, .text = text};
	KlmHeader	headers[lengthof(names)];
	KlmError	error;
	StringInfoData out;
	bool		in_header = true;

	attachment.content_type = type[0] ? type : NULL;
	attachment.content_id = id[0] ? id : NULL;
	if (!klm_mime_check_subject(subject, &error))
	{
		HOLDS(!klm_has_unsafe_char(error.message, false));
		content.subject = "";
	}
	for (int i = 0; i < lengthof(names); i++)
	{
		headers[content.header_count] = (KlmHeader) {names[i], value};
		if (klm_mime_check_header(names[i], value, &error))
			content.header_count++;
		else
			HOLDS(!klm_has_unsafe_char(error.message, false));
	}
	content.headers = headers;
	if (klm_mime_check_attachment(&attachment, "exe bat", &error))
	{
		attachment.data = html;
		attachment.length = strlen(html);
		content.attachments = &attachment;
		content.attachment_count = 1;
	}
	else
		HOLDS(!klm_has_unsafe_char(error.message, false));
	HOLDS(strlen(klm_mime_text_from_html(html)) <= 20 * strlen(html) + 200);
	if (html[0])
		content.html = html;
	if (html[0] && !text[0])
		content.text = NULL;

	initStringInfo(&out);
	klm_mime_compose(&content, &out);
	HOLDS(out.len == strlen(out.data));
	HOLDS(out.len > 2 && strcmp(out.data + out.len - 2, "\r\n") == 0);
	for (char *line = out.data; *line;)
	{
		Size		length = strcspn(line, "\r\n");

		HOLDS(line[length] == '\r' && line[length + 1] == '\n');
		HOLDS(length <= 998);
		for (Size i = 0; i < length; i++)
			HOLDS((signed char) line[i] > 0);
		/* No header that nobody asked for. */
		if (length == 0)
			in_header = false;
		if (in_header && line[0] != ' ' && line[0] != '\t')
		{
			static const char *const known[] = {"Date:", "Message-ID:", "Subject:", "To:",
				"MIME-Version:", "Content-Type:", "Content-Transfer-Encoding:", "X-Test:",
			"References:", "List-Unsubscribe:", "Comments:"};
			bool		found = false;

			for (int i = 0; i < lengthof(known); i++)
				found |= strncmp(line, known[i], strlen(known[i])) == 0;
			HOLDS(found);
		}
		line += length + 2;
	}
	fuzz_free_all();
	return 0;
}
