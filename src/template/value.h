/*-------------------------------------------------------------------------
 *
 * value.h
 *		The values that a template shows, wherever they come from.
 *
 * A reader knows how lists and objects of its kind are looked into: the
 * server's reads jsonb (functions/), those of tests and fuzzers what they like.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_VALUE_H
#define KLM_VALUE_H

#include "base/kliv_mail.h"

typedef enum KlmValueKind
{
	KLM_NULL,
	KLM_FALSE,
	KLM_TRUE,
	KLM_NUMBER,
	KLM_STRING,
	KLM_LIST,
	KLM_OBJECT
} KlmValueKind;

typedef struct KlmReader KlmReader;

typedef struct KlmValue
{
	KlmValueKind kind;
	const char *text;			/* a string, or a number; not ended by a NUL */
	int			length;
	int			count;			/* of a list's elements */
	const KlmReader *reader;	/* of a list or an object */
	const void *data;
} KlmValue;

struct KlmReader
{
	/* The member of that name; false: there is none. */
	bool		(*member) (const KlmValue *object, const char *name, int length, KlmValue *member);
	/* number is below count */
	void		(*element) (const KlmValue *list, int number, KlmValue *element);
	/* A list or an object where a text is asked for: as JSON; palloc'd. */
	char	   *(*json) (const KlmValue *value);
};

/* An object of names and values that C has. */
typedef struct KlmPair
{
	const char *name;
	KlmValue	value;
} KlmPair;

extern KlmValue klm_value_text(const char *text);	/* NULL: null */
extern KlmValue klm_value_pairs(const KlmPair *pairs, int count);

#endif							/* KLM_VALUE_H */
