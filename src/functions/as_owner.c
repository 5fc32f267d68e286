/*-------------------------------------------------------------------------
 *
 * as_owner.c
 *		The generic entry point: <function>(...) runs _<function>(caller, ...).
 *
 * In kliv_mail_net.  For SQL functions that need no C but for this.  Calls
 * db/owner_call and nothing else.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "db/owner_call.h"

PG_FUNCTION_INFO_V1(kliv_mail_as_owner);

/*
 * <function>(...) runs _<function>(caller, ...) as its owner, so that functions
 * that need no C still know who called them: SECURITY DEFINER would forget it.
 */
Datum
kliv_mail_as_owner(PG_FUNCTION_ARGS)
{
	Oid			function = fcinfo->flinfo->fn_oid;
	char	   *name = get_func_name(function);
	KlmCaller caller;
	KlmCall		call = {0};
	Oid		   *types;
	int			count;
	Datum		result = (Datum) 0;

	/* What is STABLE writes nothing. */
	if (func_volatile(function) == PROVOLATILE_VOLATILE)
		PreventCommandIfReadOnly(psprintf("kliv_mail.%s()", name));
	(void) get_func_signature(function, &types, &count);
	klm_enter_owner(fcinfo, &caller);
	klm_add_caller(&call, &caller);
	for (int i = 0; i < count; i++)
		klm_add(&call, types[i], PG_GETARG_DATUM(i), PG_ARGISNULL(i));
	klm_run(&call, name, false);
	if (get_func_retset(function))
		klm_return_rows(fcinfo);
	else
		result = klm_return_value(fcinfo, 1);
	klm_leave_owner(&caller);
	return result;
}
