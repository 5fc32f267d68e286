/*-------------------------------------------------------------------------
 *
 * ddl.c
 *		The ProcessUtility hook: senders are never in a statement's way.
 *
 * Owns the hook.  Calls wake.c and database_label.c.
 *
 * A sender is a session of the bootstrap superuser in the database that it
 * serves.  Without help, DROP DATABASE and its like would fail or wait for it
 * (FORCE by a plain owner would lack the right to end it), and DROP or ALTER
 * EXTENSION would wait for its locks.  So the database is blocked before such a
 * statement runs: its senders leave and none is started until the statement
 * has failed or its transaction has ended.  Since that stops mail for a
 * moment, it is done only for a caller whom the statement itself would obey.
 * PostgreSQL 19 ends workers for a database's command by itself where they ask
 * for it (BGWORKER_INTERRUPTIBLE).  Senders do not: it would save nothing here,
 * since it does not keep the launcher from starting the next sender, knows
 * nothing of statements about extensions, and waits for 5 s, which may be too
 * short for the answer to a final dot.
 *
 * What is looked up here is looked up again by the statement: a name that has
 * got another meaning in between costs a sender its slot, or a statement a
 * wait, and nothing else.
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
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/guc.h"
#include "cluster/database_label.h"
#include "cluster/wake.h"
#include "hooks/ddl.h"
#include "hooks/fresh_settings.h"

static ProcessUtility_hook_type next;

static void process_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
							ProcessUtilityContext context, ParamListInfo params,
							QueryEnvironment *environment, DestReceiver *receiver,
							QueryCompletion *completion);
static bool concerns_us(Node *node);
static Oid	database_to_block(Node *statement);
static Oid	owned_database(const char *name);
static Oid	template_database(CreatedbStmt *statement);
static bool may_create_databases(void);
static bool touches_extension(Node *statement, Oid extension);
static bool owns_all_extensions(List *names, bool *named);
static Oid	extension_owner(Oid extension);
static void refuse_senders_setting(const AlterRoleSetStmt *statement);
static void after_statement(Node *statement, Oid extension_before, Oid blocked);

void
klm_utility_init(void)
{
	next = ProcessUtility_hook ? ProcessUtility_hook : standard_ProcessUtility;
	ProcessUtility_hook = process_utility;
}

static void
process_utility(PlannedStmt *statement, const char *query, bool read_only_tree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *environment, DestReceiver *receiver,
				QueryCompletion *completion)
{
	Node	   *node = statement->utilityStmt;
	Oid			extension = InvalidOid;
	volatile Oid blocked = InvalidOid;

	/* (SHOW comes by here) */
	klm_refresh_settings();

	/* On a standby, and in a transaction that has failed, nothing comes of it. */
	if (!concerns_us(node) || RecoveryInProgress() || !IsTransactionState())
	{
		next(statement, query, read_only_tree, context, params, environment, receiver, completion);
		return;
	}

	if (IsA(node, TransactionStmt))
	{
		next(statement, query, read_only_tree, context, params, environment, receiver, completion);
		klm_wake_after_prepared();
		return;
	}

	if (IsA(node, AlterRoleSetStmt))
		refuse_senders_setting((AlterRoleSetStmt *) node);

	extension = get_extension_oid(KLM_SCHEMA, true);

	PG_TRY();
	{
		blocked = database_to_block(node);
		if (!OidIsValid(blocked) && OidIsValid(extension) && touches_extension(node, extension))
			blocked = MyDatabaseId;
		if (OidIsValid(blocked))
			klm_block_database(blocked);

		next(statement, query, read_only_tree, context, params, environment, receiver, completion);
	}
	PG_CATCH();
	{
		/* Here, since a subtransaction may go on after the error. */
		if (OidIsValid(blocked))
			klm_unblock_database(blocked);
		PG_RE_THROW();
	}
	PG_END_TRY();

	after_statement(node, extension, blocked);
}

/*
 * The check hooks of the settings see a session that sets them, but not for whom
 * ALTER ROLE does.  For all roles reaches the sender, too.
 */
static void
refuse_senders_setting(const AlterRoleSetStmt *statement)
{
	if (statement->role != NULL && statement->setstmt->name != NULL &&
		statement->setstmt->kind != VAR_RESET && klm_is_of_database(statement->setstmt->name))
		ereport(ERROR,
				(errcode(ERRCODE_CANT_CHANGE_RUNTIME_PARAM),
				 errmsg("%s cannot be set for a role", statement->setstmt->name),
				 errdetail("The sender, which it is for, would not have it."),
				 errhint("Use ALTER DATABASE ... SET %s = ..., or the configuration file.",
						 statement->setstmt->name)));
}

/* Cheap: every utility statement of the cluster comes by here. */
static bool
concerns_us(Node *node)
{
	switch (nodeTag(node))
	{
		case T_DropdbStmt:
		case T_AlterDatabaseStmt:
		case T_AlterDatabaseSetStmt:
		case T_AlterRoleSetStmt:
		case T_CreatedbStmt:
		case T_DropOwnedStmt:
		case T_CreateExtensionStmt:
		case T_AlterExtensionStmt:
		case T_AlterExtensionContentsStmt:
			return true;
		case T_RenameStmt:
			return ((RenameStmt *) node)->renameType == OBJECT_DATABASE;
		case T_AlterOwnerStmt:
			return ((AlterOwnerStmt *) node)->objectType == OBJECT_DATABASE;
		case T_DropStmt:
			return ((DropStmt *) node)->removeType == OBJECT_EXTENSION ||
				((DropStmt *) node)->removeType == OBJECT_SCHEMA;
		case T_TransactionStmt:
			return ((TransactionStmt *) node)->kind == TRANS_STMT_COMMIT_PREPARED;
		default:
			return false;
	}
}

/* The database that the statement needs for itself, if the caller may have it. */
static Oid
database_to_block(Node *node)
{
	ListCell   *cell;

	switch (nodeTag(node))
	{
		case T_DropdbStmt:
			return owned_database(((DropdbStmt *) node)->dbname);
		case T_RenameStmt:
			if (!may_create_databases())
				return InvalidOid;
			return owned_database(((RenameStmt *) node)->subname);
		case T_AlterDatabaseStmt:
			foreach(cell, ((AlterDatabaseStmt *) node)->options)
			{
				if (strcmp(lfirst_node(DefElem, cell)->defname, "tablespace") == 0)
					return owned_database(((AlterDatabaseStmt *) node)->dbname);
			}
			return InvalidOid;
		case T_CreatedbStmt:
			return template_database((CreatedbStmt *) node);
		default:
			return InvalidOid;
	}
}

/* The own database can be neither dropped nor renamed nor moved. */
static Oid
owned_database(const char *name)
{
	Oid			database = get_database_oid(name, true);

	if (!OidIsValid(database) || database == MyDatabaseId ||
		!klm_owns_database(database, GetUserId()))
		return InvalidOid;
	return database;
}

/* As createdb() judges: a template is anybody's who may create databases. */
static Oid
template_database(CreatedbStmt *statement)
{
	const char *name = "template1";
	Oid			database;
	HeapTuple	tuple;
	bool		is_template;
	ListCell   *cell;

	foreach(cell, statement->options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			name = defGetString(option);
	}

	database = get_database_oid(name, true);
	if (!OidIsValid(database) || !may_create_databases())
		return InvalidOid;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (!HeapTupleIsValid(tuple))
		return InvalidOid;
	is_template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);

	return is_template || klm_owns_database(database, GetUserId()) ? database : InvalidOid;
}

static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		may = false;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (HeapTupleIsValid(tuple))
	{
		may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return may;
}

/* Will the statement change or drop our extension in this database? */
static bool
touches_extension(Node *node, Oid extension)
{
	switch (nodeTag(node))
	{
		case T_AlterExtensionStmt:
			return strcmp(((AlterExtensionStmt *) node)->extname, KLM_SCHEMA) == 0 &&
				klm_owns_extension(extension, GetUserId());
		case T_AlterExtensionContentsStmt:
			return strcmp(((AlterExtensionContentsStmt *) node)->extname, KLM_SCHEMA) == 0 &&
				klm_owns_extension(extension, GetUserId());
		case T_DropStmt:
			{
				DropStmt   *drop = (DropStmt *) node;
				bool		named;

				/* By CASCADE ours goes along with the language that it is written in. */
				if (drop->removeType != OBJECT_EXTENSION ||
					!owns_all_extensions(drop->objects, &named))
					return false;
				return named || drop->behavior == DROP_CASCADE;
			}
		case T_DropOwnedStmt:
			{
				DropOwnedStmt *drop = (DropOwnedStmt *) node;
				Oid			owner = extension_owner(extension);
				ListCell   *cell;

				foreach(cell, drop->roles)
				{
					if (get_rolespec_oid(lfirst(cell), true) == owner)
						return has_privs_of_role(GetUserId(), owner);
				}
				return false;
			}
		default:
			return false;
	}
}

/* *named: ours is one of them. */
static bool
owns_all_extensions(List *names, bool *named)
{
	ListCell   *cell;

	*named = false;
	foreach(cell, names)
	{
		const char *name = strVal(lfirst(cell));
		Oid			oid = get_extension_oid(name, true);

		if (OidIsValid(oid) && !klm_owns_extension(oid, GetUserId()))
			return false;
		if (strcmp(name, KLM_SCHEMA) == 0)
			*named = true;
	}
	return true;
}

static Oid
extension_owner(Oid extension)
{
	ScanKeyData key;
	Relation	relation = table_open(ExtensionRelationId, AccessShareLock);
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			owner = InvalidOid;

	ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(extension));
	scan = systable_beginscan(relation, ExtensionOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
	systable_endscan(scan);
	table_close(relation, AccessShareLock);
	return owner;
}

/* The statement has succeeded; its transaction may still roll back. */
static void
after_statement(Node *node, Oid extension_before, Oid blocked)
{
	Oid			database;
	Oid			extension;

	/* Not every statement makes what it has done visible. */
	CommandCounterIncrement();

	switch (nodeTag(node))
	{
		case T_DropdbStmt:
			if (OidIsValid(blocked))
				klm_forget_database(blocked);
			return;
		case T_CreatedbStmt:
			/* A copy of a database with mail: its sender will label it. */
			database = get_database_oid(((CreatedbStmt *) node)->dbname, true);
			if (OidIsValid(database) && OidIsValid(blocked) && klm_database_labelled(blocked))
				klm_look_at_commit(database);
			return;
		case T_AlterOwnerStmt:
			/* Owners take turns. */
			database = get_database_oid(strVal(((AlterOwnerStmt *) node)->object), true);
			if (OidIsValid(database) && klm_database_labelled(database))
				klm_look_at_commit(database);
			return;
		case T_AlterDatabaseStmt:
			/* While no connection was allowed the launcher has forgotten it. */
			database = get_database_oid(((AlterDatabaseStmt *) node)->dbname, true);
			if (OidIsValid(database) && klm_database_labelled(database))
				klm_look_at_commit(database);
			return;
		case T_AlterDatabaseSetStmt:
			database = get_database_oid(((AlterDatabaseSetStmt *) node)->dbname, true);
			if (OidIsValid(database))
				klm_restart_at_commit(database);
			return;
		case T_AlterRoleSetStmt:
			/* ALTER ROLE ALL, in one database or in all. */
			if (((AlterRoleSetStmt *) node)->role != NULL)
				return;
			database = InvalidOid;
			if (((AlterRoleSetStmt *) node)->database != NULL)
				database = get_database_oid(((AlterRoleSetStmt *) node)->database, true);
			klm_restart_at_commit(database);
			return;
		case T_CreateExtensionStmt:
		case T_DropStmt:
		case T_DropOwnedStmt:
			extension = get_extension_oid(KLM_SCHEMA, true);
			if (OidIsValid(extension) && !OidIsValid(extension_before))
				klm_label_database();
			else if (!OidIsValid(extension) && OidIsValid(extension_before))
			{
				/* Nor does the commit forget what a subtransaction may have undone. */
				klm_unlabel_database();
				klm_look_at_commit(MyDatabaseId);
			}
			return;
		default:
			return;
	}
}
