/*-------------------------------------------------------------------------
 *
 * settings.c
 *		_setting(): a setting as the server has it.
 *
 * current_setting() refuses what superusers alone may see, and our functions
 * run as the extension's owner, who need not be one for ever.  Only the owner
 * may call it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "base/kliv_mail.h"

PG_FUNCTION_INFO_V1(kliv_mail__setting);

Datum
kliv_mail__setting(PG_FUNCTION_ARGS)
{
	const char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));

	PG_RETURN_TEXT_P(cstring_to_text(GetConfigOption(name, false, false)));
}
