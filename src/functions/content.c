/*-------------------------------------------------------------------------
 *
 * content.c
 *		What a message says, read from the arguments of a SQL function; and
 *		_compose(), which shows the bytes that send() makes of it.
 *
 * Runs no SQL.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "executor/executor.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "functions/content.h"

PG_FUNCTION_INFO_V1(kliv_mail__compose);

static char *json_text(const JsonbValue *value);
static Size read_attachment(Datum row, int number, KlmAttachment *attachment);
static void read_list(FunctionCallInfo fcinfo, int number, const char *argument,
					  KlmAddress **addresses, int *count);

void
klm_read_headers(FunctionCallInfo fcinfo, int number, KlmContent *content)
{
	const char *form = "Write an object of names and texts: {\"X-Order\": \"1234\"}.";
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	Jsonb	   *json;
	KlmHeader  *headers;
	char	   *name = NULL;
	int			count = 0;
	KlmError	error;

	if (PG_ARGISNULL(number))
		return;
	json = PG_GETARG_JSONB_P(number);
	if (!JB_ROOT_IS_OBJECT(json))
		klm_refuse("headers", ERRCODE_INVALID_PARAMETER_VALUE, false, form, "is not an object");
	headers = palloc(Max(1, JB_ROOT_COUNT(json)) * sizeof(KlmHeader));
	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = json_text(&value);
		else if (token == WJB_VALUE)
		{
			if (value.type != jbvString)
				klm_refuse("headers", ERRCODE_INVALID_PARAMETER_VALUE, false, form,
						   "the value of \"%s\" is not a text", klm_shown(name, strlen(name)));
			headers[count].name = name;
			headers[count++].value = json_text(&value);
		}
	}
	if (!klm_mime_check_headers(headers, count, &error))
		klm_raise("headers", &error, false);
	content->headers = headers;
	content->header_count = count;
}

static char *
json_text(const JsonbValue *value)
{
	return klm_argument_to_utf8("headers", pnstrdup(value->val.string.val, value->val.string.len));
}

/* Each is checked again: anybody can build the row by hand. */
void
klm_read_attachments(FunctionCallInfo fcinfo, int number, KlmContent *content)
{
	ArrayType  *array;
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	Size		total = 0;
	KlmAttachment *attachments;
	KlmError	error;

	if (PG_ARGISNULL(number))
		return;
	array = PG_GETARG_ARRAYTYPE_P(number);
	if (ARR_NDIM(array) == 0)
		return;
	if (ARR_NDIM(array) > 1)
		klm_refuse("attachments", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Write ARRAY[kliv_mail.attach('file.pdf', content)].",
				   "the array has more than one dimension");
	deconstruct_array(array, ARR_ELEMTYPE(array), -1, false, TYPALIGN_DOUBLE,
					  &elements, &nulls, &count);
	if (count > KLM_MAX_ATTACHMENTS)
		klm_refuse("attachments", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
				   "Put them into an archive.", "%d files, over %d", count, KLM_MAX_ATTACHMENTS);

	attachments = palloc0(count * sizeof(KlmAttachment));
	for (int i = 0; i < count; i++)
	{
		if (nulls[i])
			klm_refuse("attachments", ERRCODE_INVALID_PARAMETER_VALUE, false, NULL,
					   "element %d is NULL", i + 1);
		/* A row may hold its content compressed, and the array's size told nothing of it. */
		total += read_attachment(elements[i], i + 1, &attachments[i]);
		if (total > (Size) klm_max_message_size * 1024)
			klm_refuse("attachments", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
					   "Send a link instead of the file.",
					   "over kliv_mail.max_message_size (%d kB)", klm_max_message_size);
	}
	if (!klm_mime_check_attachments(attachments, count, klm_prohibited_extensions, &error))
		klm_raise("attachments", &error, false);
	content->attachments = attachments;
	content->attachment_count = count;
}

/* One row; the size of its content, which is not detoasted where that alone is too large. */
static Size
read_attachment(Datum row, int number, KlmAttachment *attachment)
{
	HeapTupleHeader tuple = DatumGetHeapTupleHeader(row);
	bool		isnull[4];
	Datum		fields[4];
	char	   *texts[3];
	Size		size;
	bytea	   *content;

	for (int i = 0; i < 4; i++)
		fields[i] = GetAttributeByNum(tuple, i + 1, &isnull[i]);
	if (isnull[0] || isnull[3])
		klm_refuse("attachments", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Make it with kliv_mail.attach() or kliv_mail.attach_text().",
				   "element %d has no %s", number, isnull[0] ? "file name" : "content");
	for (int i = 0; i < 3; i++)
		texts[i] = isnull[i] ? NULL :
			klm_argument_to_utf8("attachments", TextDatumGetCString(fields[i]));
	attachment->filename = texts[0];
	attachment->content_type = texts[1];
	attachment->content_id = texts[2];
	size = toast_raw_datum_size(fields[3]);
	if (size > (Size) klm_max_message_size * 1024)
		return size;
	content = DatumGetByteaPP(fields[3]);
	attachment->data = VARDATA_ANY(content);
	attachment->length = VARSIZE_ANY_EXHDR(content);
	return size;
}

/*
 * _compose(subject, body, html, to_list, cc, headers, attachments, sender,
 * reply_to): the bytes that send() stores, behind the identity lines where a
 * sender is given.
 */
Datum
kliv_mail__compose(PG_FUNCTION_ARGS)
{
	KlmContent	content = {.message_id = "compose@kliv-mail.invalid", .date = klm_now()};
	KlmAddress *addresses;
	KlmError	error;
	StringInfoData out;
	bytea	   *result;

	content.subject = klm_argument(fcinfo, 0);
	if (content.subject == NULL)
		klm_refuse("subject", ERRCODE_INVALID_PARAMETER_VALUE, false, NULL, "is NULL");
	if (!klm_mime_check_subject(content.subject, &error))
		klm_raise("subject", &error, false);
	content.text = klm_argument(fcinfo, 1);
	content.html = klm_argument(fcinfo, 2);
	read_list(fcinfo, 3, "to_list", &addresses, &content.to_count);
	content.to = addresses;
	read_list(fcinfo, 4, "cc", &addresses, &content.cc_count);
	content.cc = addresses;
	klm_read_headers(fcinfo, 5, &content);
	klm_read_attachments(fcinfo, 6, &content);

	initStringInfo(&out);
	appendStringInfoSpaces(&out, VARHDRSZ);
	if (!PG_ARGISNULL(7))
	{
		KlmIdentity identity = {0};
		int			count;

		read_list(fcinfo, 7, "sender", &addresses, &count);
		identity.from_address = addresses[0].addr;
		identity.from_name = addresses[0].name;
		read_list(fcinfo, 8, "reply_to", &addresses, &identity.reply_to_count);
		identity.reply_to = addresses;
		klm_mime_identity(&identity, &out);
	}
	klm_mime_compose(&content, &out);
	result = (bytea *) out.data;
	SET_VARSIZE(result, out.len);
	PG_RETURN_BYTEA_P(result);
}

static void
read_list(FunctionCallInfo fcinfo, int number, const char *argument,
		  KlmAddress **addresses, int *count)
{
	char	   *list = klm_argument(fcinfo, number);
	KlmError	error;

	*addresses = NULL;
	*count = 0;
	if (list != NULL && !klm_parse_address_list(list, addresses, count, &error))
		klm_raise(argument, &error, false);
}
