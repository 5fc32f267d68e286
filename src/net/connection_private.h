/*-------------------------------------------------------------------------
 *
 * connection_private.h
 *		What a connection remembers, for connection.c and connection_report.c.
 *
 * The only header that includes libcurl's.  Included behind connection.h.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CONNECTION_PRIVATE_H
#define KLM_CONNECTION_PRIVATE_H

#include <curl/curl.h>
#include <netinet/in.h>
#include <time.h>

#include "lib/ilist.h"

#define RAW_MAX 4096			/* of a reply during the connect */

/* Which reply the server owes next. */
typedef enum Owed
{
	OWES_GREETING,
	OWES_EHLO,
	OWES_STARTTLS,
	OWES_AUTH,
	OWES_NOTHING
} Owed;

/* What it is busy with; each step has a time of its own. */
typedef enum ConnectStep
{
	STEP_CONNECT,				/* look-up and TCP */
	STEP_TLS,					/* from the first byte */
	STEP_GREETING,
	STEP_LOGIN					/* EHLO, STARTTLS, AUTH */
} ConnectStep;

/* The reply that is being read, or was read last. */
typedef struct RawReply
{
	bool		complete;
	KlmStage	stage;
	int			code;
	Size		length;
	char		raw[RAW_MAX];
} RawReply;

struct KlmConnection
{
	dlist_node	node;			/* in connector->connections */
	dlist_node	ready_node;		/* in connector->ready while tell != 0 */
	int			tell;
	KlmConnector *connector;
	KlmTarget	target;
	void	   *owner;
	CURL	   *easy;
	int			fd;				/* once open, else -1 */
	bool		settled;		/* open or failed; libcurl's callbacks are over */
	bool		open;
	bool		send_blocked;	/* libcurl may hold half of a TLS record */
	bool		wants_write;

	/* how far it got */
	struct timespec start;
	CURLcode	result;
	KlmStage	stage;			/* where it failed */
	Owed		owes;
	bool		resolved;
	bool		connected;
	bool		starttls_accepted;
	bool		tls_done;
	bool		authenticated;
	bool		guard_refused;
	bool		address_tried;	/* one that the guard let pass */
	bool		descriptors_exhausted;
	int			socket_errno;
	ConnectStep step;
	long		timeout_ms;		/* of that step */
	double		step_start_ms;
	long		verify_result;
	double		dns_ms;
	double		connect_ms;
	double		tls_ms;
	double		ehlo_ms;
	double		auth_ms;
	char		address[INET6_ADDRSTRLEN];	/* connected to, else tried last */
	char		refused_address[INET6_ADDRSTRLEN];
	char		tls_version[32];
	char		cert_subject[256];
	char		cert_issuer[256];
	char		cert_expires[64];
	char		cert_names[512];
	char		error[CURL_ERROR_SIZE];
	KlmSmtpCaps caps;
	Size		ehlo_length;
	char		ehlo[RAW_MAX];	/* the last EHLO reply */
	RawReply	reply;

	/* bytes that came when it had just opened */
	Size		early_length;
	char		early[256];
};

#endif							/* KLM_CONNECTION_PRIVATE_H */
