/*-------------------------------------------------------------------------
 *
 * report.h
 *		What a report says: the recipients, what became of their mail, and
 *		which mail it is about.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_REPORT_H
#define KLM_REPORT_H

#include "base/kliv_mail.h"

/* Each delivery of ours had one recipient; a report about more is another's. */
#define KLM_REPORTED_MAX 50
#define KLM_TOKENS_MAX 4

typedef enum KlmReportType
{
	KLM_REPORT_NONE,			/* no report, or one that could not be read */
	KLM_REPORT_DSN,				/* RFC 3464 */
	KLM_REPORT_ARF,				/* RFC 5965 */
	KLM_REPORT_TEXT,			/* a bounce for people's eyes only */
	KLM_REPORT_AUTOREPLY		/* vacation and the like, read receipts: no word on delivery */
} KlmReportType;

/* Texts are palloc'd, printable UTF-8 and bounded, or NULL. */
typedef struct KlmReported
{
	char	   *recipient;		/* as on the wire, where it can be read as an address */
	char	   *original;		/* where it differs: the address that the mail was sent to */
	const char *action;			/* failed, delayed, delivered, relayed, expanded, complained */
	char	   *status;			/* RFC 3463 */
	char	   *diagnostic;
	int			code;			/* SMTP's, as the diagnostic or the status has it; or 0 */
	const char *bounce_type;	/* hard, soft, policy, complaint */
	const char *reason;			/* static, plain words */
	const char *hint;
} KlmReported;

typedef struct KlmReport
{
	KlmReportType type;
	int			count;
	KlmReported recipients[KLM_REPORTED_MAX];
	char	   *message_id;		/* of the mail that it is about, without <> */
	char	   *reporting_mta;
	int			token_count;	/* what may be tokens of signed return paths (bounce_token.h) */
	char	   *tokens[KLM_TOKENS_MAX];
} KlmReport;

/* One more recipient, zeroed; NULL: there are too many. */
extern KlmReported *klm_add_reported(KlmReport *report);

/* Printable, on one line, at most KLM_REPLY_MAX bytes; NULL for NULL and for nothing. */
extern char *klm_printable(const char *text, Size length);

/* "<bob@example.com>" and the like as it goes on the wire; what is no address is made printable. */
extern char *klm_reported_address(const char *text, Size length);

/* "failed" and its kin, or NULL. */
extern const char *klm_reported_action(const char *text);

/* The status at the beginning of a text, "5.1.1 (unknown)", palloc'd; or NULL. */
extern char *klm_reported_status(const char *text);

/* The SMTP reply that a text quotes ("host said: 550 5.1.1 ..."), or NULL. */
extern const char *klm_find_reply(const char *text);

/*
 * What the report means for the recipient: bounce_type, code, reason and hint,
 * and the action where none was given.  By verdict.c's table, as if a server had said so
 * to us.  at_dot: it refused the message after its end, not the recipient.
 */
extern void klm_classify_reported(KlmReported *reported, bool at_dot);

#endif							/* KLM_REPORT_H */
