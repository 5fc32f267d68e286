/*-------------------------------------------------------------------------
 *
 * attachments.c
 *		attach() and attach_text(): files for send().
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
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "message/compose.h"

PG_FUNCTION_INFO_V1(kliv_mail_attach);
PG_FUNCTION_INFO_V1(kliv_mail_attach_text);

/* So much of a file is looked at for base64, and no shorter one. */
#define BASE64_LOOK		4096
#define BASE64_LEAST	32

static void check_size(FunctionCallInfo fcinfo, int number);
static void check_attachment(KlmAttachment *attachment);
static Datum attachment_row(FunctionCallInfo fcinfo, const KlmAttachment *attachment,
							Datum content);
static char *with_utf8_charset(const char *type);
static void tell_of_base64(const KlmAttachment *attachment, const char *content, Size length);
static bool is_text_type(const char *type);

/* attach(filename text, content bytea, content_type text, content_id text) */
Datum
kliv_mail_attach(PG_FUNCTION_ARGS)
{
	KlmAttachment attachment = {0};
	bytea	   *beginning;

	if (PG_ARGISNULL(1))
		klm_refuse("content", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Give the file's bytes; an empty file is ''.", "is NULL");
	check_size(fcinfo, 1);
	attachment.filename = klm_argument(fcinfo, 0);
	attachment.content_type = klm_argument(fcinfo, 2);
	attachment.content_id = klm_argument(fcinfo, 3);
	check_attachment(&attachment);
	beginning = PG_GETARG_BYTEA_P_SLICE(1, 0, BASE64_LOOK);
	tell_of_base64(&attachment, VARDATA_ANY(beginning), VARSIZE_ANY_EXHDR(beginning));
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
		klm_refuse("content", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Give the file's text; an empty file is ''.", "is NULL");
	check_size(fcinfo, 1);
	attachment.filename = klm_argument(fcinfo, 0);
	attachment.content_type = klm_argument(fcinfo, 2);
	check_attachment(&attachment);
	if (PG_ARGISNULL(2) && klm_mime_type_by_name(attachment.filename) == NULL)
		attachment.content_type = "text/plain";
	attachment.content_type = with_utf8_charset(attachment.content_type);

	content = klm_argument(fcinfo, 1);
	length = strlen(content);
	tell_of_base64(&attachment, content, Min(length, BASE64_LOOK));
	bytes = palloc(VARHDRSZ + length);
	SET_VARSIZE(bytes, VARHDRSZ + length);
	memcpy(VARDATA(bytes), content, length);
	PG_RETURN_DATUM(attachment_row(fcinfo, &attachment, PointerGetDatum(bytes)));
}

/*
 * Other libraries take a file as base64.  Here it is attached as it is, which
 * only whoever receives it would notice: a NOTICE where it begins so and the type is
 * none of text.
 */
static void
tell_of_base64(const KlmAttachment *attachment, const char *content, Size length)
{
	static const char *const alphabet =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\r\n";

	if (length < BASE64_LEAST || is_text_type(attachment->content_type))
		return;
	for (Size i = 0; i < length; i++)
		if (content[i] == '\0' || strchr(alphabet, content[i]) == NULL)
			return;
	ereport(NOTICE,
			(errmsg("the content of \"%s\" looks like base64, and is attached as it is",
					klm_from_utf8(klm_shown(attachment->filename, strlen(attachment->filename)))),
			 errhint("Give the bytes, kliv_mail.attach(name, decode(content, 'base64')), or base64 to "
					 "kliv_mail.attachments() or send() of an object.")));
}

static bool
is_text_type(const char *type)
{
	static const char *const types[] = {
		"text/", "message/", "application/json", "application/xml", "application/pgp-", "application/pkcs",
		"application/x-pem", "application/x-x509", "application/javascript", "image/svg"
	};

	for (int i = 0; i < lengthof(types); i++)
		if (pg_strncasecmp(type, types[i], strlen(types[i])) == 0)
			return true;
	return strstr(type, "+xml") != NULL || strstr(type, "+json") != NULL;
}

/* Refuse what no message can hold before it is detoasted. */
static void
check_size(FunctionCallInfo fcinfo, int number)
{
	Size		size = toast_raw_datum_size(PG_GETARG_DATUM(number)) - VARHDRSZ;

	if (size > (Size) klm_max_message_size * 1024)
		klm_refuse("content", ERRCODE_PROGRAM_LIMIT_EXCEEDED, false,
				   "Send a link instead of the file.",
				   "%zu bytes, over kliv_mail.max_message_size (%d kB)", size, klm_max_message_size);
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
		klm_refuse("content_type", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Text is attached in UTF-8; for another encoding use attach() and convert_to().",
				   "\"%s\" names a charset that is not utf-8", klm_shown(type, strlen(type)));
	}
	return psprintf("%s; charset=utf-8", type);
}
