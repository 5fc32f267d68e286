/*-------------------------------------------------------------------------
 *
 * attachment.h
 *		What may be attached.
 *
 * Pure.  All text is UTF-8.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ATTACHMENT_H
#define KLM_ATTACHMENT_H

#include "base/error.h"

#define KLM_MAX_ATTACHMENTS 100

typedef struct KlmAttachment
{
	const char *filename;
	const char *content_type;	/* "type/subtype", perhaps with parameters; checked */
	const char *content_id;		/* without <>; NULL: a plain attachment */
	const char *data;
	Size		length;
} KlmAttachment;

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
extern bool klm_mime_check_attachments(KlmAttachment *attachments, int count,
									   const char *prohibited, KlmError *error);

/* The content type that a file name's extension stands for; NULL if unknown. */
extern const char *klm_mime_type_by_name(const char *filename);

#endif							/* KLM_ATTACHMENT_H */
