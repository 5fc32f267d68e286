/*-------------------------------------------------------------------------
 *
 * kliv_mail.h
 *		Words that every file shares: SMTP stages, verdicts, replies.
 *
 * May be included by every file; includes compat.h alone.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLIV_MAIL_H
#define KLIV_MAIL_H

#include "postgres.h"

#include "base/compat.h"

/* The schema, fixed by the install script. */
#define KLM_SCHEMA "kliv_mail"

/* The account that comes from the server's configuration and is no row. */
#define KLM_PLATFORM "platform"

/*
 * Where in an SMTP session a reply was given (RFC 5321).  The names of
 * klm_stage_name() are those that classify_reply() takes and that the views
 * show.
 */
typedef enum KlmStage
{
	KLM_STAGE_CONNECT,			/* name lookup, address guard, TCP */
	KLM_STAGE_GREETING,			/* the server's 220 */
	KLM_STAGE_TLS,				/* STARTTLS and the handshake */
	KLM_STAGE_EHLO,
	KLM_STAGE_AUTH,
	KLM_STAGE_MAIL,
	KLM_STAGE_RCPT,
	KLM_STAGE_DATA,				/* DATA and the body, final dot not yet sent */
	KLM_STAGE_DOT				/* the final dot was handed to the socket */
} KlmStage;

/* What a reply means; decided in verdict.c and nowhere else. */
typedef enum KlmVerdict
{
	KLM_ACCEPTED,
	KLM_TEMPORARY,
	KLM_PERMANENT,
	KLM_PROVIDER_LIMIT,
	KLM_ACCOUNT_TROUBLE,
	KLM_POLICY_BLOCK,
	KLM_MESSAGE_FAULT,
	KLM_IN_DOUBT
} KlmVerdict;

/* What a verdict is about. */
typedef enum KlmScope
{
	KLM_SCOPE_RECIPIENT,
	KLM_SCOPE_MESSAGE,
	KLM_SCOPE_ACCOUNT
} KlmScope;

/*
 * One SMTP reply, or what stood in its place.  text is the whole (multi-line)
 * reply made printable and capped at KLM_REPLY_MAX, in UTF-8; "" if none.
 */
#define KLM_REPLY_MAX 1024

typedef struct KlmReply
{
	KlmStage	stage;
	int			code;			/* 250, 550, ...; 0: no reply was read */
	char		enhanced[16];	/* RFC 3463 "5.1.1", agreeing with code; or "" */
	char	   *text;			/* palloc'd in the caller's context */
} KlmReply;

#endif							/* KLIV_MAIL_H */
