/*-------------------------------------------------------------------------
 *
 * status.c
 *		_process_status(), _wake(), _wake_fetcher(), _label_keys(): what the processes tell SQL,
 *		and SQL them.
 *
 * Owns nothing.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "cluster/database_label.h"
#include "cluster/slots.h"
#include "cluster/wake.h"

PG_FUNCTION_INFO_V1(kliv_mail__process_status);
PG_FUNCTION_INFO_V1(kliv_mail__wake);
PG_FUNCTION_INFO_V1(kliv_mail__wake_fetcher);
PG_FUNCTION_INFO_V1(kliv_mail__label_keys);

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

Datum
kliv_mail__wake_fetcher(PG_FUNCTION_ARGS)
{
	klm_fetch_at_commit();
	PG_RETURN_VOID();
}

/* _label_keys(ids), separated by commas */
Datum
kliv_mail__label_keys(PG_FUNCTION_ARGS)
{
	klm_label_keys(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}
