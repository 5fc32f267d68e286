/*-------------------------------------------------------------------------
 *
 * database_label.h
 *		The security label of a database with mail.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_DATABASE_LABEL_H
#define KLM_DATABASE_LABEL_H

#include "nodes/pg_list.h"

#include "base/kliv_mail.h"

/* From _PG_init: the provider of the label; needed without the preload too. */
extern void klm_label_init(void);

/* For processes without a database, in a transaction: all labels, in the current context. */
typedef struct KlmLabel
{
	Oid			database;
	char	   *text;
} KlmLabel;

extern List *klm_database_labels(void);

/* In a transaction: does the database bear the label? */
extern bool klm_database_labelled(Oid database);

/* In a transaction: put the label on this database, if it is not there; remove it. */
extern PGDLLEXPORT void klm_label_database(void);
extern void klm_unlabel_database(void);

/*
 * The label names the keys that are needed to open what the database stores,
 * where the launcher and other databases can read them: "mail keys=<id>,<id>".
 * ids: separated by commas, "" for none; in a transaction.
 */
extern void klm_label_keys(const char *ids);

/* What stands behind "keys=" in a label, or NULL. */
extern const char *klm_keys_of_label(const char *label);

#endif							/* KLM_DATABASE_LABEL_H */
