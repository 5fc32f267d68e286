/*-------------------------------------------------------------------------
 *
 * attachment.c
 *		What may be attached: file names, content types, Content-IDs.
 *
 * Pure: errors are values.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/error.h"
#include "base/text.h"
#include "message/attachment.h"
#include "message/syntax.h"

#define FILENAME_BYTES 255
#define CONTENT_ID_BYTES 200
#define CONTENT_TYPE_BYTES 255

/*
 * Content types by extension.  A table of our own, of IANA's names as Debian's
 * media-types and Apache's mime.types have them: /etc/mime.types need not
 * exist on a database server, shared-mime-info hardly ever does, and with
 * either the same call would give different mails on a primary and on its
 * standby.  What it does not know goes as application/octet-stream, which every
 * mail program opens by the file's name.  message/rfc822 is missing on purpose:
 * RFC 2046 allows no base64 there.
 */
static const struct
{
	const char *extension;
	const char *type;
}			content_types[] = {
	{"7z", "application/x-7z-compressed"},
	{"aac", "audio/aac"},
	{"ai", "application/postscript"},
	{"avif", "image/avif"},
	{"avi", "video/x-msvideo"},
	{"bmp", "image/bmp"},
	{"bz2", "application/x-bzip2"},
	{"css", "text/css"},
	{"csv", "text/csv"},
	{"doc", "application/msword"},
	{"docm", "application/vnd.ms-word.document.macroEnabled.12"},
	{"docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"},
	{"dot", "application/msword"},
	{"dotx", "application/vnd.openxmlformats-officedocument.wordprocessingml.template"},
	{"dwg", "image/vnd.dwg"},
	{"dxf", "image/vnd.dxf"},
	{"eps", "application/postscript"},
	{"epub", "application/epub+zip"},
	{"flac", "audio/flac"},
	{"gif", "image/gif"},
	{"gpx", "application/gpx+xml"},
	{"gz", "application/gzip"},
	{"heic", "image/heic"},
	{"heif", "image/heif"},
	{"htm", "text/html"},
	{"html", "text/html"},
	{"ico", "image/vnd.microsoft.icon"},
	{"ics", "text/calendar"},
	{"jp2", "image/jp2"},
	{"jpe", "image/jpeg"},
	{"jpeg", "image/jpeg"},
	{"jpg", "image/jpeg"},
	{"json", "application/json"},
	{"jsonl", "application/jsonl"},
	{"key", "application/vnd.apple.keynote"},
	{"kml", "application/vnd.google-earth.kml+xml"},
	{"kmz", "application/vnd.google-earth.kmz"},
	{"log", "text/plain"},
	{"m4a", "audio/mp4"},
	{"markdown", "text/markdown"},
	{"md", "text/markdown"},
	{"mid", "audio/midi"},
	{"mkv", "video/x-matroska"},
	{"mov", "video/quicktime"},
	{"mp3", "audio/mpeg"},
	{"mp4", "video/mp4"},
	{"mpeg", "video/mpeg"},
	{"mpg", "video/mpeg"},
	{"mpp", "application/vnd.ms-project"},
	{"numbers", "application/vnd.apple.numbers"},
	{"odg", "application/vnd.oasis.opendocument.graphics"},
	{"odp", "application/vnd.oasis.opendocument.presentation"},
	{"ods", "application/vnd.oasis.opendocument.spreadsheet"},
	{"odt", "application/vnd.oasis.opendocument.text"},
	{"oga", "audio/ogg"},
	{"ogg", "audio/ogg"},
	{"ogv", "video/ogg"},
	{"opus", "audio/ogg"},
	{"otf", "font/otf"},
	{"p12", "application/pkcs12"},
	{"p7m", "application/pkcs7-mime"},
	{"p7s", "application/pkcs7-signature"},
	{"pages", "application/vnd.apple.pages"},
	{"parquet", "application/vnd.apache.parquet"},
	{"pdf", "application/pdf"},
	{"pem", "application/x-pem-file"},
	{"pkpass", "application/vnd.apple.pkpass"},
	{"png", "image/png"},
	{"pot", "application/vnd.ms-powerpoint"},
	{"potx", "application/vnd.openxmlformats-officedocument.presentationml.template"},
	{"pps", "application/vnd.ms-powerpoint"},
	{"ppsx", "application/vnd.openxmlformats-officedocument.presentationml.slideshow"},
	{"ppt", "application/vnd.ms-powerpoint"},
	{"pptm", "application/vnd.ms-powerpoint.presentation.macroEnabled.12"},
	{"pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"},
	{"ps", "application/postscript"},
	{"psd", "image/vnd.adobe.photoshop"},
	{"rar", "application/vnd.rar"},
	{"rtf", "application/rtf"},
	{"sql", "application/sql"},
	{"sqlite", "application/vnd.sqlite3"},
	{"svg", "image/svg+xml"},
	{"tar", "application/x-tar"},
	{"text", "text/plain"},
	{"tgz", "application/gzip"},
	{"tif", "image/tiff"},
	{"tiff", "image/tiff"},
	{"toml", "application/toml"},
	{"tsv", "text/tab-separated-values"},
	{"ttf", "font/ttf"},
	{"txt", "text/plain"},
	{"vcf", "text/vcard"},
	{"vsd", "application/vnd.visio"},
	{"vsdx", "application/vnd.ms-visio.drawing"},
	{"wav", "audio/x-wav"},
	{"weba", "audio/webm"},
	{"webm", "video/webm"},
	{"webp", "image/webp"},
	{"woff", "font/woff"},
	{"woff2", "font/woff2"},
	{"xhtml", "application/xhtml+xml"},
	{"xls", "application/vnd.ms-excel"},
	{"xlsb", "application/vnd.ms-excel.sheet.binary.macroEnabled.12"},
	{"xlsm", "application/vnd.ms-excel.sheet.macroEnabled.12"},
	{"xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"},
	{"xlt", "application/vnd.ms-excel"},
	{"xltx", "application/vnd.openxmlformats-officedocument.spreadsheetml.template"},
	{"xml", "application/xml"},
	{"xps", "application/vnd.ms-xpsdocument"},
	{"xz", "application/x-xz"},
	{"yaml", "application/yaml"},
	{"yml", "application/yaml"},
	{"zip", "application/zip"},
	{"zst", "application/zstd"},
};

/* The extension as the recipient's system will see it: dots and spaces at the end do not count. */
static const char *
extension_of(const char *filename, Size *length)
{
	Size		end = strlen(filename);
	Size		start;

	while (end > 0 && (filename[end - 1] == '.' || filename[end - 1] == ' '))
		end--;
	start = end;
	while (start > 0 && filename[start - 1] != '.')
		start--;
	*length = start > 0 ? end - start : 0;
	return filename + start;
}

const char *
klm_mime_type_by_name(const char *filename)
{
	Size		length;
	const char *extension = extension_of(filename, &length);
	int			i;

	for (i = 0; i < lengthof(content_types); i++)
		if (strlen(content_types[i].extension) == length &&
			pg_strncasecmp(content_types[i].extension, extension, length) == 0)
			return content_types[i].type;
	return NULL;
}

/* type "/" subtype *(";" name "=" value) */
static bool
check_content_type(const char *type, KlmError *error)
{
	const char *pos = type;
	const char *start;
	const char *hint = "It has the form type/subtype, such as application/pdf.";

	if (strlen(type) > CONTENT_TYPE_BYTES)
		goto bad;
	while (klm_is_token((unsigned char) *pos))
		pos++;
	if (pos == type || *pos++ != '/')
		goto bad;
	start = pos;
	while (klm_is_token((unsigned char) *pos))
		pos++;
	if (pos == start)
		goto bad;
	if (pg_strncasecmp(type, "multipart/", 10) == 0 || pg_strncasecmp(type, "message/", 8) == 0)
	{
		hint = "A part of parts cannot be attached; use application/octet-stream.";
		goto bad;
	}

	while (*(pos += strspn(pos, " ")) == ';')
	{
		Size		length;

		pos++;
		start = pos += strspn(pos, " ");
		while (klm_is_token((unsigned char) *pos))
			pos++;
		length = pos - start;
		if (length == 0 || *pos++ != '=')
			goto bad;
		if ((length == 8 && pg_strncasecmp(start, "boundary", 8) == 0) ||
			pg_strncasecmp(start, "name", 4) == 0 || memchr(start, '*', length) != NULL)
		{
			hint = "The parameters boundary and name are not for the caller.";
			goto bad;
		}
		start = pos;
		if (*pos == '"')
		{
			for (pos++; *pos >= 0x20 && *pos < 0x7F && *pos != '"' && *pos != '\\'; pos++)
				;
			if (*pos++ != '"')
				goto bad;
		}
		else
			while (klm_is_token((unsigned char) *pos))
				pos++;
		if (pos == start)
			goto bad;
	}
	if (*pos == '\0')
		return true;

bad:
	return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, hint,
					"\"%s\" is not a content type for an attachment",
					klm_shown(type, strlen(type)));
}

/* Atoms with dots between, and perhaps one "@" among them (RFC 2392, less the "@"). */
static bool
is_content_id(const char *id)
{
	const char *pos;
	char		previous = '.';
	int			ats = 0;

	for (pos = id; *pos != '\0'; previous = *pos++)
	{
		if (*pos == '@' ? ats++ > 0 : *pos != '.' && !klm_is_token((unsigned char) *pos))
			return false;
		if ((*pos == '.' || *pos == '@') && (previous == '.' || previous == '@'))
			return false;
	}
	return previous != '.' && previous != '@' && pos - id <= CONTENT_ID_BYTES;
}

bool
klm_mime_check_attachment(KlmAttachment *attachment, const char *prohibited, KlmError *error)
{
	const char *given = attachment->filename;
	const char *name;
	const char *pos;
	const char *extension;
	Size		length;
	Size		extension_length;

	if (given == NULL)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"Give a name such as invoice.pdf.", "an attachment has no file name");
	if (klm_has_unsafe_char(given, false))
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"A file name has no line breaks and no characters that cannot be seen.",
						"\"%s\" is not a file name", klm_shown(given, strlen(given)));

	/* What a path ends with, on any system. */
	name = given;
	for (pos = given; *pos != '\0'; pos++)
		if (*pos == '/' || *pos == '\\')
			name = pos + 1;
	name += strspn(name, " ");
	length = strlen(name);
	while (length > 0 && name[length - 1] == ' ')
		length--;
	if (length > FILENAME_BYTES)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"the file name \"%s\" has %zu bytes, more than %d",
						klm_shown(name, length), length, FILENAME_BYTES);
	if (strspn(name, ". ") >= length)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"Give a name such as invoice.pdf.",
						"\"%s\" is not a file name", klm_shown(given, strlen(given)));
	name = attachment->filename = pnstrdup(name, length);

	extension = extension_of(name, &extension_length);
	for (pos = prohibited; extension_length > 0 && *pos != '\0';)
	{
		Size		word;

		pos += strspn(pos, " ,.");
		word = strcspn(pos, " ,");
		if (word == extension_length && pg_strncasecmp(pos, extension, word) == 0)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"Mail services refuse such files "
							"(kliv_mail.prohibited_extensions); send a link to it.",
							"\"%s\" has the prohibited extension \"%s\"",
							klm_shown(name, length), pnstrdup(pos, word));
		pos += word;
	}

	if (attachment->content_type == NULL)
	{
		attachment->content_type = klm_mime_type_by_name(name);
		if (attachment->content_type == NULL)
			attachment->content_type = "application/octet-stream";
	}
	else if (!check_content_type(attachment->content_type, error))
		return false;

	if (attachment->content_id != NULL)
	{
		const char *id = attachment->content_id;

		if (!is_content_id(id))
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"It is up to 200 ASCII letters, digits and signs such as - _, with "
							"dots and at most one @ between; the HTML names it as cid:logo.",
							"\"%s\" is not a content_id", klm_shown(id, strlen(id)));
	}
	return true;
}

bool
klm_mime_check_attachments(KlmAttachment *attachments, int count, const char *prohibited,
						   KlmError *error)
{
	int			i;
	int			j;

	if (count > KLM_MAX_ATTACHMENTS)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"%d attachments are more than %d", count, KLM_MAX_ATTACHMENTS);
	for (i = 0; i < count; i++)
	{
		if (!klm_mime_check_attachment(&attachments[i], prohibited, error))
			return false;
		for (j = 0; j < i && attachments[i].content_id != NULL; j++)
			if (attachments[j].content_id != NULL &&
				strcmp(attachments[i].content_id, attachments[j].content_id) == 0)
				return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
								"Give each attachment a content_id of its own.",
								"the content_id \"%s\" is given twice",
								attachments[i].content_id);
	}
	return true;
}
