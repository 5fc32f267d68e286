/*-------------------------------------------------------------------------
 *
 * clock.c
 *		_now() and _origin(): the present, and where this database is.
 *
 * Owns nothing.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/namespace.h"
#include "commands/extension.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "functions/clock.h"

PG_FUNCTION_INFO_V1(kliv_mail__now);
PG_FUNCTION_INFO_V1(kliv_mail__origin);

Datum
kliv_mail__now(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(klm_now());
}

Datum
kliv_mail__origin(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(klm_origin()));
}

/*
 * A copy of the database, of the server by dump, or the same database after a
 * restore has another one.  The extension's OID is new whenever its schema's is,
 * which is looked up in a cache.
 */
const char *
klm_origin(void)
{
	static Oid	schema = InvalidOid;
	static char origin[64];
	Oid			present = get_namespace_oid(KLM_SCHEMA, false);

	if (present != schema)
	{
		snprintf(origin, sizeof(origin), UINT64_FORMAT "/%u/%u", GetSystemIdentifier(), MyDatabaseId,
				 get_extension_oid(KLM_SCHEMA, false));
		schema = present;
	}
	return origin;
}
