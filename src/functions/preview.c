/*-------------------------------------------------------------------------
 *
 * preview.c
 *		preview(): a message's bytes as they would go now, or went.
 *
 * In kliv_mail_net.  The bytes are made by the sender's own functions
 * (worker/identity.c), from the same rows.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "db/account.h"
#include "db/outbox.h"
#include "db/owner_call.h"
#include "message/address.h"
#include "worker/sender.h"

PG_FUNCTION_INFO_V1(kliv_mail_preview);

static char *identity_of(KlmClaim *claimed, KlmStoredMessage *message, const char *url);
static void refuse(const char *problem, const char *hint);

Datum
kliv_mail_preview(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	KlmCaller	caller;
	KlmCall		may_touch = {0};
	KlmCall		call = {0};
	KlmAddress	address = {0};
	KlmError	error;
	KlmClaim	claimed = {0};
	KlmStoredMessage *message;
	int64		id;
	char	   *identity;
	char	   *url;
	List	   *messages;
	Size		length;
	bytea	   *result;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	id = PG_GETARG_INT64(0);
	if (!PG_ARGISNULL(1) && !klm_parse_address(klm_argument(fcinfo, 1), &address, &error))
		klm_raise("recipient", &error, false);
	klm_enter_owner(fcinfo, &caller);
	klm_add_caller(&may_touch, &caller);
	klm_add_int8(&may_touch, id);
	klm_run_one(&may_touch, "check_may_touch", true);
	klm_add_int8(&call, id);
	klm_add_text(&call, address.addr);
	klm_run_one(&call, "preview_of", true);
	claimed.id = klm_result_int8(1);
	claimed.message_id = id;
	claimed.recipient = klm_result_text(2, context);
	claimed.account = klm_result_text(3, context);
	identity = klm_result_text(4, context);
	url = klm_result_text(5, context);
	messages = klm_outbox_messages(&id, 1, context);
	MemoryContextSwitchTo(context);
	message = linitial(messages);
	if (message->entity_length == 0)
		refuse(psprintf("the body of message %lld is not kept any more", (long long) id), NULL);
	if (identity == NULL)
		identity = identity_of(&claimed, message, url);
	MemoryContextSwitchTo(context);
	klm_leave_owner(&caller);

	length = strlen(identity);
	result = palloc(VARHDRSZ + length + message->entity_length);
	SET_VARSIZE(result, VARHDRSZ + length + message->entity_length);
	memcpy(VARDATA(result), identity, length);
	memcpy(VARDATA(result) + length, message->entity, message->entity_length);
	PG_RETURN_BYTEA_P(result);
}

/* The identity lines that the sender would write, with SPI connected. */
static char *
identity_of(KlmClaim *claimed, KlmStoredMessage *message, const char *url)
{
	MemoryContext context = CurrentMemoryContext;
	KlmAccount *account = klm_read_account(claimed->account);
	KlmDomain	domain;
	const char *from;
	const char *problem = NULL;
	const char *new_domain;
	bool		smtputf8;
	char	   *identity;

	if (account == NULL || account->from_address == NULL)
		refuse(account && account->problem ? account->problem :
			   psprintf("the account \"%s\" is not configured", claimed->account),
			   psprintf("%s In a database for tests, kliv_mail.delivery = sandbox needs no account.",
						account && account->hint ? account->hint :
						"SELECT account, status, status_detail FROM kliv_mail.smtp_settings; shows the accounts."));
	new_domain = klm_new_message_domain(account, message);
	if (new_domain)
		message->header_id = psprintf("%s@%s", message->header_id, new_domain);
	if (message->unsubscribe)
	{
		klm_load_domain(&domain);
		(void) klm_make_unsubscribe_links(list_make1(claimed), list_make1(message), url, &domain,
										  context);
	}
	if (claimed->problem)
		refuse(claimed->problem, NULL);
	identity = klm_compose_identity(account, message, claimed, &from, &smtputf8, &problem);
	if (identity == NULL)
		refuse(problem, NULL);
	return identity;
}

static void
refuse(const char *problem, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s", klm_from_utf8_lossy(problem)),
			 hint ? errhint("%s", klm_from_utf8_lossy(hint)) : 0));
}
