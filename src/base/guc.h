/*-------------------------------------------------------------------------
 *
 * guc.h
 *		The settings kliv_mail.*, the clock they move, errors to ereport.
 *
 * May be included by the edges and the processes.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_GUC_H
#define KLM_GUC_H

#include "datatype/timestamp.h"
#include "fmgr.h"

#include "base/kliv_mail.h"

typedef enum KlmOnInDoubt
{
	KLM_IN_DOUBT_RETRY,
	KLM_IN_DOUBT_HOLD
} KlmOnInDoubt;

extern PGDLLEXPORT char *klm_platform_url;
extern PGDLLEXPORT char *klm_platform_username;
extern PGDLLEXPORT char *klm_platform_password_file;
extern PGDLLEXPORT char *klm_platform_from;
extern PGDLLEXPORT int klm_platform_hourly_limit;
extern PGDLLEXPORT int klm_platform_daily_limit;
extern PGDLLEXPORT int klm_max_daily_limit;
extern PGDLLEXPORT int klm_reserved_share;
extern PGDLLEXPORT char *klm_key_file;
extern PGDLLEXPORT char *klm_key_command;
extern PGDLLEXPORT char *klm_allowed_hosts;
extern PGDLLEXPORT char *klm_ca_file;
extern PGDLLEXPORT int klm_connections_per_account;
extern PGDLLEXPORT int klm_max_senders;
extern PGDLLEXPORT int klm_senders_per_database;
extern PGDLLEXPORT int klm_sender_memory;	/* kB */
extern PGDLLEXPORT int klm_connect_timeout; /* ms */
extern PGDLLEXPORT int klm_reply_timeout;	/* ms */
extern PGDLLEXPORT int klm_retry_for;	/* s */
extern PGDLLEXPORT int klm_retention;	/* s */
extern PGDLLEXPORT int klm_max_message_size;	/* kB */
extern PGDLLEXPORT char *klm_prohibited_extensions;
extern PGDLLEXPORT int klm_recipient_hourly_limit;
extern PGDLLEXPORT int klm_on_in_doubt; /* KlmOnInDoubt */
extern PGDLLEXPORT int klm_max_in_doubt_retries;
extern PGDLLEXPORT int klm_sender_idle_timeout; /* ms */
extern PGDLLEXPORT bool klm_notify;
extern PGDLLEXPORT char *klm_quota_timezone;
extern PGDLLEXPORT bool klm_delivery_hold;	/* delivery = hold */
extern PGDLLEXPORT char *klm_redirect_to;
extern PGDLLEXPORT int64 klm_test_clock_offset;	/* microseconds */

/* Define them all; POSTMASTER ones only while preloading. */
extern void klm_define_settings(void);

/* The present as this database sees it: the clock plus test_clock_offset. */
extern PGDLLEXPORT TimestampTz klm_now(void);

/*
 * Raise an error value for the argument it is about.  secret: the statement
 * carries a password, so that neither it nor the context may reach the log.
 */
extern PGDLLEXPORT void klm_raise(const char *argument, const KlmError *error, bool secret)
	pg_attribute_noreturn();

/*
 * In a PG_CATCH() around a call of our own SQL functions that ran without
 * error_context_stack: raise the error anew.  What they raise on purpose comes
 * without the lines of code where that was, which are no business of a caller;
 * the context of what the caller does is kept.
 */
extern PGDLLEXPORT void klm_rethrow(MemoryContext context) pg_attribute_noreturn();

/* Text between the database's encoding and UTF-8; palloc'd or the argument itself. */
extern PGDLLEXPORT char *klm_to_utf8(const char *text);
extern PGDLLEXPORT char *klm_from_utf8(const char *utf8);

/* NULL for what cannot be converted. */
extern PGDLLEXPORT char *klm_to_utf8_or_null(const char *text);

/*
 * The same for an argument: what cannot be converted raises an error that names
 * it, and shows nothing of it.
 */
extern PGDLLEXPORT char *klm_argument_to_utf8(const char *argument, const char *text);

/* A text argument of a function that is called, in UTF-8; NULL for SQL NULL. */
extern PGDLLEXPORT char *klm_argument(FunctionCallInfo fcinfo, int number);

/* The same for words of others (a server's reply): what the encoding lacks becomes "?"; never raises. */
extern PGDLLEXPORT char *klm_from_utf8_lossy(const char *utf8);

#endif							/* KLM_GUC_H */
