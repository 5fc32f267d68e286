/*-------------------------------------------------------------------------
 *
 * status.c
 *		SQL entry points of 15_clock.sql: the present, where this database
 *		is, what its processes do, the lock that proves a sender alive.
 *
 * Owns nothing.  May call guc.c and shmem.c.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/namespace.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/guc.h"
#include "cluster/slots.h"

PG_FUNCTION_INFO_V1(kliv_mail__now);
PG_FUNCTION_INFO_V1(kliv_mail__origin);
PG_FUNCTION_INFO_V1(kliv_mail__process_status);
PG_FUNCTION_INFO_V1(kliv_mail__wake);
PG_FUNCTION_INFO_V1(kliv_mail__label_keys);
PG_FUNCTION_INFO_V1(kliv_mail__epoch_lock);
PG_FUNCTION_INFO_V1(kliv_mail__epoch_dead);

static void epoch_tag(LOCKTAG *tag, int64 epoch);

Datum
kliv_mail__now(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(klm_now());
}

/* A copy of the database, or of the server by dump, has another one. */
Datum
kliv_mail__origin(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(UINT64_FORMAT "/%u",
											  GetSystemIdentifier(), MyDatabaseId)));
}

Datum
kliv_mail__process_status(PG_FUNCTION_ARGS)
{
	KlmProcessStatus status;
	TupleDesc	descriptor;
	Datum		values[7];
	bool		nulls[7] = {false};

	if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");

	klm_process_status(&status);

	values[0] = BoolGetDatum(status.preloaded);
	values[1] = Int32GetDatum(status.launcher_pid);
	nulls[1] = status.launcher_pid == 0;
	values[2] = Int32GetDatum(status.sender_pid);
	nulls[2] = status.sender_pid == 0;
	values[3] = TimestampTzGetDatum(status.next_due);
	nulls[3] = TIMESTAMP_IS_NOEND(status.next_due);
	values[4] = BoolGetDatum(status.slots_exhausted);
	nulls[5] = status.last_error[0] == '\0';
	values[5] = nulls[5] ? (Datum) 0 : CStringGetTextDatum(klm_from_utf8_lossy(status.last_error));
	values[6] = CStringGetTextDatum(KLIV_MAIL_VERSION);

	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(descriptor, values, nulls)));
}

Datum
kliv_mail__wake(PG_FUNCTION_ARGS)
{
	klm_wake_at_commit(0);
	klm_changed_at_commit();
	PG_RETURN_VOID();
}

/* _label_keys(ids), separated by commas */
Datum
kliv_mail__label_keys(PG_FUNCTION_ARGS)
{
	klm_label_keys(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/*
 * A session lock, kept over transactions and gone with the process however
 * that ends: so a claim is orphaned exactly when its epoch's lock is free.
 */
Datum
kliv_mail__epoch_lock(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	epoch_tag(&tag, PG_GETARG_INT64(0));
	PG_RETURN_BOOL(LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL);
}

Datum
kliv_mail__epoch_dead(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;
	LockAcquireResult result;

	epoch_tag(&tag, PG_GETARG_INT64(0));
	result = LockAcquire(&tag, ExclusiveLock, false, true);
	if (result == LOCKACQUIRE_NOT_AVAIL)
		PG_RETURN_BOOL(false);
	LockRelease(&tag, ExclusiveLock, false);

	/* A lock that this very process holds is not free. */
	PG_RETURN_BOOL(result == LOCKACQUIRE_OK);
}

/*
 * The epoch as an object of the sequence that numbers epochs: a lock that,
 * unlike an advisory lock, no SQL statement can take.  By the method of the
 * advisory locks all the same, since session locks by the other one end with
 * the first transaction that aborts.
 */
static void
epoch_tag(LOCKTAG *tag, int64 epoch)
{
	Oid			sequence = get_relname_relid("_epoch", get_namespace_oid(KLM_SCHEMA, false));

	if (!OidIsValid(sequence))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the sequence %s._epoch does not exist", KLM_SCHEMA),
				 errhint("Install the extension anew.")));
	if (epoch <= 0 || epoch >> 48 != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("epoch: " INT64_FORMAT " is out of range", epoch)));

	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, sequence, (uint32) epoch, (uint16) (epoch >> 32));
	tag->locktag_lockmethodid = USER_LOCKMETHOD;
}
