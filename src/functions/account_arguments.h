/*-------------------------------------------------------------------------
 *
 * account_arguments.h
 *		What the arguments of configure_smtp() and test_smtp() mean, given
 *		what is saved; and the checks of each one.
 *
 * In kliv_mail_net.  secret: an error must not show the statement.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ACCOUNT_ARGUMENTS_H
#define KLM_ACCOUNT_ARGUMENTS_H

#include "access/htup.h"
#include "access/tupdesc.h"

#include "db/account.h"
#include "db/owner_call.h"
#include "net/probe.h"
#include "smtp/providers.h"

#define KLM_MAX_PASSWORD 8192
#define KLM_MAX_FROM_NAME 200

/* What a caller gave.  UTF-8; NULL (port: has_port false): nothing; "": cleared. */
typedef struct KlmRequest
{
	const char *account;		/* an own account's name */
	const char *provider;
	const char *host;
	bool		has_port;
	int			port;
	const char *username;
	const char *encryption;
	const char *region;
	const char *auth;
	const char *from_address;
	KlmSecret  *password;		/* in clear or from a file; NULL: not given */
	const bytea *sealed;		/* password_sealed, or NULL */
	bool		sender_needed;	/* no from_address is an error */
	bool		secret;			/* errors must not show the statement */
} KlmRequest;

/* The connection that this makes, checked. */
typedef struct KlmResolved
{
	bool		saved;			/* there is such an account (perhaps reset) */
	bool		in_use;
	bool		changed;		/* provider, host, port, encryption or user name differ
								 * from what is saved; true for a new account */
	char	   *replaced_host;	/* that an account in use leaves; or NULL */
	TimestampTz updated_at;		/* of the saved row */
	int			hourly_limit;	/* saved, or what a new account has */
	int			daily_limit;
	char	   *provider;		/* or NULL */
	char	   *region;			/* or NULL */
	char	   *encryption;		/* tls, starttls, none */
	char	   *auth;			/* password, oauth2 */
	bool		username_secret;
	bool		new_password;	/* one was given, in whichever way */
	KlmSecret  *password;		/* given, or the saved one where nothing changed; or NULL */
	char	   *from_address;	/* NULL: unknown, unless sender_needed */
	bool		sender_kept;	/* saved for another provider, host or user name, and not
								 * made from that */
	char	   *from_name;		/* given inside from_address, or NULL */
	KlmDomain	domain;			/* to seal with */
	KlmTarget	target;			/* ready for klm_probe() */
} KlmResolved;

/*
 * Merge with what is saved and check; raises what is wrong (22023, 42501,
 * 54000, 55000).  A saved password gets into resolved only when the place that
 * it was saved for is unchanged.  Runs as the extension's owner (see
 * klm_become_owner()), leaves no lock behind.
 */
extern void klm_resolve(const KlmRequest *request, KlmResolved *resolved);

/*
 * What a failed test has to do with arguments: the last step's hint names a
 * sender that was kept, or the region that was tried.
 */
extern void klm_explain_failure(const KlmResolved *resolved, KlmProbe *probe);

/* Raises what is wrong with the limits of an account; leaves no lock behind. */
extern void klm_check_limits(const char *account, int hourly, int daily);

/* One address, with or without a name, which goes to *name (may be NULL). */
extern char *klm_check_from(const char *address, char **name, bool secret);

/* An address list or "", returned as it is; NULL for NULL. */
extern char *klm_check_reply_to(const char *list, bool secret);

/* Which of these needs a server with SMTPUTF8: "from_address", "reply_to", or NULL. */
extern const char *klm_needs_smtputf8(const char *from_address, const char *reply_to);

/* Addresses and @domains, normalised; a text[] in the database's encoding. */
extern Datum klm_check_senders(Datum array, bool secret);

/* A line of text that gets into a header or onto the wire; returned as it is. */
extern const char *klm_check_text(const char *argument, const char *value, Size max, bool secret);

/* The host name as it is saved: lower case, A-labels; an address where the guard lets it be. */
extern char *klm_check_host(const char *host, bool secret);

/* The password, tidied as the provider (may be NULL) wants it, is something to log in with. */
extern void klm_check_password(const KlmProvider *preset, KlmSecret *password, bool secret);

/*
 * Call a function that only reads, in a subtransaction that is rolled back, so
 * that not even the locks of reading stay over the network.  Its first row, or NULL.
 */
extern HeapTuple klm_look(KlmCall *call, const char *function, TupleDesc *desc);

/* What this database's secrets are bound to, read so. */
extern void klm_read_domain(KlmDomain *domain);

/* Columns of a row of _account: UTF-8, or NULL (also where nothing is saved). */
extern char *klm_saved_text(HeapTuple saved, TupleDesc desc, const char *column);
extern Datum klm_saved_column(HeapTuple saved, TupleDesc desc, const char *column, bool *isnull);

#endif							/* KLM_ACCOUNT_ARGUMENTS_H */
