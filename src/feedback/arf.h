/*-------------------------------------------------------------------------
 *
 * arf.h
 *		Complaints of recipients as their providers pass them on (RFC 5965).
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ARF_H
#define KLM_ARF_H

#include "feedback/report.h"

/*
 * Read the body of a message/feedback-report part.  A complaint is one recipient for
 * each that is named, one without an address where none is: many providers
 * keep it to themselves.  "not-spam" and its like are no complaint, and add none.
 * *return_path: the envelope sender of the mail that it is about, or NULL.
 */
extern void klm_read_arf(const char *text, Size length, KlmReport *report, char **return_path);

#endif							/* KLM_ARF_H */
