/*-------------------------------------------------------------------------
 *
 * key_check.c
 *		Warns of keys that databases need and the key file lacks.
 *
 * Owns a process, which lives on a standby until that is promoted, and looks at
 * its start, at reload and every minute, since the primary may make a key at any
 * time; on a primary the launcher looks, at its start and at reload.  Calls
 * database_label.c.
 *
 * Which keys a database needs stands in its security label, so
 * nothing connects to it, and a standby learns before its promotion that the
 * key file was not brought along.  Ids are compared, never keys: a line
 * without an id cannot be, and with kliv_mail.key_command nothing is.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "nodes/pg_list.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/guc.h"
#include "cluster/database_label.h"
#include "worker/key_check.h"

/* Between two looks on a standby. */
#define LOOK_INTERVAL_MS 60000

#define FILE_MAX (1024 * 1024)
#define BLANKS " \t\r"

/* A database whose label names keys. */
typedef struct Needs
{
	Oid			database;
	char	   *name;			/* NULL: it is gone */
	char	   *ids;			/* separated by commas */
} Needs;

extern PGDLLEXPORT void klm_keycheck_main(Datum argument);

/* On a standby: what was warned of since the last reload, and where that lives. */
static List *warnings = NIL;
static MemoryContext warned = NULL;

static List *read_needs(void);
static List *read_key_ids(char **problem, bool *comparable);
static bool has_id(List *ids, const char *id);
static bool is_repeated(Oid database, const char *id);

void
klm_keycheck_main(Datum argument)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGINT, KLM_SIG_IGN);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	warned = AllocSetContextCreate(TopMemoryContext, "kliv_mail key check", ALLOCSET_SMALL_SIZES);
	while (RecoveryInProgress())
	{
		klm_check_keys();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 LOOK_INTERVAL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ShutdownRequestPending)
			proc_exit(1);
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
			MemoryContextReset(warned);
			warnings = NIL;
		}
	}
	/* On a primary there is nothing to do: not to be started again. */
	proc_exit(0);
}

void
klm_check_keys(void)
{
	MemoryContext context;
	MemoryContext caller;
	List	   *needs;
	List	   *have;
	ListCell   *cell;
	char	   *problem = NULL;
	bool		comparable;

	if (klm_key_command != NULL && klm_key_command[0] != '\0')
		return;

	context = AllocSetContextCreate(CurrentMemoryContext, "kliv_mail key check",
									ALLOCSET_DEFAULT_SIZES);
	caller = MemoryContextSwitchTo(context);
	needs = read_needs();
	have = needs != NIL ? read_key_ids(&problem, &comparable) : NIL;
	foreach(cell, needs)
	{
		Needs	   *database = lfirst(cell);
		char	   *rest;

		if (database->name == NULL)
			continue;
		for (char *id = strtok_r(database->ids, ",", &rest); id != NULL;
			 id = strtok_r(NULL, ",", &rest))
		{
			if (has_id(have, id) || (problem == NULL && !comparable) ||
				is_repeated(database->database, id))
				continue;
			ereport(WARNING,
					(errmsg("key \"%s\" of database \"%s\" is not in kliv_mail's key file \"%s\"",
							id, database->name, klm_key_file),
					 problem ? errdetail_internal("%s", problem) : 0,
					 errhint("Mail that needs it will wait. Bring the key along from the server "
							 "where the passwords were saved.")));
		}
	}
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);
}

/* The databases whose labels name keys. */
static List *
read_needs(void)
{
	MemoryContext caller = CurrentMemoryContext;
	List	   *needs = NIL;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;
	ListCell   *cell;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	MemoryContextSwitchTo(caller);

	foreach(cell, klm_database_labels())
	{
		KlmLabel   *label = lfirst(cell);
		const char *ids = klm_keys_of_label(label->text);

		if (ids != NULL)
		{
			Needs	   *database = palloc0(sizeof(Needs));

			database->database = label->database;
			database->ids = pstrdup(ids);
			needs = lappend(needs, database);
		}
	}

	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		foreach(cell, needs)
		{
			Needs	   *database = lfirst(cell);

			if (database->database == form->oid)
				database->name = pstrdup(NameStr(form->datname));
		}
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(caller);
	return needs;
}

/*
 * The ids in the key file, and "root" where it has that.  *problem: why there
 * are none, palloc'd.  *comparable: every key has its id beside it.
 */
static List *
read_key_ids(char **problem, bool *comparable)
{
	List	   *ids = NIL;
	char	   *text;
	char	   *line_end;
	int			fd;
	ssize_t		length;

	*comparable = true;
	fd = OpenTransientFile(klm_key_file, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
	{
		*problem = psprintf("could not open the file: %m");
		return NIL;
	}
	text = palloc(FILE_MAX + 1);
	length = read(fd, text, FILE_MAX);
	if (length < 0)
		*problem = psprintf("could not read the file: %m");
	text[Max(length, 0)] = '\0';
	CloseTransientFile(fd);

	for (char *line = text; *line != '\0'; line = line_end)
	{
		const char *words[4];
		int			count = 0;
		char	   *word;
		char	   *rest;

		line_end = line + strcspn(line, "\n");
		if (*line_end != '\0')
			*line_end++ = '\0';
		for (word = strtok_r(line, BLANKS, &rest); word != NULL && count < lengthof(words);
			 word = strtok_r(NULL, BLANKS, &rest))
			words[count++] = word;
		if (count < 3 || strcmp(words[0], "kliv_mail") != 0)
			continue;
		if (strcmp(words[1], "root") == 0)
			ids = lappend(ids, pstrdup("root"));
		else if (count == 4)
			ids = lappend(ids, pstrdup(words[2]));
		else
			*comparable = false;
	}
	explicit_bzero(text, FILE_MAX);
	pfree(text);
	return ids;
}

static bool
has_id(List *ids, const char *id)
{
	ListCell   *cell;

	foreach(cell, ids)
	{
		if (strcmp(lfirst(cell), id) == 0)
			return true;
	}
	return false;
}

/* Each warning once, where the same process looks again and again by itself. */
static bool
is_repeated(Oid database, const char *id)
{
	MemoryContext caller;
	char	   *name;

	if (warned == NULL)
		return false;
	name = psprintf("%u %s", database, id);
	if (has_id(warnings, name))
		return true;
	caller = MemoryContextSwitchTo(warned);
	warnings = lappend(warnings, pstrdup(name));
	MemoryContextSwitchTo(caller);
	return false;
}
