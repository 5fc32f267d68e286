/*-------------------------------------------------------------------------
 *
 * session.c
 *		One SMTP session after AUTH, as a machine: bytes in, bytes out.
 *
 * Layer: pure (palloc only).  Owns the session's state, the bytes to send and
 * the reply being read; calls reply_parse.h to make a reply presentable.
 *
 * Its unit test is test/unit/smtp_test.c, whose head has the command to build it.
 *
 * How it works.  Every command that is put into the output leaves an entry in
 * a queue of expected replies: which command, whose delivery, and where in the
 * stream of output it ends.  Replies are matched with the head of that queue,
 * and a reply to a command that has not left yet is out of step.  After
 * anything out of step nobody can say which reply belongs to whom, so the
 * session ends there and what is open becomes lost.
 *
 * A delivery holds a slot:
 *
 *	PENDING   begun, nothing put out
 *	ENVELOPE  MAIL (with PIPELINING: MAIL, RCPT and DATA) put out
 *	BODY      354 read, the message is being put out
 *	DOT       the final dot is put out, its reply not yet read
 *	DRAIN     its result is known, replies to its commands still come
 *	ABANDON   the same, but DATA was answered 354 although MAIL or RCPT had
 *			  failed (RFC 2920, 3.1): a lone dot must follow, whose reply is
 *			  swallowed (where MAIL failed and RCPT did not, an empty mail would
 *			  go out: there the session ends instead)
 *
 * "writer" is the slot that owns the end of the output from its envelope until
 * its dot; only without one may the next envelope follow.  So with PIPELINING
 * it leaves together with the body and dot before it (RFC 2920 allows commands
 * behind the dot), and two deliveries are open.
 *
 * A chunk is a delivery whose message leaves together with its envelope, by BDAT
 * (RFC 3030), so that it takes one round trip and none is spent on a 354.  Such
 * a delivery is ENVELOPE until RCPT is answered and DOT until BDAT is.  Four
 * things are different of it:
 *
 *	- once its last octet has left, a lost connection leaves in doubt whether it
 *	  was accepted, even with nothing answered.  So only a server that has
 *	  accepted mail on this session gets chunks, and only when the caller says
 *	  that it was heard of just now.
 *	- whether BDAT ends the server's transaction is known by its reply alone
 *	  (where RCPT was refused it does not), so RSET stands before what follows.
 *	- no 354 shows that replies are in step: the yes to a recipient, said twice,
 *	  would pass for the yes to the message.  So only a server gets chunks whose
 *	  yes to a message is another one, and whose yes to a recipient is known when
 *	  it is met; in the message's place that ends the session.
 *	- a server that does not know the command would read the message as
 *	  commands: the session ends there, and DATA serves from then on.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "utils/memutils.h"

#include "smtp/reply_parse.h"
#include "smtp/session.h"

#define OUTPUT_SIZE 65536
#define CHUNK_MAX (OUTPUT_SIZE / 2)	/* larger messages do not leave before RCPT is answered */
#define BDAT_MAX 48				/* octets of the command */
#define ADDRESS_MAX 512			/* octets; RFC 5321 has 256 for a path */
#define ENVELOPE_MAX (2 * ADDRESS_MAX + 256)	/* MAIL, RCPT, DATA of one delivery */
#define LINE_KEPT (KLM_REPLY_MAX + 16)	/* of one line of a reply */
#define REPLY_KEPT (2 * KLM_REPLY_MAX)	/* of one reply */
#define REPLY_LIMIT (1024 * 1024)	/* longer ones end the session */
#define SLOTS 2
#define EXPECTED_MAX 16			/* at most RSET, MAIL, RCPT, BDAT of two deliveries are needed */

typedef enum Command
{
	CMD_MAIL,
	CMD_RCPT,
	CMD_DATA,
	CMD_DOT,
	CMD_BDAT,
	CMD_ABANDON,				/* the lone dot of a delivery that had failed */
	CMD_RSET,
	CMD_QUIT
} Command;

typedef enum SlotState
{
	SLOT_FREE,
	SLOT_PENDING,
	SLOT_ENVELOPE,
	SLOT_BODY,
	SLOT_DOT,
	SLOT_DRAIN,
	SLOT_ABANDON
} SlotState;

typedef struct Slot
{
	SlotState	state;
	KlmSmtpDelivery delivery;
	uint64		number;			/* order of klm_smtp_begin() */
	uint64		size;			/* for SIZE= */
	bool		eightbit;
	bool		utf8;
	bool		first;			/* the first on this session */
	bool		answered;		/* a reply to one of its commands was read */
	bool		mail_accepted;	/* the server has a transaction that must be ended */
	bool		rcpt_accepted;
	bool		chunk;			/* its message left with the envelope */
	uint64		rcpt_words;		/* as below, its own */
	KlmStage	stage;			/* of the next reply that it waits for */
	uint64		begins;			/* its place in the stream of output */
	uint64		dot_ends;		/* likewise, behind the dot or the chunk */

	/* how far its message has been put out */
	int			part;
	Size		position;
	bool		line_start;
	bool		after_cr;		/* a CR was read and not yet put out */
} Slot;

typedef struct Expected
{
	Command		command;
	Slot	   *slot;			/* NULL for RSET and QUIT */
	uint64		ends;			/* place in the stream of output behind the command */
} Expected;

typedef struct Result
{
	struct Result *next;
	void	   *tag;
	bool		lost;
	bool		started;
	bool		chunk_failed;
	KlmStage	stage;
	int			code;			/* 0: text is ours, else the raw reply */
	Size		length;
	char		text[FLEXIBLE_ARRAY_MEMBER];
} Result;

struct KlmSmtp
{
	MemoryContext context;
	KlmSmtpCaps caps;
	bool		ended;			/* nothing more is sent or understood */
	bool		quitting;
	bool		quit_put;
	bool		touched;		/* an envelope was put out */
	bool		reset_needed;	/* the server has a transaction that failed */
	Slot	   *last_chunk;		/* or may have one, this chunk not being answered */
	bool		may_chunk;		/* a message was accepted, in words of its own */
	uint64		rcpt_words;		/* that accept a recipient, as a hash */
	bool		rcpt_known;		/* they would be known again */
	int			refused;		/* deliveries: behind five no chunks, as Exim allows ten RSETs */
	bool		rest_refused;	/* the server said that it takes nothing any more */

	Slot		slots[SLOTS];
	Slot	   *writer;
	uint64		begun;

	Expected	expected[EXPECTED_MAX]; /* ring */
	int			expected_head;
	int			expected_count;

	Result	   *results;
	Result	  **results_tail;

	/*
	 * Bytes start..length of the output are to be sent.  They never move while
	 * any are left: a TLS library wants an interrupted write repeated from the
	 * same address.
	 */
	Size		output_start;
	Size		output_length;
	uint64		put_total;		/* the stream of output */
	uint64		sent_total;

	/* the reply being read */
	Size		line_kept;
	bool		reply_open;		/* lines of a reply were read, and its last is due */
	bool		line_cut;
	Size		reply_kept;
	Size		reply_size;		/* with what was dropped */
	uint64		replies;		/* whole ones so far */

	/* Buffers last: all before them begins as zeroes. */
	char		output[OUTPUT_SIZE];
	char		line[LINE_KEPT];
	char		reply[REPLY_KEPT];
};

static void end_session(KlmSmtp *smtp, const char *why);
static void handle_reply(KlmSmtp *smtp, int code);


/* ---- life ---- */

KlmSmtp *
klm_smtp_create(const KlmSmtpCaps *caps)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "kliv_mail SMTP session",
												  ALLOCSET_SMALL_SIZES);
	KlmSmtp    *smtp = MemoryContextAlloc(context, sizeof(KlmSmtp));

	/* Not the buffers, which are large and need it not. */
	memset(smtp, 0, offsetof(KlmSmtp, output));
	smtp->context = context;
	smtp->caps = *caps;
	smtp->results_tail = &smtp->results;
	return smtp;
}

void
klm_smtp_destroy(KlmSmtp *smtp)
{
	MemoryContextDelete(smtp->context);
}

bool
klm_smtp_usable(const KlmSmtp *smtp)
{
	return !smtp->ended && !smtp->quitting;
}

static Slot *
free_slot(const KlmSmtp *smtp)
{
	int			count = smtp->caps.pipelining ? SLOTS : 1;

	for (int i = 0; i < count; i++)
		if (smtp->slots[i].state == SLOT_FREE)
			return unconstify(Slot *, &smtp->slots[i]);
	return NULL;
}

bool
klm_smtp_can_begin(const KlmSmtp *smtp)
{
	return klm_smtp_usable(smtp) && free_slot(smtp) != NULL;
}

/* Has it no result yet? */
static bool
slot_is_open(const Slot *slot)
{
	return slot->state == SLOT_PENDING || slot->state == SLOT_ENVELOPE ||
		slot->state == SLOT_BODY || slot->state == SLOT_DOT;
}

int
klm_smtp_open_count(const KlmSmtp *smtp)
{
	int			open = 0;

	for (int i = 0; i < SLOTS; i++)
		if (slot_is_open(&smtp->slots[i]))
			open++;
	return open;
}


/* ---- results ---- */

static Result *
add_result(KlmSmtp *smtp, void *tag, bool lost, bool started, KlmStage stage, int code,
		   const char *text, Size length)
{
	Result	   *result = MemoryContextAlloc(smtp->context, offsetof(Result, text) + length + 1);

	result->next = NULL;
	result->tag = tag;
	result->lost = lost;
	result->started = started;
	result->chunk_failed = false;
	result->stage = stage;
	result->code = code;
	result->length = length;
	memcpy(result->text, text, length);
	result->text[length] = '\0';
	*smtp->results_tail = result;
	smtp->results_tail = &result->next;
	return result;
}

bool
klm_smtp_result(KlmSmtp *smtp, KlmSmtpResult *result)
{
	Result	   *head = smtp->results;

	if (head == NULL)
		return false;
	memset(result, 0, sizeof(*result));
	result->tag = head->tag;
	result->lost = head->lost;
	result->started = head->started;
	result->chunk_failed = head->chunk_failed;
	if (head->code == 0)
		result->reply.text = pstrdup(head->text);
	else
	{
		klm_read_reply(head->stage, head->text, head->length, &result->reply);

		/* Should the lines disagree, the last one counts, as it did for us. */
		if (result->reply.code != head->code)
		{
			result->reply.code = head->code;
			if (result->reply.enhanced[0] != '0' + head->code / 100)
				result->reply.enhanced[0] = '\0';
		}
	}
	result->reply.stage = head->stage;

	smtp->results = head->next;
	if (smtp->results == NULL)
		smtp->results_tail = &smtp->results;
	pfree(head);
	return true;
}

/* The delivery of a slot ends with the reply that was just read. */
static void
finish(KlmSmtp *smtp, Slot *slot, KlmStage stage, int code, bool started)
{
	smtp->refused += code >= 400;
	add_result(smtp, slot->delivery.tag, false, started, stage, code, smtp->reply,
			   smtp->reply_kept);
}

/* Has all of it left, so that the server may accept it? */
static bool
has_left(const KlmSmtp *smtp, const Slot *slot)
{
	return (slot->state == SLOT_DOT || (slot->state == SLOT_ENVELOPE && slot->chunk)) &&
		smtp->sent_total >= slot->dot_ends && !smtp->rest_refused;
}

/* The delivery of a slot ends without one. */
static void
lose(KlmSmtp *smtp, Slot *slot, const char *why)
{
	bool		doubtful = has_left(smtp, slot);
	KlmStage	stage = slot->stage;
	bool		started;
	Result	   *result;

	if (doubtful)
		stage = KLM_STAGE_DOT;
	else if (slot->state == SLOT_BODY || slot->state == SLOT_DOT)
		stage = KLM_STAGE_DATA;

	started = slot->answered || doubtful ||
		(slot->first && slot->state != SLOT_PENDING && smtp->sent_total > slot->begins);
	result = add_result(smtp, slot->delivery.tag, true, started, stage, 0, why, strlen(why));
	result->chunk_failed = doubtful && slot->chunk;
	slot->state = SLOT_FREE;
}

/* Lose what is open, oldest first, and understand nothing more. */
static void
end_session(KlmSmtp *smtp, const char *why)
{
	for (;;)
	{
		Slot	   *oldest = NULL;

		for (int i = 0; i < SLOTS; i++)
		{
			Slot	   *slot = &smtp->slots[i];

			if (slot_is_open(slot) && (oldest == NULL || slot->number < oldest->number))
				oldest = slot;
		}
		if (oldest == NULL)
			break;
		lose(smtp, oldest, why);
	}
	for (int i = 0; i < SLOTS; i++)
		smtp->slots[i].state = SLOT_FREE;
	smtp->writer = NULL;
	smtp->expected_count = 0;
	smtp->ended = true;
}

/* The same, quoting what the server sent. */
static void
end_session_quoting(KlmSmtp *smtp, const char *why, const char *raw, Size length)
{
	KlmReply	reply;
	char	   *text;

	klm_read_reply(KLM_STAGE_MAIL, raw, length, &reply);
	text = psprintf("%s: %s", why, reply.text);
	end_session(smtp, text);
	pfree(text);
	pfree(reply.text);
}

/* Does a good reply to it say that the message was accepted? */
static bool
ends_message(Command command)
{
	return command == CMD_DOT || command == CMD_BDAT;
}

/*
 * Of a reply whose last line never came its first line is used, where that
 * decides: a server that said yes to the dot has the message, one that refused
 * has it not.
 */
static void
use_open_reply(KlmSmtp *smtp)
{
	int			code = klm_line_code(smtp->reply, smtp->reply_kept);

	smtp->reply_open = false;
	if (smtp->expected_count > 0 &&
		(code >= 400 || (code < 300 && ends_message(smtp->expected[smtp->expected_head].command))))
		handle_reply(smtp, code);
}

void
klm_smtp_closed(KlmSmtp *smtp, const char *why)
{
	if (!smtp->ended && smtp->reply_open)
		use_open_reply(smtp);
	if (!smtp->ended)
		end_session(smtp, why);
}


/* ---- begin ---- */

/*
 * May it stand between < and > of a command?  Not a syntax check (address.c
 * makes that); rows may have been altered by hand, and nothing in them may
 * become a command or a parameter.
 */
static bool
address_is_safe(const char *address, bool *utf8)
{
	bool		quoted = false;
	const char *at = NULL;
	const char *p;

	for (p = address; *p; p++)
	{
		unsigned char c = *p;

		if (c < ' ' || c == 0x7f || c == '<' || c == '>' || p - address >= ADDRESS_MAX)
			return false;
		if (c >= 0x80)
		{
			/* U+0080 to U+009F are controls, too. */
			if (c == 0xc2 && (unsigned char) p[1] < 0xa0)
				return false;
			*utf8 = true;
		}
		if (quoted && c == '\\')
		{
			c = *++p;
			if (c < ' ' || c >= 0x7f || c == '<' || c == '>')
				return false;
		}
		else if (c == '"')
			quoted = !quoted;
		else if (!quoted)
		{
			if (c == ' ')
				return false;
			if (c == '@')
				at = p;
		}
	}
	return !quoted && at != NULL && at > address && at[1] != '\0' && p - address <= ADDRESS_MAX;
}

static bool
has_high_bit(const char *data, Size length)
{
	uint64		word;

	for (; length >= sizeof(word); data += sizeof(word), length -= sizeof(word))
	{
		memcpy(&word, data, sizeof(word));
		if (word & UINT64CONST(0x8080808080808080))
			return true;
	}
	for (; length > 0; data++, length--)
		if (*data & 0x80)
			return true;
	return false;
}

void *
klm_smtp_withdraw(KlmSmtp *smtp)
{
	for (int i = 0; i < SLOTS; i++)
	{
		if (smtp->slots[i].state == SLOT_PENDING)
		{
			smtp->slots[i].state = SLOT_FREE;
			return smtp->slots[i].delivery.tag;
		}
	}
	return NULL;
}

/* Refuse without a byte sent. */
static void
refuse(KlmSmtp *smtp, const KlmSmtpDelivery *delivery, KlmStage stage, int code, const char *text)
{
	add_result(smtp, delivery->tag, false, false, stage, code, text, strlen(text));
}

void
klm_smtp_begin(KlmSmtp *smtp, const KlmSmtpDelivery *delivery)
{
	Slot	   *slot = free_slot(smtp);
	bool		utf8 = delivery->smtputf8;
	bool		eightbit = false;
	uint64		size = 0;

	Assert(klm_smtp_usable(smtp) && slot != NULL);
	Assert(delivery->part_count >= 0 && delivery->part_count <= lengthof(delivery->parts));

	if (delivery->mail_from[0] != '\0' && !address_is_safe(delivery->mail_from, &utf8))
	{
		refuse(smtp, delivery, KLM_STAGE_MAIL, 553,
			   "553 5.1.7 not sent: the sender's address cannot stand in an SMTP command");
		return;
	}
	if (!address_is_safe(delivery->rcpt_to, &utf8))
	{
		refuse(smtp, delivery, KLM_STAGE_RCPT, 553,
			   "553 5.1.3 not sent: the recipient's address cannot stand in an SMTP command");
		return;
	}
	if (utf8 && !smtp->caps.smtputf8)
	{
		refuse(smtp, delivery, KLM_STAGE_DATA, 553,
			   "553 5.6.7 not sent: an address is not ASCII and the server has no SMTPUTF8");
		return;
	}
	for (int i = 0; i < delivery->part_count; i++)
	{
		size += delivery->parts[i].length;
		if (smtp->caps.eightbitmime && !eightbit)
			eightbit = has_high_bit(delivery->parts[i].data, delivery->parts[i].length);
	}
	if (smtp->caps.size > 0 && size > smtp->caps.size)
	{
		char	   *text = psprintf("552 5.3.4 not sent: the message has " UINT64_FORMAT
									" octets, the server takes " UINT64_FORMAT,
									size, smtp->caps.size);

		refuse(smtp, delivery, KLM_STAGE_DATA, 552, text);
		pfree(text);
		return;
	}

	memset(slot, 0, sizeof(*slot));
	slot->state = SLOT_PENDING;
	slot->delivery = *delivery;
	slot->number = smtp->begun++;
	slot->size = size;
	slot->eightbit = eightbit;
	slot->utf8 = utf8;
	slot->stage = KLM_STAGE_MAIL;
	slot->line_start = true;
}


/* ---- output ---- */

static Size
output_space(const KlmSmtp *smtp)
{
	return sizeof(smtp->output) - smtp->output_length;
}

static void
put(KlmSmtp *smtp, const char *data, Size length)
{
	Assert(length <= output_space(smtp));
	memcpy(smtp->output + smtp->output_length, data, length);
	smtp->output_length += length;
	smtp->put_total += length;
}

static void
put_string(KlmSmtp *smtp, const char *string)
{
	put(smtp, string, strlen(string));
}

static void
expect(KlmSmtp *smtp, Command command, Slot *slot)
{
	Expected   *expected;

	Assert(smtp->expected_count < EXPECTED_MAX);
	expected = &smtp->expected[(smtp->expected_head + smtp->expected_count++) % EXPECTED_MAX];
	expected->command = command;
	expected->slot = slot;
	expected->ends = smtp->put_total;
}

static void
put_mail(KlmSmtp *smtp, Slot *slot)
{
	put_string(smtp, "MAIL FROM:<");
	put_string(smtp, slot->delivery.mail_from);
	put_string(smtp, ">");
	if (smtp->caps.size_offered && !slot->delivery.ask)
	{
		char		size[32];

		snprintf(size, sizeof(size), " SIZE=" UINT64_FORMAT, slot->size);
		put_string(smtp, size);
	}
	if (slot->utf8)
		put_string(smtp, " SMTPUTF8");
	if (slot->eightbit)
		put_string(smtp, " BODY=8BITMIME");
	put_string(smtp, "\r\n");
	expect(smtp, CMD_MAIL, slot);
}

static void
put_rcpt(KlmSmtp *smtp, Slot *slot)
{
	put_string(smtp, "RCPT TO:<");
	put_string(smtp, slot->delivery.rcpt_to);
	put_string(smtp, ">\r\n");
	expect(smtp, CMD_RCPT, slot);
}

static void
put_data(KlmSmtp *smtp, Slot *slot)
{
	put_string(smtp, "DATA\r\n");
	expect(smtp, CMD_DATA, slot);
}

/*
 * Put out the slot's message as far as there is room: every line end as CRLF,
 * a dot before a line that begins with one.  The usual message has nothing to
 * change, so runs are looked for that can be copied whole.  A chunk, whose
 * length is told, has no dots stuffed, and no final one.  true: all is put out.
 */
static bool
put_message(KlmSmtp *smtp, Slot *slot)
{
	bool		stuff = !slot->chunk;

	while (slot->part < slot->delivery.part_count)
	{
		const KlmSmtpPart *part = &slot->delivery.parts[slot->part];

		while (slot->position < part->length)
		{
			const char *p = part->data + slot->position;
			Size		space = output_space(smtp);
			const char *end;
			const char *run;

			/* Room for a stuffed dot, a CRLF and something beside. */
			if (space < 8)
				return false;

			if (slot->after_cr)
			{
				/* The CR ended the line, whether or not an LF follows it. */
				put(smtp, "\r\n", 2);
				slot->after_cr = false;
				slot->line_start = true;
				if (*p == '\n')
					slot->position++;
				continue;
			}
			if (stuff && slot->line_start && *p == '.')
			{
				put(smtp, ".", 1);
				slot->line_start = false;
				continue;
			}

			end = p + Min(part->length - slot->position, space - 4);
			run = p;
			while (run < end)
			{
				const char *lf = memchr(run, '\n', end - run);
				const char *cr = memchr(run, '\r', (lf ? lf : end) - run);

				if (lf != NULL && cr == lf - 1)
				{
					run = lf + 1;
					slot->line_start = true;
					if (stuff && run < end && *run == '.')
						break;
				}
				else
				{
					const char *stop = cr ? cr : lf ? lf : end;

					if (stop > run)
						slot->line_start = false;
					run = stop;
					break;
				}
			}
			put(smtp, p, run - p);
			slot->position += run - p;
			if (run < end && *run == '\r')
			{
				slot->after_cr = true;
				slot->position++;
			}
			else if (run < end && *run == '\n')
			{
				put(smtp, "\r\n", 2);
				slot->line_start = true;
				slot->position++;
			}
		}
		slot->part++;
		slot->position = 0;
	}

	if (output_space(smtp) < 8)
		return false;
	if (slot->after_cr || !slot->line_start)
		put(smtp, "\r\n", 2);
	if (stuff)
		put(smtp, ".\r\n", 3);
	return true;
}

static void
put_reset(KlmSmtp *smtp)
{
	put_string(smtp, "RSET\r\n");
	expect(smtp, CMD_RSET, NULL);
	smtp->reset_needed = false;
	smtp->last_chunk = NULL;
}

/* May it leave with its envelope? */
static bool
may_chunk(const KlmSmtp *smtp, const Slot *slot)
{
	return smtp->caps.chunking && smtp->caps.pipelining && smtp->may_chunk && smtp->refused < 5 &&
		slot->delivery.chunk && !slot->delivery.ask && slot->size <= CHUNK_MAX;
}

/*
 * Put out BDAT and the message behind the envelope (RFC 3030, 2).  The message
 * is put out first, since its length is known only then, and moved behind the
 * command.  false: with its line ends made right there is no room for it, and
 * nothing was put out.
 */
static bool
put_chunk(KlmSmtp *smtp, Slot *slot)
{
	Size		start = smtp->output_length;
	uint64		before = smtp->put_total;
	char		command[BDAT_MAX];
	Size		length;

	slot->chunk = true;
	if (!put_message(smtp, slot) || output_space(smtp) < BDAT_MAX)
	{
		slot->chunk = false;
		slot->part = 0;
		slot->position = 0;
		slot->line_start = true;
		slot->after_cr = false;
		smtp->output_length = start;
		smtp->put_total = before;
		return false;
	}
	length = snprintf(command, sizeof(command), "BDAT " UINT64_FORMAT " LAST\r\n",
					  smtp->put_total - before);
	memmove(smtp->output + start + length, smtp->output + start, smtp->output_length - start);
	memcpy(smtp->output + start, command, length);
	smtp->output_length += length;
	smtp->put_total += length;

	slot->dot_ends = smtp->put_total;
	expect(smtp, CMD_BDAT, slot);
	smtp->writer = NULL;
	smtp->last_chunk = slot;
	return true;
}

static void
put_envelope(KlmSmtp *smtp, Slot *slot)
{
	slot->state = SLOT_ENVELOPE;
	slot->first = !smtp->touched;
	slot->begins = smtp->put_total;
	smtp->touched = true;
	smtp->writer = slot;
	put_mail(smtp, slot);
	if (smtp->caps.pipelining && !slot->delivery.ask)
	{
		put_rcpt(smtp, slot);
		if (!may_chunk(smtp, slot) || !put_chunk(smtp, slot))
			put_data(smtp, slot);
	}
}

/* Put out whatever may be put out now. */
static void
produce(KlmSmtp *smtp)
{
	while (!smtp->ended)
	{
		Slot	   *writer = smtp->writer;
		Slot	   *next = NULL;

		if (writer != NULL)
		{
			if (writer->state == SLOT_BODY)
			{
				if (!put_message(smtp, writer))
					return;
				writer->state = SLOT_DOT;
				writer->dot_ends = smtp->put_total;
				expect(smtp, CMD_DOT, writer);
			}
			else if (writer->state == SLOT_ABANDON)
			{
				put_string(smtp, ".\r\n");
				writer->state = SLOT_DRAIN;
				expect(smtp, CMD_ABANDON, writer);
			}
			else
				return;			/* replies must come first */
			smtp->writer = NULL;
			continue;
		}

		if (!smtp->caps.pipelining && smtp->expected_count > 0)
			return;
		if (output_space(smtp) < ENVELOPE_MAX)
			return;
		if (smtp->reset_needed)
		{
			put_reset(smtp);
			continue;
		}
		for (int i = 0; i < SLOTS; i++)
		{
			Slot	   *slot = &smtp->slots[i];

			if (slot->state == SLOT_PENDING && (next == NULL || slot->number < next->number))
				next = slot;
		}
		if (next != NULL)
		{
			/* A chunk waits for its room, which is there once all before it has left. */
			if (may_chunk(smtp, next) && smtp->output_length > 0 &&
				output_space(smtp) < ENVELOPE_MAX + BDAT_MAX + next->size)
				return;
			if (smtp->last_chunk != NULL)
				put_reset(smtp);
			put_envelope(smtp, next);
			continue;
		}
		if (smtp->quitting && !smtp->quit_put && smtp->expected_count == 0)
		{
			put_string(smtp, "QUIT\r\n");
			expect(smtp, CMD_QUIT, NULL);
			smtp->quit_put = true;
		}
		return;
	}
}

const char *
klm_smtp_output(KlmSmtp *smtp, Size *length)
{
	*length = 0;
	if (smtp->ended)
		return NULL;
	produce(smtp);
	*length = smtp->output_length - smtp->output_start;
	return *length > 0 ? smtp->output + smtp->output_start : NULL;
}

void
klm_smtp_sent(KlmSmtp *smtp, Size length)
{
	Assert(length <= smtp->output_length - smtp->output_start);
	smtp->output_start += length;
	smtp->sent_total += length;
	if (smtp->output_start == smtp->output_length)
		smtp->output_start = smtp->output_length = 0;
}

void
klm_smtp_quit(KlmSmtp *smtp)
{
	smtp->quitting = true;
}


/* ---- replies ---- */

static void
slot_free(KlmSmtp *smtp, Slot *slot)
{
	slot->state = SLOT_FREE;
	if (smtp->writer == slot)
		smtp->writer = NULL;
}

/*
 * MAIL or RCPT failed: the delivery has its result, but with PIPELINING the
 * replies to the rest of its envelope still come.
 */
static void
envelope_failed(KlmSmtp *smtp, Slot *slot, KlmStage stage, int code)
{
	finish(smtp, slot, stage, code, true);
	if (smtp->caps.pipelining && !slot->delivery.ask)
		slot->state = SLOT_DRAIN;
	else
	{
		if (slot->mail_accepted)
			smtp->reset_needed = true;
		slot_free(smtp, slot);
	}
}

static void
out_of_step(KlmSmtp *smtp)
{
	end_session_quoting(smtp, "the server sent a reply that does not fit", smtp->reply,
						smtp->reply_kept);
}

/* A reply came that nothing sent so far had asked for. */
static void
unasked_reply(KlmSmtp *smtp, int code)
{
	Slot	   *body = smtp->expected_count > 0 ? smtp->expected[smtp->expected_head].slot
		: smtp->writer;

	/* A server may tire of a message before it is complete. */
	if (body != NULL && (body->state == SLOT_BODY || body->state == SLOT_DOT) && code >= 400)
	{
		finish(smtp, body, KLM_STAGE_DATA, code, true);
		body->state = SLOT_DRAIN;
	}
	if (code == 421)
	{
		smtp->rest_refused = true;
		end_session_quoting(smtp, "the server ended the session", smtp->reply, smtp->reply_kept);
	}
	else
		out_of_step(smtp);
}

/*
 * The server offered CHUNKING and does not know BDAT: as if the delivery had
 * not been begun.  What it made of the message's lines nobody can say, and so
 * not which reply belongs to what has left behind it.
 */
static void
bdat_refused(KlmSmtp *smtp, Slot *slot)
{
	static const char why[] = "the server refused BDAT";
	Result	   *result = add_result(smtp, slot->delivery.tag, true, false, KLM_STAGE_DATA, 0, why,
									strlen(why));

	result->chunk_failed = true;
	slot_free(smtp, slot);
	end_session_quoting(smtp, why, smtp->reply, smtp->reply_kept);
}

static uint64
words(const KlmSmtp *smtp)
{
	return hash_bytes_extended((const unsigned char *) smtp->reply, smtp->reply_kept, 0);
}

/* Does the reply say yes to a recipient, by its status or by words that did so before? */
static bool
is_of_recipient(const KlmSmtp *smtp, const Slot *slot)
{
	return klm_has_status(smtp->reply, smtp->reply_kept, "2.1.") ||
		words(smtp) == smtp->rcpt_words || words(smtp) == slot->rcpt_words;
}

/* RCPT was answered. */
static void
rcpt_answered(KlmSmtp *smtp, Slot *slot, int code)
{
	bool		good = code >= 200 && code <= 299;

	slot->rcpt_accepted = good;
	if (!good && code < 400)
		out_of_step(smtp);
	else if (slot->state == SLOT_DRAIN)
	{
		/* A chunk that was refused at MAIL may be accepted none the less. */
		if (slot->chunk && good)
			out_of_step(smtp);
	}
	else if (!good)
		envelope_failed(smtp, slot, KLM_STAGE_RCPT, code);
	else if (slot->delivery.ask)
	{
		finish(smtp, slot, KLM_STAGE_RCPT, code, true);
		smtp->reset_needed = true;
		slot_free(smtp, slot);
	}
	else
	{
		slot->stage = KLM_STAGE_DATA;
		if (!smtp->caps.pipelining)
			put_data(smtp, slot);
		slot->rcpt_words = words(smtp);
		if (slot->chunk)
			slot->state = SLOT_DOT;
		else
		{
			/* Where each recipient is named, no reply has the words of another one. */
			smtp->rcpt_words = slot->rcpt_words;
			smtp->rcpt_known = klm_has_status(smtp->reply, smtp->reply_kept, "2.1.") ||
				memchr(smtp->reply, '@', smtp->reply_kept) == NULL;
		}
	}
}

/* BDAT was answered, and with it the chunk, if its envelope was accepted. */
static void
bdat_answered(KlmSmtp *smtp, Slot *slot, int code)
{
	bool		good = code >= 200 && code <= 299;

	if ((!good && code < 400) || (good && slot->state == SLOT_DOT && is_of_recipient(smtp, slot)))
	{
		out_of_step(smtp);
		return;
	}
	if (smtp->last_chunk == slot)
	{
		smtp->reset_needed = !good || slot->state == SLOT_DRAIN;
		smtp->last_chunk = NULL;
	}
	if (slot->state == SLOT_DOT && klm_refuses_command(smtp->reply, smtp->reply_kept, code))
	{
		bdat_refused(smtp, slot);
		return;
	}
	if (slot->state == SLOT_DOT)
		finish(smtp, slot, KLM_STAGE_DOT, code, true);
	slot_free(smtp, slot);
}

/* A whole reply was read. */
static void
handle_reply(KlmSmtp *smtp, int code)
{
	Expected   *head = &smtp->expected[smtp->expected_head];
	bool		good = code >= 200 && code <= 299;
	bool		bad = code >= 400;
	Command		command;
	Slot	   *slot;

	/*
	 * A 421 may come while a command is half sent; it still tells that
	 * delivery more than "connection lost" would.
	 */
	if (smtp->expected_count == 0 ||
		(head->ends > smtp->sent_total &&
		 !(code == 421 && head->slot != NULL && head->slot->state == SLOT_ENVELOPE &&
		   smtp->sent_total > head->slot->begins)))
	{
		unasked_reply(smtp, code);
		return;
	}
	command = head->command;
	slot = head->slot;
	smtp->expected_head = (smtp->expected_head + 1) % EXPECTED_MAX;
	smtp->expected_count--;

	if (code == 421)
	{
		if (slot != NULL && slot_is_open(slot))
		{
			finish(smtp, slot, ends_message(command) ? KLM_STAGE_DOT : slot->stage, code,
				   slot->answered || slot->first);
			slot->state = SLOT_DRAIN;
		}
		smtp->rest_refused = true;
		end_session_quoting(smtp, "the server ended the session", smtp->reply, smtp->reply_kept);
		return;
	}
	if (slot != NULL)
		slot->answered = true;

	switch (command)
	{
		case CMD_MAIL:
			if (good)
			{
				slot->mail_accepted = true;
				slot->stage = KLM_STAGE_RCPT;
				if (!smtp->caps.pipelining || slot->delivery.ask)
					put_rcpt(smtp, slot);
			}
			else if (bad)
				envelope_failed(smtp, slot, KLM_STAGE_MAIL, code);
			else
				out_of_step(smtp);
			break;

		case CMD_RCPT:
			rcpt_answered(smtp, slot, code);
			break;

		case CMD_DATA:
			if (code == 354 && slot->state != SLOT_DRAIN)
				slot->state = SLOT_BODY;
			else if (code == 354 && !slot->rcpt_accepted)
				slot->state = SLOT_ABANDON;
			else if (bad)
			{
				if (slot->state != SLOT_DRAIN)
					finish(smtp, slot, KLM_STAGE_DATA, code, true);
				if (slot->mail_accepted)
					smtp->reset_needed = true;
				slot_free(smtp, slot);
			}
			else
				out_of_step(smtp);
			break;

		case CMD_DOT:
			if (good || bad)
			{
				finish(smtp, slot, KLM_STAGE_DOT, code, true);
				smtp->may_chunk = good && smtp->rcpt_known && !is_of_recipient(smtp, slot);
				slot_free(smtp, slot);
			}
			else
				out_of_step(smtp);
			break;

		case CMD_BDAT:
			bdat_answered(smtp, slot, code);
			break;

		case CMD_ABANDON:
			slot_free(smtp, slot);
			break;

		case CMD_RSET:
			/* Without it the failed transaction would go on in the next one. */
			if (!good)
				out_of_step(smtp);
			break;

		case CMD_QUIT:
			end_session(smtp, "the session was closed");
			break;
	}
}

static void
handle_line(KlmSmtp *smtp)
{
	Size		length = smtp->line_kept;
	int			code;
	bool		last;

	if (length > 0 && !smtp->line_cut && smtp->line[length - 1] == '\r')
		length--;
	code = klm_line_code(smtp->line, length);
	if (code == 0)
	{
		/* An empty line, or text where the next line of a reply is due, means nothing. */
		if (length == 0 || smtp->reply_open)
			return;
		end_session_quoting(smtp, "the server sent something that is no SMTP reply",
							smtp->line, length);
		return;
	}
	last = length == 3 || smtp->line[3] != '-';
	smtp->reply_open = !last;

	/* Keep what fits, and of the last line always the code. */
	if (smtp->reply_kept + length + 8 > sizeof(smtp->reply))
		length = last ? Min(length, sizeof(smtp->reply) - smtp->reply_kept - 2) : 0;
	if (length > 0)
	{
		memcpy(smtp->reply + smtp->reply_kept, smtp->line, length);
		smtp->reply_kept += length;
		smtp->reply[smtp->reply_kept++] = '\r';
		smtp->reply[smtp->reply_kept++] = '\n';
	}
	if (last)
	{
		smtp->replies++;
		handle_reply(smtp, code);
		smtp->reply_kept = 0;
		smtp->reply_size = 0;
	}
}

void
klm_smtp_received(KlmSmtp *smtp, const char *data, Size length)
{
	while (length > 0 && !smtp->ended)
	{
		const char *newline = memchr(data, '\n', length);
		Size		chunk = newline ? newline - data : length;
		Size		kept = Min(chunk, sizeof(smtp->line) - smtp->line_kept);

		memcpy(smtp->line + smtp->line_kept, data, kept);
		smtp->line_kept += kept;
		if (kept < chunk)
			smtp->line_cut = true;
		smtp->reply_size += Min(chunk, REPLY_LIMIT) + 1;
		if (smtp->reply_size > REPLY_LIMIT)
		{
			klm_smtp_closed(smtp, "the server's reply has no end");
			return;
		}
		data += chunk;
		length -= chunk;
		if (newline != NULL)
		{
			data++;
			length--;
			handle_line(smtp);
			smtp->line_kept = 0;
			smtp->line_cut = false;
		}
	}
}

uint64
klm_smtp_replies(const KlmSmtp *smtp)
{
	return smtp->replies;
}

bool
klm_smtp_awaits(const KlmSmtp *smtp, KlmStage *stage)
{
	const Expected *head = &smtp->expected[smtp->expected_head];

	if (smtp->ended)
		return false;
	if (smtp->expected_count == 0)
	{
		/* Between 354 and the dot only our own bytes are missing. */
		if (smtp->writer == NULL)
			return false;
		*stage = KLM_STAGE_DATA;
		return true;
	}
	/* The replies to a chunk's envelope may come with that to its message. */
	for (int i = 0; i < SLOTS; i++)
		if (has_left(smtp, &smtp->slots[i]))
		{
			*stage = KLM_STAGE_DOT;
			return true;
		}
	switch (head->command)
	{
		case CMD_MAIL:
		case CMD_RSET:
			*stage = KLM_STAGE_MAIL;
			break;
		case CMD_RCPT:
			*stage = KLM_STAGE_RCPT;
			break;
		case CMD_DATA:
			*stage = KLM_STAGE_DATA;
			break;
		case CMD_DOT:
		case CMD_BDAT:
		case CMD_ABANDON:
			*stage = smtp->sent_total >= head->ends ? KLM_STAGE_DOT : KLM_STAGE_DATA;
			break;
		case CMD_QUIT:
			return false;
	}
	return true;
}
