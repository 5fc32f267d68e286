/*-------------------------------------------------------------------------
 *
 * address.c
 *		Fuzz target: an address list as a caller gives it, also in bytes that
 *		are no UTF-8; what was understood is written, read and sent.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "fuzz.h"
#include "base/text.h"
#include "message/compose.h"
#include "smtp/session.h"

/* Does the SMTP machine, which checks for itself, take the address? */
static bool
can_be_sent(const KlmAddress *address)
{
	KlmSmtpCaps caps = {.smtputf8 = true};
	KlmSmtp    *smtp = klm_smtp_create(&caps);
	KlmSmtpDelivery delivery = {.mail_from = "", .rcpt_to = address->addr,
	.smtputf8 = address->smtputf8};
	KlmSmtpResult result;

	klm_smtp_begin(smtp, &delivery);
	return !klm_smtp_result(smtp, &result);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, Size size)
{
	char	   *list = palloc(size + 1);
	KlmAddress *addresses;
	KlmAddress *again;
	KlmAddress	one;
	KlmError	error = {0};
	int			count;
	int			again_count;
	StringInfoData out;
	KlmIdentity identity = {0};

	memcpy(list, data, size);
	list[size] = '\0';
	if (!klm_parse_address_list(list, &addresses, &count, &error))
	{
		HOLDS(error.message != NULL && error.sqlstate != 0);
		HOLDS(!klm_has_unsafe_char(error.message, false));
		HOLDS(!klm_parse_address_list(list, &again, &again_count, NULL));
		fuzz_free_all();
		return 0;
	}

	HOLDS(count > 0);
	for (int i = 0; i < count; i++)
	{
		char	   *text = klm_format_address(addresses[i].name, addresses[i].addr);

		HOLDS(strlen(addresses[i].addr) <= 254);
		HOLDS(can_be_sent(&addresses[i]));
		HOLDS(klm_parse_address(text, &one, &error));
		HOLDS(strcmp(one.addr, addresses[i].addr) == 0);
		HOLDS((one.name == NULL) == (addresses[i].name == NULL));
		HOLDS(one.name == NULL || strcmp(one.name, addresses[i].name) == 0);
		for (int j = 0; j < i; j++)
			HOLDS(strcmp(addresses[i].addr, addresses[j].addr) != 0);
	}

	/* And in a header: CRLF only at line ends that a line follows or nothing. */
	identity.from_address = addresses[0].addr;
	identity.from_name = addresses[0].name;
	identity.reply_to = addresses;
	identity.reply_to_count = count;
	initStringInfo(&out);
	klm_mime_identity(&identity, &out);
	HOLDS(out.len == strlen(out.data));
	HOLDS(out.len > 2 && strcmp(out.data + out.len - 2, "\r\n") == 0);
	for (char *line = out.data; *line;)
	{
		Size		length = strcspn(line, "\r\n");

		HOLDS(line[length] == '\r' && line[length + 1] == '\n');
		HOLDS(length > 0 && length <= 998);
		HOLDS(line[0] == ' ' || strncmp(line, "From: ", 6) == 0 ||
			  strncmp(line, "Reply-To: ", 10) == 0);
		line += length + 2;
	}
	fuzz_free_all();
	return 0;
}
