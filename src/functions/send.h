/*-------------------------------------------------------------------------
 *
 * send.h
 *		send() for other functions, which have made what it is to say.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SEND_H
#define KLM_SEND_H

#include "fmgr.h"

#include "base/kliv_mail.h"

/* The arguments of send(), in order. */
enum
{
	KLM_SEND_RECIPIENTS,
	KLM_SEND_SUBJECT,
	KLM_SEND_BODY,
	KLM_SEND_HTML,
	KLM_SEND_CC,
	KLM_SEND_BCC,
	KLM_SEND_FROM_ADDRESS,
	KLM_SEND_FROM_NAME,
	KLM_SEND_REPLY_TO,
	KLM_SEND_HEADERS,
	KLM_SEND_ATTACHMENTS,
	KLM_SEND_MESSAGE_TYPE,
	KLM_SEND_SEND_AT,
	KLM_SEND_EXPIRES_AT,
	KLM_SEND_IDEMPOTENCY_KEY,
	KLM_SEND_TAGS,
	KLM_SEND_METADATA,
	KLM_SEND_TOPIC,
	KLM_SEND_ACCOUNT,
	KLM_SEND_ON_LIMIT,
	KLM_SEND_ARGS
};

/* The template that a mail is made from. */
typedef struct KlmFromTemplate
{
	const char *name;

	/* What an idempotency key stands for, in the place of subject, body and html. */
	NullableDatum subject;
	NullableDatum body;
	NullableDatum html;
} KlmFromTemplate;

/*
 * send() with its arguments in fcinfo, of which flinfo is the calling function's;
 * template may be NULL.  The message's id.
 */
extern PGDLLEXPORT int64 klm_send(FunctionCallInfo fcinfo, const KlmFromTemplate *template);

#endif							/* KLM_SEND_H */
