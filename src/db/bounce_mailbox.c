/*-------------------------------------------------------------------------
 *
 * bounce_mailbox.c
 *		The bounce mailbox as a process needs it, and what the fetcher keeps of it.
 *
 * In kliv_mail_net.  Owns nothing.  Each call is one of a function of
 * sql/install/, by the plans of db/owner_call.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "db/account.h"
#include "db/bounce_mailbox.h"
#include "db/owner_call.h"

static Datum column(HeapTuple row, TupleDesc desc, const char *name);
static char *text_column(HeapTuple row, TupleDesc desc, const char *name);

void
klm_bounce_mailbox_unpack(HeapTuple row, TupleDesc desc, KlmBounceMailbox *mailbox)
{
	const Interval *every = DatumGetIntervalP(column(row, desc, "fetch_every"));

	mailbox->settings = DatumGetTimestampTz(column(row, desc, "updated_at"));
	mailbox->enabled = DatumGetBool(column(row, desc, "enabled"));
	mailbox->target.host = text_column(row, desc, "host");
	mailbox->target.port = DatumGetInt32(column(row, desc, "port"));
	mailbox->target.encryption = strcmp(text_column(row, desc, "encryption"), "starttls") == 0 ?
		KLM_STARTTLS : KLM_TLS;
	mailbox->target.username = text_column(row, desc, "username");
	mailbox->target.guarded = true;
	mailbox->target.imap = true;
	mailbox->mailbox = text_column(row, desc, "mailbox");
	mailbox->filed_mailbox = text_column(row, desc, "filed_mailbox");
	mailbox->every = every->time + every->day * USECS_PER_DAY;
	mailbox->password_cipher = DatumGetByteaPCopy(column(row, desc, "password_cipher"));
	mailbox->key_id = text_column(row, desc, "key_id");
}

void
klm_bounce_mailbox_binding(const KlmBounceMailbox *mailbox, KlmBinding *binding)
{
	memset(binding, 0, sizeof(KlmBinding));
	binding->account = KLM_BOUNCE_MAILBOX;
	binding->host = mailbox->target.host;
	binding->port = mailbox->target.port;
	binding->username = mailbox->target.username;
	binding->domain = &mailbox->domain;
	binding->save = "SELECT * FROM kliv_mail.configure_bounce_mailbox(password => "
		"'the mailbox password');";
}

bool
klm_bounce_mailbox_open(KlmBounceMailbox *mailbox, bool *key_missing, KlmError *error)
{
	KlmBinding	binding;

	klm_bounce_mailbox_binding(mailbox, &binding);
	if (!klm_open(mailbox->password_cipher, mailbox->key_id, &binding, &mailbox->secret,
				  key_missing, error))
		return false;
	mailbox->target.password = mailbox->secret->data;
	return true;
}

TimestampTz
klm_fetch_due(void)
{
	KlmCall		call = {0};

	klm_run_one(&call, "fetch_due", false);
	return klm_result_time(1);
}

KlmBounceMailbox *
klm_fetch_settings(MemoryContext context)
{
	KlmCall		call = {0};
	KlmBounceMailbox *mailbox;
	MemoryContext caller;

	klm_run(&call, "read_bounce_mailbox", false);
	if (SPI_processed == 0)
		return NULL;
	caller = MemoryContextSwitchTo(context);
	mailbox = palloc0(sizeof(KlmBounceMailbox));
	klm_bounce_mailbox_unpack(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, mailbox);
	klm_load_domain(&mailbox->domain);
	MemoryContextSwitchTo(caller);
	return mailbox;
}

bool
klm_fetch_open(TimestampTz settings, uint32 uid_validity, MemoryContext context,
			   KlmFetchState *state)
{
	KlmCall		call = {0};

	klm_add_time(&call, settings);
	klm_add_int8(&call, uid_validity);
	klm_run(&call, "fetch_open", false);
	if (SPI_processed == 0)
		return false;
	state->seen = klm_result_int8(1);
	state->to_file = klm_result_int8s(2, context, &state->to_file_count);
	state->postponed = klm_result_int8s(3, context, &state->postponed_count);
	return true;
}

bool
klm_fetch_hand(TimestampTz settings, uint32 uid, bool *skip)
{
	KlmCall		call = {0};
	bool		isnull;

	klm_add_time(&call, settings);
	klm_add_int8(&call, uid);
	klm_run_one(&call, "fetch_hand", false);
	*skip = !DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	return !isnull;
}

bool
klm_fetch_take(TimestampTz settings, uint32 uid, const char *data, Size length, bool *file)
{
	KlmCall		call = {0};
	bytea	   *raw = NULL;
	bool		isnull;

	if (data != NULL)
	{
		raw = palloc(VARHDRSZ + length);
		SET_VARSIZE(raw, VARHDRSZ + length);
		memcpy(VARDATA(raw), data, length);
	}
	klm_add_time(&call, settings);
	klm_add_int8(&call, uid);
	klm_add_bytea(&call, raw);
	klm_run_one(&call, "fetch_take", false);
	*file = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	return !isnull;
}

void
klm_fetch_filed(TimestampTz settings, const uint32 *uids, int count)
{
	KlmCall		call = {0};
	Datum	   *elements = palloc(Max(1, count) * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = Int64GetDatum((int64) uids[i]);
	klm_add_time(&call, settings);
	klm_add(&call, INT8ARRAYOID,
			PointerGetDatum(construct_array(elements, count, INT8OID, 8, FLOAT8PASSBYVAL,
											TYPALIGN_DOUBLE)), false);
	klm_run(&call, "fetch_filed", false);
}

bool
klm_fetch_end(TimestampTz settings, bool more, const char *step, const char *trouble,
			  const char *hint, bool final)
{
	KlmCall		call = {0};
	bool		isnull;

	klm_add_time(&call, settings);
	klm_add_bool(&call, more);
	klm_add_text(&call, step);
	klm_add(&call, TEXTOID, trouble ? CStringGetTextDatum(klm_from_utf8_lossy(trouble)) : (Datum) 0,
			trouble == NULL);
	klm_add_text(&call, hint);
	klm_add_bool(&call, final);
	klm_run_one(&call, "fetch_end", false);
	return DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull)) &&
		!isnull;
}

/* All columns that are read are NOT NULL. */
static Datum
column(HeapTuple row, TupleDesc desc, const char *name)
{
	int			number = SPI_fnumber(desc, name);
	bool		isnull = true;
	Datum		value = (Datum) 0;

	if (number > 0)
		value = heap_getattr(row, number, desc, &isnull);
	if (isnull)
		elog(ERROR, "_bounce_mailbox has no column \"%s\"", name);
	return value;
}

/* UTF-8 */
static char *
text_column(HeapTuple row, TupleDesc desc, const char *name)
{
	return klm_to_utf8(TextDatumGetCString(column(row, desc, name)));
}
