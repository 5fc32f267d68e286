/*-------------------------------------------------------------------------
 *
 * compose.h
 *		Write a message: RFC 5322 header, RFC 2045-2049 MIME entity.
 *
 * Layer: pure (palloc only); sees address.h.  All text is UTF-8.
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
#ifndef KLM_MIME_H
#define KLM_MIME_H

#include "lib/stringinfo.h"
#include "datatype/timestamp.h"

#include "message/address.h"

typedef struct KlmHeader
{
	const char *name;
	const char *value;
} KlmHeader;

typedef struct KlmAttachment
{
	const char *filename;
	const char *content_type;	/* "type/subtype", perhaps with parameters; checked */
	const char *content_id;		/* without <>; NULL: a plain attachment */
	const char *data;
	Size		length;
} KlmAttachment;

/* What a message says, whoever sends it. */
typedef struct KlmContent
{
	const char *message_id;		/* without <> */
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

#define KLM_MAX_HEADERS 100
#define KLM_MAX_ATTACHMENTS 100

/*
 * Append header lines (Date first) and body to out, which grows once, to the
 * size needed.  Content must be checked.
 */
extern PGDLLEXPORT void klm_mime_compose(const KlmContent *content, StringInfo out);

/* Append the identity lines to out. */
extern PGDLLEXPORT void klm_mime_identity(const KlmIdentity *identity, StringInfo out);

/*
 * May a caller set this header?  The reserved ones, a bad name, CR/LF/NUL or a
 * control in the value, a structured header with a value it cannot have:
 * false, with SQLSTATE 22023; over the limits (name 76, value 16,000 octets):
 * 54000.
 */
extern PGDLLEXPORT bool klm_mime_check_header(const char *name, const char *value, KlmError *error);

/*
 * All headers of a message: each by itself, none twice, not more than
 * KLM_MAX_HEADERS (54000), List-Unsubscribe-Post only beside an https
 * List-Unsubscribe (RFC 8058).
 */
extern PGDLLEXPORT bool klm_mime_check_headers(const KlmHeader *headers, int count,
											   KlmError *error);

/* May this be a subject?  CR, LF, controls 22023; over 16,000 octets 54000. */
extern PGDLLEXPORT bool klm_mime_check_subject(const char *subject, KlmError *error);

/*
 * Check and complete what attach() was given; *filename is replaced by its
 * last path component, *content_type is found from the name where NULL.
 * prohibited: the extensions of kliv_mail.prohibited_extensions, separated by
 * spaces.
 */
extern PGDLLEXPORT bool klm_mime_check_attachment(KlmAttachment *attachment, const char *prohibited,
									  KlmError *error);

/*
 * All attachments of a message: each by itself, no Content-ID twice, not more
 * than KLM_MAX_ATTACHMENTS (54000).
 */
extern PGDLLEXPORT bool klm_mime_check_attachments(KlmAttachment *attachments, int count,
									   const char *prohibited, KlmError *error);

/* The content type that a file name's extension stands for; NULL if unknown. */
extern PGDLLEXPORT const char *klm_mime_type_by_name(const char *filename);

/* A readable plain text for an HTML body; palloc'd. */
extern PGDLLEXPORT char *klm_mime_text_from_html(const char *html);

#endif							/* KLM_MIME_H */
