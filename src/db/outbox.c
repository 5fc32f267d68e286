/*-------------------------------------------------------------------------
 *
 * outbox.c
 *		The outbox as the sender sees it; see outbox.h.
 *
 * Owns the transaction and who runs it.  Each call is one of a function of
 * sql/install/, by the plans of db/owner_call.
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
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "tcop/tcopprot.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/guc.h"
#include "db/outbox.h"
#include "db/owner_call.h"
#include "db/rows.h"

/* As the present transaction found them. */
static Oid	extension_owner = InvalidOid;
static char extension_version[64];

static MemoryContext caller_context = NULL;
static MemoryContext result_context = NULL;
static Oid	saved_user;
static int	saved_security;
static volatile sig_atomic_t committing = false;

/* What the log is to say of accounts once the transaction is committed. */
typedef struct HoldLine
{
	bool		held;
	char	   *message;
	char	   *hint;			/* or NULL */
} HoldLine;

static bool in_transaction = false;
static MemoryContext lines_context = NULL;
static List *hold_lines = NIL;

/*
 * Who must go waits for no statement longer than this, in seconds: not one that a
 * trigger, a huge table or a slow disk lets take minutes.
 */
#define LEAVING_STATEMENT_S 3

static bool (*must_go) (void);
static TimeoutId tick = MAX_TIMEOUTS;
static volatile sig_atomic_t ticks_left;

/* Of kliv_mail._outcome. */
#define OUTCOME_COLUMNS 16

static bool find_extension(void);
static void on_tick(void);
static void tell_holds(void);
static char *column_text(int row, int column);
static char *text_in(int row, int column, MemoryContext context);
static int64 column_int64(int row, int column);
static void add_text_lossy(KlmCall *call, const char *utf8);
static void add_texts(KlmCall *call, const char *const *values, int count);
static void add_int8s(KlmCall *call, const int64 *values, int count);
static void add_int4s(KlmCall *call, const int *values, int count);
static void add_times(KlmCall *call, const TimestampTz *values, int count);
static void add_stretches(KlmCall *call, const KlmStretch *stretches, int count);
static void add_outcomes(KlmCall *call, const KlmOutcome *outcomes, int count);

void
klm_outbox_may_be_told_to_go(bool (*told) (void))
{
	must_go = told;
	tick = RegisterTimeout(USER_TIMEOUT, on_tick);
}

/*
 * In a signal handler, once a second of a transaction: statement_timeout is for
 * what the server's own loop reads, and does nothing in a background worker.
 */
static void
on_tick(void)
{
	if (!must_go())
		ticks_left = LEAVING_STATEMENT_S;
	else if (ticks_left > 0)
		ticks_left--;
	else
		InterruptPending = QueryCancelPending = true;
}

/* As autovacuum does: what a role or the database sets must not change what the sender does. */
void
klm_outbox_pin_session(void)
{
	static const char *const settings[][2] = {
		{"search_path", "pg_catalog, pg_temp"},
		{"session_replication_role", "replica"},
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"synchronous_commit", "on"},
		{"statement_timeout", "0"},
		{"lock_timeout", "1s"},
		{"idle_in_transaction_session_timeout", "0"},
		{"transaction_timeout", "0"}, /* from PostgreSQL 17 on */
		{"zero_damaged_pages", "off"},
		{"jit", "off"},
		/* Planning anew for the values at hand costs more than most of what is run. */
		{"plan_cache_mode", "force_generic_plan"},
		/* The outbox's statistics are always of another moment: its indexes are what claims are
		   made for. */
		{"enable_seqscan", "off"},
		{"enable_bitmapscan", "off"},
		{"row_security", "off"},
		/* Errors are for us to catch. */
		{"exit_on_error", "off"},
		{"extra_float_digits", "1"},
		{"datestyle", "ISO, MDY"},
		{"intervalstyle", "postgres"},
	};

	for (int i = 0; i < lengthof(settings); i++)
	{
		if (GetConfigOption(settings[i][0], true, false) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
}

bool
klm_outbox_begin(MemoryContext results)
{
	caller_context = CurrentMemoryContext;
	result_context = results;
	in_transaction = true;
	SetCurrentStatementStartTimestamp();
	ticks_left = LEAVING_STATEMENT_S;
	enable_timeout_every(tick, GetCurrentStatementStartTimestamp() + USECS_PER_SEC, 1000);
	StartTransactionCommand();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	PushActiveSnapshot(GetTransactionSnapshot());
	GetUserIdAndSecContext(&saved_user, &saved_security);
	if (!find_extension())
	{
		klm_outbox_commit();
		return false;
	}
	SetUserIdAndSecContext(extension_owner, saved_security | SECURITY_RESTRICTED_OPERATION |
							   SECURITY_LOCAL_USERID_CHANGE);
	return true;
}

void
klm_outbox_commit(void)
{
	SetUserIdAndSecContext(saved_user, saved_security);
	SPI_finish();
	PopActiveSnapshot();
	disable_timeout(tick, false);
	committing = true;
	if (ShutdownRequestPending)
		QueryCancelPending = true;
	CommitTransactionCommand();
	committing = false;
	QueryCancelPending = false;
	pgstat_report_stat(true);
	MemoryContextSwitchTo(caller_context);
	in_transaction = false;
	tell_holds();
}

void
klm_outbox_abort(void)
{
	disable_timeout(tick, false);
	committing = false;
	QueryCancelPending = false;
	/* Restores the user, ends SPI and drops the snapshot. */
	AbortCurrentTransaction();
	MemoryContextSwitchTo(caller_context);
	in_transaction = false;
	hold_lines = NIL;
	if (lines_context)
		MemoryContextReset(lines_context);
}

/* A session that calls _record() has no log to write: the tests' own. */
void
klm_outbox_note_hold(bool held, const char *message, const char *hint)
{
	MemoryContext old;
	HoldLine   *line;

	if (!in_transaction)
		return;
	if (lines_context == NULL)
		lines_context = AllocSetContextCreate(TopMemoryContext, "kliv_mail log lines", ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(lines_context);
	line = palloc(sizeof(HoldLine));
	line->held = held;
	line->message = pstrdup(message);
	line->hint = hint ? pstrdup(hint) : NULL;
	hold_lines = lappend(hold_lines, line);
	MemoryContextSwitchTo(old);
}

static void
tell_holds(void)
{
	ListCell   *lc;

	if (hold_lines == NIL)
		return;
	foreach(lc, hold_lines)
	{
		HoldLine   *line = lfirst(lc);

		ereport(line->held ? WARNING : LOG,
				(errmsg("%s", line->message),
				 line->hint ? errhint("%s", line->hint) : 0));
	}
	hold_lines = NIL;
	MemoryContextReset(lines_context);
}

/*
 * pg_cancel_backend() has nothing to cancel in a sender: an error outside of
 * a transaction would end the process, and all that is on its way would go
 * out twice.  But the lock_timeout comes by the same signal.
 */
void
klm_outbox_cancel(SIGNAL_ARGS)
{
	if (get_timeout_indicator(LOCK_TIMEOUT, false))
		StatementCancelHandler(KLM_SIGNAL_ARGS);
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

const char *
klm_outbox_version(void)
{
	return extension_version;
}

/* Who owns the extension now, and its version; the role that it was may be gone. */
static bool
find_extension(void)
{
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;

	extension_owner = InvalidOid;
	extension_version[0] = '\0';
	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber, F_NAMEEQ, CStringGetDatum("kliv_mail"));
	scan = systable_beginscan(relation, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;
		Datum value =
			heap_getattr(tuple, Anum_pg_extension_extversion, RelationGetDescr(relation), &isnull);

		extension_owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
		if (!isnull)
			strlcpy(extension_version, TextDatumGetCString(value), sizeof(extension_version));
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return OidIsValid(extension_owner);
}

int64
klm_outbox_open_epoch(void)
{
	for (;;)
	{
		KlmCall		next = {0};
		KlmCall		lock = {0};
		int64		epoch;

		klm_run_one(&next, "next_epoch", false);
		epoch = klm_result_int8(1);
		klm_add_int8(&lock, epoch);
		klm_run_one(&lock, "epoch_lock", false);
		/* A sequence that was set back gives the number of a sender that lives. */
		if (klm_result_bool(1))
			return epoch;
	}
}

int64
klm_outbox_recover(void)
{
	KlmCall		call = {0};

	klm_run_one(&call, "recover", false);
	return klm_result_int8(1);
}

List *
klm_outbox_claim(int64 epoch, int room, int64 bytes, char **accounts, int *busy, int64 *held,
				 int *rooms, const KlmStretch *stretches, int count, int64 **ids, int *id_count)
{
	KlmCall		call = {0};
	List	   *claims = NIL;

	/* What could not be recorded must not leave. */
	klm_rows_check("_outbox");
	klm_rows_check("_delivery");
	klm_add_int8(&call, epoch);
	klm_add_int4(&call, room);
	klm_add(&call, INT8OID, Int64GetDatum(bytes), bytes < 0);
	add_texts(&call, (const char *const *) accounts, count);
	add_int4s(&call, busy, count);
	add_int8s(&call, held, count);
	add_int4s(&call, rooms, count);
	add_stretches(&call, stretches, count * KLM_PRIORITIES);
	klm_run(&call, "claim", false);

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
		claim->suppressed = column_text(i, 5);
		claim->sender = column_text(i, 6);
		claim->sender_name = column_text(i, 7);
		claim->settings = column_text(i, 8);
		claim->expires_at = column_int64(i, 9); /* microseconds, too */
		claim->priority = (int) column_int64(i, 10);
		if (claim->priority < 0 || claim->priority >= KLM_PRIORITIES)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("delivery %lld has the priority %d, which is none",
							(long long) claim->id, claim->priority)));
		claim->place.due = column_int64(i, 11);
		claim->place.id = claim->id;
	}
	return claims;
}

List *
klm_outbox_messages(const int64 *ids, int count, MemoryContext context)
{
	KlmCall		call = {0};
	List	   *messages = NIL;

	add_int8s(&call, ids, count);
	klm_run(&call, "messages", false);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple	tuple = SPI_tuptable->vals[i];
		TupleDesc	desc = SPI_tuptable->tupdesc;
		MemoryContext old = MemoryContextSwitchTo(context);
		KlmStoredMessage *message = palloc0(sizeof(KlmStoredMessage));
		Datum		entity;
		bool		isnull;

		messages = lappend(messages, message);
		message->id = column_int64(i, 1);
		message->header_id = text_in(i, 2, context);
		message->from_address = text_in(i, 3, context);
		message->from_name = text_in(i, 4, context);
		message->reply_to = text_in(i, 5, context);
		message->smtputf8 = DatumGetBool(SPI_getbinval(tuple, desc, 6, &isnull));
		message->unsubscribe = DatumGetBool(SPI_getbinval(tuple, desc, 7, &isnull));
		message->topic = text_in(i, 8, context);
		entity = SPI_getbinval(tuple, desc, 9, &isnull);
		if (!isnull)
		{
			/* Detoasted straight into the caller's context, once. */
			bytea	   *copy = DatumGetByteaPCopy(entity);

			message->entity = VARDATA(copy);
			message->entity_length = VARSIZE(copy) - VARHDRSZ;
		}
		MemoryContextSwitchTo(old);
	}
	return messages;
}

char *
klm_outbox_name_message(int64 id, const char *domain)
{
	KlmCall		call = {0};

	klm_add_int8(&call, id);
	klm_add_text(&call, domain);
	klm_run_one(&call, "name_message", false);
	return klm_result_text(1, result_context);
}

List *
klm_outbox_record(int64 epoch, const KlmOutcome *outcomes, int count)
{
	KlmCall		call = {0};
	List	   *changes = NIL;

	klm_add_int8(&call, epoch);
	add_outcomes(&call, outcomes, count);
	klm_run(&call, "record", false);
	if (!klm_notify)
		return NIL;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(result_context);
		KlmChange  *change = palloc0(sizeof(KlmChange));

		change->message_id = column_int64(i, 1);
		change->status = column_text(i, 2);
		changes = lappend(changes, change);
		MemoryContextSwitchTo(old);
	}
	return changes;
}

void
klm_outbox_stamp(int64 epoch, int64 batch, const int64 *claimed, int claimed_count,
				 const int64 *begun, int begun_count, const int64 *done, int done_count)
{
	KlmCall		call = {0};

	klm_add_int8(&call, epoch);
	klm_add_int8(&call, batch);
	add_int8s(&call, claimed, claimed_count);
	add_int8s(&call, begun, begun_count);
	add_int8s(&call, done, done_count);
	klm_run(&call, "stamp", false);
}

void
klm_outbox_set_aside(int64 id, const char *reason)
{
	KlmCall		call = {0};

	klm_add_int8(&call, id);
	add_text_lossy(&call, reason);
	klm_run(&call, "set_aside", false);
}

int64
klm_outbox_settle_clock(int64 after)
{
	KlmCall		call = {0};

	klm_add_time(&call, klm_now());
	klm_add_int8(&call, after);
	klm_run_one(&call, "settle_clock", false);
	return klm_result_int8(1);
}

int64
klm_outbox_expire(void)
{
	KlmCall		call = {0};

	klm_add_time(&call, klm_now());
	klm_run_one(&call, "expire", false);
	return klm_result_int8(1);
}

int64
klm_outbox_play_reports(void)
{
	KlmCall		call = {0};

	klm_add_time(&call, klm_now());
	klm_run_one(&call, "play_reports", false);
	return klm_result_int8(1);
}

List *
klm_outbox_accounts(void)
{
	KlmCall		call = {0};
	List	   *accounts = NIL;

	klm_run(&call, "account_states", false);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(result_context);
		KlmAccountState *state = palloc0(sizeof(KlmAccountState));

		state->name = column_text(i, 1);
		state->settings = column_text(i, 2);
		state->stopped = column_int64(i, 3) != 0;
		state->connections = (int) column_int64(i, 4);
		accounts = lappend(accounts, state);
		MemoryContextSwitchTo(old);
	}
	return accounts;
}

void
klm_outbox_notify(const char *payload)
{
	KlmCall		call = {0};

	klm_add_text(&call, payload);
	klm_run(&call, "notify", false);
}

char *
klm_outbox_unsubscribe_url(void)
{
	KlmCall		call = {0};

	klm_run_one(&call, "brand_unsubscribe_url", false);
	return column_text(0, 1);
}

TimestampTz
klm_outbox_next_due(void)
{
	KlmCall		call = {0};
	bool		isnull;
	Datum		value;

	klm_run_one(&call, "next_due", false);
	value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return isnull ? DT_NOEND : DatumGetTimestampTz(value);
}

int64
klm_outbox_retain(void)
{
	KlmCall		call = {0};

	klm_add_time(&call, klm_now() - klm_retention * USECS_PER_SEC);
	klm_add_int4(&call, 1000);
	klm_run_one(&call, "retain", false);
	return klm_result_int8(1);
}

static char *
column_text(int row, int column)
{
	return text_in(row, column, result_context);
}

static char *
text_in(int row, int column, MemoryContext context)
{
	char	   *value = SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);

	return value ? MemoryContextStrdup(context, klm_to_utf8(value)) : NULL;
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
	if (SPI_gettypeid(SPI_tuptable->tupdesc, column) == INT2OID)
		return DatumGetInt16(value);
	return DatumGetInt64(value);
}

/* Lossy, since servers' words are among it and must not keep the rest from being recorded. */
static void
add_text_lossy(KlmCall *call, const char *utf8)
{
	klm_add(call, TEXTOID, utf8 ? CStringGetTextDatum(klm_from_utf8_lossy(utf8)) : (Datum) 0,
			utf8 == NULL);
}

static void
add_texts(KlmCall *call, const char *const *values, int count)
{
	Datum	   *elements = palloc(Max(1, count) * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = CStringGetTextDatum(klm_from_utf8_lossy(values[i]));
	klm_add(call, TEXTARRAYOID,
			PointerGetDatum(construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT)),
				false);
}

static void
add_int8s(KlmCall *call, const int64 *values, int count)
{
	Datum	   *elements = palloc(Max(1, count) * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = Int64GetDatum(values[i]);
	klm_add(call, INT8ARRAYOID,
			PointerGetDatum(construct_array(elements, count, INT8OID, 8, FLOAT8PASSBYVAL,
											TYPALIGN_DOUBLE)),
			false);
}

static void
add_times(KlmCall *call, const TimestampTz *values, int count)
{
	Datum	   *elements = palloc(Max(1, count) * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = TimestampTzGetDatum(values[i]);
	klm_add(call, TIMESTAMPTZARRAYOID,
			PointerGetDatum(construct_array(elements, count, TIMESTAMPTZOID, 8, FLOAT8PASSBYVAL,
											TYPALIGN_DOUBLE)),
			false);
}

/* Three arrays: times and ids to begin at, and times to end at. */
static void
add_stretches(KlmCall *call, const KlmStretch *stretches, int count)
{
	TimestampTz *dues = palloc(Max(1, count) * sizeof(TimestampTz));
	TimestampTz *untils = palloc(Max(1, count) * sizeof(TimestampTz));
	int64	   *ids = palloc(Max(1, count) * sizeof(int64));

	for (int i = 0; i < count; i++)
	{
		dues[i] = stretches[i].from.due;
		ids[i] = stretches[i].from.id;
		untils[i] = stretches[i].until;
	}
	add_times(call, dues, count);
	add_int8s(call, ids, count);
	add_times(call, untils, count);
}

static void
add_int4s(KlmCall *call, const int *values, int count)
{
	Datum	   *elements = palloc(Max(1, count) * sizeof(Datum));

	for (int i = 0; i < count; i++)
		elements[i] = Int32GetDatum(values[i]);
	klm_add(call, INT4ARRAYOID,
			PointerGetDatum(construct_array(elements, count, INT4OID, 4, true, TYPALIGN_INT)),
				false);
}

/* As kliv_mail._outcome[], whose columns have the order of the fields below. */
static void
add_outcomes(KlmCall *call, const KlmOutcome *outcomes, int count)
{
	Oid			type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("_outcome"),
									   ObjectIdGetDatum(get_namespace_oid(KLM_SCHEMA, false)));
	TupleDesc	desc = lookup_rowtype_tupdesc(type, -1);
	Datum	   *rows = palloc(Max(1, count) * sizeof(Datum));

	if (desc->natts != OUTCOME_COLUMNS)
		elog(ERROR, "kliv_mail._outcome has %d columns", desc->natts);
	for (int i = 0; i < count; i++)
	{
		const KlmOutcome *outcome = &outcomes[i];
		const char *texts[OUTCOME_COLUMNS] = {
			NULL, outcome->account, outcome->verdict, outcome->scope, outcome->bounce_type, NULL,
			outcome->stage, NULL, outcome->enhanced, outcome->reply, outcome->reason, outcome->hint,
			outcome->server_id, outcome->identity, outcome->fingerprint, NULL
		};
		Datum		values[OUTCOME_COLUMNS];
		bool		nulls[OUTCOME_COLUMNS];

		for (int c = 0; c < OUTCOME_COLUMNS; c++)
		{
			nulls[c] = texts[c] == NULL;
			values[c] = nulls[c] ? (Datum) 0 : CStringGetTextDatum(klm_from_utf8_lossy(texts[c]));
		}
		values[0] = Int64GetDatum(outcome->id);
		nulls[0] = outcome->id == 0;
		values[5] = Int32GetDatum(outcome->pause_s);
		values[7] = Int32GetDatum(outcome->code);
		values[15] = BoolGetDatum(outcome->simulated);
		nulls[5] = nulls[7] = nulls[15] = false;
		rows[i] = HeapTupleGetDatum(heap_form_tuple(desc, values, nulls));
	}
	ReleaseTupleDesc(desc);
	klm_add(call, get_array_type(type),
			PointerGetDatum(construct_array(rows, count, type, -1, false, TYPALIGN_DOUBLE)), false);
}
