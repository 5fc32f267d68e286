/*-------------------------------------------------------------------------
 *
 * configure.h
 *		What the arguments of configure_smtp() and test_smtp() mean, given
 *		what is saved.
 *
 * Layer: processes and SQL entry points.  In kliv_mail_net.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CONFIGURE_H
#define KLM_CONFIGURE_H

#include "db/account.h"

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
	KlmSecret  *password;		/* wherever it came from; NULL: not given */
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
	char	   *provider;		/* or NULL */
	char	   *region;			/* or NULL */
	char	   *encryption;		/* tls, starttls, none */
	char	   *auth;			/* password, oauth2 */
	bool		username_secret;
	KlmSecret  *password;		/* given, or the saved one where nothing changed; or NULL */
	char	   *from_address;	/* NULL: unknown, unless sender_needed */
	char	   *from_name;		/* given inside from_address, or NULL */
	KlmTarget	target;			/* ready for klm_probe() */
} KlmResolved;

/*
 * Merge with what is saved and check; raises what is wrong (22023, 42501,
 * 54000, 55000).  A saved password gets into resolved only when the place that
 * it was saved for is unchanged.  Runs as the extension's owner (see
 * klm_become_owner()), leaves no lock behind.
 */
extern void klm_resolve(const KlmRequest *request, KlmResolved *resolved);

#endif							/* KLM_CONFIGURE_H */
