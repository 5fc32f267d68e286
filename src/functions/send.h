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

#include "datatype/timestamp.h"
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
	KLM_SEND_REPLACE_KEY,
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

/*
 * The same for many mails to one recipient each, which differ in nothing but
 * recipients, subject, body and html: they go into the tables many at once.  *id
 * is set when klm_send_flush() returns.  The queue lives in the memory context
 * that is current at its beginning, and so do the arguments until it is flushed.
 */
typedef struct KlmSendQueue KlmSendQueue;

extern PGDLLEXPORT KlmSendQueue *klm_send_begin(void);
extern PGDLLEXPORT void klm_send_later(FunctionCallInfo fcinfo, const KlmFromTemplate *template,
									   KlmSendQueue *queue, int64 *id);
extern PGDLLEXPORT void klm_send_flush(FunctionCallInfo fcinfo, KlmSendQueue *queue);

/* 22023 unless a mail can be scheduled for that time. */
extern void klm_check_time(const char *argument, TimestampTz at, const char *hint);

#endif							/* KLM_SEND_H */
