/*-------------------------------------------------------------------------
 *
 * mime_test.c
 *		Unit tests of src/message/: hostile input at random, also bytes that are no UTF-8, and what must hold whatever comes.
 *
 * Build (libpgcommon and libpgport are PostgreSQL's frontend libraries; add
 * -fsanitize=address,undefined for the sanitizers):
 *	cc -Isrc -I$(pg_config --includedir-server) -o mime_test test/unit/mime_test.c
 *		src/base/error.c src/base/text.c src/message/*.c -L$(pg_config --pkglibdir) -L$(pg_config --libdir)
 *		-lpgcommon -lpgport -lidn2 -lcrypto
 * Run: mime_test [rounds [seed]].  Ends with "N passed, N failed".
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/text.h"
#include "message/compose.h"
#include "message/html_to_text.h"

#include "counting.h"
#include "outside.h"

/* ---- hostile text ---- */

static const char *const address_pieces[] = {
	"a", "ana", "@", "@", "example.com", ".", "..", "\"", "\\", "(", ")", "<", ">", ",", ";", ":",
	" ", "\t", "[", "]", "example", "xn--", "-", "\xE3\x80\x81", "\xEF\xBC\x8C", "\xEF\xBC\xA0",
	"\xEF\xBD\x81", "\xE3\x80\x82", "\xE3\x80\x80", "\xC2\xA0", "\xE2\x80\x8D", "\xE5\xB1\xB1",
	"\xC3\xA9", "\xC3\x9F", "\xF0\x9F\x91\xA8", "=?utf-8?Q?x?=", "\xFF", "\xE3\x80", "\xC0\x80",
	"\r\n", "\x01", "mailto:", "Ana <ana@example.com>", "bob@example.org",
	"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
};

static const char *const html_pieces[] = {
	"<", ">", "</", "/>", "<p>", "</p>", "<div hidden>", "<div style='display:none'>", "</div>",
	"<a href=", "<a href='https://x.example/'>", "<a href=\"mailto:a@x.example\">", "</a>", "\"",
	"'", "=", "&", "&amp;", "&#", "&#x", "&#1114112;", "&#x41;", "&#0;", ";", "&nbsp;", "&nope;",
	"<!--", "-->", "<script>", "</script>", "<style>", "</style", "<ul>", "<ol>", "<li>", "</ol>",
	"</ul>", "<blockquote>", "</blockquote>", "<table>", "<tr>", "<td>", "</td>", "<br>", "<hr>",
	"<pre>", "</pre>", "\n", "\r", " ", "text", "\xE5\xB1\xB1", "\xFF", "<img alt=", "<img alt='x'>",
	"<title>", "</title>", "<svg>", "</svg>", "<textarea", "<!", "<?", "From ", "."
};

static char *
hostile(const char *const *pieces, int count, int most)
{
	StringInfoData text;
	int			left = any(most);

	initStringInfo(&text);
	while (left-- > 0)
	{
		if (any(10) == 0)
			appendStringInfoChar(&text, (char) (1 + any(255)));
		else
			appendStringInfoString(&text, pieces[any(count)]);
	}
	return text.data;
}

#define HOSTILE(pieces, most) hostile(pieces, lengthof(pieces), most)

/* A list that is mostly right. */
static char *
plausible(void)
{
	static const char *const names[] = {"", "Ana ", "\"Smith, A\\\"na\" ", "\xE5\xB1\xB1 a ",
		"(x) ", "O'B. \"\" y ", "\"=?utf-8?Q?x?=\"", "a  b ", "\" \" ", "\xE3\x80\x80\"x \" "};
	static const char *const locals[] = {"a", "a.b", "a..b", ".a", "a.", "\"a b\"", "\"\\\"\"", "\"\"",
		"\xC3\xA9", "\xE5\xB1\xB1", "x+y=z", "\"a@b\""};
	static const char *const domains[] = {"example.com", "EXAMPLE.org", "ex\xC3\xA4mple.com",
		"\xE4\xBE\x8B.jp", "a.b.c.d.e", "xn--exmple-cua.com", "x--y.example"};
	StringInfoData text;
	int			count = 1 + any(5);

	initStringInfo(&text);
	for (int i = 0; i < count; i++)
	{
		const char *name = names[any(lengthof(names))];
		bool		angle = name[0] != '(' && (name[0] != '\0' || any(2));

		appendStringInfo(&text, "%s%s%s%s@%s%s%s", i > 0 ? ", " : "", name, angle ? "<" : "",
						 locals[any(lengthof(locals))], domains[any(lengthof(domains))],
						 angle ? ">" : "", any(5) == 0 ? " (c)" : "");
	}
	if (any(3) == 0)
	{
		const char *piece = address_pieces[any(lengthof(address_pieces))];
		int			at = any(text.len + 1);

		return psprintf("%.*s%s%s", at, text.data, piece, text.data + at);
	}
	return text.data;
}

/* ---- what must hold ---- */

/* Lines end with CRLF and are short enough; header bytes are 7-bit unless told. */
static void
check_wire(const StringInfo out, bool ascii, const char *input)
{
	int			line = 0;
	bool		good = out->len > 2 && memcmp(out->data + out->len - 2, "\r\n", 2) == 0;

	for (int i = 0; i < out->len && good; i++)
	{
		unsigned char ch = (unsigned char) out->data[i];

		if (ch == '\r')
			good = out->data[i + 1] == '\n';
		else if (ch == '\n')
		{
			good = i > 0 && out->data[i - 1] == '\r';
			line = -1;
		}
		else
			good = ch != '\0' && (!ascii || ch < 0x80) && line <= 998;
		line++;
	}
	check(good, "the wire's rules", input);
	check(out->len == (int) strlen(out->data), "the length", input);
}

static void
test_addresses(void)
{
	char	   *list = any(2) ? plausible() : HOSTILE(address_pieces, 24);
	KlmAddress *addresses;
	KlmAddress *again;
	KlmAddress	one;
	KlmError	error = {0};
	int			count;
	int			again_count;
	StringInfoData written;

	if (!klm_parse_address_list(list, &addresses, &count, &error))
	{
		check(error.message != NULL && (error.sqlstate == ERRCODE_INVALID_PARAMETER_VALUE ||
										error.sqlstate == ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			  "a reason", list);
		check(!klm_has_unsafe_char(error.message, false), "a printable message", list);
		check(!klm_parse_address_list(list, &again, &again_count, NULL), "the same verdict", list);
		return;
	}

	/* What was understood can be written and is understood again. */
	initStringInfo(&written);
	for (int i = 0; i < count; i++)
	{
		char	   *text = klm_format_address(addresses[i].name, addresses[i].addr);

		check(strlen(addresses[i].addr) <= 254 && strpbrk(addresses[i].addr, "\r\n") == NULL,
			  "an address for the wire", list);
		check(klm_parse_address(text, &one, &error) && strcmp(one.addr, addresses[i].addr) == 0,
			  "an address written and read", list);
		check((one.name == NULL) == (addresses[i].name == NULL) &&
			  (one.name == NULL || strcmp(one.name, addresses[i].name) == 0),
			  "a name written and read", list);
		appendStringInfo(&written, "%s%s", i > 0 ? ", " : "", text);
	}
	check(klm_parse_address_list(written.data, &again, &again_count, &error) &&
		  again_count == count, "a list written and read", list);

	/* And in a header. */
	{
		KlmIdentity identity = {.from_address = addresses[0].addr, .from_name = addresses[0].name,
		.reply_to = addresses, .reply_to_count = count};
		StringInfoData out;
		bool		ascii = true;

		for (int i = 0; i < count; i++)
			ascii &= !addresses[i].smtputf8;
		initStringInfo(&out);
		klm_mime_identity(&identity, &out);
		check_wire(&out, ascii, list);
	}
}

static void
test_message(void)
{
	char	   *subject = HOSTILE(address_pieces, any(100) == 0 ? 3000 : 30);
	char	   *value = HOSTILE(address_pieces, any(100) == 0 ? 3000 : 30);
	char	   *text = HOSTILE(html_pieces, any(50) == 0 ? 3000 : 40);
	char	   *html = HOSTILE(html_pieces, any(50) == 0 ? 3000 : 40);
	KlmHeader	headers[] = {{"X-Test", value}, {"References", value}, {"List-Unsubscribe", value}};
	KlmAttachment attachment = {.filename = HOSTILE(address_pieces, 10),
		.content_type = any(2) ? NULL : HOSTILE(address_pieces, 6),
	.content_id = any(2) ? NULL : HOSTILE(address_pieces, 4)};
	KlmContent	content = {.message_id = "id@example.com", .subject = subject, .headers = headers,
	.attachments = &attachment};
	KlmError	error;
	StringInfoData out;
	char	   *made;

	content.date = (TimestampTz) any(PG_INT32_MAX) * any(2000000) - (any(2) ? 0 : INT64CONST(1) << 50);
	made = klm_mime_text_from_html(html);
	check(strlen(made) <= 20 * strlen(html) + 200, "a text no longer than its HTML allows", html);
	pfree(made);

	if (!klm_mime_check_subject(subject, &error))
		content.subject = "";
	for (int i = 0; i < lengthof(headers); i++)
	{
		if (!klm_mime_check_header(headers[i].name, value, &error))
			continue;
		content.headers = &headers[i];
		content.header_count = 1;
	}
	if (klm_mime_check_attachment(&attachment, "exe", &error))
	{
		content.attachment_count = 1;
		attachment.data = text;
		attachment.length = strlen(text);
	}
	if (any(3) > 0)
		content.text = text;
	if (content.text == NULL || any(2))
		content.html = html;

	initStringInfo(&out);
	klm_mime_compose(&content, &out);
	check_wire(&out, true, subject);
	pfree(out.data);
}

/* A date whose calendar is known. */
static void
test_date(TimestampTz date, const char *expected)
{
	KlmContent	content = {.message_id = "id@example.com", .subject = "", .text = "", .date = date};
	StringInfoData out;

	initStringInfo(&out);
	klm_mime_compose(&content, &out);
	check(strncmp(out.data, expected, strlen(expected)) == 0, expected, out.data);
}

/* Many parts and a long body, which is read once and not once for each. */
static void
test_many_parts(void)
{
	static char html[5000001];
	KlmAttachment attachments[KLM_MAX_ATTACHMENTS];
	KlmContent	content = {.message_id = "id@example.com", .subject = "", .text = "", .html = html,
	.attachments = attachments, .attachment_count = KLM_MAX_ATTACHMENTS};
	StringInfoData out;
	clock_t		start = clock();

	memset(html, ':', sizeof(html) - 1);
	for (int i = 0; i < KLM_MAX_ATTACHMENTS; i++)
		attachments[i] = (KlmAttachment) {.filename = "a.png", .content_type = "image/png",
			.content_id = psprintf("id%d", i), .data = "x", .length = 1};
	initStringInfo(&out);
	klm_mime_compose(&content, &out);
	check((double) (clock() - start) / CLOCKS_PER_SEC < 1.5, "time for 5 MB of colons", "");
	pfree(out.data);
}

/* A joiner beside a wide space: no name, or dropped from one; a name that is taken is taken again. */
static void
test_joiners(void)
{
	static const char *const names[] = {
		"\xE3\x80\x80\xE2\x80\x8D\xC3\xA9", "\xC3\xA9\xE2\x80\x8D\xE3\x80\x80", "\xC3\xA9\xE3\x80\x80\xE2\x80\x8D\xC3\xA9",
	"\xC3\xA9\xE2\x80\x8D\xE3\x80\x80\xC3\xA9"};

	for (int i = 0; i < lengthof(names); i++)
	{
		KlmAddress	address;
		char	   *clean = klm_without_invisible(names[i]);

		check(!klm_parse_address(psprintf("%s <a@x.example>", names[i]), &address, NULL), "a joiner beside a space",
			  names[i]);
		check(klm_parse_address(klm_format_address(clean, "a@x.example"), &address, NULL), "without invisible characters",
			  names[i]);
	}
}

int
main(int argc, char **argv)
{
	int			rounds = argc > 1 ? atoi(argv[1]) : 20000;

	if (argc > 2)
		state = strtoull(argv[2], NULL, 10) * 2654435761u + 1;

	test_date(0, "Date: Sat, 1 Jan 2000 00:00:00 +0000\r\n");
	test_date(INT64CONST(-1), "Date: Fri, 31 Dec 1999 23:59:59 +0000\r\n");
	test_date(INT64CONST(5097599) * USECS_PER_SEC, "Date: Mon, 28 Feb 2000 23:59:59 +0000\r\n");
	test_date(INT64CONST(5097600) * USECS_PER_SEC, "Date: Tue, 29 Feb 2000 00:00:00 +0000\r\n");
	test_date(INT64CONST(5184000) * USECS_PER_SEC, "Date: Wed, 1 Mar 2000 00:00:00 +0000\r\n");
	test_date(INT64CONST(3160857599) * USECS_PER_SEC, "Date: Sun, 28 Feb 2100 23:59:59 +0000\r\n");
	test_date(INT64CONST(3160857600) * USECS_PER_SEC, "Date: Mon, 1 Mar 2100 00:00:00 +0000\r\n");
	test_date(INT64CONST(-946684800) * USECS_PER_SEC, "Date: Thu, 1 Jan 1970 00:00:00 +0000\r\n");
	test_many_parts();
	test_joiners();
	for (int i = 0; i < rounds; i++)
	{
		test_addresses();
		test_message();
	}
	printf("%d passed, %d failed\n", passed, failed);
	return failed != 0;
}
