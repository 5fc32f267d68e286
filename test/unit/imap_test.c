/*-------------------------------------------------------------------------
 *
 * imap_test.c
 *		Unit tests of src/feedback/imap.c: what a server's bytes become, in
 *		pieces of every size, the hostile ones among them.
 *
 * Build (libpgcommon and libpgport are PostgreSQL's frontend libraries):
 *	cc -Isrc -I$(pg_config --includedir-server) -o imap_test
 *		test/unit/imap_test.c src/base/error.c src/base/text.c src/feedback/imap.c
 *		-L$(pg_config --pkglibdir) -L$(pg_config --libdir) -lpgcommon -lpgport
 * Ends with "N passed, N failed".
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feedback/imap.h"

#include "counting.h"
#include "outside.h"

/* What the machine has learnt, in a line. */
static char *
summary(const KlmImap *imap)
{
	static const char *const names[] = {"waits", "goes on", "ok", "no", "broken"};
	StringInfoData out;

	initStringInfo(&out);
	appendStringInfo(&out, "%s '%.40s' uv%u", names[imap->status], imap->text, imap->uid_validity);
	if (imap->try_create)
		appendStringInfoString(&out, " trycreate");
	if (imap->try_later)
		appendStringInfoString(&out, " later");
	if (imap->read_only)
		appendStringInfoString(&out, " read-only");
	for (int i = 0; i < imap->uid_count; i++)
		appendStringInfo(&out, " %u", imap->uids[i]);
	if (imap->has_body)
		appendStringInfo(&out, " body %d:%.20s", imap->body.len, imap->body.data);
	return out.data;
}

/* After the greeting: 'c' CAPABILITY, 's' a search above 4, 'f' a fetch of 9. */
static void
expect(char command, const char *name, const char *input, Size length, const char *expected)
{
	static const Size pieces[] = {1, 2, 7, 100000000};

	for (int p = 0; p < lengthof(pieces); p++)
	{
		KlmImap		imap;
		char	   *found;

		klm_imap_init(&imap);
		if (command == 's')
			klm_imap_search(&imap, 4);
		else if (command == 'f')
			klm_imap_fetch(&imap, 9);
		else
			klm_imap_command(&imap, "CAPABILITY");
		for (Size at = 0; at < length; at += pieces[p])
			klm_imap_received(&imap, input + at, Min(pieces[p], length - at));
		found = summary(&imap);
		check(strcmp(found, expected) == 0, name,
			  psprintf("%s\n\texpected: %s", found, expected));
	}
}

#define EXPECT(command, name, input, expected) \
	expect(command, name, input, sizeof(input) - 1, expected)

static void
test_limits(void)
{
	StringInfoData input;
	KlmImap		imap;

	/* A million numbers, from above: the lowest hundred are kept. */
	initStringInfo(&input);
	appendStringInfoString(&input, "* SEARCH");
	for (int i = 1000000; i > 0; i--)
		appendStringInfo(&input, " %d", i);
	appendStringInfoString(&input, "\r\nk1 OK\r\n");
	klm_imap_init(&imap);
	klm_imap_search(&imap, 50);
	klm_imap_received(&imap, input.data, input.len);
	check(imap.status == KLM_IMAP_OK && imap.uid_count == KLM_IMAP_UIDS_MAX && imap.uids[0] == 51 &&
		  imap.uids[99] == 150 && imap.line.maxlen <= 1024, "a million numbers", summary(&imap));

	/* A mail of more than was asked for. */
	resetStringInfo(&input);
	appendStringInfo(&input, "* 1 FETCH (UID 9 BODY[]<0> {%d}\r\n", 3 * KLM_IMAP_BODY_MAX);
	for (int i = 0; i < 3 * KLM_IMAP_BODY_MAX; i++)
		appendStringInfoChar(&input, 'x');
	appendStringInfoString(&input, ")\r\nk1 OK\r\n");
	klm_imap_init(&imap);
	klm_imap_fetch(&imap, 9);
	klm_imap_received(&imap, input.data, input.len);
	check(imap.status == KLM_IMAP_OK && imap.body.len == KLM_IMAP_BODY_MAX, "a large mail",
		  psprintf("%d", imap.body.len));

	/* A line without an end. */
	klm_imap_init(&imap);
	klm_imap_search(&imap, 1);
	klm_imap_received(&imap, input.data + 100, 200000);
	check(imap.status == KLM_IMAP_BROKEN && imap.line.maxlen <= 131072, "an endless line",
		  summary(&imap));
}

int
main(void)
{
	EXPECT('c', "capabilities", "* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nk1 OK done\r\n", "ok 'done' uv0");
	EXPECT('c', "busy", "k1 NO [LIMIT] later\r\n", "no '[LIMIT] later' uv0 later");
	EXPECT('c', "refused", "k1 NO [TRYCREATE] no such\r\n", "no '[TRYCREATE] no such' uv0 trycreate");
	EXPECT('c', "bad", "k1 BAD what\r\n", "no 'what' uv0");
	EXPECT('c', "select", "* 3 EXISTS\r\n* OK [UIDVALIDITY 77] x\r\n* FLAGS (\\Seen)\r\nk1 OK [READ-ONLY] y\r\n",
		   "ok '[READ-ONLY] y' uv77 read-only");
	EXPECT('c', "bye", "* BYE too many\r\n", "broken 'too many' uv0");
	EXPECT('c', "another's tag", "k2 OK done\r\n", "broken 'k2 OK done' uv0");
	EXPECT('c', "no IMAP", "HTTP/1.1 200 OK\r\n", "broken 'HTTP/1.1 200 OK' uv0");
	EXPECT('c', "go on", "+ \r\n", "goes on '' uv0");
	EXPECT('c', "nothing yet", "* OK \0\xff", "waits '' uv0");
	EXPECT('s', "found", "* SEARCH 9 4 7 5 5\r\nk1 OK\r\n", "ok '' uv0 5 7 9");
	EXPECT('s', "found nothing", "* SEARCH\r\nk1 OK\r\n", "ok '' uv0");
	EXPECT('s', "numbers that are none", "* SEARCH 4294967296 99999999999999999999999 -7 0x8 6\r\nk1 OK\r\n",
		   "ok '' uv0 6 7 8");
	EXPECT('f', "a mail", "* 2 FETCH (UID 9 BODY[]<0> {7}\r\na\r\nk1 O FLAGS (\\Seen))\r\nk1 OK\r\n",
		   "ok '' uv0 body 7:a\r\nk1 O");
	EXPECT('f', "before its number", "* 2 FETCH (BODY[]<0> {3}\r\nabc UID 9)\r\nk1 OK\r\n", "ok '' uv0 body 3:abc");
	EXPECT('f', "of two the first", "* 2 FETCH (BODY[] {3}\r\nabc BODY[] {3}\r\ndef)\r\nk1 OK\r\n", "ok '' uv0 body 3:abc");
	EXPECT('f', "other literals", "* 2 FETCH (X {8}\r\nBODY[] {9 BODY[] {3}\r\nabc)\r\nk1 OK\r\n", "ok '' uv0 body 3:abc");
	EXPECT('f', "quoted", "* 2 FETCH (FLAGS (\"BODY[]\") BODY[]<0> \"a\\\"b\")\r\nk1 OK\r\n", "ok '' uv0 body 3:a\"b");
	EXPECT('f', "empty", "* 2 FETCH (UID 9 BODY[] NIL)\r\nk1 OK\r\n", "ok '' uv0 body 0:");
	EXPECT('f', "an empty literal", "* 2 FETCH (UID 9 BODY[] {0}\r\n)\r\nk1 OK\r\n", "ok '' uv0 body 0:");
	EXPECT('f', "gone", "k1 OK\r\n", "ok '' uv0");
	EXPECT('f', "a literal that never ends", "* 2 FETCH (BODY[] {999999999999999999}\r\nk1 OK\r\n",
		   "waits '' uv0 body 7:k1 OK\r\n");
	EXPECT('f', "no literal's size", "* 2 FETCH (BODY[] {9999999999999999999}\r\nk1 OK\r\n", "ok '' uv0");
	check(strcmp(klm_imap_quote("a\"b\\c"), "\"a\\\"b\\\\c\"") == 0, "quoting", klm_imap_quote("a\"b\\c"));
	check(klm_imap_quote("a\r\nk9 LOGOUT") == NULL, "no line end in a string", "");
	check(strcmp(klm_imap_set((uint32[]) {3, 9}, 2), "3,9") == 0, "a set", "");
	test_limits();
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
