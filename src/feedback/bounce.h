/*-------------------------------------------------------------------------
 *
 * bounce.h
 *		What a mail that came back says: a report, an auto-reply, or nothing.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_BOUNCE_H
#define KLM_BOUNCE_H

#include "feedback/report.h"

/*
 * Read a mail, whatever its bytes.  Never fails: what cannot be read is
 * KLM_REPORT_NONE, and so is a mail of a human.  Every recipient of a report
 * has an action; nothing here says that the report is true.
 */
extern void klm_read_bounce(const char *raw, Size length, KlmReport *report);

extern const char *klm_report_type_name(KlmReportType type);

#endif							/* KLM_BOUNCE_H */
