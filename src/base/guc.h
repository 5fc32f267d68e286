/*-------------------------------------------------------------------------
 *
 * guc.h
 *		The settings kliv_mail.* and the clock they move.
 *
 * Not for the pure folders.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_GUC_H
#define KLM_GUC_H

#include "datatype/timestamp.h"
#include "utils/guc.h"

#include "base/kliv_mail.h"

extern char *klm_platform_url;
extern char *klm_platform_from;
extern PGDLLEXPORT char *klm_key_file;
extern PGDLLEXPORT char *klm_key_command;
extern PGDLLEXPORT char *klm_allowed_hosts;
extern PGDLLEXPORT char *klm_ehlo_setting;
extern PGDLLEXPORT char *klm_bounce_domain;
extern PGDLLEXPORT char *klm_ca_file;
extern PGDLLEXPORT int klm_connections_per_account;
extern int klm_max_senders;
extern int klm_senders_per_database;
extern PGDLLEXPORT int klm_sender_memory;	/* kB */
extern PGDLLEXPORT int klm_connect_timeout; /* ms */
extern PGDLLEXPORT int klm_reply_timeout;	/* ms */
extern PGDLLEXPORT int klm_retention;	/* s */
extern PGDLLEXPORT int klm_max_message_size;	/* kB */
extern PGDLLEXPORT char *klm_prohibited_extensions;
extern PGDLLEXPORT int klm_sender_idle_timeout; /* ms */
extern PGDLLEXPORT bool klm_notify;
extern bool klm_mask_secrets;
extern PGDLLEXPORT char *klm_redirect_to;
extern PGDLLEXPORT int64 klm_test_clock_offset;	/* microseconds */

/*
 * Define them all; POSTMASTER ones only while preloading.  check_address is the
 * check hook of those that hold an address, whose grammar this folder does not
 * know.
 */
extern void klm_define_settings(GucStringCheckHook check_address);

/* Is all mail played, and none sent? */
extern PGDLLEXPORT bool klm_in_sandbox(void);

/* Those that a database or the configuration file sets, since the sender has to have them. */
#define KLM_DATABASE_SETTINGS 5
extern const char *const klm_database_settings[KLM_DATABASE_SETTINGS];
extern bool klm_is_of_database(const char *setting);

/* The present as this database sees it: the clock plus test_clock_offset. */
extern PGDLLEXPORT TimestampTz klm_now(void);

#endif							/* KLM_GUC_H */
