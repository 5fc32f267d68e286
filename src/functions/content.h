/*-------------------------------------------------------------------------
 *
 * content.h
 *		What a message says, read from the arguments of a SQL function.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CONTENT_H
#define KLM_CONTENT_H

#include "fmgr.h"

#include "message/compose.h"

/*
 * The argument headers, an object of names and texts, and the argument
 * attachments, an array of kliv_mail.attachment: checked, in UTF-8, palloc'd or
 * in the argument itself.  NULL gives none.  They raise 22023 and 54000.
 */
extern void klm_read_headers(FunctionCallInfo fcinfo, int number, KlmContent *content);
extern void klm_read_attachments(FunctionCallInfo fcinfo, int number, KlmContent *content);

#endif							/* KLM_CONTENT_H */
