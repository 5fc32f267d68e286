/*-------------------------------------------------------------------------
 *
 * outbox.c
 *		The outbox as the sender sees it; see outbox.h.
 *
 * Owns the kept plans.  Each is one call of a function of sql/install/.
 *
 * Layer: edge (SPI).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/guc.h"
#include "db/outbox.h"

/* A statement and its plan, prepared at first use in this process. */
typedef struct Statement
{
	const char *text;
	int			argument_count;
	Oid			types[16];
	SPIPlanPtr	plan;
} Statement;

static Oid	extension_owner = InvalidOid;
static MemoryContext caller_context = NULL;
static MemoryContext result_context = NULL;
static Oid	saved_user;
static int	saved_security;
static volatile sig_atomic_t committing = false;

static void run(Statement *statement, Datum *values, const char *nulls);
static char *column_text(int row, int column);
static int64 column_int64(int row, int column);
static Datum text_array(const char *const *values, int count);
static Datum int8_array(const int64 *values, int count);
static Datum int4_array(const int *values, int count);

void
klm_outbox_begin(MemoryContext results)
{
	caller_context = CurrentMemoryContext;
	result_context = results;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
	GetUserIdAndSecContext(&saved_user, &saved_security);
	if (OidIsValid(extension_owner))
		SetUserIdAndSecContext(extension_owner, saved_security | SECURITY_RESTRICTED_OPERATION |
													SECURITY_LOCAL_USERID_CHANGE);
}

void
klm_outbox_commit(void)
{
	SetUserIdAndSecContext(saved_user, saved_security);
	SPI_finish();
	PopActiveSnapshot();
	committing = true;
	if (ShutdownRequestPending)
		QueryCancelPending = true;
	CommitTransactionCommand();
	committing = false;
	QueryCancelPending = false;
	pgstat_report_stat(true);
	MemoryContextSwitchTo(caller_context);
}

void
klm_outbox_abort(void)
{
	committing = false;
	QueryCancelPending = false;
	/* Restores the user, ends SPI and drops the snapshot. */
	AbortCurrentTransaction();
	MemoryContextSwitchTo(caller_context);
}

/*
 * The wait for a synchronous standby looks at no flag but this one, which the
 * server's own processes set as well when they are told to end.
 */
void
klm_outbox_shutdown(SIGNAL_ARGS)
{
	SignalHandlerForShutdownRequest(KLM_SIGNAL_ARGS);
	if (committing)
		QueryCancelPending = true;
}

char *
klm_outbox_version(void)
{
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	char	   *version = NULL;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("kliv_mail"));
	scan = systable_beginscan(relation, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum value =
			heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(relation), &isnull);

		extension_owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
		version = isnull ? NULL : MemoryContextStrdup(result_context, TextDatumGetCString(value));
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return version;
}

int64
klm_outbox_open_epoch(void)
{
	static Statement epoch = {"SELECT nextval('kliv_mail._epoch'::pg_catalog.regclass)"};
	static Statement lock = {"SELECT kliv_mail._epoch_lock($1)", 1, {INT8OID}};
	Datum		value;
	int64		result;

	run(&epoch, NULL, NULL);
	result = column_int64(0, 1);
	value = Int64GetDatum(result);
	run(&lock, &value, NULL);
	return result;
}

int64
klm_outbox_recover(void)
{
	static Statement recover = {"SELECT kliv_mail._recover()"};

	run(&recover, NULL, NULL);
	return column_int64(0, 1);
}

List *
klm_outbox_claim(int64 epoch, int room, int64 bytes, char **accounts, int *busy, int64 *held,
				 int count, int64 **ids, int *id_count)
{
	static Statement statement = {
		"SELECT id, message_id, recipient, account, settings, size, suppressed, sender, sender_name FROM kliv_mail._claim($1, $2, $3, $4, $5, $6)", 6,
		{INT8OID, INT4OID, INT8OID, TEXTARRAYOID, INT4ARRAYOID, INT8ARRAYOID}
	};
	Datum		values[6];
	List	   *claims = NIL;

	values[0] = Int64GetDatum(epoch);
	values[1] = Int32GetDatum(room);
	values[2] = Int64GetDatum(bytes);
	values[3] = text_array((const char *const *) accounts, count);
	values[4] = int4_array(busy, count);
	values[5] = int8_array(held, count);
	run(&statement, values, bytes < 0 ? "  n   " : NULL);

	/* Before their texts, any of which may be unreadable. */
	*ids = MemoryContextAlloc(result_context, Max(1, SPI_processed) * sizeof(int64));
	for (uint64 i = 0; i < SPI_processed; i++)
		(*ids)[(*id_count)++] = column_int64(i, 1);

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(result_context);
		KlmClaim   *claim = palloc0(sizeof(KlmClaim));

		claims = lappend(claims, claim);
		MemoryContextSwitchTo(old);
		claim->id = column_int64(i, 1);
		claim->message_id = column_int64(i, 2);
		claim->recipient = column_text(i, 3);
		claim->account = column_text(i, 4);
		claim->settings = column_text(i, 5);
		claim->size = (int) column_int64(i, 6);
		claim->suppressed = column_text(i, 7);
		claim->sender = column_text(i, 8);
		claim->sender_name = column_text(i, 9);
	}
	return claims;
}

List *
klm_outbox_messages(const int64 *ids, int count)
{
	static Statement statement = {
		"SELECT id, header_id, from_address, from_name, reply_to, smtputf8, unsubscribe, entity FROM kliv_mail._messages($1)", 1,
		{INT8ARRAYOID}
	};
	Datum		value = int8_array(ids, count);
	List	   *messages = NIL;

	run(&statement, &value, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(result_context);
		KlmStoredMessage *message = palloc0(sizeof(KlmStoredMessage));
		bytea	   *entity;
		bool		isnull;

		messages = lappend(messages, message);
		message->id = column_int64(i, 1);
		message->header_id = column_text(i, 2);
		message->from_address = column_text(i, 3);
		message->from_name = column_text(i, 4);
		message->reply_to = column_text(i, 5);
		message->smtputf8 = DatumGetBool(SPI_getbinval(tuple, desc, 6, &isnull));
		message->unsubscribe = DatumGetBool(SPI_getbinval(tuple, desc, 7, &isnull));
		/* Detoasted straight into the caller's context, once. */
		entity = DatumGetByteaPCopy(SPI_getbinval(tuple, desc, 8, &isnull));
		message->entity = VARDATA(entity);
		message->entity_length = VARSIZE(entity) - VARHDRSZ;
		MemoryContextSwitchTo(old);
	}
	return messages;
}

void
klm_outbox_record(int64 epoch, const KlmOutcome *outcomes, int count)
{
	static Statement statement = {"SELECT kliv_mail._record($1, $2, $3, $4, $5, $6, $7, $8, $9, "
								  "$10, $11, $12, $13, $14, $15, $16)",
								  16,
								  {INT8OID, INT8ARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
								   INT4ARRAYOID, TEXTARRAYOID, INT4ARRAYOID, TEXTARRAYOID,
								   TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID, TEXTARRAYOID,
								   TEXTARRAYOID, BOOLARRAYOID, TEXTARRAYOID}};
	Datum		values[16];
	Datum	   *flags = palloc(count * sizeof(Datum));
	int64	   *ids = palloc(count * sizeof(int64));
	int		   *numbers = palloc(count * sizeof(int));
	const char **texts = palloc(count * sizeof(char *));

#define COLUMN(n, field) \
	do { \
		for (int i = 0; i < count; i++) \
			texts[i] = outcomes[i].field; \
		values[n] = text_array(texts, count); \
	} while (0)

	values[0] = Int64GetDatum(epoch);
	for (int i = 0; i < count; i++)
		ids[i] = outcomes[i].id;
	values[1] = int8_array(ids, count);
	COLUMN(2, verdict);
	COLUMN(3, scope);
	COLUMN(4, bounce_type);
	for (int i = 0; i < count; i++)
		numbers[i] = outcomes[i].pause_s;
	values[5] = int4_array(numbers, count);
	COLUMN(6, stage);
	for (int i = 0; i < count; i++)
		numbers[i] = outcomes[i].code;
	values[7] = int4_array(numbers, count);
	COLUMN(8, enhanced);
	COLUMN(9, reply);
	COLUMN(10, reason);
	COLUMN(11, hint);
	COLUMN(12, server_id);
	COLUMN(13, identity);
	for (int i = 0; i < count; i++)
		flags[i] = BoolGetDatum(outcomes[i].unknown);
	values[14] = PointerGetDatum(construct_array(flags, count, BOOLOID, 1, true, TYPALIGN_CHAR));
	COLUMN(15, fingerprint);
	run(&statement, values, NULL);
#undef COLUMN
}

void
klm_outbox_hold(const char *account, const char *by, int pause_s, const char *reason,
				const char *hint, bool failure, const char *fingerprint)
{
	static Statement statement = {
		"SELECT kliv_mail._hold_account($1, $2, pg_catalog.make_interval(secs => $3), $4, $5, $6, $7)", 7,
		{TEXTOID, TEXTOID, FLOAT8OID, TEXTOID, TEXTOID, BOOLOID, TEXTOID}
	};
	Datum		values[7];
	char		nulls[] = "       ";

	values[0] = CStringGetTextDatum(klm_from_utf8((char *) account));
	values[1] = CStringGetTextDatum(by);
	values[2] = Float8GetDatum(pause_s);
	values[3] = CStringGetTextDatum(klm_from_utf8_lossy(reason));
	values[4] = (Datum) 0;
	if (hint)
		values[4] = CStringGetTextDatum(klm_from_utf8_lossy(hint));
	else
		nulls[4] = 'n';
	values[5] = BoolGetDatum(failure);
	values[6] = (Datum) 0;
	if (fingerprint)
		values[6] = CStringGetTextDatum(fingerprint);
	else
		nulls[6] = 'n';
	run(&statement, values, nulls);
}

void
klm_outbox_set_aside(int64 id, const char *reason)
{
	static Statement statement = {"SELECT kliv_mail._set_aside($1, $2)", 2, {INT8OID, TEXTOID}};
	Datum		values[2];

	values[0] = Int64GetDatum(id);
	values[1] = CStringGetTextDatum(klm_from_utf8_lossy(reason));
	run(&statement, values, NULL);
}

void
klm_outbox_expire(void)
{
	static Statement statement = {"SELECT kliv_mail._expire(kliv_mail._now())"};

	run(&statement, NULL, NULL);
}

List *
klm_outbox_accounts(void)
{
	static Statement statement = {"SELECT * FROM kliv_mail._account_states()"};
	List	   *accounts = NIL;

	run(&statement, NULL, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char	   *name = column_text(i, 1);
		char	   *settings = column_text(i, 2);
		bool		stopped = column_int64(i, 3) != 0;
		MemoryContext old = MemoryContextSwitchTo(result_context);
		KlmAccountState *state = palloc(sizeof(KlmAccountState));

		state->name = name;
		state->settings = settings;
		state->stopped = stopped;
		accounts = lappend(accounts, state);
		MemoryContextSwitchTo(old);
	}
	return accounts;
}

void
klm_outbox_notify(const char *payload)
{
	static Statement statement = {"SELECT pg_catalog.pg_notify('kliv_mail', $1)", 1, {TEXTOID}};
	Datum		value = CStringGetTextDatum(payload);

	run(&statement, &value, NULL);
}

char *
klm_outbox_unsubscribe_url(void)
{
	static Statement statement = {"SELECT kliv_mail._brand_unsubscribe_url()"};

	run(&statement, NULL, NULL);
	return column_text(0, 1);
}

TimestampTz
klm_outbox_next_due(void)
{
	static Statement statement = {"SELECT kliv_mail._next_due()"};
	bool		isnull;
	Datum		value;

	run(&statement, NULL, NULL);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? DT_NOEND : DatumGetTimestampTz(value);
}

int64
klm_outbox_retain(void)
{
	static Statement statement = {
		"SELECT kliv_mail._retain(kliv_mail._now() - pg_catalog.make_interval(secs => $1), 1000)", 1, {FLOAT8OID}
	};
	Datum		value = Float8GetDatum(klm_retention);

	run(&statement, &value, NULL);
	return column_int64(0, 1);
}

/* Run a statement, which gives rows in SPI_tuptable. */
static void
run(Statement *statement, Datum *values, const char *nulls)
{
	int			result;

	if (statement->plan == NULL)
	{
		SPIPlanPtr plan = SPI_prepare(statement->text, statement->argument_count, statement->types);

		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare \"%s\": %s", statement->text, SPI_result_code_string(SPI_result));
		statement->plan = plan;
	}
	result = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (result != SPI_OK_SELECT)
		elog(ERROR, "could not run \"%s\": %s", statement->text, SPI_result_code_string(result));
}

static char *
column_text(int row, int column)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(result_context, klm_to_utf8(value)) : NULL;
}

static int64
column_int64(int row, int column)
{
	bool		isnull;
	Datum value = SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, &isnull);

	if (isnull)
		return 0;
	if (SPI_gettypeid(SPI_tuptable->tupdesc, column) == INT4OID)
		return DatumGetInt32(value);
	return DatumGetInt64(value);
}

/*
 * UTF-8 in, the database's encoding out, lossy since servers' words are among
 * it and must not keep the rest from being recorded; NULL gives a null element.
 */
static Datum
text_array(const char *const *values, int count)
{
	Datum	   *elements = palloc(Max(1, count) * sizeof(Datum));
	bool	   *nulls = palloc(Max(1, count) * sizeof(bool));
	int			dims[1] = {count};
	int			lower[1] = {1};

	if (count == 0)
		return PointerGetDatum(construct_empty_array(TEXTOID));
	for (int i = 0; i < count; i++)
	{
		nulls[i] = values[i] == NULL;
		elements[i] = nulls[i] ? (Datum) 0 : CStringGetTextDatum(klm_from_utf8_lossy(values[i]));
	}
	return PointerGetDatum(
		construct_md_array(elements, nulls, 1, dims, lower, TEXTOID, -1, false, TYPALIGN_INT));
}

static Datum
int8_array(const int64 *values, int count)
{
	Datum	   *elements = palloc(Max(1, count) * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = Int64GetDatum(values[i]);
	return PointerGetDatum(
		construct_array(elements, count, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

static Datum
int4_array(const int *values, int count)
{
	Datum	   *elements = palloc(Max(1, count) * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = Int32GetDatum(values[i]);
	return PointerGetDatum(construct_array(elements, count, INT4OID, 4, true, TYPALIGN_INT));
}
