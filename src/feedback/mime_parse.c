/*-------------------------------------------------------------------------
 *
 * mime_parse.c
 *		The little of MIME that reports need: headers, parts, decoded text.
 *
 * By hand and not by a library: it parses hostile input inside the database
 * server.  GMime and libetpan, the kept ones, have memory and errors of their
 * own, which no memory context frees when a query is cancelled; GMime brings GLib,
 * which ends the process where it gets no memory; and both decode all of
 * what a report does not need (encoded words, character sets, signatures).  A report is
 * one level of multipart, fields in ASCII, and perhaps quoted-printable.  That
 * much is here: no number from the mail is ever a length or an index, each
 * loop walks forward over a copy of at most KLM_MIME_MAX bytes, parts and depth are
 * bounded, and test/fuzz/bounce.c holds it to that.
 *
 * Pure (palloc and StringInfo).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "feedback/mime_parse.h"

#define MAX_DEPTH 8
#define MAX_PARTS 64
#define MAX_HEADER 8192			/* of one header's value: the rest is cut */
#define MAX_BOUNDARY 200		/* the standard has 70 */

typedef struct Parts
{
	KlmPart    *parts;
	int			count;
} Parts;

static char *lines_of(const char *raw, Size length, Size *copied);
static void add_leaves(Parts *parts, const KlmPart *part, int depth);
static char *type_of(const KlmPart *part, char **boundary);
static const char *next_boundary(const char *at, const char *end, const char *boundary,
								 const char **behind, bool *last);
static void decode_base64(const KlmPart *part, StringInfo out);
static void decode_quoted_printable(const KlmPart *part, StringInfo out);
static int	hex_digit(char c);
static bool is_token(char c);

KlmPart *
klm_mime_parts(const char *raw, Size length, int *count)
{
	Parts		parts = {palloc(sizeof(KlmPart) * (MAX_PARTS + 1)), 1};
	Size		copied;
	char	   *text = lines_of(raw, length, &copied);
	const char *start = text;
	char	   *boundary;

	/* A mailbox file's own line. */
	if (copied >= 5 && memcmp(text, "From ", 5) == 0)
	{
		start = memchr(text, '\n', copied);
		start = start ? start + 1 : text + copied;
	}
	klm_split_header(start, text + copied - start, &parts.parts[0]);
	parts.parts[0].type = type_of(&parts.parts[0], &boundary);
	add_leaves(&parts, &parts.parts[0], 0);
	*count = parts.count;
	return parts.parts;
}

/* Every line's end, of whichever of three kinds, as '\n'. */
static char *
lines_of(const char *raw, Size length, Size *copied)
{
	char	   *text;
	char	   *out;

	length = Min(length, KLM_MIME_MAX);
	text = out = palloc(length + 1);
	for (const char *p = raw; p < raw + length; p++)
	{
		if (*p == '\r')
		{
			*out++ = '\n';
			if (p + 1 < raw + length && p[1] == '\n')
				p++;
		}
		else
			*out++ = *p;
	}
	*out = '\0';
	*copied = out - text;
	return text;
}

void
klm_split_header(const char *text, Size length, KlmPart *part)
{
	const char *end = text + length;
	const char *at = text;

	part->header = text;
	while (at < end && *at != '\n')
	{
		const char *newline = memchr(at, '\n', end - at);

		at = newline ? newline + 1 : end;
	}
	part->header_length = at - text;
	part->body = at < end ? at + 1 : end;
	part->body_length = end - part->body;
	part->type = NULL;
}

/* Depth first, so that they come in their order. */
static void
add_leaves(Parts *parts, const KlmPart *whole, int depth)
{
	const char *end = whole->body + whole->body_length;
	const char *at = NULL;
	const char *behind;
	char	   *boundary;
	bool		last;

	(void) type_of(whole, &boundary);
	if (boundary != NULL && depth < MAX_DEPTH)
		at = next_boundary(whole->body, end, boundary, &behind, &last);
	if (at == NULL)
	{
		if (parts->count <= MAX_PARTS)
			parts->parts[parts->count++] = *whole;
		return;
	}
	while (at != NULL && !last && parts->count <= MAX_PARTS)
	{
		const char *start = behind;
		KlmPart		part;
		char	   *inner;

		at = next_boundary(start, end, boundary, &behind, &last);
		/* A boundary has the line end before it; a part without one ends with the mail. */
		klm_split_header(start, (at ? Max(at - 1, start) : end) - start, &part);
		part.type = type_of(&part, &inner);
		add_leaves(parts, &part, depth + 1);
	}
}

/* The type, lower case, and the boundary where it is a multipart that has a good one, else NULL. */
static char *
type_of(const KlmPart *part, char **boundary)
{
	char	   *value = klm_header(part->header, part->header_length, "Content-Type", 0);
	char	   *out;
	Size		length = 0;
	int			slashes = 0;

	*boundary = NULL;
	if (value == NULL)
		return pstrdup("text/plain");
	while (is_token(value[length]) || value[length] == '/')
		slashes += value[length++] == '/';
	if (slashes != 1 || value[0] == '/' || value[length - 1] == '/' || length > 100)
		return pstrdup("text/plain");
	out = pnstrdup(value, length);
	for (char *p = out; *p; p++)
		if (*p >= 'A' && *p <= 'Z')
			*p += 'a' - 'A';
	if (strncmp(out, "multipart/", 10) == 0)
	{
		*boundary = klm_header_parameter(value, "boundary");
		if (*boundary && ((*boundary)[0] == '\0' || strlen(*boundary) > MAX_BOUNDARY))
			*boundary = NULL;
	}
	return out;
}

/* The next line that is the boundary, or NULL; *behind: the line after it. */
static const char *
next_boundary(const char *at, const char *end, const char *boundary, const char **behind,
			  bool *last)
{
	Size		length = strlen(boundary);

	while (at < end)
	{
		const char *newline = memchr(at, '\n', end - at);
		const char *line_end = newline ? newline : end;

		if (line_end - at >= length + 2 && at[0] == '-' && at[1] == '-' &&
			memcmp(at + 2, boundary, length) == 0)
		{
			const char *p = at + 2 + length;

			*last = line_end - p >= 2 && p[0] == '-' && p[1] == '-';
			if (*last)
				p += 2;
			while (p < line_end && (*p == ' ' || *p == '\t'))
				p++;
			if (p == line_end)
			{
				*behind = newline ? newline + 1 : end;
				return at;
			}
		}
		at = newline ? newline + 1 : end;
	}
	return NULL;
}

char *
klm_header(const char *header, Size length, const char *name, int number)
{
	const char *end = header + length;
	Size		name_length = strlen(name);
	const char *at = header;

	while (at < end)
	{
		const char *newline = memchr(at, '\n', end - at);
		const char *line_end = newline ? newline : end;
		bool		found = line_end - at > name_length && at[name_length] == ':' &&
			pg_strncasecmp(at, name, name_length) == 0 && number-- == 0;
		StringInfoData value;

		if (!found)
		{
			at = newline ? newline + 1 : end;
			continue;
		}
		initStringInfo(&value);
		at += name_length + 1;
		for (;;)
		{
			while (at < line_end && (*at == ' ' || *at == '\t'))
				at++;
			if (value.len > 0 && at < line_end)
				appendStringInfoChar(&value, ' ');
			/* A NUL would end the value for all who read it. */
			for (; at < line_end && value.len < MAX_HEADER; at++)
				appendStringInfoChar(&value, *at == '\0' ? '?' : *at);
			if (newline == NULL || newline + 1 >= end || (newline[1] != ' ' && newline[1] != '\t'))
				break;
			at = newline + 1;
			newline = memchr(at, '\n', end - at);
			line_end = newline ? newline : end;
		}
		while (value.len > 0 &&
			   (value.data[value.len - 1] == ' ' || value.data[value.len - 1] == '\t'))
			value.data[--value.len] = '\0';
		return value.data;
	}
	return NULL;
}

char *
klm_header_parameter(const char *value, const char *name)
{
	Size		name_length = strlen(name);
	const char *p = strchr(value, ';');

	while (p != NULL)
	{
		const char *start;
		bool		found;
		StringInfoData out;

		while (*p == ';' || *p == ' ' || *p == '\t')
			p++;
		start = p;
		while (is_token(*p))
			p++;
		found = p - start == name_length && pg_strncasecmp(start, name, name_length) == 0;
		while (*p == ' ' || *p == '\t')
			p++;
		if (*p != '=')
		{
			p = strchr(p, ';');
			continue;
		}
		p++;
		while (*p == ' ' || *p == '\t')
			p++;
		initStringInfo(&out);
		if (*p == '"')
		{
			for (p++; *p && *p != '"'; p++)
			{
				if (*p == '\\' && p[1])
					p++;
				appendStringInfoChar(&out, *p);
			}
		}
		else
		{
			while (*p && *p != ';' && *p != ' ' && *p != '\t')
				appendStringInfoChar(&out, *p++);
		}
		if (found)
			return out.data;
		pfree(out.data);
		p = strchr(p, ';');
	}
	return NULL;
}

char *
klm_part_text(const KlmPart *part, Size *length)
{
	char	   *encoding = klm_header(part->header, part->header_length,
									  "Content-Transfer-Encoding", 0);
	StringInfoData out;

	initStringInfo(&out);
	if (encoding && pg_strcasecmp(encoding, "base64") == 0)
		decode_base64(part, &out);
	else if (encoding && pg_strcasecmp(encoding, "quoted-printable") == 0)
		decode_quoted_printable(part, &out);
	else
		appendBinaryStringInfo(&out, part->body, part->body_length);

	/* What was decoded may have line ends of its own. */
	return lines_of(out.data, out.len, length);
}

static void
decode_base64(const KlmPart *part, StringInfo out)
{
	static const char alphabet[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	uint32		bits = 0;
	int			count = 0;

	for (const char *p = part->body; p < part->body + part->body_length && *p != '='; p++)
	{
		const char *digit = *p ? strchr(alphabet, *p) : NULL;

		if (digit == NULL)
			continue;
		bits = (bits << 6 | (uint32) (digit - alphabet)) & 0xFFFFFF;
		count += 6;
		if (count >= 8)
		{
			count -= 8;
			appendStringInfoChar(out, (char) (bits >> count & 0xFF));
		}
	}
}

static void
decode_quoted_printable(const KlmPart *part, StringInfo out)
{
	const char *end = part->body + part->body_length;

	for (const char *p = part->body; p < end; p++)
	{
		if (*p == '=' && end - p > 1 && p[1] == '\n')
			p++;
		else if (*p == '=' && end - p > 2 && hex_digit(p[1]) >= 0 && hex_digit(p[2]) >= 0)
		{
			appendStringInfoChar(out, (char) (hex_digit(p[1]) * 16 + hex_digit(p[2])));
			p += 2;
		}
		else
			appendStringInfoChar(out, *p);
	}
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* RFC 2045's token. */
static bool
is_token(char c)
{
	return c > ' ' && c < 0x7f && strchr("()<>@,;:\\\"/[]?=", c) == NULL;
}
