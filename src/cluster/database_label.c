/*-------------------------------------------------------------------------
 *
 * database_label.c
 *		The security label by which the launcher finds databases with mail
 *		after a restart, and learns which keys they need.
 *
 * Owns the label's provider.  Calls nothing of ours.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "catalog/pg_shseclabel.h"
#include "commands/seclabel.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/rel.h"

#include "base/kliv_mail.h"
#include "cluster/database_label.h"

#define LABEL_PROVIDER "kliv_mail"
#define LABEL "mail"
#define LABEL_KEYS " keys="

static void set_label(const char *label);
static void check_label(const ObjectAddress *object, const char *label);

void
klm_label_init(void)
{
	register_label_provider(LABEL_PROVIDER, check_label);
}

/* SECURITY LABEL, which pg_dump --create writes too: our label and no other. */
static void
check_label(const ObjectAddress *object, const char *label)
{
	if (object->classId != DatabaseRelationId)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("security labels of \"%s\" are for databases", LABEL_PROVIDER)));
	if (label != NULL && strcmp(label, LABEL) != 0 && klm_keys_of_label(label) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("\"%s\" is not a security label of \"%s\"", label, LABEL_PROVIDER),
				 errhint("It is \"%s\", for the launcher to look for mail in the database, or \"%s%s...\" "
						 "with the ids of the keys that the database needs.", LABEL, LABEL, LABEL_KEYS)));

	/* What a label says of keys, other databases and the log of the server go by. */
	if (label != NULL && strcmp(label, LABEL) != 0 && !superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only a superuser may name keys in a security label of \"%s\"", LABEL_PROVIDER),
				 errhint("The owner of a database may set \"%s\" or remove the label.", LABEL)));
}

const char *
klm_keys_of_label(const char *label)
{
	const char *ids = label + strlen(LABEL LABEL_KEYS);

	if (strncmp(label, LABEL LABEL_KEYS, strlen(LABEL LABEL_KEYS)) != 0 || *ids == '\0' ||
		ids[strspn(ids, "abcdefghijklmnopqrstuvwxyz0123456789,")] != '\0')
		return NULL;
	return ids;
}

/* A process without a database reads shared catalogues by their heaps alone. */
List *
klm_database_labels(void)
{
	List	   *labels = NIL;
	Relation	relation = table_open(SharedSecLabelRelationId, AccessShareLock);
	TableScanDesc scan = table_beginscan_catalog(relation, 0, NULL);
	HeapTuple	tuple;

	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_shseclabel form = (Form_pg_shseclabel) GETSTRUCT(tuple);
		Datum		provider;
		Datum		string;
		bool		no_provider;
		bool		no_string;
		KlmLabel   *label;

		provider = heap_getattr(tuple, Anum_pg_shseclabel_provider, RelationGetDescr(relation),
								&no_provider);
		string = heap_getattr(tuple, Anum_pg_shseclabel_label, RelationGetDescr(relation),
							  &no_string);
		if (form->classoid != DatabaseRelationId || no_provider || no_string ||
			strcmp(TextDatumGetCString(provider), LABEL_PROVIDER) != 0)
			continue;
		label = palloc(sizeof(KlmLabel));
		label->database = form->objoid;
		label->text = TextDatumGetCString(string);
		labels = lappend(labels, label);
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	return labels;
}

bool
klm_database_labelled(Oid database)
{
	ObjectAddress object;

	ObjectAddressSet(object, DatabaseRelationId, database);
	return GetSecurityLabel(&object, LABEL_PROVIDER) != NULL;
}

void
klm_label_database(void)
{
	if (!klm_database_labelled(MyDatabaseId))
		set_label(LABEL);
}

void
klm_label_keys(const char *ids)
{
	const char *label = ids[0] == '\0' ? LABEL : psprintf("%s%s%s", LABEL, LABEL_KEYS, ids);
	const char *old;
	ObjectAddress object;

	/* One after the other: the catalogue raises an error where two change a row. */
	LockSharedObject(SharedSecLabelRelationId, MyDatabaseId, 0, ExclusiveLock);
	ObjectAddressSet(object, DatabaseRelationId, MyDatabaseId);
	old = GetSecurityLabel(&object, LABEL_PROVIDER);
	if (old == NULL || strcmp(old, label) != 0)
		set_label(label);
}

void
klm_unlabel_database(void)
{
	if (klm_database_labelled(MyDatabaseId))
		set_label(NULL);
}

static void
set_label(const char *label)
{
	ObjectAddress object;

	ObjectAddressSet(object, DatabaseRelationId, MyDatabaseId);
	SetSecurityLabel(&object, LABEL_PROVIDER, label);
	CommandCounterIncrement();
}
