/*-------------------------------------------------------------------------
 *
 * probe_rows.c
 *		A connection test's steps as rows of the SQL function that was called.
 *
 * In kliv_mail_net.  For test_smtp() and test_bounce_mailbox().
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "functions/probe_rows.h"

void
klm_put_step(FunctionCallInfo fcinfo, const KlmProbeStep *step)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[5];
	bool		nulls[5] = {false};

	values[0] = CStringGetTextDatum(step->step);
	values[1] = BoolGetDatum(step->ok);
	values[2] = DirectFunctionCall3(numeric_in,
									CStringGetDatum(psprintf("%.1f", step->elapsed_ms)),
									ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1));
	values[3] = CStringGetTextDatum(klm_from_utf8(step->detail));
	if (step->hint != NULL)
		values[4] = CStringGetTextDatum(klm_from_utf8(step->hint));
	else
		nulls[4] = true;
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}
