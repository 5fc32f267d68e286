/*-------------------------------------------------------------------------
 *
 * connection.h
 *		Open connections to mail servers with libcurl; move bytes on them.
 *
 * Layer: edge (libcurl, which is included by connection_private.h alone).
 *
 * libcurl does DNS, the address guard, TCP, TLS or STARTTLS, EHLO and AUTH
 * (CURLOPT_CONNECT_ONLY in one multi), never blocking; the mail itself is
 * smtp.c's.  With IMAP it goes as far as TLS, and the login is mailbox.c's.
 * Nothing here raises across a libcurl frame.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CONNECTION_H
#define KLM_CONNECTION_H

#include "base/error.h"
#include "smtp/session.h"

typedef enum KlmEncryption
{
	KLM_TLS,					/* from the first byte */
	KLM_STARTTLS,				/* required, never optional */
	KLM_CLEAR					/* only without credentials */
} KlmEncryption;

/* Where and how to connect.  Strings must live until the connection is closed. */
typedef struct KlmTarget
{
	const char *host;
	int			port;
	KlmEncryption encryption;
	const char *username;		/* NULL: no AUTH */
	const char *password;		/* NUL-terminated, in guarded memory of the caller */
	bool		oauth2;			/* password is a bearer token: XOAUTH2 */
	bool		guarded;		/* refuse loopback, link-local and private addresses
								 * that kliv_mail.allowed_hosts does not name */
	const char *ehlo_name;
	bool		imap;			/* a server of IMAP, where nobody is logged in yet */
} KlmTarget;

typedef struct KlmConnector KlmConnector;	/* one multi, one epoll descriptor */
typedef struct KlmConnection KlmConnection;

/*
 * What happened on the way to KLM_CONN_OPEN or KLM_CONN_FAILED.  The times are
 * milliseconds from the start, -1 where the step was not reached.
 */
typedef struct KlmConnectReport
{
	bool		ok;
	bool		refused;		/* by the address guard: nothing was sent */
	bool		starved;		/* this process had no descriptor for it */
	KlmReply	reply;			/* on failure: the stage and what the server said there */
	char	   *detail;			/* on failure: our words and the library's; never a secret */
	char	   *hint;			/* what to do, or NULL */
	char	   *address;		/* the address connected to, or NULL */
	char	   *refused_address;	/* one of the host's that the guard refused, or NULL */
	KlmSmtpCaps caps;
	char	   *ehlo;			/* the last EHLO reply, printable */
	char	   *tls_version;	/* NULL: no TLS */
	char	   *cert_subject;
	char	   *cert_issuer;
	char	   *cert_expires;
	char	   *cert_names;		/* what it is for: "DNS:mail.example.com" */
	double		dns_ms;
	double		connect_ms;
	double		tls_ms;
	double		ehlo_ms;
	double		auth_ms;
} KlmConnectReport;

typedef enum KlmConnEvent
{
	KLM_CONN_NONE,				/* nothing more now */
	KLM_CONN_OPEN,				/* ready for mail; see klm_connection_report() */
	KLM_CONN_FAILED,			/* see klm_connection_report(); close it */
	KLM_CONN_READABLE,
	KLM_CONN_WRITABLE			/* only after klm_connection_want_write() */
} KlmConnEvent;

/* Owned by the current memory context (a reset callback frees every handle). */
extern KlmConnector *klm_connector_create(void);

/* Readable when klm_connector_next() has something to do. */
extern int	klm_connector_fd(const KlmConnector *connector);

/* Milliseconds until klm_connector_next() must be called anyway; -1: never. */
extern long klm_connector_timeout(const KlmConnector *connector);

/*
 * Drive everything that is ready; the next event and its connection.  To be
 * called until KLM_CONN_NONE.  After KLM_CONN_READABLE receive until 0 or -1:
 * TLS may hold bytes that the descriptor no longer shows.
 */
extern KlmConnEvent klm_connector_next(KlmConnector *connector, KlmConnection **connection);

/* Start to open; NULL with *error when it cannot even start. */
extern KlmConnection *klm_connection_open(KlmConnector *connector, const KlmTarget *target,
										  void *owner, KlmError *error);
extern void *klm_connection_owner(const KlmConnection *connection);

/* The report, palloc'd in the current context. */
extern void klm_connection_report(KlmConnection *connection, KlmConnectReport *report);

/* Does a server's text repeat the password, so that nobody may see it? */
extern bool klm_connection_repeats_secret(const KlmConnection *connection, const char *text);

/*
 * > 0 bytes; 0: would block; -1: broken or ended.  A send that would block must
 * be repeated with the same data (more may have been added behind it).
 */
extern ssize_t klm_connection_send(KlmConnection *connection, const char *data, Size length);
extern ssize_t klm_connection_recv(KlmConnection *connection, char *buffer, Size length);

/*
 * Acknowledge at once what was received.  For who waits for more and sends nothing, which
 * would carry it: a server that holds back its reply to the next envelope until we have
 * acknowledged the one to the dot would wait 40 ms for each mail.
 */
extern void klm_connection_acknowledge(KlmConnection *connection);

/* Has nothing come that was not received yet, the server's end included? */
extern bool klm_connection_quiet(const KlmConnection *connection);
extern void klm_connection_want_write(KlmConnection *connection, bool want);

/* Close at once, wait for nothing. */
extern void klm_connection_close(KlmConnection *connection);

#endif							/* KLM_CONNECTION_H */
