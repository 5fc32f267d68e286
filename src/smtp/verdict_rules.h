/*-------------------------------------------------------------------------
 *
 * verdict_rules.h
 *		The table of replies that verdict.c goes through.
 *
 * Pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_VERDICT_RULES_H
#define KLM_VERDICT_RULES_H

#include "base/kliv_mail.h"

#define KLM_AT(stage) (1 << (stage))

/* Whose hint is better than ours, where the provider has one. */
typedef enum KlmHintOf
{
	KLM_HINT_OURS,
	KLM_HINT_LOGIN,
	KLM_HINT_SENDER
} KlmHintOf;

#define KLM_AGAIN "Nothing: it is tried again by itself."

#define KLM_UTC_DAY (-1)		/* until the provider's day ends */

typedef struct KlmRule
{
	int			stages;
	const char *codes;			/* "550 55x"; NULL: any */
	const char *status;			/* enhanced: "x.1.1 5.7.2x 4.7.*"; NULL: any or none */
	const char *provider;		/* NULL: any */
	const char *text;			/* "a phrase|another * one"; NULL: any */
	KlmVerdict	verdict;
	KlmScope	scope;
	const char *bounce_type;
	int			pause_s;
	KlmHintOf	hint_of;
	const char *reason;
	const char *hint;
} KlmRule;

/* Tried from the first to the last; the first that fits decides. */
extern const KlmRule klm_rules[];
extern const int klm_rule_count;

/* Domains, with all that lies below them, of mobile carriers whose subscribers filter by sender. */
extern const char *const klm_carriers[];
extern const int klm_carrier_count;

#endif							/* KLM_VERDICT_RULES_H */
