/*-------------------------------------------------------------------------
 *
 * compose.h
 *		Write a message: RFC 5322 header, RFC 2045-2049 MIME entity.
 *
 * Layer: pure (palloc only).  All text is UTF-8.
 *
 * A message on the wire is the identity lines (klm_mime_identity(), made by
 * the sender at the claim) followed by what klm_mime_compose() made at
 * send(): both end every line with CRLF, are 7-bit, and have no line over 998
 * octets.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_COMPOSE_H
#define KLM_COMPOSE_H

#include "lib/stringinfo.h"
#include "datatype/timestamp.h"

#include "message/address.h"
#include "message/attachment.h"
#include "message/header_check.h"

/* What a message says, whoever sends it. */
typedef struct KlmContent
{
	const char *message_id;		/* without <>; its left side alone: an identity line has it */
	TimestampTz date;
	const char *subject;
	const KlmAddress *to;
	int			to_count;
	const KlmAddress *cc;
	int			cc_count;
	const KlmHeader *headers;	/* checked by klm_mime_check_header() */
	int			header_count;
	const char *text;			/* NULL: made from html */
	const char *html;			/* NULL: none */
	const KlmAttachment *attachments;
	int			attachment_count;
} KlmContent;

/* Who sends it: From, Reply-To and further lines that the account adds. */
typedef struct KlmIdentity
{
	const char *from_address;
	const char *from_name;		/* NULL or "": none */
	const KlmAddress *reply_to;
	int			reply_to_count;
	const KlmHeader *headers;	/* e.g. List-Unsubscribe, the provider's */
	int			header_count;
} KlmIdentity;

/*
 * Append header lines (Date first) and body to out, which grows once, to the
 * size needed.  Content must be checked.
 */
extern void klm_mime_compose(const KlmContent *content, StringInfo out);

/* Has a message that klm_mime_compose() made this header? */
extern PGDLLEXPORT bool klm_mime_has_header(const char *message, Size length, const char *name);

/* Append the identity lines to out. */
extern PGDLLEXPORT void klm_mime_identity(const KlmIdentity *identity, StringInfo out);

#endif							/* KLM_COMPOSE_H */
