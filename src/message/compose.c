/*-------------------------------------------------------------------------
 *
 * compose.c
 *		Write a message: RFC 5322 header, RFC 2045-2049 MIME entity; check what
 *		goes into one; make a text of an HTML body.
 *
 * Pure: palloc and StringInfo (and pg_strong_random for boundaries).  Sees
 * address.h.  Raises nothing for bad input.
 *
 * Shape of a message, each level only where it is needed:
 *
 *		multipart/mixed
 *			multipart/alternative
 *				text/plain
 *				multipart/related
 *					text/html
 *					the images that it shows by cid:
 *			the other attachments
 *
 * Inside a multipart a text is exactly what was given, with CRLF for every
 * line end; where it is the whole message, a last line end is added, since a
 * message cannot go without it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "utils/memutils.h"

#include "base/error.h"
#include "base/text.h"
#include "message/compose.h"

#define LINE_CHARS 76			/* RFC 2047 and RFC 2045 both end here */
#define ENCODED_WORD_CHARS 75	/* RFC 2047, 2 */
#define ENCODED_WORD_FRAME 12	/* =?utf-8?Q? and ?= */
#define LONGEST_WORD 900		/* with the longest header name still below 998 */
#define HEADER_NAME_BYTES 76
#define HEADER_VALUE_BYTES 16000
#define FILENAME_BYTES 255
#define CONTENT_ID_BYTES 200
#define CONTENT_TYPE_BYTES 255
#define BASE64_LINE_BYTES 57	/* 76 characters */

/* The header line being written. */
typedef struct Line
{
	StringInfo	out;
	int			column;			/* characters on the present line */
	bool		fresh;			/* nothing stands after the colon yet */
} Line;

typedef enum TextEncoding
{
	TEXT_7BIT,
	TEXT_QUOTED_PRINTABLE,
	TEXT_BASE64
} TextEncoding;

/* A text part, and how it goes out. */
typedef struct TextPart
{
	const char *subtype;
	const char *data;
	Size		length;
	Size		normal_length;	/* with CRLF line ends */
	TextEncoding encoding;
	Size		bound;			/* no more bytes than this when encoded */
} TextPart;

/* A message in the making. */
typedef struct Entity
{
	const KlmContent *content;
	StringInfo	out;
	TextPart	text;
	TextPart	html;
	bool		has_html;
	bool	   *inline_part;	/* attachment i belongs to the HTML */
	int			inline_count;
	char		boundary[40];	/* its digit tells the level */
} Entity;

static void write_date(StringInfo out, TimestampTz date);
static void write_addresses(StringInfo out, const char *name, const KlmAddress *addresses,
							int count);
static void write_subject(StringInfo out, const char *subject);
static void write_header(StringInfo out, const char *name, const char *value);
static void write_unstructured(Line *line, const char *value);
static bool can_stay_raw(const char *value);
static void start_line(Line *line, StringInfo out, const char *name);
static void end_line(Line *line);
static void put_word(Line *line, const char *word, Size length);
static void put_encoded(Line *line, const char *text, Size length);
static void put_filename(Line *line, const char *filename);
static void write_body(Entity *entity);
static void write_alternative(Entity *entity);
static void write_html(Entity *entity);
static void write_text(Entity *entity, const TextPart *part);
static void write_attachment(Entity *entity, const KlmAttachment *attachment, bool inlined);
static void start_multipart(Entity *entity, const char *subtype, char level);
static void next_part(Entity *entity, char level);
static void end_multipart(Entity *entity, char level);
static void plan_text(TextPart *part, const char *subtype, const char *data);
static Size normalize(char *target, const char *text, Size length);
static Size encode_quoted_printable(char *target, const char *text, Size length);
static Size encode_base64(char *target, const char *data, Size length);
static Size base64_length(Size length);
static void reserve(StringInfo out, Size size);
static bool html_uses(const char *html, const char *content_id);

static inline bool
is_alnum(unsigned char ch)
{
	return (ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z');
}

/* token of RFC 2045 */
static inline bool
is_token(unsigned char ch)
{
	return ch > 0x20 && ch < 0x7F && strchr("()<>@,;:\\\"/[]?=", ch) == NULL;
}

static inline bool
is_continuation(char ch)
{
	return ((unsigned char) ch & 0xC0) == 0x80;
}

void
klm_mime_compose(const KlmContent *content, StringInfo out)
{
	static const char hex[] = "0123456789abcdef";
	Entity		entity = {.content = content, .out = out};
	const char *text = content->text;
	char	   *made = NULL;
	uint8		random[12];
	Size		size = 2048;
	int			i;

	/* Plan first, so that the buffer grows once and to no more than is needed. */
	if (text == NULL)
		text = made = content->html != NULL ? klm_mime_text_from_html(content->html) : pstrdup("");
	plan_text(&entity.text, "plain", text);
	size += entity.text.bound;
	entity.has_html = (content->html != NULL);
	if (entity.has_html)
	{
		plan_text(&entity.html, "html", content->html);
		size += entity.html.bound;
	}
	size += strlen(content->subject) * 4;
	for (i = 0; i < content->to_count + content->cc_count; i++)
	{
		const KlmAddress *address = i < content->to_count ?
			&content->to[i] : &content->cc[i - content->to_count];

		size += 300 + (address->name != NULL ? strlen(address->name) * 4 : 0);
	}
	for (i = 0; i < content->header_count; i++)
		size += 100 + strlen(content->headers[i].value) * 4;
	if (content->attachment_count > 0)
		entity.inline_part = palloc0(sizeof(bool) * content->attachment_count);
	for (i = 0; i < content->attachment_count; i++)
	{
		const KlmAttachment *attachment = &content->attachments[i];

		size += base64_length(attachment->length) + 2048;
		if (entity.has_html && attachment->content_id != NULL &&
			html_uses(content->html, attachment->content_id))
		{
			entity.inline_part[i] = true;
			entity.inline_count++;
		}
	}
	reserve(out, size);

	/* "=_" can stand neither in quoted-printable nor in base64. */
	if (!pg_strong_random(random, sizeof(random)))
		elog(ERROR, "could not generate random values");
	strcpy(entity.boundary, "=_0_");
	for (i = 0; i < lengthof(random); i++)
	{
		entity.boundary[4 + 2 * i] = hex[random[i] >> 4];
		entity.boundary[5 + 2 * i] = hex[random[i] & 15];
	}
	entity.boundary[4 + 2 * lengthof(random)] = '\0';

	write_date(out, content->date);
	appendStringInfoString(out, "Message-ID: <");
	appendStringInfoString(out, content->message_id);
	appendStringInfoString(out, ">\r\n");
	write_subject(out, content->subject);
	if (content->to_count > 0)
		write_addresses(out, "To", content->to, content->to_count);
	else
		appendStringInfoString(out, "To: undisclosed-recipients:;\r\n");
	if (content->cc_count > 0)
		write_addresses(out, "Cc", content->cc, content->cc_count);
	for (i = 0; i < content->header_count; i++)
		write_header(out, content->headers[i].name, content->headers[i].value);
	appendStringInfoString(out, "MIME-Version: 1.0\r\n");
	write_body(&entity);
	if (out->data[out->len - 1] != '\n')
		appendStringInfoString(out, "\r\n");

	if (made != NULL)
		pfree(made);
	if (entity.inline_part != NULL)
		pfree(entity.inline_part);
}

void
klm_mime_identity(const KlmIdentity *identity, StringInfo out)
{
	KlmAddress	from = {(char *) identity->from_name, (char *) identity->from_address, false};
	int			i;

	write_addresses(out, "From", &from, 1);
	if (identity->reply_to_count > 0)
		write_addresses(out, "Reply-To", identity->reply_to, identity->reply_to_count);
	for (i = 0; i < identity->header_count; i++)
		write_header(out, identity->headers[i].name, identity->headers[i].value);
}

/*
 * Header lines
 */

/* RFC 5322, 3.3, in UTC.  The calendar by days from 1 March, so that leap days come last. */
static void
write_date(StringInfo out, TimestampTz date)
{
	static const char *const days[] = {"Sat", "Sun", "Mon", "Tue", "Wed", "Thu", "Fri"};
	static const char *const months[] = {"Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep",
	"Oct", "Nov", "Dec", "Jan", "Feb"};
	int64		seconds = date / USECS_PER_SEC - (date % USECS_PER_SEC < 0 ? 1 : 0);
	int64		day = seconds / SECS_PER_DAY - (seconds % SECS_PER_DAY < 0 ? 1 : 0);
	int			second = (int) (seconds - day * SECS_PER_DAY);
	int64		era_day = day + 730425; /* from 1 March 0000 to 1 January 2000 */
	int64		era = era_day / 146097 - (era_day % 146097 < 0 ? 1 : 0);
	int			doe = (int) (era_day - era * 146097);
	int			yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	int			doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	int			month = (5 * doy + 2) / 153;
	int			mday = doy - (153 * month + 2) / 5 + 1;
	int			year = (int) (era * 400) + yoe + (month >= 10 ? 1 : 0);

	appendStringInfo(out, "Date: %s, %d %s %04d %02d:%02d:%02d +0000\r\n",
					 days[((day % 7) + 7) % 7], mday, months[month], year,
					 second / 3600, second / 60 % 60, second % 60);
}

static void
write_addresses(StringInfo out, const char *name, const KlmAddress *addresses, int count)
{
	Line		line;
	int			i;

	start_line(&line, out, name);
	for (i = 0; i < count; i++)
	{
		const char *display = addresses[i].name;
		const char *comma = i + 1 < count ? "," : "";
		char		word[600];

		if (display == NULL || display[0] == '\0')
		{
			snprintf(word, sizeof(word), "%s%s", addresses[i].addr, comma);
			put_word(&line, word, strlen(word));
			continue;
		}

		/*
		 * Atoms or a quoted string, never folded inside, since GMime keeps a
		 * line break there; else encoded words, which fold and which no parser
		 * trims.
		 */
		if (can_stay_raw(display) && strlen(display) <= 70 && strstr(display, "  ") == NULL &&
			strchr(display, '\t') == NULL)
		{
			char	   *quoted = klm_format_address(display, "");

			quoted[strlen(quoted) - 3] = '\0';	/* " <>" */
			put_word(&line, quoted, strlen(quoted));
			pfree(quoted);
		}
		else
			put_encoded(&line, display, strlen(display));
		snprintf(word, sizeof(word), "<%s>%s", addresses[i].addr, comma);
		put_word(&line, word, strlen(word));
	}
	end_line(&line);
}

static void
write_subject(StringInfo out, const char *subject)
{
	Line		line;

	start_line(&line, out, "Subject");
	if (subject[0] != '\0')
		write_unstructured(&line, subject);
	end_line(&line);
}

/*
 * A caller's header.  Machines read many of these and decode nothing, so what
 * can be carried raw is, folded at single spaces only.
 */
static void
write_header(StringInfo out, const char *name, const char *value)
{
	Line		line;

	start_line(&line, out, name);
	if (value[0] == '\0')
		;
	else if (can_stay_raw(value))
	{
		const char *chunk = value;

		while (*chunk != '\0')
		{
			const char *end = chunk;

			while (*end != '\0' &&
				   !(end[0] == ' ' && end > value && end[-1] != ' ' && end[-1] != '\t' &&
					 end[1] != ' ' && end[1] != '\t'))
				end++;
			put_word(&line, chunk, end - chunk);
			chunk = *end != '\0' ? end + 1 : end;
		}
	}
	else
		write_unstructured(&line, value);
	end_line(&line);
}

/*
 * Can this be read back from a header without encoding?  Printable ASCII and
 * tabs, nothing that looks like an encoded word, no space at either end, and
 * no stretch too long to be folded.
 */
static bool
can_stay_raw(const char *value)
{
	const char *pos;
	Size		stretch = 0;

	if (value[0] == '\0' || value[0] == ' ' || value[0] == '\t')
		return false;
	for (pos = value; *pos != '\0'; pos++)
	{
		unsigned char ch = (unsigned char) *pos;

		if ((ch < 0x20 && ch != '\t') || ch >= 0x7F || (ch == '=' && pos[1] == '?'))
			return false;
		if (ch == ' ' && pos[1] != ' ' && pos[1] != '\t' && pos[-1] != ' ' && pos[-1] != '\t')
			stretch = 0;
		else if (++stretch > LONGEST_WORD)
			return false;
	}
	return pos[-1] != ' ' && pos[-1] != '\t';
}

/*
 * Text of any kind, word by word: plain where it can be, RFC 2047 words where
 * needed.  Space between two encoded words is lost on the way, so it is
 * encoded with them.
 */
static void
write_unstructured(Line *line, const char *value)
{
	const char *run = NULL;		/* words that need encoding, up to the present one */
	const char *word = value;

	for (;;)
	{
		const char *end = word + strcspn(word, " ");
		bool		encode = (end == word || end - word > LONGEST_WORD);
		const char *pos;

		/* Beside an empty word, which two spaces or one at an end make. */
		if (word > value && (word - 1 == value || word[-2] == ' '))
			encode = true;
		if (*end == ' ' && (end[1] == ' ' || end[1] == '\0'))
			encode = true;

		for (pos = word; pos < end && !encode; pos++)
			encode = (unsigned char) *pos < 0x20 || (unsigned char) *pos >= 0x7F ||
				(*pos == '=' && pos[1] == '?');

		if (encode && run == NULL)
			run = word;
		if (!encode)
		{
			if (run != NULL)
				put_encoded(line, run, word - 1 - run);
			run = NULL;
			put_word(line, word, end - word);
		}
		if (*end == '\0')
		{
			if (run != NULL)
				put_encoded(line, run, end - run);
			return;
		}
		word = end + 1;
	}
}

static void
start_line(Line *line, StringInfo out, const char *name)
{
	line->out = out;
	appendStringInfoString(out, name);
	appendStringInfoChar(out, ':');
	line->column = (int) strlen(name) + 1;
	line->fresh = true;
}

static void
end_line(Line *line)
{
	appendBinaryStringInfo(line->out, "\r\n", 2);
}

static void
fold(Line *line)
{
	appendBinaryStringInfo(line->out, "\r\n ", 3);
	line->column = 1;
	line->fresh = false;
}

/* A space, or a fold where the line would be too long, and the word as it is. */
static void
put_word(Line *line, const char *word, Size length)
{
	if (!line->fresh && line->column + 1 + length > LINE_CHARS)
		fold(line);
	else
	{
		appendStringInfoChar(line->out, ' ');
		line->column++;
		line->fresh = false;
	}
	appendBinaryStringInfo(line->out, word, length);
	line->column += length;
}

/* May this byte stand for itself in a Q word, in a phrase too (RFC 2047, 5)? */
static inline bool
is_q_literal(unsigned char ch)
{
	return is_alnum(ch) || ch == '!' || ch == '*' || ch == '+' || ch == '-' || ch == '/';
}

/* What a byte takes in a Q word. */
static inline int
q_size(char ch)
{
	return (is_q_literal((unsigned char) ch) || ch == ' ') ? 1 : 3;
}

/* How far whole characters go in so much room of a Q word. */
static const char *
fit_q(const char *text, const char *end, int room)
{
	const char *pos = text;

	while (pos < end)
	{
		const char *next = pos;

		klm_utf8_next(&next, end);
		for (; pos < next; pos++)
			room -= q_size(*pos);
		if (room < 0)
			break;
		text = next;
	}
	return text;
}

/*
 * How far whole characters go in so much room of a B word.  Only a last word
 * may end with "=": GMime reads adjacent words as one stream, which ends there.
 * So another one ends where the bytes are a multiple of three; NULL if nowhere.
 */
static const char *
fit_b(const char *text, const char *end, int room)
{
	const char *pos = text;
	const char *found = NULL;

	while (pos < end)
	{
		klm_utf8_next(&pos, end);
		if ((pos - text + 2) / 3 * 4 > room)
			break;
		if ((pos - text) % 3 == 0 || pos == end)
			found = pos;
	}
	return found;
}

/* RFC 2047 words, each ending between characters; Q or B, whichever is shorter. */
static void
put_encoded(Line *line, const char *text, Size length)
{
	static const char hex[] = "0123456789ABCDEF";
	StringInfo	out = line->out;
	const char *end = text + length;
	const char *pos;
	Size		q_length = 0;
	Size		whole = (length + 2) / 3 * 4;
	bool		fold_first;
	bool		q;

	for (pos = text; pos < end; pos++)
		q_length += q_size(*pos);
	q = (q_length <= whole);
	if (q)
		whole = q_length;

	/* One word rather than two, for parsers that put a space between them. */
	whole += ENCODED_WORD_FRAME;
	fold_first = (!line->fresh && whole <= ENCODED_WORD_CHARS &&
				  line->column + 1 + whole > LINE_CHARS);

	while (text < end)
	{
		int			room = LINE_CHARS - line->column - 1;
		int			start;

		if (fold_first || room < ENCODED_WORD_FRAME + 16)
		{
			fold(line);
			fold_first = false;
			room = ENCODED_WORD_CHARS;
		}
		else
		{
			appendStringInfoChar(out, ' ');
			line->column++;
			line->fresh = false;
			room = Min(room, ENCODED_WORD_CHARS);
		}
		room -= ENCODED_WORD_FRAME;
		start = out->len;

		pos = q ? NULL : fit_b(text, end, room);
		if (pos != NULL)
		{
			char		encoded[ENCODED_WORD_CHARS];

			appendBinaryStringInfo(out, "=?utf-8?B?", 10);
			appendBinaryStringInfo(out, encoded, (int) encode_base64(encoded, text, pos - text));
			text = pos;
		}
		else
		{
			appendBinaryStringInfo(out, "=?utf-8?Q?", 10);
			for (pos = fit_q(text, end, room); text < pos; text++)
			{
				unsigned char ch = (unsigned char) *text;
				char		triple[3] = {'=', hex[ch >> 4], hex[ch & 15]};

				if (is_q_literal(ch))
					appendStringInfoChar(out, ch);
				else if (ch == ' ')
					appendStringInfoChar(out, '_');
				else
					appendBinaryStringInfo(out, triple, 3);
			}
		}
		appendBinaryStringInfo(out, "?=", 2);
		line->column += out->len - start;
	}
}

/*
 * The parameter filename.  Where it is not plain ASCII: RFC 2231, in pieces
 * where it is long, and behind it an ASCII likeness for programs that know
 * nothing newer (those that do take the first).
 */
static void
put_filename(Line *line, const char *filename)
{
	static const char hex[] = "0123456789ABCDEF";
	const char *end = filename + strlen(filename);
	bool		plain = (strstr(filename, "=?") == NULL);
	const char *pos;
	StringInfoData word;
	StringInfoData encoded;

	for (pos = filename; pos < end && plain; pos++)
		plain = (unsigned char) *pos >= 0x20 && (unsigned char) *pos < 0x7F &&
			*pos != '"' && *pos != '\\';

	initStringInfo(&word);
	if (plain)
	{
		appendStringInfo(&word, "filename=\"%s\"", filename);
		put_word(line, word.data, word.len);
		pfree(word.data);
		return;
	}

	initStringInfo(&encoded);
	for (pos = filename; pos < end; pos++)
	{
		unsigned char ch = (unsigned char) *pos;

		if (is_alnum(ch) || (ch != '\0' && strchr("!#$&+-.^_`|~", ch) != NULL))
			appendStringInfoChar(&encoded, ch);
		else
			appendStringInfo(&encoded, "%%%c%c", hex[ch >> 4], hex[ch & 15]);
	}
	if (encoded.len <= 56)
	{
		appendStringInfo(&word, "filename*=utf-8''%s;", encoded.data);
		put_word(line, word.data, word.len);
	}
	else
	{
		const char *next = encoded.data;
		int			piece = 0;

		while (*next != '\0')
		{
			int			taken = 0;

			resetStringInfo(&word);
			appendStringInfo(&word, "filename*%d*=%s", piece, piece == 0 ? "utf-8''" : "");
			piece++;

			/* Whole characters: the bytes of one are 12 characters at most. */
			while (*next != '\0' && (taken < 40 || (next[0] == '%' && strchr("89AB", next[1]))))
			{
				int			step = *next == '%' ? 3 : 1;

				appendBinaryStringInfo(&word, next, step);
				next += step;
				taken += step;
			}
			appendStringInfoChar(&word, ';');
			put_word(line, word.data, word.len);
		}
	}

	/* The likeness, cut before the extension. */
	resetStringInfo(&word);
	appendStringInfoString(&word, "filename=\"");
	{
		const char *dot = strrchr(filename, '.');

		if (dot == NULL || end - dot > 10 || dot == filename)
			dot = end;
		for (pos = filename; pos < end; pos++)
		{
			unsigned char ch = (unsigned char) *pos;

			if (is_continuation(*pos) || (pos < dot && word.len >= 54))
				continue;
			if (ch < 0x20 || ch >= 0x7F || strchr("\"\\?=", ch) != NULL)
				ch = '_';
			appendStringInfoChar(&word, ch);
		}
	}
	appendStringInfoChar(&word, '"');
	put_word(line, word.data, word.len);
	pfree(word.data);
	pfree(encoded.data);
}

/*
 * The body, from its Content-Type line on
 */

static void
write_body(Entity *entity)
{
	const KlmContent *content = entity->content;
	int			i;

	if (content->attachment_count == entity->inline_count)
	{
		write_alternative(entity);
		return;
	}
	start_multipart(entity, "mixed", '0');
	next_part(entity, '0');
	write_alternative(entity);
	for (i = 0; i < content->attachment_count; i++)
	{
		if (entity->inline_part[i])
			continue;
		next_part(entity, '0');
		write_attachment(entity, &content->attachments[i], false);
	}
	end_multipart(entity, '0');
}

static void
write_alternative(Entity *entity)
{
	if (!entity->has_html)
	{
		write_text(entity, &entity->text);
		return;
	}
	start_multipart(entity, "alternative", '1');
	next_part(entity, '1');
	write_text(entity, &entity->text);
	next_part(entity, '1');
	write_html(entity);
	end_multipart(entity, '1');
}

static void
write_html(Entity *entity)
{
	int			i;

	if (entity->inline_count == 0)
	{
		write_text(entity, &entity->html);
		return;
	}
	start_multipart(entity, "related; type=\"text/html\"", '2');
	next_part(entity, '2');
	write_text(entity, &entity->html);
	for (i = 0; i < entity->content->attachment_count; i++)
	{
		if (!entity->inline_part[i])
			continue;
		next_part(entity, '2');
		write_attachment(entity, &entity->content->attachments[i], true);
	}
	end_multipart(entity, '2');
}

static void
write_text(Entity *entity, const TextPart *part)
{
	static const char *const names[] = {"7bit", "quoted-printable", "base64"};
	StringInfo	out = entity->out;
	char	   *normal;

	appendStringInfo(out, "Content-Type: text/%s; charset=utf-8\r\n"
					 "Content-Transfer-Encoding: %s\r\n\r\n", part->subtype, names[part->encoding]);
	enlargeStringInfo(out, (int) part->bound);
	switch (part->encoding)
	{
		case TEXT_7BIT:
			out->len += (int) normalize(out->data + out->len, part->data, part->length);
			break;
		case TEXT_QUOTED_PRINTABLE:
			out->len += (int) encode_quoted_printable(out->data + out->len, part->data,
													  part->length);
			break;
		case TEXT_BASE64:
			normal = palloc(part->normal_length + 1);
			out->len += (int) encode_base64(out->data + out->len, normal,
											normalize(normal, part->data, part->length));
			pfree(normal);
			break;
	}
	out->data[out->len] = '\0';
}

static void
write_attachment(Entity *entity, const KlmAttachment *attachment, bool inlined)
{
	StringInfo	out = entity->out;
	Size		length = base64_length(attachment->length);
	Line		line;

	start_line(&line, out, "Content-Type");
	write_unstructured(&line, attachment->content_type);
	end_line(&line);
	appendStringInfoString(out, "Content-Transfer-Encoding: base64\r\n");
	if (attachment->content_id != NULL)
	{
		appendStringInfoString(out, "Content-ID: <");
		appendStringInfoString(out, attachment->content_id);
		appendStringInfoString(out, ">\r\n");
	}
	start_line(&line, out, "Content-Disposition");
	put_word(&line, inlined ? "inline;" : "attachment;", inlined ? 7 : 11);
	put_filename(&line, attachment->filename);
	end_line(&line);
	end_line(&line);

	enlargeStringInfo(out, (int) length);
	out->len += (int) encode_base64(out->data + out->len, attachment->data, attachment->length);
	out->data[out->len] = '\0';
}

static void
start_multipart(Entity *entity, const char *subtype, char level)
{
	entity->boundary[2] = level;
	appendStringInfo(entity->out, "Content-Type: multipart/%s;\r\n boundary=\"%s\"\r\n",
					 subtype, entity->boundary);
}

/* The line break before a boundary belongs to the boundary. */
static void
next_part(Entity *entity, char level)
{
	entity->boundary[2] = level;
	appendStringInfo(entity->out, "\r\n--%s\r\n", entity->boundary);
}

static void
end_multipart(Entity *entity, char level)
{
	entity->boundary[2] = level;
	appendStringInfo(entity->out, "\r\n--%s--\r\n", entity->boundary);
}

/*
 * Encodings
 */

/*
 * Choose the encoding: 7bit where the text survives any relay that way (ASCII,
 * short lines, no space at a line's end, no "From " at its start, which mbox
 * files mangle), else the shorter one of the two others.
 */
static void
plan_text(TextPart *part, const char *subtype, const char *data)
{
	const unsigned char *pos = (const unsigned char *) data;
	const unsigned char *end = pos + strlen(data);
	const unsigned char *line = pos;
	Size		breaks = 0;
	Size		pairs = 0;		/* breaks that are CRLF already */
	Size		extra = 0;		/* bytes that quoted-printable triples */
	Size		longest = 0;
	Size		quoted;
	Size		broken;
	bool		clean = true;

	for (;;)
	{
		unsigned char ch;

		/* Eight bytes at a time while none is a control or "=". */
		while (end - pos >= 8)
		{
			const uint64 ones = UINT64CONST(0x0101010101010101);
			const uint64 high = ones * 0x80;
			uint64		chunk;
			uint64		equals;
			uint64		dels;

			memcpy(&chunk, pos, 8);
			equals = chunk ^ (ones * '=');
			dels = chunk ^ (ones * 0x7F);
			if ((((chunk - ones * 0x20) & ~chunk) | ((equals - ones) & ~equals) |
				 ((dels - ones) & ~dels)) & high)
				break;
			if (chunk & high)
			{
				clean = false;
				extra += (((chunk & high) >> 7) * ones) >> 56;	/* their number */
			}
			pos += 8;
		}

		ch = pos < end ? *pos : '\0';
		if (ch >= 0x20 && ch < 0x7F && ch != '=')
			;
		else if (ch == '=')
			extra++;
		else if (ch == '\r' || ch == '\n' || ch == '\0')
		{
			Size		length = pos - line;

			longest = Max(longest, length);
			if (length > 0 && (pos[-1] == ' ' || pos[-1] == '\t'))
			{
				clean = false;
				extra++;
			}
			if (length >= 5 && memcmp(line, "From ", 5) == 0)
				clean = false;
			if (ch == '\0')
				break;
			breaks++;
			if (ch == '\r' && pos[1] == '\n')
			{
				pos++;
				pairs++;
			}
			line = pos + 1;
		}
		else if (ch != '\t')
		{
			clean = false;
			extra++;
		}
		pos++;
	}

	part->subtype = subtype;
	part->data = data;
	part->length = pos - (const unsigned char *) data;
	part->normal_length = part->length + breaks - pairs;

	/* A line is broken after 73 characters or more. */
	quoted = part->normal_length + 2 * extra;
	broken = quoted / 73 + 1;
	quoted += broken * 3;
	if (clean && longest <= LINE_CHARS)
	{
		part->encoding = TEXT_7BIT;
		part->bound = part->normal_length;
	}
	else if (quoted <= base64_length(part->normal_length))
	{
		part->encoding = TEXT_QUOTED_PRINTABLE;
		/* And an F may be tripled at the start of each. */
		part->bound = quoted + (breaks + broken) * 2;
	}
	else
	{
		part->encoding = TEXT_BASE64;
		part->bound = base64_length(part->normal_length);
	}
}

/* CR, LF and CRLF become CRLF; the number of bytes written. */
static Size
normalize(char *target, const char *text, Size length)
{
	const char *end = text + length;
	char	   *out = target;

	/* Most texts have no CR, so lines can be copied whole. */
	if (memchr(text, '\r', length) == NULL)
	{
		const char *line_end;

		while ((line_end = memchr(text, '\n', end - text)) != NULL)
		{
			memcpy(out, text, line_end - text);
			out += line_end - text;
			*out++ = '\r';
			*out++ = '\n';
			text = line_end + 1;
		}
		memcpy(out, text, end - text);
		return out + (end - text) - target;
	}

	while (text < end)
	{
		char		ch = *text++;

		if (ch != '\r' && ch != '\n')
		{
			*out++ = ch;
			continue;
		}
		if (ch == '\r' && text < end && *text == '\n')
			text++;
		*out++ = '\r';
		*out++ = '\n';
	}
	return out - target;
}

/* RFC 2045, 6.7, for text; the number of bytes written. */
static Size
encode_quoted_printable(char *target, const char *text, Size length)
{
	static const char hex[] = "0123456789ABCDEF";
	const char *end = text + length;
	char	   *out = target;
	char	   *line = target;

	while (text < end)
	{
		unsigned char ch;
		bool		literal;
		const char *stop = text + Min(end - text, LINE_CHARS - 1 - (out - line));

		/* What needs no thought; an F at a line's start might. */
		if (out > line || *text != 'F')
			while (text < stop && *text > 0x20 && *text < 0x7F && *text != '=')
				*out++ = *text++;
		if (text == end)
			break;

		ch = (unsigned char) *text++;
		if (ch == '\r' || ch == '\n')
		{
			if (ch == '\r' && text < end && *text == '\n')
				text++;
			*out++ = '\r';
			*out++ = '\n';
			line = out;
			continue;
		}
		literal = (ch > 0x20 && ch < 0x7F && ch != '=') ||
			((ch == ' ' || ch == '\t') && text < end && *text != '\r' && *text != '\n');

		/* The last place of a line is for the sign that it goes on. */
		if (out - line + (literal ? 1 : 3) > LINE_CHARS - 1)
		{
			*out++ = '=';
			*out++ = '\r';
			*out++ = '\n';
			line = out;
		}
		if (ch == 'F' && out == line && end - text >= 4 && memcmp(text, "rom ", 4) == 0)
			literal = false;
		if (literal)
			*out++ = ch;
		else
		{
			*out++ = '=';
			*out++ = hex[ch >> 4];
			*out++ = hex[ch & 15];
		}
	}
	return out - target;
}

/* Lines of 76 characters with CRLF between them; the number of bytes written. */
static Size
encode_base64(char *target, const char *data, Size length)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const unsigned char *pos = (const unsigned char *) data;
	char	   *out = target;

	while (length > 0)
	{
		Size		line = Min(length, BASE64_LINE_BYTES);

		length -= line;
		for (; line >= 3; line -= 3, pos += 3)
		{
			uint32		bits = (uint32) pos[0] << 16 | (uint32) pos[1] << 8 | pos[2];

			*out++ = digits[bits >> 18];
			*out++ = digits[(bits >> 12) & 63];
			*out++ = digits[(bits >> 6) & 63];
			*out++ = digits[bits & 63];
		}
		if (line > 0)
		{
			uint32		bits = (uint32) pos[0] << 16 | (line == 2 ? (uint32) pos[1] << 8 : 0);

			*out++ = digits[bits >> 18];
			*out++ = digits[(bits >> 12) & 63];
			*out++ = line == 2 ? digits[(bits >> 6) & 63] : '=';
			*out++ = '=';
		}
		if (length > 0)
		{
			*out++ = '\r';
			*out++ = '\n';
		}
	}
	return out - target;
}

static Size
base64_length(Size length)
{
	return (length + 2) / 3 * 4 + length / BASE64_LINE_BYTES * 2;
}

/*
 * Room for so many bytes more, exactly: enlargeStringInfo() doubles, which
 * would cost a large message twice its size.
 */
static void
reserve(StringInfo out, Size size)
{
	Size		needed = (Size) out->len + size + 1;

	if (needed <= (Size) out->maxlen)
		return;
	if (needed > MaxAllocSize)
	{
		enlargeStringInfo(out, (int) Min(size, (Size) PG_INT32_MAX)); /* raises 54000 */
		return;
	}
	out->data = repalloc(out->data, needed);
	out->maxlen = (int) needed;
}

/* Does the HTML show this part, as "cid:..."? */
static bool
html_uses(const char *html, const char *content_id)
{
	Size		length = strlen(content_id);
	const char *pos = html;

	while ((pos = strchr(pos, ':')) != NULL)
	{
		const char *id = pos + 1;
		Size		i;

		pos++;
		if (id - html < 4 || pg_strncasecmp(id - 4, "cid", 3) != 0)
			continue;
		for (i = 0; i < length; i++)
		{
			/* A URL may carry any character percent-encoded (RFC 2392). */
			if (*id == content_id[i])
				id++;
			else if (id[0] == '%' && isxdigit((unsigned char) id[1]) &&
					 isxdigit((unsigned char) id[2]) &&
					 strtol((char[]) {id[1], id[2], '\0'}, NULL, 16) == content_id[i])
				id += 3;
			else
				break;
		}
		if (i == length && !is_alnum((unsigned char) *id) &&
			(*id == '\0' || strchr("@._%+-", *id) == NULL))
			return true;
	}
	return false;
}

/*
 * Checks
 */

static bool check_text(const char *what, const char *value, KlmError *error);
static bool check_list_id(const char *value);
static bool check_uri_list(const char *value);
static bool check_list_post(const char *value);
static bool check_one_click(const char *value);
static bool check_message_ids(const char *value);
static bool check_auto_submitted(const char *value);
static bool check_feedback_id(const char *value);
static bool check_importance(const char *value);
static bool check_priority(const char *value);
static bool check_x_priority(const char *value);
static bool check_receipt(const char *value);
static bool uri_list_has_https(const char *value);

/* Headers whose value has a form, and what to say when it has not. */
static const struct
{
	const char *name;
	bool		(*check) (const char *value);
	const char *hint;
}			structured_headers[] = {
	{"List-Id", check_list_id, "It has the form: Name <name.example.com>."},
	{"List-Unsubscribe", check_uri_list,
	"It has the form <https://example.com/...>, <mailto:...>."},
	{"List-Unsubscribe-Post", check_one_click, "It can only be List-Unsubscribe=One-Click."},
	{"List-Help", check_uri_list, "It has the form <https://example.com/...>."},
	{"List-Subscribe", check_uri_list, "It has the form <https://example.com/...>."},
	{"List-Owner", check_uri_list, "It has the form <mailto:...>."},
	{"List-Archive", check_uri_list, "It has the form <https://example.com/...>."},
	{"List-Post", check_list_post, "It has the form <mailto:...>, or is NO."},
	{"In-Reply-To", check_message_ids, "It has the form <id@example.com>."},
	{"References", check_message_ids, "It has the form <id@example.com> <id@example.com>."},
	{"Auto-Submitted", check_auto_submitted,
	"It is one of no, auto-generated, auto-replied, auto-notified."},
	{"Feedback-ID", check_feedback_id,
	"It has up to four fields with colons between and no spaces, the last one the sender's."},
	{"Importance", check_importance, "It is one of low, normal, high."},
	{"Priority", check_priority, "It is one of non-urgent, normal, urgent."},
	{"X-Priority", check_x_priority, "It is a number from 1 (highest) to 5 (lowest)."},
	{"Disposition-Notification-To", check_receipt, "It is one e-mail address."},
};

/* Headers that are not for callers, and where to put what they would say. */
static const struct
{
	const char *name;			/* with a hyphen at its end: all that begin so */
	const char *hint;
}			reserved_headers[] = {
	{"From", "Use from_address and from_name."},
	{"Sender", "Use from_address; the account's server adds this header if it must."},
	{"Reply-To", "Use reply_to."},
	{"To", "Use recipients."},
	{"Cc", "Use cc."},
	{"Bcc", "Use bcc."},
	{"Subject", "Use subject."},
	{"Date", "It is the time of the call."},
	{"Message-ID", "It is made for each message, so that its tracking works."},
	{"MIME-Version", "Use body, html and attachments."},
	{"Content-", "Use body, html and attachments."},
	{"Return-Path", "Servers write this header on the way."},
	{"Received", "Servers write this header on the way."},
	{"Resent-", "Servers and mail programs write this header on the way."},
	{"DKIM-Signature", "The account's server signs the mail."},
	{"ARC-", "Servers write this header on the way."},
	{"Authentication-Results", "Servers write this header on the way."},
};

bool
klm_mime_check_header(const char *name, const char *value, KlmError *error)
{
	Size		length = strlen(name);
	Size		trimmed = length;
	const char *pos;
	char	   *what;
	int			i;

	while (trimmed > 0 && (name[trimmed - 1] == ' ' || name[trimmed - 1] == '\t'))
		trimmed--;
	for (i = 0; i < lengthof(reserved_headers); i++)
	{
		const char *reserved = reserved_headers[i].name;
		Size		reserved_length = strlen(reserved);
		bool		prefix = (reserved[reserved_length - 1] == '-');

		if ((prefix ? trimmed >= reserved_length : trimmed == reserved_length) &&
			pg_strncasecmp(name, reserved, reserved_length) == 0)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, reserved_headers[i].hint,
							"\"%s\" cannot be set", klm_shown(name, length));
	}

	if (length == 0)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, NULL, "a header has no name");
	for (pos = name; *pos != '\0'; pos++)
		if ((unsigned char) *pos <= 0x20 || (unsigned char) *pos >= 0x7F || *pos == ':')
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"A header's name has ASCII characters only, no space and no colon.",
							"\"%s\" is not a header name", klm_shown(name, length));
	if (length > HEADER_NAME_BYTES)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"the header name \"%s\" has %zu bytes, more than %d",
						klm_shown(name, length), length, HEADER_NAME_BYTES);

	what = psprintf("the value of \"%s\" ", name);
	if (!check_text(what, value, error))
		return false;
	for (i = 0; i < lengthof(structured_headers); i++)
		if (pg_strcasecmp(name, structured_headers[i].name) == 0 &&
			!structured_headers[i].check(value))
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, structured_headers[i].hint,
							"\"%s\" cannot be \"%s\"", name, klm_shown(value, strlen(value)));
	return true;
}

static int
compare_headers(const void *a, const void *b)
{
	return pg_strcasecmp((*(const KlmHeader *const *) a)->name,
						 (*(const KlmHeader *const *) b)->name);
}

bool
klm_mime_check_headers(const KlmHeader *headers, int count, KlmError *error)
{
	const KlmHeader *sorted[KLM_MAX_HEADERS];
	bool		one_click = false;
	bool		https = false;
	int			i;

	if (count > KLM_MAX_HEADERS)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"%d headers are more than %d", count, KLM_MAX_HEADERS);
	for (i = 0; i < count; i++)
	{
		if (!klm_mime_check_header(headers[i].name, headers[i].value, error))
			return false;
		sorted[i] = &headers[i];
		if (pg_strcasecmp(headers[i].name, "List-Unsubscribe-Post") == 0)
			one_click = true;
		else if (pg_strcasecmp(headers[i].name, "List-Unsubscribe") == 0)
			https = uri_list_has_https(headers[i].value);
	}
	qsort(sorted, count, sizeof(sorted[0]), compare_headers);
	for (i = 1; i < count; i++)
		if (pg_strcasecmp(sorted[i - 1]->name, sorted[i]->name) == 0)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"Header names are equal whatever their case; give each once.",
							"\"%s\" is given twice", sorted[i]->name);
	if (one_click && !https)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"Add List-Unsubscribe with an https URL (RFC 8058).",
						"\"List-Unsubscribe-Post\" needs an https \"List-Unsubscribe\"");
	return true;
}

bool
klm_mime_check_subject(const char *subject, KlmError *error)
{
	return check_text("", subject, error);
}

/*
 * Text for a header: within the limit, no line break, no control, no bidi
 * control.  Tab, U+0085 and U+2028 pass, since they go encoded and break
 * nothing there.  what begins the message: "" or words with a space behind.
 */
static bool
check_text(const char *what, const char *value, KlmError *error)
{
	Size		length = strlen(value);
	const char *end = value + length;
	const char *pos = value;

	if (length > HEADER_VALUE_BYTES)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
						"%shas %zu bytes, more than %d", what, length, HEADER_VALUE_BYTES);
	while (pos < end)
	{
		uint32		ch;

		if ((unsigned char) *pos >= 0x20 && (unsigned char) *pos < 0x7F)
		{
			pos++;
			continue;
		}
		ch = klm_utf8_next(&pos, end);
		if (ch == '\r' || ch == '\n')
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, "Remove the line break.",
							"%scontains a line break: \"%s\"", what, klm_shown(value, length));
		if ((ch < 0x20 && ch != '\t') || (ch >= 0x7F && ch <= 0x9F && ch != 0x85) ||
			ch == 0x061C || ch == 0x200E || ch == 0x200F ||
			(ch >= 0x202A && ch <= 0x202E) || (ch >= 0x2066 && ch <= 0x2069))
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"Remove the character; it cannot be seen.",
							"%scontains the character U+%04X: \"%s\"", what, ch,
							klm_shown(value, length));
	}
	return true;
}

/* [phrase] "<" dot-atom of two parts or more ">" (RFC 2919) */
static bool
check_list_id(const char *value)
{
	const char *open = strrchr(value, '<');
	const char *pos;

	if (open == NULL)
		return false;
	for (pos = open + 1; *pos != '>'; pos++)
	{
		if (*pos == '.' ? (pos[-1] == '<' || pos[-1] == '.' || pos[1] == '>') : !is_token(*pos))
			return false;
	}
	return pos[1] == '\0' && pos - open > 1 && memchr(open, '.', pos - open) != NULL;
}

/* "<" URI ">", commas between (RFC 2369, without comments) */
static bool
check_uri_list(const char *value)
{
	const char *pos = value;

	for (;;)
	{
		const char *scheme;
		const char *start;

		pos += strspn(pos, " \t");
		if (*pos++ != '<')
			return false;
		scheme = pos;
		while (is_alnum((unsigned char) *pos) || *pos == '+' || *pos == '-' || *pos == '.')
			pos++;
		if (pos == scheme || *pos++ != ':')
			return false;
		start = pos;
		while (*pos > 0x20 && *pos < 0x7F && *pos != '<' && *pos != '>')
			pos++;
		if (pos == start || *pos++ != '>' || pos - scheme > LONGEST_WORD)
			return false;
		if (pg_strncasecmp(scheme, "https:", 6) != 0 && pg_strncasecmp(scheme, "http:", 5) != 0 &&
			pg_strncasecmp(scheme, "mailto:", 7) != 0)
			return false;
		pos += strspn(pos, " \t");
		if (*pos == '\0')
			return true;
		if (*pos++ != ',')
			return false;
	}
}

static bool
uri_list_has_https(const char *value)
{
	const char *pos;

	for (pos = value; (pos = strchr(pos, '<')) != NULL; pos++)
		if (pg_strncasecmp(pos, "<https://", 9) == 0)
			return true;
	return false;
}

static bool
check_list_post(const char *value)
{
	return strcmp(value, "NO") == 0 || check_uri_list(value);
}

static bool
check_one_click(const char *value)
{
	return strcmp(value, "List-Unsubscribe=One-Click") == 0;
}

/* "<" left "@" right ">", spaces between */
static bool
check_message_ids(const char *value)
{
	const char *pos = value;

	do
	{
		const char *start;
		int			ats = 0;

		if (*pos != '<')
			return false;
		start = ++pos;
		while (*pos > 0x20 && *pos < 0x7F && *pos != '<' && *pos != '>')
		{
			if (*pos == '@')
			{
				if (pos == start || pos[1] == '>')
					return false;
				ats++;
			}
			pos++;
		}
		if (*pos++ != '>' || ats != 1 || pos - start > LONGEST_WORD)
			return false;
		if (*pos == '\0')
			return true;
		start = pos;
		pos += strspn(pos, " \t");
		if (pos == start)
			return false;
	} while (true);
}

/* A keyword of RFC 3834, parameters perhaps behind it. */
static bool
check_auto_submitted(const char *value)
{
	Size		length = strcspn(value, "; \t");
	const char *pos = value + length;

	if (!((length == 2 && pg_strncasecmp(value, "no", 2) == 0) ||
		  (length == 14 && pg_strncasecmp(value, "auto-generated", 14) == 0) ||
		  (length == 12 && pg_strncasecmp(value, "auto-replied", 12) == 0) ||
		  (length == 13 && pg_strncasecmp(value, "auto-notified", 13) == 0)))
		return false;
	pos += strspn(pos, " \t");
	if (*pos == '\0')
		return true;
	if (*pos++ != ';' || *pos == '\0')
		return false;
	for (; *pos != '\0'; pos++)
		if ((unsigned char) *pos < 0x20 || (unsigned char) *pos >= 0x7F)
			return false;
	return true;
}

static bool
check_feedback_id(const char *value)
{
	int			colons = 0;
	const char *pos;

	for (pos = value; *pos != '\0'; pos++)
	{
		if ((unsigned char) *pos <= 0x20 || (unsigned char) *pos >= 0x7F)
			return false;
		colons += (*pos == ':');
	}
	return pos > value && pos[-1] != ':' && colons <= 3 && pos - value <= LONGEST_WORD;
}

static bool
check_importance(const char *value)
{
	return pg_strcasecmp(value, "low") == 0 || pg_strcasecmp(value, "normal") == 0 ||
		pg_strcasecmp(value, "high") == 0;
}

static bool
check_priority(const char *value)
{
	return pg_strcasecmp(value, "non-urgent") == 0 || pg_strcasecmp(value, "normal") == 0 ||
		pg_strcasecmp(value, "urgent") == 0;
}

/* "1", or with what programs write behind it: "1 (Highest)" */
static bool
check_x_priority(const char *value)
{
	Size		length = strlen(value);
	Size		i;

	if (value[0] < '1' || value[0] > '5')
		return false;
	if (length == 1)
		return true;
	if (length < 5 || value[1] != ' ' || value[2] != '(' || value[length - 1] != ')')
		return false;
	for (i = 3; i < length - 1; i++)
		if (!is_alnum((unsigned char) value[i]) && value[i] != ' ')
			return false;
	return true;
}

/* One address, as it must stand in the header, so nothing to encode in it. */
static bool
check_receipt(const char *value)
{
	KlmAddress	address;
	const char *pos;

	for (pos = value; *pos != '\0'; pos++)
		if ((unsigned char) *pos >= 0x80)
			return false;
	return klm_parse_address(value, &address, NULL);
}

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
	while (is_token((unsigned char) *pos))
		pos++;
	if (pos == type || *pos++ != '/')
		goto bad;
	start = pos;
	while (is_token((unsigned char) *pos))
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
		while (is_token((unsigned char) *pos))
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
			while (is_token((unsigned char) *pos))
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
		if (*pos == '@' ? ats++ > 0 : *pos != '.' && !is_token((unsigned char) *pos))
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

/*
 * A text of an HTML body.  One pass, no recursion, a few bytes of output for
 * each of input: hostile HTML costs no more than its length.
 */

#define LIST_DEPTH 16
#define QUOTE_DEPTH 8
#define TAG_NAME 16

typedef struct TextMaker
{
	StringInfo	out;
	int			breaks;			/* line breaks due before the next text: 0, 1 or 2 */
	bool		line_start;		/* nothing on the present line yet */
	bool		space;			/* a space is due */
	bool		cell;			/* a sign between two table cells is due */
	bool		preformatted;
	int			quote;			/* depth of blockquote */
	int			list;			/* depth of lists, also beyond LIST_DEPTH */
	int			numbers[LIST_DEPTH];	/* of the next item; 0 in an unordered list */
	bool		item;			/* an item's sign is due */
	const char *href;			/* of the open link; NULL: none */
	Size		href_length;
	int			link_start;		/* where its text starts in out */
	char		skip[TAG_NAME]; /* the element whose content is not shown; "" if none */
	int			skip_depth;
} TextMaker;

static void text_put(TextMaker *maker, const char *text, Size length);
static void text_break(TextMaker *maker, int breaks);
static void text_open_tag(TextMaker *maker, const char *name, const char *start, const char *end);
static void text_close_tag(TextMaker *maker, const char *name);
static void text_end_link(TextMaker *maker);
static bool text_attribute(const char *start, const char *end, const char *name,
						   const char **value, Size *length);
static void text_html(TextMaker *maker, const char *html, Size length, bool attribute);
static const char *decode_entity(const char *pos, const char *end, uint32 *ch);

/* Is the name one of the words? */
static bool
is_one_of(const char *name, const char *words)
{
	Size		length = strlen(name);
	const char *pos = words;

	/* "<!doctype" has no name. */
	while (length > 0 && (pos = strstr(pos, name)) != NULL)
	{
		if ((pos == words || pos[-1] == ' ') && (pos[length] == ' ' || pos[length] == '\0'))
			return true;
		pos += length;
	}
	return false;
}

/* Where the tag that starts at pos ends, quotes respected; NULL if nowhere. */
static const char *
tag_end(const char *pos, const char *end)
{
	char		quote = '\0';

	for (; pos < end; pos++)
	{
		if (quote != '\0')
		{
			if (*pos == quote)
				quote = '\0';
		}
		else if (*pos == '>')
			return pos;
		else if ((*pos == '"' || *pos == '\'') && pos[-1] == '=')
			quote = *pos;
	}
	return NULL;
}

char *
klm_mime_text_from_html(const char *html)
{
	StringInfoData out;
	TextMaker	maker = {.out = &out, .line_start = true};
	const char *end = html + strlen(html);
	const char *pos = html;

	initStringInfo(&out);
	while (pos < end)
	{
		const char *open = memchr(pos, '<', end - pos);
		const char *name_start;
		const char *close;
		char		name[TAG_NAME];
		bool		closing;
		int			i;

		if (open == NULL)
			open = end;
		if (maker.skip[0] == '\0')
			text_html(&maker, pos, open - pos, false);
		pos = open;
		if (pos == end)
			break;

		if (end - pos >= 4 && memcmp(pos, "<!--", 4) == 0)
		{
			close = strstr(pos + 4, "-->");
			pos = close != NULL ? close + 3 : end;
			continue;
		}
		closing = (pos[1] == '/');
		name_start = pos + (closing ? 2 : 1);
		if (!is_alnum((unsigned char) *name_start) && !closing && *name_start != '!' &&
			*name_start != '?')
		{
			if (maker.skip[0] == '\0')
				text_put(&maker, "<", 1);
			pos++;
			continue;
		}
		close = tag_end(name_start, end);
		if (close == NULL)
			break;				/* a tag without an end is none */
		for (i = 0; i < TAG_NAME - 1 && is_alnum((unsigned char) name_start[i]); i++)
			name[i] = pg_ascii_tolower((unsigned char) name_start[i]);
		name[i] = '\0';
		pos = close + 1;

		if (maker.skip[0] != '\0')
		{
			if (strcmp(name, maker.skip) != 0)
				continue;
			maker.skip_depth += closing ? -1 : 1;
			if (maker.skip_depth > 0)
				continue;
			maker.skip[0] = '\0';
			continue;
		}
		if (closing)
			text_close_tag(&maker, name);
		else
			text_open_tag(&maker, name, name_start + i, close);

		/* What these contain is no markup: go to their end. */
		if (!closing && is_one_of(name, "script style title textarea"))
		{
			Size		length = strlen(name);

			while ((pos = strstr(pos, "</")) != NULL &&
				   pg_strncasecmp(pos + 2, name, length) != 0)
				pos += 2;
			if (pos == NULL)
				break;
		}
	}
	if (maker.href != NULL)
		text_end_link(&maker);
	if (out.len > 0)
		appendStringInfoChar(&out, '\n');
	return out.data;
}

/* Text as it is: what is due goes before it. */
static void
text_put(TextMaker *maker, const char *text, Size length)
{
	StringInfo	out = maker->out;
	int			i;

	if (length == 0)
		return;
	if (maker->breaks > 0 && out->len > 0)
	{
		while (maker->breaks-- > 0)
			appendStringInfoChar(out, '\n');
		maker->line_start = true;
	}
	maker->breaks = 0;
	if (maker->line_start)
	{
		int			depth = Min(maker->list, LIST_DEPTH);

		for (i = 0; i < Min(maker->quote, QUOTE_DEPTH); i++)
			appendStringInfoString(out, "> ");
		for (i = 0; i < depth - (maker->item ? 1 : 0); i++)
			appendStringInfoString(out, "  ");
		if (maker->item && depth > 0)
		{
			if (maker->numbers[depth - 1] == 0)
				appendStringInfoString(out, "- ");
			else
				appendStringInfo(out, "%d. ", maker->numbers[depth - 1]++);
		}
	}
	else if (maker->cell)
		appendStringInfoString(out, " | ");
	else if (maker->space)
		appendStringInfoChar(out, ' ');
	maker->line_start = maker->item = maker->cell = maker->space = false;
	appendBinaryStringInfo(out, text, length);
}

static void
text_break(TextMaker *maker, int breaks)
{
	maker->breaks = Max(maker->breaks, breaks);
	maker->space = maker->cell = false;
}

static void
text_open_tag(TextMaker *maker, const char *name, const char *start, const char *end)
{
	const char *value;
	Size		length;

	/* Hidden: the text that only a list of mails shall show, and the like. */
	if (is_one_of(name, "div span table section") &&
		(text_attribute(start, end, "hidden", &value, &length) ||
		 text_attribute(start, end, "style", &value, &length)))
	{
		bool		hidden = (value == NULL);
		const char *pos;

		for (pos = value; !hidden && pos + 8 <= value + length; pos++)
			if (pg_strncasecmp(pos, "display:", 8) == 0)
			{
				pos += 8;
				while (pos < value + length && *pos == ' ')
					pos++;
				hidden = (pos + 4 <= value + length && pg_strncasecmp(pos, "none", 4) == 0);
			}
		if (hidden)
		{
			strcpy(maker->skip, name);
			maker->skip_depth = 1;
			return;
		}
	}

	if (strcmp(name, "br") == 0)
	{
		maker->breaks = Min(maker->breaks + 1, 2);
		maker->space = maker->cell = false;
	}
	else if (is_one_of(name, "p h1 h2 h3 h4 h5 h6 table blockquote pre dl"))
	{
		text_break(maker, name[0] == 't' ? 1 : 2);
		if (strcmp(name, "blockquote") == 0)
			maker->quote++;
		else if (strcmp(name, "pre") == 0)
			maker->preformatted = true;
	}
	else if (is_one_of(name, "ul ol"))
	{
		text_break(maker, maker->list == 0 ? 2 : 1);
		if (maker->list < LIST_DEPTH)
			maker->numbers[maker->list] = (name[0] == 'o') ? 1 : 0;
		maker->list++;
	}
	else if (strcmp(name, "li") == 0)
	{
		text_break(maker, 1);
		maker->item = true;
	}
	else if (is_one_of(name, "td th"))
	{
		if (!maker->line_start && maker->breaks == 0)
			maker->cell = true;
	}
	else if (strcmp(name, "hr") == 0)
	{
		text_break(maker, 1);
		text_put(maker, "----------", 10);
		text_break(maker, 1);
	}
	else if (strcmp(name, "a") == 0)
	{
		if (maker->href != NULL)
			text_end_link(maker);
		if (text_attribute(start, end, "href", &value, &length) && length > 0)
		{
			maker->href = value;
			maker->href_length = length;
			maker->link_start = maker->out->len;
		}
	}
	else if (strcmp(name, "img") == 0)
	{
		if (text_attribute(start, end, "alt", &value, &length))
			text_html(maker, value, length, true);
	}
	else if (is_one_of(name, "template svg"))
	{
		strcpy(maker->skip, name);
		maker->skip_depth = 1;
	}
	else if (is_one_of(name, "div tr section article header footer main nav aside address dt dd "
					   "form fieldset figure figcaption center body html tbody thead tfoot "
					   "caption"))
		text_break(maker, 1);
}

static void
text_close_tag(TextMaker *maker, const char *name)
{
	if (is_one_of(name, "p h1 h2 h3 h4 h5 h6 table blockquote pre dl"))
	{
		text_break(maker, name[0] == 't' ? 1 : 2);
		if (strcmp(name, "blockquote") == 0 && maker->quote > 0)
			maker->quote--;
		else if (strcmp(name, "pre") == 0)
			maker->preformatted = false;
	}
	else if (is_one_of(name, "ul ol"))
	{
		if (maker->list > 0)
			maker->list--;
		maker->item = false;
		text_break(maker, maker->list == 0 ? 2 : 1);
	}
	else if (strcmp(name, "a") == 0)
	{
		if (maker->href != NULL)
			text_end_link(maker);
	}
	else if (is_one_of(name, "li div tr section article header footer main nav aside address dt dd "
					   "form fieldset figure figcaption center body html tbody thead tfoot "
					   "caption"))
		text_break(maker, 1);
}

/* " (url)" behind a link's text, unless the text says as much. */
static void
text_end_link(TextMaker *maker)
{
	StringInfo	out = maker->out;
	const char *href = maker->href;
	StringInfoData url;
	const char *shown;
	Size		shown_length;
	const char *bare;
	Size		bare_length;
	TextMaker	decoder = {.out = &url, .preformatted = true};

	maker->href = NULL;
	if (pg_strncasecmp(href, "http:", 5) != 0 && pg_strncasecmp(href, "https:", 6) != 0 &&
		pg_strncasecmp(href, "mailto:", 7) != 0 && pg_strncasecmp(href, "tel:", 4) != 0)
		return;

	initStringInfo(&url);
	text_html(&decoder, href, maker->href_length, true);
	bare = url.data;
	if (pg_strncasecmp(bare, "mailto:", 7) == 0)
		bare += 7;
	else if (pg_strncasecmp(bare, "tel:", 4) == 0)
		bare += 4;
	else
		bare = strstr(bare, "//") != NULL ? strstr(bare, "//") + 2 : bare;
	bare_length = strlen(bare);
	if (bare_length > 0 && bare[bare_length - 1] == '/')
		bare_length--;

	shown = out->data + maker->link_start;
	while (*shown == '\n' || *shown == ' ')
		shown++;
	shown_length = strlen(shown);
	if (shown_length > 0 && shown[shown_length - 1] == '/')
		shown_length--;

	if (shown_length >= bare_length && bare_length > 0 &&
		memcmp(shown + shown_length - bare_length, bare, bare_length) == 0 &&
		(shown_length == bare_length || shown[shown_length - bare_length - 1] == '/' ||
		 shown[shown_length - bare_length - 1] == ':'))
		;
	else if (shown_length == 0)
		text_put(maker, url.data, url.len);
	else
	{
		bool		pending_breaks = (maker->breaks > 0);
		int			breaks = maker->breaks;

		/* The URL belongs to the text before, not to what a block ended. */
		maker->breaks = 0;
		maker->space = true;
		maker->cell = false;
		text_put(maker, "(", 1);
		appendBinaryStringInfo(out, url.data, url.len);
		appendStringInfoChar(out, ')');
		if (pending_breaks)
			maker->breaks = breaks;
	}
	pfree(url.data);
}

/* The raw value (NULL if it has none) of a tag's attribute. */
static bool
text_attribute(const char *start, const char *end, const char *name,
			   const char **value, Size *length)
{
	const char *pos = start;
	Size		name_length = strlen(name);

	while (pos < end)
	{
		const char *attribute;
		bool		match;

		while (pos < end && (*pos == ' ' || *pos == '\t' || *pos == '\n' || *pos == '\r' ||
							 *pos == '\f' || *pos == '/'))
			pos++;
		attribute = pos;
		while (pos < end && strchr(" \t\n\r\f/=", *pos) == NULL)
			pos++;
		match = (pos - attribute == name_length &&
				 pg_strncasecmp(attribute, name, name_length) == 0);
		while (pos < end && (*pos == ' ' || *pos == '\t' || *pos == '\n' || *pos == '\r'))
			pos++;
		*value = NULL;
		*length = 0;
		if (pos < end && *pos == '=')
		{
			pos++;
			while (pos < end && (*pos == ' ' || *pos == '\t' || *pos == '\n' || *pos == '\r'))
				pos++;
			if (pos < end && (*pos == '"' || *pos == '\''))
			{
				char		quote = *pos++;

				*value = pos;
				while (pos < end && *pos != quote)
					pos++;
				*length = pos - *value;
				if (pos < end)
					pos++;
			}
			else
			{
				*value = pos;
				while (pos < end && strchr(" \t\n\r\f", *pos) == NULL)
					pos++;
				*length = pos - *value;
			}
		}
		if (match)
			return true;
	}
	return false;
}

/* Text of HTML: entities decoded, white space as HTML has it. */
static void
text_html(TextMaker *maker, const char *html, Size length, bool attribute)
{
	const char *end = html + length;
	const char *pos = html;

	while (pos < end)
	{
		const char *start = pos;
		uint32		ch;

		while (pos < end && (unsigned char) *pos > 0x20 && (unsigned char) *pos < 0x7F &&
			   *pos != '&')
			pos++;
		if (pos > start)
		{
			text_put(maker, start, pos - start);
			continue;
		}
		if (*pos == '&')
		{
			pos = decode_entity(pos, end, &ch);
			if (ch == 0)
				continue;
		}
		else
		{
			ch = klm_utf8_next(&pos, end);
			if (ch == ' ' || ch == '\t' || ch == '\n' || ch == '\r' || ch == '\f')
			{
				if (!maker->preformatted || attribute)
				{
					if (!maker->line_start && maker->breaks == 0)
						maker->space = true;
				}
				else if (ch == '\n')
					maker->breaks = Min(maker->breaks + 1, 2);
				else if (ch != '\r')
					text_put(maker, ch == '\t' ? "    " : " ", ch == '\t' ? 4 : 1);
				continue;
			}
		}

		if (ch < 0x20 || (ch >= 0x7F && ch <= 0x9F) || ch == 0xAD || ch == 0x34F ||
			ch == 0x200B || ch == 0x2060 || ch == 0xFEFF ||
			(attribute && ch == ' '))
			continue;
		if (ch == 0xA0)
			text_put(maker, " ", 1);
		else
		{
			unsigned char utf8[5];

			if (ch < 0x80)
			{
				utf8[0] = ch;
				text_put(maker, (char *) utf8, 1);
			}
			else if (ch < 0x800)
			{
				utf8[0] = 0xC0 | (ch >> 6);
				utf8[1] = 0x80 | (ch & 0x3F);
				text_put(maker, (char *) utf8, 2);
			}
			else if (ch < 0x10000)
			{
				utf8[0] = 0xE0 | (ch >> 12);
				utf8[1] = 0x80 | ((ch >> 6) & 0x3F);
				utf8[2] = 0x80 | (ch & 0x3F);
				text_put(maker, (char *) utf8, 3);
			}
			else
			{
				utf8[0] = 0xF0 | (ch >> 18);
				utf8[1] = 0x80 | ((ch >> 12) & 0x3F);
				utf8[2] = 0x80 | ((ch >> 6) & 0x3F);
				utf8[3] = 0x80 | (ch & 0x3F);
				text_put(maker, (char *) utf8, 4);
			}
		}
	}
}

/* Latin 1 in order, from U+00A0; then others that mail is written with. */
static const char latin1_entities[] =
"nbsp iexcl cent pound curren yen brvbar sect uml copy ordf laquo not shy reg macr "
"deg plusmn sup2 sup3 acute micro para middot cedil sup1 ordm raquo frac14 frac12 frac34 iquest "
"Agrave Aacute Acirc Atilde Auml Aring AElig Ccedil Egrave Eacute Ecirc Euml Igrave Iacute Icirc "
"Iuml ETH Ntilde Ograve Oacute Ocirc Otilde Ouml times Oslash Ugrave Uacute Ucirc Uuml Yacute "
"THORN szlig agrave aacute acirc atilde auml aring aelig ccedil egrave eacute ecirc euml igrave "
"iacute icirc iuml eth ntilde ograve oacute ocirc otilde ouml divide oslash ugrave uacute ucirc "
"uuml yacute thorn yuml ";

static const struct
{
	const char *name;
	uint32		ch;
}			other_entities[] = {
	{"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''},
	{"hellip", 0x2026}, {"mdash", 0x2014}, {"ndash", 0x2013}, {"lsquo", 0x2018},
	{"rsquo", 0x2019}, {"sbquo", 0x201A}, {"ldquo", 0x201C}, {"rdquo", 0x201D},
	{"bdquo", 0x201E}, {"lsaquo", 0x2039}, {"rsaquo", 0x203A}, {"bull", 0x2022},
	{"dagger", 0x2020}, {"Dagger", 0x2021}, {"permil", 0x2030}, {"prime", 0x2032},
	{"Prime", 0x2033}, {"euro", 0x20AC}, {"trade", 0x2122}, {"larr", 0x2190},
	{"uarr", 0x2191}, {"rarr", 0x2192}, {"darr", 0x2193}, {"harr", 0x2194},
	{"ensp", 0xA0}, {"emsp", 0xA0}, {"thinsp", 0xA0}, {"zwnj", 0x200C}, {"zwj", 0x200D},
	{"OElig", 0x152}, {"oelig", 0x153}, {"Scaron", 0x160}, {"scaron", 0x161},
	{"Yuml", 0x178}, {"fnof", 0x192}, {"circ", 0x2C6}, {"tilde", 0x2DC},
	{"minus", 0x2212}, {"ne", 0x2260}, {"le", 0x2264}, {"ge", 0x2265}, {"infin", 0x221E},
	{"asymp", 0x2248}, {"sum", 0x2211}, {"radic", 0x221A}, {"check", 0x2713},
	{"star", 0x2606}, {"starf", 0x2605}, {"hearts", 0x2665},
};

/* Windows-1252 where ISO 8859-1 has controls: how browsers read &#150;. */
static const uint16 windows_1252[32] = {
	0x20AC, 0, 0x201A, 0x192, 0x201E, 0x2026, 0x2020, 0x2021, 0x2C6, 0x2030, 0x160, 0x2039,
	0x152, 0, 0x17D, 0, 0, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x2DC,
	0x2122, 0x161, 0x203A, 0x153, 0, 0x17E, 0x178
};

/* What the ampersand at pos begins, and where to go on; ch 0: nothing to show. */
static const char *
decode_entity(const char *pos, const char *end, uint32 *ch)
{
	const char *start = pos + 1;
	const char *stop = start;
	char		name[12];
	int			i;

	*ch = '&';
	if (start < end && *start == '#')
	{
		bool		hex = (start + 1 < end && (start[1] == 'x' || start[1] == 'X'));
		uint32		value = 0;

		start += hex ? 2 : 1;
		for (stop = start; stop < end; stop++)
		{
			int			digit;

			if (*stop >= '0' && *stop <= '9')
				digit = *stop - '0';
			else if (hex && pg_ascii_tolower((unsigned char) *stop) >= 'a' &&
					 pg_ascii_tolower((unsigned char) *stop) <= 'f')
				digit = pg_ascii_tolower((unsigned char) *stop) - 'a' + 10;
			else
				break;
			if (value < 0x110000)
				value = value * (hex ? 16 : 10) + digit;
		}
		if (stop == start)
			return pos + 1;
		if (value >= 0x80 && value <= 0x9F)
			value = windows_1252[value - 0x80];
		if (value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF))
			value = 0xFFFD;
		*ch = value;
		return stop < end && *stop == ';' ? stop + 1 : stop;
	}

	while (stop < end && stop - start < (int) sizeof(name) - 2 && is_alnum((unsigned char) *stop))
		stop++;
	if (stop == start || stop == end || *stop != ';')
		return pos + 1;
	memcpy(name, start, stop - start);
	name[stop - start] = '\0';
	for (i = 0; i < lengthof(other_entities); i++)
		if (strcmp(name, other_entities[i].name) == 0)
		{
			*ch = other_entities[i].ch;
			return stop + 1;
		}
	name[stop - start] = ' ';
	name[stop - start + 1] = '\0';
	for (i = 0, start = latin1_entities; *start != '\0'; i++)
	{
		if (strncmp(start, name, strlen(name)) == 0)
		{
			*ch = 0xA0 + i;
			return stop + 1;
		}
		start = strchr(start, ' ') + 1;
	}
	return pos + 1;
}
