/*-------------------------------------------------------------------------
 *
 * filter.h
 *		Filters: date, time, number, currency, default.
 *
 * Pure.  What a filter knows of languages is a table in filter.c.
 *
 *	{{sent | date}}, {{sent | date long}}	of a date or a time as JSON has it
 *	{{sent | time}}, {{sent | datetime}}	(ISO 8601), in the reader's time zone
 *	{{count | number}}, {{share | number 2}}
 *	{{total | currency EUR}}
 *	{{name | default "friend"}}
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_FILTER_H
#define KLM_FILTER_H

#include "lib/stringinfo.h"

#include "base/error.h"
#include "template/value.h"

typedef enum KlmFilterKind
{
	KLM_FILTER_DATE,
	KLM_FILTER_TIME,
	KLM_FILTER_DATETIME,
	KLM_FILTER_NUMBER,
	KLM_FILTER_CURRENCY,
	KLM_FILTER_DEFAULT
} KlmFilterKind;

typedef struct KlmFilter
{
	struct KlmFilter *next;
	KlmFilterKind kind;
	const char *argument;		/* a word or a quoted text; NULL: none */
} KlmFilter;

/* How a reader of this language and place writes. */
typedef struct KlmFormats
{
	const char *locale;			/* "ja", "pt-BR"; NULL or unknown: English */

	/* Seconds since 1970 (UTC) to what a clock in the brand's zone shows; NULL: UTC. */
	int64		(*local) (void *data, int64 seconds);
	void	   *data;
} KlmFormats;

/*
 * Parse what stands behind a name, from the first "|" on.  NULL with *error
 * (42601) for what is no filter.
 */
extern const KlmFilter *klm_filter_parse(const char *text, int length, KlmError *error);

/*
 * Append what the filters make of a value (NULL: it is missing).  False with
 * *error (22023): it is nothing that a filter can take.
 */
extern bool klm_filter_apply(const KlmFilter *filter, const KlmFormats *formats,
							 const KlmValue *value, StringInfo out, KlmError *error);

/* Append a time in the form of datetime. */
extern void klm_put_datetime(StringInfo out, const KlmFormats *formats, int64 seconds);

#endif							/* KLM_FILTER_H */
