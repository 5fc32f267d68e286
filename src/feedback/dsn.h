/*-------------------------------------------------------------------------
 *
 * dsn.h
 *		Delivery status notifications (RFC 3464), and their fields.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_DSN_H
#define KLM_DSN_H

#include "feedback/report.h"

/*
 * Read the body of a message/delivery-status part: recipients as they stand
 * there, not yet classified.
 */
extern void klm_read_dsn(const char *text, Size length, KlmReport *report);

/* "rfc822; bob@example.com" without its type. */
extern const char *klm_after_type(const char *value);

#endif							/* KLM_DSN_H */
