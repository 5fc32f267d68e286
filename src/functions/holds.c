/*-------------------------------------------------------------------------
 *
 * holds.c
 *		_log_hold(): the server's log learns that an account is held, or goes on.
 *
 * In kliv_mail_net.  When there is something to say, 44_hold.sql decides.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"		/* get_database_name() since PostgreSQL 19 */

#include "base/kliv_mail.h"
#include "db/outbox.h"

PG_FUNCTION_INFO_V1(kliv_mail__log_hold);

/* _log_hold(account, reason, hint); reason NULL: it goes on */
Datum
kliv_mail__log_hold(PG_FUNCTION_ARGS)
{
	char	   *account = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *database = get_database_name(MyDatabaseId);
	char	   *hint = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));

	if (PG_ARGISNULL(1))
		klm_outbox_note_hold(false, psprintf("kliv_mail: the account \"%s\" of database \"%s\" sends again", account, database), NULL);
	else
		klm_outbox_note_hold(true, psprintf("kliv_mail: the account \"%s\" of database \"%s\" is held: %s", account, database,
											text_to_cstring(PG_GETARG_TEXT_PP(1))), hint);
	PG_RETURN_VOID();
}
