/*-------------------------------------------------------------------------
 *
 * smtp_test.c
 *		Unit tests of src/smtp/session.c: each window of a session by script, then a
 *		server model that misbehaves at random and keeps a ledger.
 *
 * Build (libpgcommon and libpgport are PostgreSQL's frontend libraries; add
 * -fsanitize=address,undefined for the sanitizers):
 *	cc -DUSE_ASSERT_CHECKING -Isrc -I$(pg_config --includedir-server) -o smtp_test
 *		test/unit/smtp_test.c src/base/error.c src/base/text.c src/smtp/*.c
 *		-L$(pg_config --pkglibdir) -L$(pg_config --libdir) -lpgcommon -lpgport
 * Run: smtp_test [rounds [seed]].  Ends with "N passed, N failed".
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "smtp/session.h"

/* ---- the part of PostgreSQL that the frontend libraries lack ---- */

typedef struct Chunk
{
	struct Chunk *next;
	struct Chunk *previous;
} Chunk;

static Chunk chunks = {&chunks, &chunks};

MemoryContext CurrentMemoryContext = NULL;

MemoryContext
AllocSetContextCreateInternal(MemoryContext parent, const char *name, Size min, Size init, Size max)
{
	return (MemoryContext) &chunks;
}

/* palloc() and pfree() of the frontend library are malloc() and free(). */
void *
MemoryContextAlloc(MemoryContext context, Size size)
{
	/* As the server's memory is: never zeroes by chance. */
	return memset(palloc(size), 0x7f, size);
}

static void *session_memory;
static const char *test_name = "";

void
MemoryContextDelete(MemoryContext context)
{
	pfree(session_memory);
}

void
ExceptionalCondition(const char *condition,
#if PG_VERSION_NUM < 160000
					 const char *type,
#endif
					 const char *file, int line)
{
	fflush(stdout);
	fprintf(stderr, "%s: assertion failed: %s, %s:%d\n", test_name, condition, file, line);
	abort();
}

/* ---- counting ---- */

static int	passed;
static int	failed;

static void
check(bool ok, const char *what, int line)
{
	if (ok)
		passed++;
	else
	{
		failed++;
		printf("not ok: %s: %s (line %d)\n", test_name, what, line);
	}
}

#define CHECK(condition) check(condition, #condition, __LINE__)

static void
check_text(const char *got, const char *wanted, int line)
{
	if (strcmp(got, wanted) == 0)
		passed++;
	else
	{
		failed++;
		printf("not ok: %s (line %d)\n--- got\n%s\n--- wanted\n%s\n", test_name, line, got, wanted);
	}
}

#define CHECK_TEXT(got, wanted) check_text(got, wanted, __LINE__)

static uint64 random_state;

static uint32
random_below(uint32 limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (uint32) (random_state >> 11) % limit;
}

/* ---- a session by script ---- */

static KlmSmtp *smtp;
static char *wire;				/* all that was sent */
static Size wire_length;
static Size wire_size;

static void
wire_add(const char *data, Size length)
{
	while (wire_length + length + 1 > wire_size)
	{
		wire_size = wire_size ? wire_size * 2 : 65536;
		wire = realloc(wire, wire_size);
	}
	memcpy(wire + wire_length, data, length);
	wire_length += length;
	wire[wire_length] = '\0';
}

static void
start(const char *name, const char *ehlo)
{
	KlmSmtpCaps caps;

	test_name = name;
	klm_smtp_parse_ehlo(ehlo, strlen(ehlo), &caps);
	smtp = klm_smtp_create(&caps);
	session_memory = smtp;
	wire_length = 0;
	wire_add("", 0);
}

static void
finish(void)
{
	KlmSmtpResult result;

	/* No result may be left that no test has looked at. */
	CHECK(!klm_smtp_result(smtp, &result));
	klm_smtp_destroy(smtp);
}

#define LOCKSTEP "250 mx\r\n"
#define PIPELINING "250-mx\r\n250 PIPELINING\r\n"
#define CHUNKING "250-mx\r\n250-PIPELINING\r\n250 CHUNKING\r\n"

static bool chunk;				/* what the caller allows */

static void
begin_full(const char *tag, const char *from, const char *to, const char *body)
{
	KlmSmtpDelivery delivery = {0};

	delivery.tag = unconstify(char *, tag);
	delivery.mail_from = from;
	delivery.rcpt_to = to ? to : from;
	delivery.ask = to == NULL;
	delivery.chunk = chunk;
	delivery.parts[0].data = body;
	delivery.parts[0].length = strlen(body);
	delivery.part_count = 1;
	klm_smtp_begin(smtp, &delivery);
}

static void
begin(const char *tag)
{
	static char rcpt[4][32];
	static int	turn;
	char	   *to = rcpt[turn++ % 4];

	snprintf(to, 32, "%s@x", tag);
	begin_full(tag, "s@x", to, "hi\r\n");
}

/* Send all there is; returns what was sent since the last call. */
static const char *
sent(void)
{
	Size		from = wire_length;
	Size		length;
	const char *data;

	while ((data = klm_smtp_output(smtp, &length)) != NULL)
	{
		wire_add(data, length);
		klm_smtp_sent(smtp, length);
	}
	return wire + from;
}

static void
server(const char *text)
{
	klm_smtp_received(smtp, text, strlen(text));
}

/* The next result as "tag [lost] [unstarted] [chunk_failed] STAGE code enhanced". */
static const char *
result(void)
{
	static const char *const stages[] = {"connect", "greeting", "tls", "ehlo", "auth", "mail",
	"rcpt", "data", "dot"};
	static char text[200];
	KlmSmtpResult r;

	if (!klm_smtp_result(smtp, &r))
		return "none";
	snprintf(text, sizeof(text), "%s%s%s%s %s %d%s%s", (char *) r.tag, r.lost ? " lost" : "",
			 r.started ? "" : " unstarted", r.chunk_failed ? " chunk_failed" : "", stages[r.reply.stage], r.reply.code,
			 r.reply.enhanced[0] ? " " : "", r.reply.enhanced);
	pfree(r.reply.text);
	return text;
}

static const char *
awaits(void)
{
	KlmStage	stage;

	if (!klm_smtp_awaits(smtp, &stage))
		return "nothing";
	return stage == KLM_STAGE_MAIL ? "mail" : stage == KLM_STAGE_RCPT ? "rcpt" :
		stage == KLM_STAGE_DATA ? "data" : stage == KLM_STAGE_DOT ? "dot" : "other";
}

#define ENVELOPE(tag) "MAIL FROM:<s@x>\r\nRCPT TO:<" tag "@x>\r\nDATA\r\n"
#define BODY "hi\r\n.\r\n"
#define CHUNK(tag) "MAIL FROM:<s@x>\r\nRCPT TO:<" tag "@x>\r\nBDAT 4 LAST\r\nhi\r\n"
#define ALL_OK "250 2.1.0 ok\r\n250 2.1.5 ok\r\n250 2.0.0 queued\r\n"

static void
test_ehlo(void)
{
	KlmSmtpCaps caps;
	const char *raw = "250-PIPELINING\r\n250-size 10485760\r\n250-Auth plain LOGIN\r\n"
		"250-AUTH=CRAM-MD5\r\n250-8bitmime\r\n250-SMTPUTF8\r\n250-STARTTLS\r\n"
		"250-DSN\r\n250 pipelining\r\n";

	test_name = "EHLO";
	klm_smtp_parse_ehlo(raw, strlen(raw), &caps);
	CHECK(caps.pipelining && caps.eightbitmime && caps.smtputf8 && caps.starttls && caps.dsn);
	CHECK(caps.size_offered && caps.size == 10485760);
	CHECK_TEXT(caps.auth_mechanisms, "PLAIN LOGIN CRAM-MD5");
	klm_smtp_parse_ehlo("250 PIPELINING\r\n", 16, &caps);
	CHECK(!caps.pipelining);	/* the first line is a name */
	CHECK(!caps.chunking);
	klm_smtp_parse_ehlo("250-mx\n250 chunking\n", 20, &caps);
	CHECK(caps.chunking);
	klm_smtp_parse_ehlo("250-mx\n250-SIZE\n250 SIZE 99999999999999999999999\n", 48, &caps);
	CHECK(caps.size_offered && caps.size == 0);
	klm_smtp_parse_ehlo("", 0, &caps);
	CHECK(!caps.auth && !caps.size_offered);
	klm_smtp_parse_ehlo("250-mx\r\n250-\r\n250", 17, &caps);
	CHECK(!caps.auth);
}

static void
test_lockstep(void)
{
	start("lock-step", LOCKSTEP);
	CHECK_TEXT(awaits(), "nothing");
	begin("a");
	CHECK(!klm_smtp_can_begin(smtp) && klm_smtp_open_count(smtp) == 1);
	CHECK_TEXT(sent(), "MAIL FROM:<s@x>\r\n");
	CHECK_TEXT(awaits(), "mail");
	server("250 ok\r\n");
	CHECK_TEXT(sent(), "RCPT TO:<a@x>\r\n");
	CHECK_TEXT(awaits(), "rcpt");
	server("250 ok\r\n");
	CHECK_TEXT(sent(), "DATA\r\n");
	CHECK_TEXT(awaits(), "data");
	server("354 go\r\n");
	CHECK_TEXT(awaits(), "data");
	CHECK_TEXT(sent(), BODY);
	CHECK_TEXT(awaits(), "dot");
	server("250 2.0.0 queued as 1\r\n");
	CHECK_TEXT(result(), "a dot 250 2.0.0");
	CHECK_TEXT(awaits(), "nothing");
	CHECK(klm_smtp_can_begin(smtp) && klm_smtp_open_count(smtp) == 0);

	/* refused at RCPT: RSET before the next one */
	begin("b");
	CHECK_TEXT(sent(), "MAIL FROM:<s@x>\r\n");
	server("250 ok\r\n");
	CHECK_TEXT(sent(), "RCPT TO:<b@x>\r\n");
	server("550 5.1.1 no\r\n");
	CHECK_TEXT(result(), "b rcpt 550 5.1.1");
	CHECK(klm_smtp_can_begin(smtp));
	begin("c");
	CHECK_TEXT(sent(), "RSET\r\n");
	CHECK_TEXT(awaits(), "mail");
	server("250 ok\r\n");
	CHECK_TEXT(sent(), "MAIL FROM:<s@x>\r\n");
	/* refused at MAIL: nothing to reset */
	server("451 4.3.0 later\r\n");
	CHECK_TEXT(result(), "c mail 451 4.3.0");
	CHECK_TEXT(sent(), "");
	/* refused at DATA */
	begin("d");
	sent();
	server("250 ok\r\n");
	sent();
	server("250 ok\r\n");
	sent();
	server("554 5.5.1 no\r\n");
	CHECK_TEXT(result(), "d data 554 5.5.1");
	CHECK_TEXT(sent(), "RSET\r\n");
	server("250 ok\r\n");
	/* refused at the dot */
	begin("e");
	sent();
	server("250 ok\r\n");
	sent();
	server("250 ok\r\n");
	sent();
	server("354 ok\r\n");
	CHECK_TEXT(sent(), BODY);
	server("554 5.7.1 spam\r\n");
	CHECK_TEXT(result(), "e dot 554 5.7.1");
	CHECK_TEXT(sent(), "");
	klm_smtp_quit(smtp);
	CHECK(!klm_smtp_usable(smtp) && !klm_smtp_can_begin(smtp));
	CHECK_TEXT(sent(), "QUIT\r\n");
	CHECK_TEXT(awaits(), "nothing");
	server("221 bye\r\n");
	CHECK_TEXT(sent(), "");
	finish();
}

static void
test_pipelining(void)
{
	start("pipelining", PIPELINING);
	begin("a");
	CHECK(klm_smtp_can_begin(smtp));
	CHECK_TEXT(sent(), ENVELOPE("a"));
	begin("b");
	CHECK(!klm_smtp_can_begin(smtp) && klm_smtp_open_count(smtp) == 2);
	CHECK_TEXT(sent(), "");		/* b waits for a's dot */
	server("250 ok\r\n250 ok\r\n");
	CHECK_TEXT(awaits(), "data");
	server("354 go\r\n");
	CHECK_TEXT(sent(), BODY ENVELOPE("b"));
	CHECK_TEXT(awaits(), "dot");
	server("250 1\r\n");
	CHECK_TEXT(result(), "a dot 250");
	CHECK_TEXT(awaits(), "mail");
	begin("c");
	server("250 ok\r\n550 5.1.1 no\r\n554 5.5.1 no valid recipients\r\n");
	CHECK_TEXT(result(), "b rcpt 550 5.1.1");
	CHECK_TEXT(sent(), "RSET\r\n" ENVELOPE("c"));
	/* 354 although RCPT failed: a lone dot, its reply swallowed */
	server("250 reset\r\n250 ok\r\n450 4.2.1 later\r\n354 go\r\n");
	CHECK_TEXT(result(), "c rcpt 450 4.2.1");
	begin("d");
	CHECK_TEXT(sent(), ".\r\n" ENVELOPE("d"));
	CHECK_TEXT(awaits(), "dot");
	server("554 5.5.1 no valid recipients\r\n");
	CHECK_TEXT(result(), "none");
	/* MAIL failed, the rest follows suit */
	server("452 4.3.1 full\r\n503 5.5.1 need MAIL\r\n503 5.5.1 need RCPT\r\n");
	CHECK_TEXT(result(), "d mail 452 4.3.1");
	CHECK_TEXT(sent(), "");
	begin("e");
	CHECK_TEXT(sent(), ENVELOPE("e"));
	/* DATA refused */
	server("250 ok\r\n250 ok\r\n451 4.3.0 no\r\n");
	CHECK_TEXT(result(), "e data 451 4.3.0");
	klm_smtp_quit(smtp);
	CHECK_TEXT(sent(), "RSET\r\n");
	server("250 ok\r\n");
	CHECK_TEXT(sent(), "QUIT\r\n");
	finish();

	/* Two failures in a row, the slots drain independently. */
	start("pipelining, both refused", PIPELINING);
	begin("a");
	begin("b");
	sent();
	server("250 ok\r\n550 no\r\n");
	CHECK_TEXT(result(), "a rcpt 550");
	CHECK(!klm_smtp_can_begin(smtp));	/* a's DATA is not answered */
	CHECK_TEXT(sent(), "");
	server("503 no\r\n");
	CHECK_TEXT(sent(), "RSET\r\n" ENVELOPE("b"));
	server("250 ok\r\n250 ok\r\n550 no\r\n503 no\r\n");
	CHECK_TEXT(result(), "b rcpt 550");
	CHECK_TEXT(sent(), "RSET\r\n");
	finish();

	/* MAIL refused, yet RCPT and DATA accepted: an empty mail must not go out. */
	start("no empty mail", PIPELINING);
	begin("a");
	sent();
	server("451 no\r\n250 ok\r\n354 go\r\n");
	CHECK_TEXT(result(), "a mail 451");
	CHECK_TEXT(sent(), "");
	CHECK(!klm_smtp_usable(smtp));
	finish();
}

/* A session whose server has accepted a message, which chunks need. */
static void
start_chunks(const char *name)
{
	start(name, CHUNKING);
	chunk = true;
	begin("first");
	sent();
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	sent();
	server("250 2.0.0 queued\r\n");
	CHECK_TEXT(result(), "first dot 250 2.0.0");
}

/* BDAT, with PIPELINING, where the server has accepted mail before. */
static void
test_chunks(void)
{
	start("chunks", CHUNKING);
	chunk = true;
	begin("a");
	CHECK_TEXT(sent(), ENVELOPE("a"));	/* nothing is known of the server yet */
	begin("b");
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	CHECK_TEXT(sent(), BODY ENVELOPE("b"));
	server("250 2.0.0 queued\r\n250 ok\r\n250 ok\r\n354 go\r\n");
	CHECK_TEXT(sent(), BODY);
	CHECK_TEXT(result(), "a dot 250 2.0.0");
	begin("c");
	CHECK_TEXT(sent(), CHUNK("c"));
	CHECK_TEXT(awaits(), "dot");
	server("250 2.0.0 queued\r\n");
	CHECK_TEXT(result(), "b dot 250 2.0.0");
	CHECK_TEXT(awaits(), "dot");	/* all of c has left */
	begin("d");
	CHECK(!klm_smtp_can_begin(smtp) && klm_smtp_open_count(smtp) == 2);
	/* whether c's BDAT is accepted is not known */
	CHECK_TEXT(sent(), "RSET\r\n" CHUNK("d"));
	server(ALL_OK);
	CHECK_TEXT(result(), "c dot 250 2.0.0");
	CHECK_TEXT(awaits(), "dot");
	server("250 reset\r\n" ALL_OK);
	CHECK_TEXT(result(), "d dot 250 2.0.0");
	CHECK_TEXT(awaits(), "nothing");
	/* it is known now */
	begin("e");
	CHECK_TEXT(sent(), CHUNK("e"));
	server("250 ok\r\n250 ok\r\n554 5.7.1 spam\r\n");
	CHECK_TEXT(result(), "e dot 554 5.7.1");
	begin("f");
	CHECK_TEXT(sent(), "RSET\r\n" CHUNK("f"));
	begin("g");
	CHECK_TEXT(sent(), "RSET\r\n" CHUNK("g"));
	/* f's recipient is refused, g goes through */
	server("250 reset\r\n250 ok\r\n550 5.1.1 no\r\n");
	CHECK_TEXT(result(), "f rcpt 550 5.1.1");
	CHECK(!klm_smtp_can_begin(smtp));
	server("503 5.5.1 no recipients\r\n250 reset\r\n" ALL_OK);
	CHECK_TEXT(result(), "g dot 250 2.0.0");
	/* MAIL refused; a server may also swallow what is for nobody */
	begin("h");
	CHECK_TEXT(sent(), CHUNK("h"));
	server("451 4.3.0 later\r\n503 5.5.1 no\r\n503 5.5.1 no\r\n");
	CHECK_TEXT(result(), "h mail 451 4.3.0");
	begin("i");
	CHECK_TEXT(sent(), "RSET\r\n" CHUNK("i"));
	server("250 reset\r\n250 ok\r\n450 4.2.1 later\r\n250 2.6.0 thrown away\r\n");
	CHECK_TEXT(result(), "i rcpt 450 4.2.1");
	/* ... and whether the transaction ended with it, nobody says */
	klm_smtp_quit(smtp);
	CHECK_TEXT(sent(), "RSET\r\n");
	server("250 reset\r\n");
	CHECK_TEXT(sent(), "QUIT\r\n");
	finish();

	/* RCPT's reply said twice is no yes to the message. */
	for (int i = 0; i < 2; i++)
	{
		start_chunks("a reply said twice");
		begin("a");
		sent();
		server(i ? "250 2.1.0 ok\r\n250 2.1.5 ok\r\n250 2.1.5 ok\r\n" : "250 ok\r\n250 fine\r\n250 ok\r\n");
		CHECK_TEXT(result(), "a lost chunk_failed dot 0");
		CHECK(!klm_smtp_usable(smtp));
		finish();
	}
	/* Also where the recipient is accepted in words that no other was. */
	start_chunks("a reply of its own said twice");
	begin("a");
	sent();
	server("250 ok\r\n251 will be forwarded\r\n251 will be forwarded\r\n");
	CHECK_TEXT(result(), "a lost chunk_failed dot 0");
	finish();
	start("recipients named in replies", CHUNKING);
	for (int i = 0; i < 2; i++)
	{
		/* Were the reply to MAIL said twice, the last one would look like the message's. */
		begin("a");
		CHECK_TEXT(sent(), ENVELOPE("a"));
		server("250 ok\r\n250 <a@x> ok\r\n354 go\r\n");
		sent();
		server("250 queued\r\n");
		CHECK_TEXT(result(), "a dot 250");
	}
	finish();
	start("one yes for all", CHUNKING);
	for (int i = 0; i < 2; i++)
	{
		begin("a");
		CHECK_TEXT(sent(), ENVELOPE("a"));
		server("250 ok\r\n250 ok\r\n354 go\r\n");
		sent();
		server("250 ok\r\n");
		CHECK_TEXT(result(), "a dot 250");
	}
	finish();

	start_chunks("no chunk without the caller's leave");
	chunk = false;
	begin("a");
	CHECK_TEXT(sent(), ENVELOPE("a"));
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	sent();
	/* nor to ask, and DATA may follow a chunk that is not answered */
	chunk = true;
	begin("b");
	CHECK_TEXT(sent(), CHUNK("b"));
	server("250 yes\r\n");
	CHECK_TEXT(result(), "a dot 250");
	chunk = false;
	begin("c");
	CHECK_TEXT(sent(), "RSET\r\n" ENVELOPE("c"));
	server(ALL_OK "250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n");
	CHECK_TEXT(result(), "b dot 250 2.0.0");
	CHECK_TEXT(sent(), BODY);
	chunk = true;
	server("250 ok\r\n");
	CHECK_TEXT(result(), "c dot 250");
	begin_full("ask", "s@x", NULL, "");
	CHECK_TEXT(sent(), "MAIL FROM:<s@x>\r\n");
	server("250 ok\r\n");
	CHECK_TEXT(sent(), "RCPT TO:<s@x>\r\n");
	server("250 ok\r\n");
	CHECK_TEXT(result(), "ask rcpt 250");
	finish();

	/* A server without PIPELINING has no use for it. */
	start("CHUNKING alone", "250-mx\r\n250 CHUNKING\r\n");
	for (int i = 0; i < 2; i++)
	{
		begin("a");
		CHECK_TEXT(sent(), "MAIL FROM:<s@x>\r\n");
		server("250 ok\r\n");
		CHECK_TEXT(sent(), "RCPT TO:<a@x>\r\n");
		server("250 ok\r\n");
		CHECK_TEXT(sent(), "DATA\r\n");
		server("354 go\r\n");
		CHECK_TEXT(sent(), BODY);
		server("250 ok\r\n");
		CHECK_TEXT(result(), "a dot 250");
	}
	finish();

	/* Gone without a word: what has left is in doubt, both of them. */
	start_chunks("closed behind chunks");
	begin("a");
	begin("b");
	sent();
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a lost chunk_failed dot 0");
	CHECK_TEXT(result(), "b lost chunk_failed dot 0");
	finish();

	start_chunks("closed behind a chunk whose envelope was answered");
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a lost chunk_failed dot 0");
	finish();

	start_chunks("closed before a chunk has left");
	begin("a");
	{
		Size		length;

		klm_smtp_output(smtp, &length);
		klm_smtp_sent(smtp, length - 1);
	}
	CHECK_TEXT(awaits(), "mail");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a lost unstarted mail 0");
	finish();

	/* With a word: nothing is in doubt. */
	start_chunks("421 to a chunk's MAIL");
	begin("a");
	begin("b");
	sent();
	server("421 4.7.0 too many messages\r\n");
	CHECK_TEXT(result(), "a unstarted mail 421 4.7.0");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	CHECK(!klm_smtp_usable(smtp));
	finish();

	start_chunks("421 to a chunk's message");
	begin("a");
	begin("b");
	sent();
	server("250 ok\r\n250 ok\r\n421 4.3.2 closing\r\n");
	CHECK_TEXT(result(), "a dot 421 4.3.2");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	finish();

	start_chunks("refused while its message leaves");
	begin("a");
	{
		Size		length;

		klm_smtp_output(smtp, &length);
		klm_smtp_sent(smtp, length - 1);
	}
	server("250 ok\r\n250 ok\r\n");
	CHECK_TEXT(awaits(), "data");
	server("552 5.3.4 too big\r\n");
	CHECK_TEXT(result(), "a data 552 5.3.4");
	CHECK(!klm_smtp_usable(smtp));
	finish();

	/* The first line of an open reply counts, as it does for a dot. */
	start_chunks("closed within the reply to a chunk");
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n250-2.0.0 queued\r\n");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a dot 250 2.0.0");
	finish();

	/* A server that does not know what it offers: nobody's attempt. */
	for (int code = 500; code <= 504; code++)
	{
		char		reply[80];

		start_chunks("BDAT is not known");
		begin("a");
		begin("b");
		sent();
		snprintf(reply, sizeof(reply), "250 ok\r\n250 ok\r\n%d 5.5.1 what\r\n", code);
		server(reply);
		CHECK_TEXT(result(), "a lost unstarted chunk_failed data 0");
		CHECK_TEXT(result(), "b lost chunk_failed dot 0");
		CHECK(!klm_smtp_usable(smtp));
		CHECK_TEXT(sent(), "");
		finish();
	}

	/* As Postfix says it where it was told not to offer CHUNKING, say behind a proxy that does. */
	start_chunks("BDAT is not known, and the server hangs up");
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n521 5.5.1 Error: command not implemented\r\n");
	CHECK_TEXT(result(), "a lost unstarted chunk_failed data 0");
	CHECK(!klm_smtp_usable(smtp));
	finish();

	/* By its status it is the message that is refused: the next one goes on. */
	for (int policy = 0; policy < 2; policy++)
	{
		start_chunks("a message refused with the code of a command");
		begin("a");
		begin("b");
		sent();
		server(policy ? "250 ok\r\n250 ok\r\n501 5.7.1 what\r\n" : "250 ok\r\n250 ok\r\n500 5.6.0 what\r\n");
		CHECK_TEXT(result(), policy ? "a dot 501 5.7.1" : "a dot 500 5.6.0");
		server("250 reset\r\n" ALL_OK);
		CHECK_TEXT(result(), "b dot 250 2.0.0");
		CHECK(klm_smtp_usable(smtp));
		finish();
	}

	/* One that refuses MAIL and goes on to accept: what it has is anybody's guess. */
	start_chunks("accepted behind a refused MAIL");
	begin("a");
	sent();
	server("451 4.3.0 no\r\n250 ok\r\n");
	CHECK_TEXT(result(), "a mail 451 4.3.0");
	CHECK(!klm_smtp_usable(smtp));
	finish();

	/* Each refusal takes a RSET, and a server that tires of them leaves no chunk in doubt. */
	start_chunks("refused again and again");
	for (int i = 0; i < 6; i++)
	{
		begin("a");
		CHECK((strstr(sent(), "BDAT") != NULL) == (i < 5));
		server(i ? "250 reset\r\n250 ok\r\n550 no\r\n503 no\r\n" : "250 ok\r\n550 no\r\n503 no\r\n");
		CHECK_TEXT(result(), "a rcpt 550");
	}
	begin("a");
	CHECK_TEXT(sent(), "RSET\r\n" ENVELOPE("a"));
	server("554 Too many nonmail commands\r\n");
	CHECK_TEXT(result(), "a lost unstarted mail 0");
	finish();

	/* Too large to leave before RCPT is answered; and one that its line ends make too large. */
	for (int lines = 0; lines < 2; lines++)
	{
		static char large[32768 + 2];

		memset(large, lines ? '\n' : 'x', sizeof(large) - 1);
		large[lines ? 32760 : 32769] = '\0';
		start_chunks("too large for a chunk");
		begin_full("a", "s@x", "a@x", large);
		CHECK_TEXT(sent(), ENVELOPE("a"));
		server("250 ok\r\n250 ok\r\n354 go\r\n");
		CHECK(strlen(sent()) == (lines ? 2 * 32760 + 3 : 32769 + 5));
		server("250 ok\r\n");
		CHECK_TEXT(result(), "a dot 250");
		finish();
	}

	/* A chunk waits for room: it leaves in one piece. */
	start_chunks("no room for a chunk");
	{
		static char half[32768];
		Size		length;

		memset(half, 'x', sizeof(half) - 1);
		begin_full("a", "s@x", "a@x", half);
		klm_smtp_output(smtp, &length);
		klm_smtp_sent(smtp, 10);
		begin_full("b", "s@x", "b@x", half);
		klm_smtp_output(smtp, &length);
		CHECK(length < 33000);
		klm_smtp_sent(smtp, length);
		CHECK(strncmp(sent(), "RSET\r\nMAIL FROM:<s@x>\r\nRCPT TO:<b@x>\r\nBDAT 32769 LAST\r\nxxx", 58) == 0);
		server(ALL_OK "250 reset\r\n" ALL_OK);
		CHECK_TEXT(result(), "a dot 250 2.0.0");
		CHECK_TEXT(result(), "b dot 250 2.0.0");
	}
	finish();
	chunk = false;
}

/* The connection goes away in every window. */
static void
test_closed(void)
{
	start("closed before anything was sent", PIPELINING);
	begin("a");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a lost unstarted mail 0");
	CHECK(!klm_smtp_usable(smtp));
	finish();

	/* The first line of a session is no continuation of anything. */
	start("a first line that is no reply", PIPELINING);
	begin("a");
	sent();
	server("hello\r\n");
	CHECK(!klm_smtp_usable(smtp));
	CHECK_TEXT(result(), "a lost mail 0");
	finish();

	start("closed with one byte sent", PIPELINING);
	begin("a");
	{
		Size		length;

		klm_smtp_output(smtp, &length);
		klm_smtp_sent(smtp, 1);
	}
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a lost mail 0");
	finish();

	start("closed at RCPT", PIPELINING);
	begin("a");
	begin("b");
	sent();
	server("250 ok\r\n");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a lost rcpt 0");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	finish();

	start("closed at DATA", LOCKSTEP);
	begin("a");
	sent();
	server("250 ok\r\n");
	sent();
	server("250 ok\r\n");
	sent();
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a lost data 0");
	finish();

	/* At each byte of body and dot: in doubt exactly with the last one. */
	for (int bytes = 0; bytes <= 7; bytes++)
	{
		start("closed in the body", PIPELINING);
		begin("a");
		sent();
		server("250 ok\r\n250 ok\r\n354 go\r\n");
		begin("b");
		{
			Size		length;

			klm_smtp_output(smtp, &length);
			CHECK(length == strlen(BODY ENVELOPE("b")));
			klm_smtp_sent(smtp, bytes);
		}
		CHECK_TEXT(awaits(), bytes == 7 ? "dot" : "data");
		klm_smtp_closed(smtp, "gone");
		CHECK_TEXT(result(), bytes == 7 ? "a lost dot 0" : "a lost data 0");
		CHECK_TEXT(result(), "b lost unstarted mail 0");
		finish();
	}

	start("closed with the next envelope sent", PIPELINING);
	begin("a");
	sent();
	begin("b");
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	sent();
	server("250 half a re");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a lost dot 0");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	finish();

	start("closed after the dot's reply, next envelope sent", PIPELINING);
	begin("a");
	sent();
	begin("b");
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	sent();
	server("251 ok\r\n");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a dot 251");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	finish();

	start("closed after the next MAIL's reply", PIPELINING);
	begin("a");
	sent();
	begin("b");
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	sent();
	server("250 ok\r\n250 ok\r\n");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a dot 250");
	CHECK_TEXT(result(), "b lost rcpt 0");
	finish();

	start("closed while replies drain", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n550 no\r\n");
	klm_smtp_closed(smtp, "gone");
	CHECK_TEXT(result(), "a rcpt 550");
	finish();

	start("closed when idle, then twice", PIPELINING);
	klm_smtp_closed(smtp, "gone");
	klm_smtp_closed(smtp, "gone");
	CHECK(!klm_smtp_usable(smtp) && !klm_smtp_can_begin(smtp));
	server("250 late\r\n");
	CHECK_TEXT(sent(), "");
	finish();
}

static void
test_421(void)
{
	start("idle 421", PIPELINING);
	server("421 4.4.2 idle\r\n");
	CHECK(!klm_smtp_usable(smtp));
	finish();

	start("421 with an unsent delivery", PIPELINING);
	begin("a");
	server("421 4.4.2 idle\r\n");
	CHECK_TEXT(result(), "a lost unstarted mail 0");
	finish();

	start("421 to the first MAIL", PIPELINING);
	begin("a");
	begin("b");
	sent();
	server("421 4.7.0 too many\r\n");
	CHECK_TEXT(result(), "a mail 421 4.7.0");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	CHECK_TEXT(sent(), "");
	finish();

	start("421 to a later MAIL", PIPELINING);
	begin("a");
	sent();
	begin("b");
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	sent();
	server("250 ok\r\n421 4.7.0 enough\r\n");
	CHECK_TEXT(result(), "a dot 250");
	CHECK_TEXT(result(), "b unstarted mail 421 4.7.0");
	finish();

	start("421 to the dot", PIPELINING);
	begin("a");
	sent();
	begin("b");
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	sent();
	server("421 4.3.2 stopping\r\n");
	CHECK_TEXT(result(), "a dot 421 4.3.2");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	finish();

	start("421 in the body", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n354 go\r\n421 4.3.2 stopping\r\n");
	CHECK_TEXT(result(), "a data 421 4.3.2");
	finish();

	start("421 to RSET", LOCKSTEP);
	begin("a");
	sent();
	server("250 ok\r\n");
	sent();
	server("550 no\r\n");
	CHECK_TEXT(result(), "a rcpt 550");
	begin("b");
	CHECK_TEXT(sent(), "RSET\r\n");
	server("421 enough\r\n");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	finish();

	start("421 while replies drain", PIPELINING);
	begin("a");
	begin("b");
	sent();
	server("550 no\r\n421 enough\r\n");
	CHECK_TEXT(result(), "a mail 550");
	CHECK_TEXT(result(), "b lost unstarted mail 0");
	finish();
}

static void
test_odd_replies(void)
{
	KlmSmtpResult r;

	start("552 before the dot", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n354 go\r\n552 5.3.4 too large\r\n");
	CHECK_TEXT(result(), "a data 552 5.3.4");
	CHECK(!klm_smtp_usable(smtp));
	finish();

	start("250 before the dot", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n354 go\r\n250 thanks\r\n");
	CHECK_TEXT(result(), "a lost data 0");
	finish();

	start("an early reply with the dot put out, not sent", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	{
		Size		length;

		klm_smtp_output(smtp, &length);
		klm_smtp_sent(smtp, 3);
	}
	server("250 thanks\r\n");
	CHECK_TEXT(result(), "a lost data 0");
	finish();

	start("250 to DATA", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n250 go\r\n");
	CHECK_TEXT(result(), "a lost data 0");
	CHECK_TEXT(sent(), "");
	finish();

	start("354 to MAIL", PIPELINING);
	begin("a");
	sent();
	server("354 go\r\n");
	CHECK_TEXT(result(), "a lost mail 0");
	finish();

	start("354 to the dot", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	sent();
	server("354 again\r\n");
	CHECK_TEXT(result(), "a lost dot 0");
	finish();

	start("reply before its command left", PIPELINING);
	begin("a");
	server("250 hello\r\n");
	CHECK_TEXT(result(), "a lost unstarted mail 0");
	finish();

	start("unasked 250 when idle", PIPELINING);
	server("250 hello\r\n");
	CHECK(!klm_smtp_usable(smtp));
	finish();

	{
		static const char *const garbage[] = {
			"hello\r\n", "25\r\n", "2500 ok\r\n", "999 ok\r\n", "150 ok\r\n", "25x ok\r\n",
			"HTTP/1.1 400 Bad Request\r\n"};

		for (int i = 0; i < lengthof(garbage); i++)
		{
			start("garbage", PIPELINING);
			begin("a");
			sent();
			server("250 ok\r\n250 ok\r\n354 go\r\n");
			sent();
			server(garbage[i]);
			CHECK_TEXT(result(), "a lost dot 0");
			CHECK(!klm_smtp_usable(smtp));
			finish();
		}
	}

	/* A line that begins with the code says so, whatever follows; text in between means nothing. */
	{
		static const struct
		{
			const char *reply;
			const char *result;
		}			lenient[] = {
			{"250\tOk queued\r\n", "a dot 250"},
			{"250_ok\r\n", "a dot 250"},
			{"250-2.0.0 accepted\r\nqueued as ABC123\r\n250 2.0.0 thank you\r\n", "a dot 250 2.0.0"},
			{"250-2.0.0 accepted\r\n\r\n250 2.0.0 thank you\r\n", "a dot 250 2.0.0"},
			{"\r\n\n250 2.0.0 ok\r\n", "a dot 250 2.0.0"},
			{"250 2.0.0 Ok queued\r\n\r\n", "a dot 250 2.0.0"},
			{"554-5.7.1 no\r\nnot at all\r\n554 5.7.1 spam\r\n", "a dot 554 5.7.1"},
		};

		for (int i = 0; i < lengthof(lenient); i++)
		{
			start(lenient[i].reply, PIPELINING);
			begin("a");
			sent();
			server("250 ok\r\n250 ok\r\n354 go\r\n");
			sent();
			server(lenient[i].reply);
			CHECK_TEXT(result(), lenient[i].result);
			CHECK(klm_smtp_usable(smtp));
			finish();
		}
	}

	/* What had been said before the connection was lost. */
	{
		static const struct
		{
			const char *reply;
			const char *result;
		}			partial[] = {
			{"250-2.0.0 accepted\r\nqueued", "a dot 250 2.0.0"},
			{"554-5.7.1 no\r\n", "a dot 554 5.7.1"},
			{"354-what\r\n", "a lost dot 0"},
			{"250", "a lost dot 0"},
		};

		for (int i = 0; i < lengthof(partial); i++)
		{
			start(partial[i].reply, PIPELINING);
			begin("a");
			sent();
			server("250 ok\r\n250 ok\r\n354 go\r\n");
			sent();
			server(partial[i].reply);
			klm_smtp_closed(smtp, "gone");
			CHECK_TEXT(result(), partial[i].result);
			finish();
		}
	}

	start("multi-line, bare LF, no text", PIPELINING);
	begin("a");
	sent();
	server("250-2.1.0 one\n250-2.1.0 two\n250\n250 \r\n354-go\r\n354\r\n");
	CHECK_TEXT(sent(), BODY);
	server("250-2.6.0 a\r\n250 2.6.0 b\r\n");
	CHECK_TEXT(result(), "a dot 250 2.6.0");
	finish();

	start("lines that disagree: the last counts", PIPELINING);
	begin("a");
	sent();
	server("550-5.1.1 a\r\n250 b\r\n250 ok\r\n354 go\r\n");
	CHECK_TEXT(sent(), BODY);
	server("250-2.0.0 a\r\n554 5.7.1 b\r\n");
	CHECK(klm_smtp_result(smtp, &r));
	CHECK(r.reply.code == 554 && r.reply.enhanced[0] != '2');
	pfree(r.reply.text);
	finish();

	start("a line of 70 kB", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n250-");
	for (int i = 0; i < 700; i++)
		server("0123456789012345678901234567890123456789012345678901234567890123456789"
			   "012345678901234567890123456789");
	server("\r\n250 ok\r\n354 go\r\n");
	CHECK_TEXT(sent(), BODY);
	server("554-");
	for (int i = 0; i < 700; i++)
		server("0123456789012345678901234567890123456789012345678901234567890123456789"
			   "012345678901234567890123456789");
	server("\r\n");
	for (int i = 0; i < 1000; i++)
		server("554-line\r\n");
	server("554 end\r\n");
	CHECK(klm_smtp_result(smtp, &r));
	CHECK(!r.lost && r.reply.code == 554 && strlen(r.reply.text) <= KLM_REPLY_MAX);
	pfree(r.reply.text);
	CHECK(klm_smtp_usable(smtp));
	finish();

	start("a reply without end", PIPELINING);
	begin("a");
	sent();
	for (int i = 0; i < 200000 && klm_smtp_usable(smtp); i++)
		server("250-line\r\n");
	CHECK_TEXT(result(), "a lost mail 0");
	finish();

	start("NUL and escapes", PIPELINING);
	begin("a");
	sent();
	server("250 ok\r\n");
	klm_smtp_received(smtp, "550 5.1.1 a\0b\x1b[31m\x07\xff\r\n", 21);
	server("503 x\r\n");
	CHECK(klm_smtp_result(smtp, &r));
	CHECK(r.reply.code == 550 && strcmp(r.reply.enhanced, "5.1.1") == 0);
	for (char *p = r.reply.text; *p; p++)
		CHECK((unsigned char) *p >= ' ');
	pfree(r.reply.text);
	finish();
}

static void
test_addresses(void)
{
	static const char *const bad[] = {
		"a@b\r\nDATA", "a@b\nX", "a@b\r", "a\tb@x", "a b@x", "<a@x", "a@x>", "a@x> NOTIFY=NEVER",
		"\"a\r\nb\"@x", "\"a>b\"@x", "\"a\\>b\"@x", "\"a@x", "\"a\\",
		"a", "@x", "a@", "", "a\x7f@x",
		"a\xc2\x85@x", "\"a\\\nb\"@x"};
	char		longest[600];

	for (int i = 0; i < lengthof(bad); i++)
	{
		start(bad[i], PIPELINING);
		begin_full("r", "s@x", bad[i], "hi");
		CHECK_TEXT(result(), "r unstarted rcpt 553 5.1.3");
		if (bad[i][0] != '\0')
		{
			begin_full("s", bad[i], "r@x", "hi");
			CHECK_TEXT(result(), "s unstarted mail 553 5.1.7");
		}
		CHECK_TEXT(sent(), "");
		CHECK(klm_smtp_can_begin(smtp) && klm_smtp_open_count(smtp) == 0);
		finish();
	}

	start("good addresses", PIPELINING);
	begin_full("a", "", "\"a b\"@x", "hi");
	CHECK_TEXT(sent(), "MAIL FROM:<>\r\nRCPT TO:<\"a b\"@x>\r\nDATA\r\n");
	klm_smtp_closed(smtp, "x");
	CHECK_TEXT(result(), "a lost mail 0");
	finish();

	start("too long", PIPELINING);
	memset(longest, 'a', sizeof(longest));
	memcpy(longest + sizeof(longest) - 3, "@x", 3);
	begin_full("a", "s@x", longest, "hi");
	CHECK_TEXT(result(), "a unstarted rcpt 553 5.1.3");
	finish();

	start("SMTPUTF8 missing", PIPELINING);
	begin_full("a", "s@x", "j\xc3\xb6@x", "hi");
	CHECK_TEXT(result(), "a unstarted data 553 5.6.7");
	finish();

	start("SMTPUTF8", "250-x\r\n250-SMTPUTF8\r\n250-8BITMIME\r\n250 SIZE 100\r\n");
	begin_full("a", "s@x", "j\xc3\xb6@x", "h\xc3\xb6\r\n");
	CHECK_TEXT(sent(), "MAIL FROM:<s@x> SIZE=5 SMTPUTF8 BODY=8BITMIME\r\n");
	server("250 ok\r\n");
	CHECK_TEXT(sent(), "RCPT TO:<j\xc3\xb6@x>\r\n");
	server("550 no\r\n");
	CHECK_TEXT(result(), "a rcpt 550");
	{
		char		body[102];

		memset(body, 'x', 101);
		body[101] = '\0';
		begin_full("b", "s@x", "r@x", body);
		CHECK_TEXT(result(), "b unstarted data 552 5.3.4");
	}
	finish();

	start("sender step, pipelining", PIPELINING);
	begin_full("a", "s@x", NULL, "");
	CHECK_TEXT(sent(), "MAIL FROM:<s@x>\r\n");
	server("250 2.1.0 ok\r\n");
	CHECK_TEXT(sent(), "RCPT TO:<s@x>\r\n");
	server("250 2.1.5 ok\r\n");
	CHECK_TEXT(result(), "a rcpt 250 2.1.5");
	klm_smtp_quit(smtp);
	CHECK_TEXT(sent(), "RSET\r\n");
	CHECK_TEXT(awaits(), "mail");
	server("250 ok\r\n");
	CHECK_TEXT(sent(), "QUIT\r\n");
	finish();

	start("sender step refused", LOCKSTEP);
	begin_full("a", "s@x", NULL, "");
	CHECK_TEXT(sent(), "MAIL FROM:<s@x>\r\n");
	server("550 5.7.60 not yours\r\n");
	CHECK_TEXT(result(), "a mail 550 5.7.60");
	CHECK_TEXT(sent(), "");
	finish();

	start("sender step refused at RCPT", PIPELINING);
	begin_full("a", "s@x", NULL, "");
	CHECK_TEXT(sent(), "MAIL FROM:<s@x>\r\n");
	server("250 2.1.0 ok\r\n");
	CHECK_TEXT(sent(), "RCPT TO:<s@x>\r\n");
	server("553 5.7.1 not yours\r\n");
	CHECK_TEXT(result(), "a rcpt 553 5.7.1");
	klm_smtp_quit(smtp);
	CHECK_TEXT(sent(), "RSET\r\n");
	finish();
}

/* ---- the body against a plain reimplementation ---- */

static Size
plain_body(const char *in, Size length, char *out, bool stuff)
{
	Size		n = 0;
	bool		line_start = true;

	for (Size i = 0; i < length; i++)
	{
		if (in[i] == '\r' || in[i] == '\n')
		{
			if (in[i] == '\r' && i + 1 < length && in[i + 1] == '\n')
				i++;
			out[n++] = '\r';
			out[n++] = '\n';
			line_start = true;
			continue;
		}
		if (stuff && line_start && in[i] == '.')
			out[n++] = '.';
		out[n++] = in[i];
		line_start = false;
	}
	if (!line_start)
	{
		out[n++] = '\r';
		out[n++] = '\n';
	}
	if (!stuff)
		return n;
	memcpy(out + n, ".\r\n", 3);
	return n + 3;
}

static void
test_body(const char *body, Size length, Size cut1, Size cut2)
{
	KlmSmtpDelivery delivery = {0};
	char	   *wanted = malloc(length * 2 + 8);
	char	   *parts[3];
	bool		by_chunk = random_below(2) && length <= 32768;
	Size		wanted_length = plain_body(body, length, wanted, !by_chunk);
	Size		out;
	const char *data;

	if (by_chunk)
		start_chunks("body by BDAT");
	else
		start("body", PIPELINING);
	delivery.chunk = by_chunk;
	delivery.tag = "a";
	delivery.mail_from = "s@x";
	delivery.rcpt_to = "a@x";
	delivery.part_count = 3;
	delivery.parts[0].length = cut1;
	delivery.parts[1].length = cut2 - cut1;
	delivery.parts[2].length = length - cut2;
	for (int i = 0, at = 0; i < 3; at += delivery.parts[i++].length)
	{
		/* exact allocations, so that the sanitizer sees a read too far */
		parts[i] = malloc(delivery.parts[i].length);
		memcpy(parts[i], body + at, delivery.parts[i].length);
		delivery.parts[i].data = parts[i];
	}
	klm_smtp_begin(smtp, &delivery);
	if (by_chunk)
	{
		const char *envelope = sent();
		const char *told = strstr(envelope, "BDAT ");
		const char *text = told ? strstr(told, "\r\n") : NULL;

		/* Line ends that double may leave no room, and it goes by DATA after all. */
		CHECK(told || wanted_length > 65536 - 2048);
		if (told)
		{
			Size		left = wire + wire_length - (text + 2);

			CHECK(strtoul(told + 5, NULL, 10) == wanted_length && left == wanted_length &&
				  memcmp(text + 2, wanted, left) == 0);
			server("250 ok\r\n250 ok\r\n250 yes\r\n");
			CHECK_TEXT(result(), "a dot 250");
			goto done;
		}
		wanted_length = plain_body(body, length, wanted, true);
	}
	else
		sent();
	server("250 ok\r\n250 ok\r\n354 go\r\n");
	wire_length = 0;
	while ((data = klm_smtp_output(smtp, &out)) != NULL)
	{
		Size		some = random_below(4) == 0 ? out : 1 + random_below(out);

		wire_add(data, some);
		klm_smtp_sent(smtp, some);
	}
	CHECK(wire_length == wanted_length && memcmp(wire, wanted, wanted_length) == 0);
	server("250 ok\r\n");
	CHECK_TEXT(result(), "a dot 250");
done:
	finish();
	for (int i = 0; i < 3; i++)
		free(parts[i]);
	free(wanted);
}

static void
test_bodies(int rounds)
{
	static const char *const fixed[] = {
		"", ".", "..", ".\n", "x\n.", "\n", "\r", "\r\n", "\r\r\n", "\n\r",
		"x\n.\nMAIL FROM:<e@v>\nRCPT TO:<f@v>", "x\r.\rMAIL", "x\r\n.\rDATA", ".\r", "\n.\n",
		"a\r\n..\r\n"};
	static char body[300000];

	for (int i = 0; i < lengthof(fixed); i++)
	{
		Size		length = strlen(fixed[i]);

		for (Size a = 0; a <= length; a++)
			for (Size b = a; b <= length; b++)
				test_body(fixed[i], length, a, b);
	}
	for (int i = 0; i < rounds; i++)
	{
		Size		length = random_below(10) == 0 ? random_below(sizeof(body)) : random_below(40);
		uint32		plain = 1 + random_below(200);
		Size		a;
		Size		b;

		for (Size j = 0; j < length; j++)
			body[j] = random_below(plain) < 4 ? ".\r\n\n"[random_below(4)] : 'a' + random_below(26);
		a = random_below(length + 1);
		b = a + random_below(length - a + 1);
		test_body(body, length, a, b);
	}
	/* Lines that end exactly where the output is full. */
	for (int shift = 0; shift < 16; shift++)
	{
		memset(body, 'x', 70000);
		memcpy(body + 65536 - 12 + shift, "\r\n.\r\n.", 6);
		test_body(body, 70000, 0, 70000);
		body[65536 - 12 + shift] = 'x';
		test_body(body, 70000, 0, 70000);
	}
}

/* ---- a transcript cut at every byte ---- */

static void
feed(const char *text, Size length, Size cut)
{
	klm_smtp_received(smtp, text, Min(cut, length));
	if (cut < length)
		klm_smtp_received(smtp, text + cut, length - cut);
}

static void
test_splits(void)
{
	const char *first = "250-2.1.0 a\r\n250 2.1.0 ok\r\n250 2.1.5 ok\r\n354-go\r\n354 on\r\n";
	const char *second = "250-2.0.0 a\r\n250 2.0.0 queued\r\n250 ok\r\n"
		"550-5.1.1 a\r\n550 5.1.1 no\r\n503 5.5.1 x\r\n";

	for (Size a = 0; a <= strlen(first); a++)
		for (Size b = 0; b <= strlen(second); b++)
		{
			start("splits", PIPELINING);
			begin("a");
			sent();
			begin("b");
			feed(first, strlen(first), a);
			sent();
			feed(second, strlen(second), b);
			CHECK_TEXT(result(), "a dot 250 2.0.0");
			CHECK_TEXT(result(), "b rcpt 550 5.1.1");
			CHECK(klm_smtp_usable(smtp));
			finish();
		}
}

/* ---- a server that does anything, and keeps a ledger ---- */

#define MODEL_DELIVERIES 8

typedef struct Model
{
	char		in[4096];		/* a command line being read */
	Size		in_length;
	bool		mail;
	bool		rcpt;
	bool		data;
	bool		chunking;
	Size		chunk;			/* octets of BDAT still to come */
	int			who;			/* the recipient's number */
	int			last_bytes;		/* towards CRLF.CRLF */
	bool		gone;
	bool		confused;		/* it gave more or fewer replies than commands */
	int			malice;			/* one fault in so many replies; 0: none */
	int			dots[MODEL_DELIVERIES];	/* dots read for each recipient */
	int			accepted[MODEL_DELIVERIES];
	char		out[65536];		/* replies not yet read by the client */
	Size		out_length;
} Model;

static void
model_say(Model *model, const char *text)
{
	if (model->out_length + strlen(text) < sizeof(model->out))
	{
		memcpy(model->out + model->out_length, text, strlen(text));
		model->out_length += strlen(text);
	}
}

/* Did it say yes? */
static bool
model_reply(Model *model, const char *text)
{
	static const char *const faults[] = {
		"421 4.3.2 enough\r\n", "", "250 more\r\n250 than asked\r\n", "nonsense\r\n", "354 go\r\n", "25", "451 4.3.0 later\r\n", "550 5.7.1 no\r\n"};
	int			fault = model->malice ? random_below(model->malice) : lengthof(faults);

	if (model->gone)
		return false;
	if (fault == 1 || fault == 2 || fault == 4)
		model->confused = true;
	if (fault == 2 && model->chunking)
	{
		/* What chunks can be safe from is a reply said twice. */
		static char twice[160];

		snprintf(twice, sizeof(twice), "%s%s", text, text);
		text = twice;
	}
	else if (fault < lengthof(faults))
		text = faults[fault];
	if (fault == 0 || (fault == 1 && random_below(2) == 0))
		model->gone = true;
	model_say(model, text);
	return text[0] == '2';
}

static void
model_message_came(Model *model)
{
	bool		valid = model->rcpt;

	if (valid)
		model->dots[model->who]++;
	/* Without a recipient a transaction with BDAT goes on until RSET. */
	if (valid || !model->chunking)
		model->mail = model->rcpt = false;
	if (model_reply(model, valid ? "250 2.0.0 queued\r\n" : "554 5.5.1 no recipients\r\n") && valid)
		model->accepted[model->who]++;
}

static void
model_command(Model *model)
{
	const char *line = model->in;

	if (strncmp(line, "MAIL FROM:", 10) == 0)
	{
		if (model->mail)
			model_reply(model, "503 5.5.1 nested MAIL\r\n");
		else if (model->malice && random_below(8) == 0)
			model_reply(model, "451 4.3.0 no\r\n");
		else
		{
			model->mail = true;
			/* Only before DATA may a server refuse and go on as if it had not. */
			if (!model_reply(model, "250 2.1.0 ok\r\n") && model->chunking)
				model->mail = false;
		}
	}
	else if (strncmp(line, "RCPT TO:<", 9) == 0)
	{
		if (!model->mail)
			model_reply(model, "503 5.5.1 MAIL first\r\n");
		else if (model->malice && random_below(4) == 0)
			model_reply(model, "550 5.1.1 no\r\n");
		else
		{
			model->rcpt = true;
			model->who = line[9] - '0';
			if (!model_reply(model, "250 2.1.5 ok\r\n") && model->chunking)
				model->rcpt = false;
		}
	}
	else if (strcmp(line, "DATA") == 0)
	{
		if (!model->rcpt && (!model->mail || random_below(2)))
			model_reply(model, "503 5.5.1 RCPT first\r\n");
		else
		{
			Size		before = model->out_length;

			model_reply(model, "354 go\r\n");
			model->data = model->out_length >= before + 8 &&
				memcmp(model->out + before, "354", 3) == 0;
			model->last_bytes = 2;
		}
	}
	else if (strncmp(line, "BDAT ", 5) == 0 && model->chunking)
	{
		if (model->malice && random_below(20) == 0)
			model_say(model, "502 5.5.1 what\r\n");
		else if ((model->chunk = strtoul(line + 5, NULL, 10)) == 0)
			model_message_came(model);
		CHECK(strstr(line, " LAST") != NULL);
	}
	else if (strcmp(line, "RSET") == 0)
	{
		model->mail = model->rcpt = false;
		model_reply(model, "250 2.0.0 ok\r\n");
	}
	else if (strcmp(line, "QUIT") == 0)
	{
		model_reply(model, "221 bye\r\n");
		model->gone = true;
	}
	else
	{
		/* Something of a message came as a command. */
		CHECK(model->malice != 0);
		model_reply(model, "500 5.5.2 what\r\n");
	}
}

static void
model_read(Model *model, const char *data, Size length)
{
	for (Size i = 0; i < length && !model->gone; i++)
	{
		char		c = data[i];

		if (model->chunk > 0)
		{
			if (--model->chunk == 0)
				model_message_came(model);
			continue;
		}
		if (model->data)
		{
			/* CRLF . CRLF, the first CRLF being that of DATA or of a line */
			static const char end[] = "\r\n.\r\n";

			if (c == end[model->last_bytes])
				model->last_bytes++;
			else
				model->last_bytes = c == '\r' ? 1 : 0;
			if (model->last_bytes == 5)
			{
				model->data = false;
				model_message_came(model);
				model->mail = model->rcpt = false;
			}
			continue;
		}
		if (model->in_length + 1 < sizeof(model->in))
			model->in[model->in_length++] = c;
		if (c == '\n')
		{
			model->in[model->in_length - (model->in_length >= 2 ? 2 : 1)] = '\0';
			model->in_length = 0;
			model_command(model);
		}
	}
}

static void
test_model(void)
{
	static Model model;
	static const char *const bodies[] = {
		"hi\r\n", "", ".\r\n..\r\nQUIT\r\n", "a\n.\nMAIL FROM:<e@v>\n", NULL};
	static char large[200000];
	char		rcpt[MODEL_DELIVERIES][8];
	int			begun = 0;
	int			results = 0;
	int			stalls = 0;
	bool		open[MODEL_DELIVERIES] = {false};
	bool		quit = false;

	memset(&model, 0, sizeof(model));
	memset(large, 'z', sizeof(large));
	model.malice = random_below(3) ? 20 + random_below(200) : 0;
	model.chunking = random_below(2);
	start("model", model.chunking ? CHUNKING : random_below(3) ? PIPELINING : LOCKSTEP);

	while (stalls < 3)
	{
		KlmSmtpResult r;
		Size		length;
		const char *data;
		bool		moved = false;

		if (begun < MODEL_DELIVERIES && klm_smtp_can_begin(smtp) && random_below(3))
		{
			KlmSmtpDelivery delivery = {0};
			const char *body = bodies[random_below(lengthof(bodies))];

			snprintf(rcpt[begun], sizeof(rcpt[begun]), "%d@x", begun);
			delivery.tag = &rcpt[begun];
			delivery.chunk = random_below(4) != 0;
			delivery.mail_from = "s@x";
			delivery.rcpt_to = rcpt[begun];
			delivery.part_count = 1;
			delivery.parts[0].data = body ? body : large;
			delivery.parts[0].length = body ? strlen(body) : sizeof(large);
			klm_smtp_begin(smtp, &delivery);
			open[begun++] = true;
			moved = true;
		}
		if (!quit && begun == MODEL_DELIVERIES && klm_smtp_open_count(smtp) == 0)
		{
			klm_smtp_quit(smtp);
			quit = true;
		}
		data = klm_smtp_output(smtp, &length);
		if (length > 0 && random_below(4))
		{
			Size		some = random_below(2) ? length : 1 + random_below(length);

			/* A client may hand bytes to a connection that is gone already. */
			model_read(&model, data, some);
			klm_smtp_sent(smtp, some);
			moved = true;
		}
		if (model.out_length > 0 && random_below(4))
		{
			Size		some = 1 + random_below(model.out_length);

			klm_smtp_received(smtp, model.out, some);
			memmove(model.out, model.out + some, model.out_length - some);
			model.out_length -= some;
			moved = true;
		}
		else if (model.out_length == 0 && (model.gone || stalls == 2))
		{
			klm_smtp_closed(smtp, "gone");
			stalls++;
		}
		while (klm_smtp_result(smtp, &r))
		{
			int			who = ((char *) r.tag)[0] - '0';

			/*
			 * No 354 shows that a server with chunks is in step: one that says
			 * too much may be thought to have refused what it took, never to
			 * have taken what it refused.
			 */
			bool		known = !(model.chunking && model.confused);

			CHECK(open[who]);
			open[who] = false;
			results++;
			if (!r.lost && r.reply.stage == KLM_STAGE_DOT)
			{
				/* What it says was accepted was, and the other way round. */
				if (r.reply.code < 300)
					CHECK(model.dots[who] == 1);
				else
					CHECK(model.accepted[who] == 0 || model.malice);
			}
			else if (!r.lost || r.reply.stage != KLM_STAGE_DOT)
				/* "Surely not accepted" must be true whatever the server does. */
				CHECK(model.dots[who] == 0 || !known);
			if (!r.started)
				CHECK(model.dots[who] == 0 || !known);
			if (model.malice == 0)
				CHECK(!r.lost && r.reply.code == 250);
			pfree(r.reply.text);
		}
		if (moved)
			stalls = 0;
		else if (!(begun < MODEL_DELIVERIES && klm_smtp_can_begin(smtp)) && length == 0 &&
				 model.out_length == 0)
			stalls++;
	}
	klm_smtp_closed(smtp, "gone");
	CHECK(results == begun || klm_smtp_open_count(smtp) == 0);
	for (int i = 0; i < begun; i++)
		CHECK(!open[i] && model.dots[i] <= 1);
	if (model.malice == 0)
		CHECK(begun == MODEL_DELIVERIES);
	finish();
}

/* ---- random bytes ---- */

static void
test_noise(void)
{
	static const char *const words[] = {
		"250 ok\r\n", "250-", "354 go\r\n", "421 x\r\n", "550 5.1.1 no\r\n", "\r\n", "\n",
		 "\r", "2", "25", "250", " ", "-", "x", "221 bye\r\n", "503 no\r\n", "999 z\r\n"};
	int			begun = 0;
	int			results = 0;
	KlmSmtpResult r;

	start("noise", random_below(2) ? PIPELINING : LOCKSTEP);
	for (int i = 0; i < 60; i++)
	{
		if (klm_smtp_can_begin(smtp) && random_below(2))
		{
			begin("n");
			begun++;
		}
		if (random_below(2))
			sent();
		else
		{
			char		noise[8];

			if (random_below(4))
				server(words[random_below(lengthof(words))]);
			else
			{
				for (int j = 0; j < sizeof(noise); j++)
					noise[j] = random_below(256);
				klm_smtp_received(smtp, noise, sizeof(noise));
			}
		}
		while (klm_smtp_result(smtp, &r))
		{
			results++;
			pfree(r.reply.text);
		}
	}
	klm_smtp_closed(smtp, "gone");
	while (klm_smtp_result(smtp, &r))
	{
		results++;
		pfree(r.reply.text);
	}
	CHECK(results == begun);
	finish();
}

int
main(int argc, char **argv)
{
	int			rounds = argc > 1 ? atoi(argv[1]) : 1000;

	random_state = argc > 2 ? strtoull(argv[2], NULL, 10) : 88172645463325252;
	if (random_state == 0)
		random_state = 1;

	test_ehlo();
	test_lockstep();
	test_pipelining();
	test_chunks();
	test_closed();
	test_421();
	test_odd_replies();
	test_addresses();
	test_splits();
	test_bodies(rounds);
	for (int i = 0; i < rounds * 4; i++)
	{
		test_model();
		test_noise();
	}
	free(wire);
	printf("%d passed, %d failed\n", passed, failed);
	return failed > 0;
}
