/*-------------------------------------------------------------------------
 *
 * value.c
 *		Values that C has: texts, and objects of them.
 *
 * Pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "template/value.h"

static bool
pairs_member(const KlmValue *object, const char *name, int length, KlmValue *member)
{
	const KlmPair *pairs = object->data;

	for (int i = 0; i < object->count; i++)
	{
		if (strncmp(pairs[i].name, name, length) == 0 && pairs[i].name[length] == '\0')
		{
			*member = pairs[i].value;
			return true;
		}
	}
	return false;
}

static void
pairs_element(const KlmValue *list, int number, KlmValue *element)
{
	*element = klm_value_text(NULL);
}

static char *
pairs_json(const KlmValue *value)
{
	return pstrdup("");
}

static const KlmReader pairs_reader = {pairs_member, pairs_element, pairs_json};

KlmValue
klm_value_text(const char *text)
{
	KlmValue	value = {.kind = text ? KLM_STRING : KLM_NULL, .text = text};

	value.length = text ? strlen(text) : 0;
	return value;
}

KlmValue
klm_value_pairs(const KlmPair *pairs, int count)
{
	KlmValue	value = {.kind = KLM_OBJECT, .count = count, .reader = &pairs_reader, .data =
						 pairs};

	return value;
}
