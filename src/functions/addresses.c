/*-------------------------------------------------------------------------
 *
 * addresses.c
 *		SQL functions over address.c and mime.c: attach(), attach_text(),
 *		mailbox(), is_address(), parse_addresses(), _compose().
 *
 * Layer: process.  Sees address.h, mime.h, guc.h.  Runs no SQL.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/detoast.h"
#include "access/htup_details.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "message/address.h"
#include "message/compose.h"

PG_FUNCTION_INFO_V1(kliv_mail_attach);
PG_FUNCTION_INFO_V1(kliv_mail_attach_text);
PG_FUNCTION_INFO_V1(kliv_mail_mailbox);
PG_FUNCTION_INFO_V1(kliv_mail_is_address);
PG_FUNCTION_INFO_V1(kliv_mail_parse_addresses);
PG_FUNCTION_INFO_V1(kliv_mail__compose);

static void refuse_null(const char *argument, const char *hint) pg_attribute_noreturn();
static void check_size(FunctionCallInfo fcinfo, int number);
static void check_attachment(KlmAttachment *attachment);
static Datum attachment_row(FunctionCallInfo fcinfo, const KlmAttachment *attachment,
							Datum content);
static char *with_utf8_charset(const char *type);
static void read_list(FunctionCallInfo fcinfo, int number, const char *argument,
					  KlmAddress **addresses, int *count);
static void read_headers(FunctionCallInfo fcinfo, int number, KlmContent *content);
static void read_attachments(FunctionCallInfo fcinfo, int number, KlmContent *content);

/* attach(filename text, content bytea, content_type text, content_id text) */
Datum
kliv_mail_attach(PG_FUNCTION_ARGS)
{
	KlmAttachment attachment = {0};

	if (PG_ARGISNULL(1))
		refuse_null("content", "Give the file's bytes; an empty file is ''.");
	check_size(fcinfo, 1);
	attachment.filename = klm_argument(fcinfo, 0);
	attachment.content_type = klm_argument(fcinfo, 2);
	attachment.content_id = klm_argument(fcinfo, 3);
	check_attachment(&attachment);
	PG_RETURN_DATUM(attachment_row(fcinfo, &attachment, PG_GETARG_DATUM(1)));
}

/* attach_text(filename text, content text, content_type text) */
Datum
kliv_mail_attach_text(PG_FUNCTION_ARGS)
{
	KlmAttachment attachment = {0};
	char	   *content;
	Size		length;
	bytea	   *bytes;

	if (PG_ARGISNULL(1))
		refuse_null("content", "Give the file's text; an empty file is ''.");
	check_size(fcinfo, 1);
	attachment.filename = klm_argument(fcinfo, 0);
	attachment.content_type = klm_argument(fcinfo, 2);
	check_attachment(&attachment);
	if (PG_ARGISNULL(2) && klm_mime_type_by_name(attachment.filename) == NULL)
		attachment.content_type = "text/plain";
	attachment.content_type = with_utf8_charset(attachment.content_type);

	content = klm_argument(fcinfo, 1);
	length = strlen(content);
	bytes = palloc(VARHDRSZ + length);
	SET_VARSIZE(bytes, VARHDRSZ + length);
	memcpy(VARDATA(bytes), content, length);
	PG_RETURN_DATUM(attachment_row(fcinfo, &attachment, PointerGetDatum(bytes)));
}

/* mailbox(address text, name text) */
Datum
kliv_mail_mailbox(PG_FUNCTION_ARGS)
{
	char	   *text = klm_argument(fcinfo, 0);
	char	   *name = klm_argument(fcinfo, 1);
	KlmAddress	address;
	KlmAddress	again;
	KlmError	error;
	char	   *result;

	if (text == NULL)
		refuse_null("address", "Give an e-mail address.");
	if (!klm_parse_address(text, &address, &error))
		klm_raise("address", &error, false);
	if (name == NULL || name[strspn(name, " \t")] == '\0')
		name = address.name;
	else if (klm_has_unsafe_char(name, false))
	{
		klm_fail(&error, ERRCODE_INVALID_PARAMETER_VALUE,
				 "A name has no line breaks and no characters that cannot be seen.",
				 "\"%s\" cannot be a name", klm_shown(name, strlen(name)));
		klm_raise("name", &error, false);
	}

	/* What send() would refuse is refused here. */
	result = klm_format_address(name, address.addr);
	if (!klm_parse_address(result, &again, &error))
		klm_raise("name", &error, false);
	PG_RETURN_TEXT_P(cstring_to_text(klm_from_utf8(result)));
}

/* is_address(address text): an address alone, without a name; NULL gives false. */
Datum
kliv_mail_is_address(PG_FUNCTION_ARGS)
{
	char	   *value;
	KlmAddress	address;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	value = klm_to_utf8_or_null(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_BOOL(value != NULL && klm_parse_address(value, &address, NULL) &&
				   address.name == NULL && strchr(value, '<') == NULL);
}

/* parse_addresses(list text) RETURNS TABLE (name text, address text) */
Datum
kliv_mail_parse_addresses(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	KlmAddress *addresses;
	int			count;
	int			i;

	InitMaterializedSRF(fcinfo, 0);
	read_list(fcinfo, 0, "list", &addresses, &count);
	for (i = 0; i < count; i++)
	{
		Datum		values[2] = {0};
		bool		nulls[2] = {false, false};

		if (addresses[i].name == NULL)
			nulls[0] = true;
		else
			values[0] = CStringGetTextDatum(klm_from_utf8(addresses[i].name));
		values[1] = CStringGetTextDatum(klm_from_utf8(addresses[i].addr));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
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
		refuse_null("subject", NULL);
	if (!klm_mime_check_subject(content.subject, &error))
		klm_raise("subject", &error, false);
	content.text = klm_argument(fcinfo, 1);
	content.html = klm_argument(fcinfo, 2);
	read_list(fcinfo, 3, "to_list", &addresses, &content.to_count);
	content.to = addresses;
	read_list(fcinfo, 4, "cc", &addresses, &content.cc_count);
	content.cc = addresses;
	read_headers(fcinfo, 5, &content);
	read_attachments(fcinfo, 6, &content);

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
refuse_null(const char *argument, const char *hint)
{
	KlmError	error = {ERRCODE_INVALID_PARAMETER_VALUE, "is NULL", (char *) hint};

	klm_raise(argument, &error, false);
}

/* Refuse what no message can hold before it is detoasted. */
static void
check_size(FunctionCallInfo fcinfo, int number)
{
	Size		size = toast_raw_datum_size(PG_GETARG_DATUM(number)) - VARHDRSZ;
	KlmError	error;

	if (size <= (Size) klm_max_message_size * 1024)
		return;
	klm_fail(&error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, "Send a link instead of the file.",
			 "%zu bytes, over kliv_mail.max_message_size (%d kB)", size, klm_max_message_size);
	klm_raise("content", &error, false);
}

/* Check one thing after the other, so that the error names the argument. */
static void
check_attachment(KlmAttachment *attachment)
{
	KlmAttachment by_name = {.filename = attachment->filename};
	KlmAttachment by_type = {.filename = attachment->filename,
	.content_type = attachment->content_type};
	KlmError	error;

	if (!klm_mime_check_attachment(&by_name, klm_prohibited_extensions, &error))
		klm_raise("filename", &error, false);
	if (!klm_mime_check_attachment(&by_type, klm_prohibited_extensions, &error))
		klm_raise("content_type", &error, false);
	if (!klm_mime_check_attachment(attachment, klm_prohibited_extensions, &error))
		klm_raise("content_id", &error, false);
}

static Datum
attachment_row(FunctionCallInfo fcinfo, const KlmAttachment *attachment, Datum content)
{
	TupleDesc	desc;
	Datum		values[4] = {0};
	bool		nulls[4] = {false, false, false, false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE || desc->natts != 4)
		elog(ERROR, "kliv_mail.attachment is not the type that it was");
	values[0] = CStringGetTextDatum(klm_from_utf8(attachment->filename));
	values[1] = CStringGetTextDatum(klm_from_utf8(attachment->content_type));
	if (attachment->content_id != NULL)
		values[2] = CStringGetTextDatum(klm_from_utf8(attachment->content_id));
	else
		nulls[2] = true;
	values[3] = content;
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* Texts go out in UTF-8, so their type says so; another charset is an error. */
static char *
with_utf8_charset(const char *type)
{
	const char *pos;
	KlmError	error;

	if (pg_strncasecmp(type, "text/", 5) != 0)
		return pstrdup(type);
	for (pos = strchr(type, ';'); pos != NULL; pos = strchr(pos, ';'))
	{
		pos++;
		pos += strspn(pos, " ");
		if (pg_strncasecmp(pos, "charset=", 8) != 0)
			continue;
		pos += 8;
		if (pg_strncasecmp(pos, "utf-8", 5) == 0 || pg_strncasecmp(pos, "\"utf-8\"", 7) == 0)
			return pstrdup(type);
		klm_fail(&error, ERRCODE_INVALID_PARAMETER_VALUE,
				 "Text is attached in UTF-8; for another encoding use attach() and convert_to().",
				 "\"%s\" names a charset that is not utf-8", type);
		klm_raise("content_type", &error, false);
	}
	return psprintf("%s; charset=utf-8", type);
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

/* An object of names and texts. */
static void
read_headers(FunctionCallInfo fcinfo, int number, KlmContent *content)
{
	const char *form = "Write an object of names and texts: {\"X-Order\": \"1234\"}.";
	Jsonb	   *json;
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;
	KlmHeader  *headers;
	int			count = 0;
	KlmError	error;

	if (PG_ARGISNULL(number))
		return;
	json = PG_GETARG_JSONB_P(number);
	if (!JB_ROOT_IS_OBJECT(json))
	{
		klm_fail(&error, ERRCODE_INVALID_PARAMETER_VALUE, form, "not an object");
		klm_raise("headers", &error, false);
	}
	headers = palloc(sizeof(KlmHeader) * (JB_ROOT_COUNT(json) + 1));
	iterator = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&iterator, &value, true)) != WJB_DONE)
	{
		char	   *text;

		if (token != WJB_KEY && token != WJB_VALUE)
			continue;
		if (value.type != jbvString)
		{
			klm_fail(&error, ERRCODE_INVALID_PARAMETER_VALUE, form,
					 "the value of \"%s\" is not a text", headers[count].name);
			klm_raise("headers", &error, false);
		}
		text = klm_argument_to_utf8("headers", pnstrdup(value.val.string.val, value.val.string.len));
		if (token == WJB_KEY)
			headers[count].name = text;
		else
			headers[count++].value = text;
	}
	if (!klm_mime_check_headers(headers, count, &error))
		klm_raise("headers", &error, false);
	content->headers = headers;
	content->header_count = count;
}

/* An array of kliv_mail.attachment. */
static void
read_attachments(FunctionCallInfo fcinfo, int number, KlmContent *content)
{
	ArrayType  *array;
	Datum	   *elements;
	bool	   *nulls;
	int			count;
	KlmAttachment *attachments;
	int16		typlen;
	bool		typbyval;
	char		typalign;
	KlmError	error;
	int			i;

	if (PG_ARGISNULL(number))
		return;
	array = PG_GETARG_ARRAYTYPE_P(number);
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &typlen, &typbyval, &typalign);
	deconstruct_array(array, ARR_ELEMTYPE(array), typlen, typbyval, typalign,
					  &elements, &nulls, &count);
	attachments = palloc0(sizeof(KlmAttachment) * (count + 1));
	for (i = 0; i < count; i++)
	{
		char	   *fields[3];
		HeapTupleHeader row;
		Datum		field;
		bool		isnull;
		int			j;
		bytea	   *bytes;

		if (nulls[i])
			refuse_null("attachments", "Every element is a file.");
		row = DatumGetHeapTupleHeader(elements[i]);
		for (j = 0; j < 3; j++)
		{
			field = GetAttributeByNum(row, j + 1, &isnull);
			fields[j] = isnull ? NULL : klm_argument_to_utf8("attachments", TextDatumGetCString(field));
		}
		field = GetAttributeByNum(row, 4, &isnull);
		if (isnull)
			refuse_null("attachments", "Every file has a content; that of an empty one is ''.");
		bytes = DatumGetByteaPP(field);
		attachments[i].filename = fields[0];
		attachments[i].content_type = fields[1];
		attachments[i].content_id = fields[2];
		attachments[i].data = VARDATA_ANY(bytes);
		attachments[i].length = VARSIZE_ANY_EXHDR(bytes);
	}
	if (!klm_mime_check_attachments(attachments, count, klm_prohibited_extensions, &error))
		klm_raise("attachments", &error, false);
	content->attachments = attachments;
	content->attachment_count = count;
}
