/*-------------------------------------------------------------------------
 *
 * providers.h
 *		The mail providers that have a preset: one static table.
 *
 * Layer: pure (palloc only).  In kliv_mail_net.
 *
 * configure_smtp() and test_smtp() fill and check their arguments by it, the
 * view providers shows it, verdict.c takes the provider's own hints from it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_PROVIDERS_H
#define KLM_PROVIDERS_H

#include "base/error.h"
#include "message/compose.h"

/* How a pasted password is tidied before it is checked and stored. */
typedef enum KlmPasswordForm
{
	KLM_PASSWORD_AS_IS,
	KLM_PASSWORD_TRIM,			/* white space around it is no part of it: keys, tokens */
	KLM_PASSWORD_NO_SPACES		/* nor is any inside: Gmail shows "abcd efgh ..." */
} KlmPasswordForm;

/* KlmProvider.rolling_limit: as many as the account's daily limit. */
#define KLM_AS_DAILY_LIMIT (-1)

typedef struct KlmProvider
{
	const char *name;			/* gmail, sendgrid, ...: configure_smtp(provider) */
	const char *title;
	const char *aliases;		/* what people write too, without spaces, dots and hyphens: "aws amazonses" */
	const char *host;			/* may hold <region>; NULL: must be given */
	const char *default_region; /* NULL: must be given where host holds <region> */
	const char *regions;		/* "us eu": the only ones; NULL: any of the right form */
	int			port;
	const char *encryption;		/* of that port: "tls" or "starttls" */
	const char *tls_ports;		/* "465 2465": implicit TLS; NULL: has none */
	const char *starttls_ports; /* "587 2525 25" */
	const char *username;		/* the same for everybody; NULL: must be given */
	bool		username_is_password;	/* Postmark: left out, it is the password */
	bool		username_secret;	/* stored and shown like a password */
	bool		username_is_address;	/* a full mail address */
	bool		oauth2;			/* auth => 'oauth2' is possible */
	KlmPasswordForm password_form;
	const char *required[6];	/* arguments that must be given, NULL at the end */
	const char *example;		/* a ready statement */
	const char *host_hint;		/* where host must be given: what it is and where to find it */
	const char *username_hint;
	const char *password_hint;	/* what to get and where; also the cure for a refused login */
	const char *sender_hint;	/* the cure for a refused sender */
	const char *unproven;		/* what MAIL FROM cannot prove, a sentence; NULL: nothing */
	const char *notes;
	const char *notes_ja;		/* host_hint and notes in Japanese */
	const char *docs_url;
	/*
	 * Recipients in any 24 hours, where the provider counts so: KLM_AS_DAILY_LIMIT
	 * where each customer has a figure of their own, 0: no such rule.  The second
	 * is for user names of personal_domains ("gmail.com googlemail.com").
	 */
	int			rolling_limit;
	int			personal_rolling_limit;
	const char *personal_domains;
	int			free_daily;		/* recipients a day of the free plan; 0: none, or not published */
	int			messages_per_connection;	/* 0: not published */
	int			per_second;		/* messages; 0: not published */
} KlmProvider;

/* The table, in the order of the view; klm_provider_count entries. */
extern const KlmProvider klm_providers[];
extern const int klm_provider_count;

/* By its name, or as people write it ("Amazon SES", "お名前.com"); NULL if unknown (or name is NULL). */
extern const KlmProvider *klm_find_provider(const char *name);

/* "gmail, sendgrid, ...", palloc'd. */
extern char *klm_provider_names(void);

/*
 * How many recipients the provider takes in any 24 hours of an account with this
 * user name (NULL: not known): KLM_AS_DAILY_LIMIT, or 0 where it has no such rule.
 */
extern int	klm_provider_rolling_limit(const KlmProvider *provider, const char *username);

/* Is this one of the ports that speak TLS from the first byte (465, 2465)? */
extern bool klm_port_is_tls(int port);

/*
 * The preset's host for a region (NULL: the default one), palloc'd; NULL where
 * it must be given (then host_hint says what it is).  false with *error filled,
 * about the argument region, if that is needed, or not one of the provider's.
 */
extern bool klm_provider_host(const KlmProvider *provider, const char *region, char **host,
							  KlmError *error);

/*
 * Tidy a password in place, as password_form says; returns its new length.
 * What is cut off is overwritten with NULs.
 */
extern Size klm_provider_tidy_password(const KlmProvider *provider, char *password, Size length);

/*
 * Check what can be checked without a network, after presets were filled in
 * and the password was tidied.  username and password may be NULL (none, or
 * not known); the password's bytes are never quoted.  false: *argument says
 * which argument is wrong ("password", "host", "port", "encryption",
 * "username"), *error has SQLSTATE 22023, message and hint.
 */
extern bool klm_provider_check(const KlmProvider *provider, const char *host, int port,
							   const char *encryption, const char *username,
							   const char *password, bool oauth2,
							   const char **argument, KlmError *error);

/*
 * The header lines that the provider wants, for KlmIdentity: Postmark's stream,
 * Resend's idempotency key, what brings our delivery's id back in webhooks.
 * The same for every attempt at a delivery.  message_id is the Message-ID
 * without <>.  Returns how many; the values are palloc'd.
 */
#define KLM_PROVIDER_HEADERS_MAX 2

extern int	klm_provider_headers(const KlmProvider *provider, const char *host,
								 const char *message_id, int64 delivery_id,
								 KlmHeader headers[KLM_PROVIDER_HEADERS_MAX]);

#endif							/* KLM_PROVIDERS_H */
