/*-------------------------------------------------------------------------
 *
 * smtp.c
 *		Fuzz target: an SMTP session with a server that sends what it likes
 *		when it likes, and a caller who does what it may in any order.
 *
 * Input: a byte for what the server offers, then steps, each a byte: the low
 * three bits choose (see step()), the rest is a number.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "fuzz.h"
#include "smtp/session.h"

#define DELIVERIES 32

/* How often each delivery has ended; its tag points here. */
static int	ended[DELIVERIES];
static int	begun;
static int	accepted;

static const uint8 *input;
static Size input_left;
static KlmSmtp *smtp;
static StringInfoData wire;		/* all that was handed to the socket */

static uint8
next_byte(void)
{
	if (input_left == 0)
		return 0;
	input_left--;
	return *input++;
}

static char *
next_bytes(Size length)
{
	char	   *text;

	length = Min(length, input_left);
	text = palloc(length + 1);
	memcpy(text, input, length);
	text[length] = '\0';
	input += length;
	input_left -= length;
	return text;
}

static void
begin(int number)
{
	static const char *const addresses[] = {"a@x", "b@x.example", "\"a b\"@x", "j\xc3\xb6@x",
	"a@x> NOTIFY=NEVER", "a\r\nDATA"};
	KlmSmtpDelivery delivery = {0};
	int			open = klm_smtp_open_count(smtp);
	bool		unsafe;

	if (begun == DELIVERIES || !klm_smtp_can_begin(smtp))
		return;
	delivery.tag = &ended[begun++];
	delivery.mail_from = number & 1 ? "" : addresses[number % lengthof(addresses)];
	delivery.rcpt_to = addresses[next_byte() % lengthof(addresses)];
	delivery.ask = number == 31;
	delivery.chunk = number & 16;
	delivery.part_count = delivery.ask ? 0 : number % 4;
	for (int i = 0; i < delivery.part_count; i++)
	{
		Size		length = next_byte() % 64;

		length = Min(length, input_left);
		delivery.parts[i].data = next_bytes(length);
		delivery.parts[i].length = length;
	}
	klm_smtp_begin(smtp, &delivery);

	/* An address that would break its command is refused at once. */
	unsafe = delivery.mail_from[0] != '"' && strpbrk(delivery.mail_from, "> \r") != NULL;
	if (delivery.rcpt_to[0] != '"')
		unsafe |= strpbrk(delivery.rcpt_to, "> \r") != NULL;
	HOLDS(!unsafe || klm_smtp_open_count(smtp) == open);
}

static void
send_some(Size most)
{
	Size		length;
	const char *data = klm_smtp_output(smtp, &length);

	HOLDS((data == NULL) == (length == 0));
	if (data == NULL)
		return;
	length = Min(length, most);
	appendBinaryStringInfo(&wire, data, length);
	klm_smtp_sent(smtp, length);
}

static void
take_results(void)
{
	KlmSmtpResult result;

	while (klm_smtp_result(smtp, &result))
	{
		int		   *count = result.tag;

		HOLDS(++*count == 1);
		HOLDS(result.reply.text != NULL);
		HOLDS(!result.lost || result.reply.code == 0);
		if (!result.lost && result.reply.stage == KLM_STAGE_DOT && result.reply.code < 300)
		{
			HOLDS(result.started);
			accepted++;
		}
	}
}

static void
step(uint8 byte)
{
	int			number = byte >> 3;
	KlmStage	stage;

	switch (byte & 7)
	{
		case 0:
		case 1:
			begin(number);
			break;
		case 2:
			send_some(number == 31 ? PG_INT32_MAX : number);
			break;
		case 3:
			{
				/* Bytes of the input. */
				Size		length = Min((Size) number, input_left);

				klm_smtp_received(smtp, next_bytes(length), length);
				break;
			}
		case 4:
			{
				/* What a server may say in its time. */
				static const char *const replies[] = {"250 ok\r\n", "354 go\r\n", "550 5.1.1 no\r\n",
					"421 bye\r\n", "250-a\r\n250 b\r\n", "451 4.3.0 later\r\n", "221 bye\r\n",
				"503 no\r\n", "250 2.0.0 queued\r\n"};
				const char *reply = replies[number % lengthof(replies)];

				klm_smtp_received(smtp, reply, strlen(reply));
				break;
			}
		case 5:
			take_results();
			break;
		case 6:
			if (number < 4)
			{
				int		   *count = klm_smtp_withdraw(smtp);

				if (count != NULL)
					HOLDS(++*count == 1);
			}
			else if (number == 4)
				klm_smtp_quit(smtp);
			else if (number == 5)
				klm_smtp_closed(smtp, "gone");
			break;
		case 7:
			send_some(PG_INT32_MAX);
			klm_smtp_awaits(smtp, &stage);
			break;
	}
	HOLDS(klm_smtp_open_count(smtp) >= 0 && klm_smtp_open_count(smtp) <= 2);
	HOLDS(klm_smtp_usable(smtp) || !klm_smtp_can_begin(smtp));
}

/* The messages that left at most: lone dots, and chunks that are whole; a body may have NULs. */
static int
ends(void)
{
	int			count = 0;

	for (int i = 0; i + 5 <= wire.len; i++)
		if (memcmp(wire.data + i, "\r\n.\r\n", 5) == 0)
			count++;
		else if (memcmp(wire.data + i, "BDAT ", 5) == 0)
		{
			/* (a StringInfo ends with a NUL) */
			char	   *rest;
			long		length = strtol(wire.data + i + 5, &rest, 10);

			if (strncmp(rest, " LAST\r\n", 7) == 0 && rest + 7 + length <= wire.data + wire.len)
				count++;
		}
	return count;
}

int
LLVMFuzzerTestOneInput(const uint8 *data, Size size)
{
	KlmSmtpCaps caps = {0};
	char	   *ehlo;

	if (size < 1)
		return 0;
	input = data;
	input_left = size;
	begun = accepted = 0;
	memset(ended, 0, sizeof(ended));
	initStringInfo(&wire);

	caps.pipelining = *data & 1;
	caps.smtputf8 = *data & 2;
	caps.eightbitmime = *data & 4;
	caps.size_offered = *data & 8;
	caps.size = *data & 16 ? 40 : 0;
	caps.chunking = *data & 64;
	next_byte();
	if (*data & 32)
	{
		Size		length = next_byte();

		length = Min(length, input_left);
		ehlo = next_bytes(length);
		klm_smtp_parse_ehlo(ehlo, length, &caps);
		HOLDS(strlen(caps.auth_mechanisms) < sizeof(caps.auth_mechanisms));
	}
	smtp = klm_smtp_create(&caps);
	while (input_left > 0)
		step(next_byte());

	/* Each delivery ends once, and what was accepted had its end sent. */
	klm_smtp_closed(smtp, "gone");
	take_results();
	HOLDS(klm_smtp_open_count(smtp) == 0);
	for (int i = 0; i < begun; i++)
		HOLDS(ended[i] == 1);
	HOLDS(ends() >= accepted);
	klm_smtp_destroy(smtp);
	fuzz_free_all();
	return 0;
}
