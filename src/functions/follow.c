/*-------------------------------------------------------------------------
 *
 * follow.c
 *		What a caller can do with a message that send() made: cancel(), retry(),
 *		reschedule(), wait(), raw_message(), and see where it stands in line.
 *
 * Each of them becomes the extension's owner, makes sure that the message is
 * the caller's, and calls the SQL function that does it (51_follow.sql).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "cluster/slots.h"
#include "cluster/wake.h"
#include "db/owner_call.h"
#include "functions/send.h"
#include "message/address.h"

PG_FUNCTION_INFO_V1(kliv_mail_cancel);
PG_FUNCTION_INFO_V1(kliv_mail_retry);
PG_FUNCTION_INFO_V1(kliv_mail_reschedule);
PG_FUNCTION_INFO_V1(kliv_mail_wait);
PG_FUNCTION_INFO_V1(kliv_mail_raw_message);
PG_FUNCTION_INFO_V1(kliv_mail__line);

static TransactionId enter_message(FunctionCallInfo fcinfo, KlmCaller *caller);
static int64 change_message(FunctionCallInfo fcinfo, const char *function);
static char *status_of(FunctionCallInfo fcinfo);

/*
 * Become the owner for a call about the message of the first argument: 22023
 * unless it is there and the caller may touch it.  Returns the transaction that
 * queued it.
 */
static TransactionId
enter_message(FunctionCallInfo fcinfo, KlmCaller *caller)
{
	KlmCall		call = {0};

	klm_enter_owner(fcinfo, caller);
	klm_add_caller(&call, caller);
	klm_add_int8(&call, PG_GETARG_INT64(0));
	klm_run_one(&call, "check_may_touch", false);
	return (TransactionId) klm_result_int8(1);
}

/* Call a function that changes deliveries of the message; how many it changed. */
static int64
change_message(FunctionCallInfo fcinfo, const char *function)
{
	KlmCaller	caller;
	KlmCall		call = {0};
	int64		count;

	(void) enter_message(fcinfo, &caller);
	klm_add_int8(&call, PG_GETARG_INT64(0));
	klm_run_one(&call, function, false);
	count = klm_result_int8(1);
	klm_leave_owner(&caller);
	return count;
}

Datum
kliv_mail_cancel(PG_FUNCTION_ARGS)
{
	int64		count;

	PreventCommandIfReadOnly("kliv_mail.cancel()");
	count = change_message(fcinfo, "cancel");
	if (count > 0)
		klm_changed_at_commit();
	PG_RETURN_BOOL(count > 0);
}

Datum
kliv_mail_retry(PG_FUNCTION_ARGS)
{
	int64		count;

	PreventCommandIfReadOnly("kliv_mail.retry()");
	count = change_message(fcinfo, "retry");
	if (count > 0)
		klm_wake_at_commit(0);
	PG_RETURN_INT32((int32) count);
}

Datum
kliv_mail_reschedule(PG_FUNCTION_ARGS)
{
	TimestampTz send_at;
	KlmCaller	caller;
	KlmCall		call = {0};
	int64		count;

	PreventCommandIfReadOnly("kliv_mail.reschedule()");
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	if (PG_ARGISNULL(1))
		klm_refuse("send_at", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Give a time; now() lets it leave at once.", "is NULL");
	send_at = PG_GETARG_TIMESTAMPTZ(1);
	klm_check_time("send_at", send_at, "Give a time; kliv_mail.cancel() stops a mail for good.");
	(void) enter_message(fcinfo, &caller);
	klm_add_int8(&call, PG_GETARG_INT64(0));
	klm_add_time(&call, send_at);
	klm_run_one(&call, "reschedule", false);
	count = klm_result_int8(1);
	klm_leave_owner(&caller);
	if (count > 0)
	{
		klm_changed_at_commit();
		klm_wake_at_commit(Max(1, send_at - klm_test_clock_offset));
	}
	PG_RETURN_INT32((int32) count);
}

Datum
kliv_mail_raw_message(PG_FUNCTION_ARGS)
{
	KlmCaller	caller;
	KlmCall		call = {0};
	KlmAddress	address = {0};
	KlmError	error;
	Datum		result;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	if (!PG_ARGISNULL(1) && !klm_parse_address(klm_argument(fcinfo, 1), &address, &error))
		klm_raise("recipient", &error, false);
	(void) enter_message(fcinfo, &caller);
	klm_add_int8(&call, PG_GETARG_INT64(0));
	klm_add_text(&call, address.addr);
	klm_run_one(&call, "raw_message", true);
	result = klm_return_value(fcinfo, 1);
	klm_leave_owner(&caller);
	return result;
}

/*
 * Each look needs a snapshot of its own, which READ COMMITTED gives to each
 * SPI call that is not read-only; above it, nothing new could ever be seen.
 */
Datum
kliv_mail_wait(PG_FUNCTION_ARGS)
{
	int64		message_id = PG_GETARG_INT64(0);
	Interval   *timeout = PG_GETARG_INTERVAL_P(1);
	int64		deadline;
	bool		finished;
	char	   *status;
	MemoryContext result_context = CurrentMemoryContext;

	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("kliv_mail.wait() cannot see anything new in this transaction's isolation level"),
				 errhint("Call it in a READ COMMITTED transaction.")));
	if (timeout->month != 0 || timeout->day < 0 || timeout->day > 24 || timeout->time < 0 ||
		timeout->time > (24 - timeout->day) * USECS_PER_DAY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout: not a time from 0 to 24 days"),
				 errhint("Write for example '30 seconds'.")));
	deadline = klm_clock_ms() + (timeout->day * USECS_PER_DAY + timeout->time) / 1000;

	for (;;)
	{
		KlmCaller	caller;
		KlmCall		call = {0};
		uint64		seen;
		int64		left;
		TimestampTz next_at;
		TimestampTz at;
		long		wait_ms;

		/* Before the look, so that what is recorded after it wakes us. */
		seen = klm_records();
		if (TransactionIdIsCurrentTransactionId(enter_message(fcinfo, &caller)))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("message %lld is sent only when this transaction commits", (long long) message_id),
					 errhint("COMMIT first, then call kliv_mail.wait().")));
		klm_add_int8(&call, message_id);
		klm_run_one(&call, "wait_state", false);
		status = klm_result_text(1, result_context);
		finished = klm_result_bool(2);
		next_at = klm_result_time(3);
		at = klm_result_time(4);
		klm_leave_owner(&caller);

		left = deadline - klm_clock_ms();
		if (finished || left <= 0 || !klm_preloaded())
			break;
		/* Nothing more can happen before the timeout. */
		if (next_at == DT_NOEND || next_at - at > left * 1000)
			break;
		wait_ms = left;
		/* A time may pass that nobody records: an expiry, a window. */
		if (next_at > at)
			wait_ms = Min(wait_ms, Max(1, (next_at - at + 999) / 1000 + 100));
		klm_wait_for_record(&seen, wait_ms);
		CHECK_FOR_INTERRUPTS();
	}
	/* Not at each look: where it stands in its account's line costs something to say. */
	if (!finished)
		status = status_of(fcinfo);
	if (status == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(status));
}

/* A message's status as the views have it. */
static char *
status_of(FunctionCallInfo fcinfo)
{
	MemoryContext context = CurrentMemoryContext;
	KlmCaller	caller;
	KlmCall		call = {0};
	char	   *status;

	klm_enter_owner(fcinfo, &caller);
	klm_add_int8(&call, PG_GETARG_INT64(0));
	klm_run_one(&call, "status_of", false);
	status = klm_result_text(1, context);
	klm_leave_owner(&caller);
	return status;
}

/*
 * _line(): where deliveries stand in line, of those alone that the caller may
 * see, since whoever reads the views may call it too.
 */
Datum
kliv_mail__line(PG_FUNCTION_ARGS)
{
	KlmCaller	caller;
	KlmCall		call = {0};

	klm_enter_owner(fcinfo, &caller);
	klm_add_caller(&call, &caller);
	klm_run(&call, "line_of", true);
	klm_return_rows(fcinfo);
	klm_leave_owner(&caller);
	return (Datum) 0;
}
