/*-------------------------------------------------------------------------
 *
 * fresh_settings.c
 *		A session has the settings that its database's senders have.
 *
 * Owns the ExecutorStart hook.  Calls cluster/settings.c.
 *
 * A connection of a pool lives for days.  With what it read at its start it
 * would be told that its mail is on its way after ALTER DATABASE ... SET
 * kliv_mail.delivery = hold, and that it is held after RESET.  So it reads
 * klm_database_settings anew when somebody has changed one; what it has set
 * itself (test_in_session) stays.
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
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/guc.h"
#include "cluster/settings.h"
#include "hooks/fresh_settings.h"

static ExecutorStart_hook_type next;
static uint32 seen = 0;

static void executor_start(QueryDesc *query, int flags);
static void read_settings(Oid database, KlmPublishedSettings values);

void
klm_fresh_settings_init(void)
{
	next = ExecutorStart_hook ? ExecutorStart_hook : standard_ExecutorStart;
	ExecutorStart_hook = executor_start;
}

static void
executor_start(QueryDesc *query, int flags)
{
	klm_refresh_settings();
	next(query, flags);
}

void
klm_refresh_settings(void)
{
	uint32		changes = klm_changes_of_settings();
	KlmPublishedSettings *values;

	/* A sender ends when they change, and parallel workers have what their leader has. */
	if (changes == seen || MyBackendType != B_BACKEND || IsInParallelMode() ||
		!IsTransactionState())
		return;

	values = palloc(sizeof(KlmPublishedSettings));
	if (klm_published_settings(*values))
	{
		read_settings(InvalidOid, *values);
		read_settings(MyDatabaseId, *values);
		for (int i = 0; i < KLM_DATABASE_SETTINGS; i++)
		{
			if (strcmp((*values)[i], GetConfigOption(klm_database_settings[i], false, false)) != 0)
				(void) set_config_option(klm_database_settings[i], (*values)[i], PGC_SUSET,
										 PGC_S_DATABASE, GUC_ACTION_SET, true, LOG, false);
		}
		seen = changes;
	}
	pfree(values);
}

/* What ALTER DATABASE, or (InvalidOid) ALTER ROLE ALL, sets takes the place of what is there. */
static void
read_settings(Oid database, KlmPublishedSettings values)
{
	Relation	relation;
	SysScanDesc scan;
	ScanKeyData keys[2];
	HeapTuple	tuple;

	/* A commit counts its change before it tells others that their snapshots are old. */
	InvalidateCatalogSnapshot();
	relation = table_open(DbRoleSettingRelationId, AccessShareLock);
	ScanKeyInit(&keys[0], Anum_pg_db_role_setting_setdatabase, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(database));
	ScanKeyInit(&keys[1], Anum_pg_db_role_setting_setrole, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(InvalidOid));
	scan = systable_beginscan(relation, DbRoleSettingDatidRolidIndexId, true, NULL, 2, keys);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		bool		is_null;
		Datum		config = heap_getattr(tuple, Anum_pg_db_role_setting_setconfig,
										  RelationGetDescr(relation), &is_null);
		Datum	   *entries;
		int			count = 0;

		if (!is_null)
			deconstruct_array(DatumGetArrayTypeP(config), TEXTOID, -1, false, TYPALIGN_INT,
							  &entries, NULL, &count);
		for (int i = 0; i < count; i++)
		{
			char	   *entry = TextDatumGetCString(entries[i]);
			char	   *equals = strchr(entry, '=');

			for (int s = 0; equals != NULL && s < KLM_DATABASE_SETTINGS; s++)
			{
				int			length = strlen(klm_database_settings[s]);

				if (equals - entry == length &&
					pg_strncasecmp(entry, klm_database_settings[s], length) == 0)
					strlcpy(values[s], equals + 1, KLM_SETTING_SIZE);
			}
			pfree(entry);
		}
	}
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
}
