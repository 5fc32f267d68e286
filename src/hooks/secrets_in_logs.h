/*-------------------------------------------------------------------------
 *
 * secrets_in_logs.h
 *		The log hook: no password of a statement reaches the server's log.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SECRETS_IN_LOGS_H
#define KLM_SECRETS_IN_LOGS_H

#include "fmgr.h"

/* From _PG_init: chain the hooks. */
extern void klm_loghook_init(void);

/*
 * A function that takes a password is called: what pg_stat_activity shows of the
 * statement, also when the session is idle behind it, has no constants of the call.
 */
extern PGDLLEXPORT void klm_mask_activity(void);

/*
 * The work of such a function: beside that, whatever it raises, from below, too, hides
 * its statement from the log, in whichever argument the secret stands.
 */
extern PGDLLEXPORT Datum klm_call_hidden(FunctionCallInfo fcinfo, Datum (*work) (FunctionCallInfo));

#endif							/* KLM_SECRETS_IN_LOGS_H */
