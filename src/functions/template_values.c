/*-------------------------------------------------------------------------
 *
 * template_values.c
 *		The values of a template from jsonb.
 *
 * In kliv_mail_template.  Nothing is unpacked but what a template asks for.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

#include "base/encoding.h"
#include "functions/template_values.h"

static bool jsonb_member(const KlmValue *object, const char *name, int length, KlmValue *member);
static void jsonb_element(const KlmValue *list, int number, KlmValue *element);
static char *jsonb_json(const KlmValue *value);

static const KlmReader jsonb_reader = {jsonb_member, jsonb_element, jsonb_json};

static void
read_value(const JsonbValue *from, KlmValue *to)
{
	memset(to, 0, sizeof(*to));
	switch (from->type)
	{
		case jbvNull:
			to->kind = KLM_NULL;
			break;
		case jbvBool:
			to->kind = from->val.boolean ? KLM_TRUE : KLM_FALSE;
			break;
		case jbvNumeric:
			to->kind = KLM_NUMBER;
			to->text = DatumGetCString(DirectFunctionCall1(numeric_out,
														   NumericGetDatum(from->val.numeric)));
			to->length = strlen(to->text);
			break;
		case jbvString:
			to->kind = KLM_STRING;
			to->text = from->val.string.val;
			to->length = from->val.string.len;
			if (GetDatabaseEncoding() != PG_UTF8)
			{
				to->text = klm_to_utf8(pnstrdup(to->text, to->length));
				to->length = strlen(to->text);
			}
			break;
		default:				/* jbvBinary */
			to->kind = JsonContainerIsArray(from->val.binary.data) ? KLM_LIST : KLM_OBJECT;
			to->count = JsonContainerSize(from->val.binary.data);
			to->reader = &jsonb_reader;
			to->data = from->val.binary.data;
			break;
	}
}

static JsonbContainer *
container_of(const KlmValue *value)
{
	return unconstify(JsonbContainer *, (const JsonbContainer *) value->data);
}

static bool
jsonb_member(const KlmValue *object, const char *name, int length, KlmValue *member)
{
	JsonbValue	value;

	if (GetDatabaseEncoding() != PG_UTF8)
	{
		name = klm_from_utf8_lossy(pnstrdup(name, length));
		length = strlen(name);
	}
	if (getKeyJsonValueFromContainer(container_of(object), name, length, &value) == NULL)
		return false;
	read_value(&value, member);
	return true;
}

static void
jsonb_element(const KlmValue *list, int number, KlmValue *element)
{
	JsonbValue *value = getIthJsonbValueFromContainer(container_of(list), number);

	read_value(value, element);
	pfree(value);
}

static char *
jsonb_json(const KlmValue *value)
{
	return klm_to_utf8(JsonbToCString(NULL, container_of(value), 0));
}

KlmValue
klm_value_of_jsonb(Jsonb *json)
{
	JsonbValue	root = {.type = jbvBinary};
	KlmValue	value;

	root.val.binary.data = &json->root;
	read_value(&root, &value);
	/* A scalar is stored as a list of one. */
	if (JB_ROOT_IS_SCALAR(json))
		jsonb_element(&value, 0, &value);
	return value;
}
