/*-------------------------------------------------------------------------
 *
 * compose.c
 *		Write a message: RFC 5322 header, RFC 2045-2049 MIME entity.
 *
 * Pure: palloc and StringInfo (and pg_strong_random for boundaries).  What goes
 * into a message has been checked: address.c, header_check.c, attachment.c.
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
#include "utils/datetime.h"
#include "utils/memutils.h"

#include "base/error.h"
#include "base/text.h"
#include "message/compose.h"
#include "message/html_to_text.h"
#include "message/syntax.h"

#define LINE_CHARS 76			/* RFC 2047 and RFC 2045 both end here */
#define ENCODED_WORD_CHARS 75	/* RFC 2047, 2 */
#define ENCODED_WORD_FRAME 12	/* =?utf-8?Q? and ?= */
#define BASE64_LINE_BYTES 57	/* 76 characters */
#define NAME_PIECE 36			/* bytes of a file name in one encoded word */

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

static void choose_boundary(Entity *entity);
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
static bool is_plain_filename(const char *filename);
static void put_folded(Line *line, const char *value);
static void put_filename(Line *line, const char *filename);
static void put_encoded_name(Line *line, const char *filename);
static void write_body(Entity *entity);
static void write_alternative(Entity *entity);
static void write_html(Entity *entity);
static void write_text(Entity *entity, const TextPart *part);
static void write_attachment(Entity *entity, const KlmAttachment *attachment, bool inlined);
static void start_multipart(Entity *entity, const char *subtype, char level);
static void next_part(Entity *entity, char level);
static void end_multipart(Entity *entity, char level);
static bool is_plain_text(const char *text, Size length, Size *breaks);
static void plan_text(TextPart *part, const char *subtype, const char *data);
static Size normalize(char *target, const char *text, Size length);
static Size encode_quoted_printable(char *target, const char *text, Size length);
static Size encode_base64(char *target, const char *data, Size length);
static Size base64_length(Size length);
static void reserve(StringInfo out, Size size);
static void find_inline_parts(Entity *entity);

static inline bool
is_continuation(char ch)
{
	return ((unsigned char) ch & 0xC0) == 0x80;
}

void
klm_mime_compose(const KlmContent *content, StringInfo out)
{
	Entity		entity = {.content = content, .out = out};
	const char *text = content->text;
	char	   *made = NULL;
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
		size += base64_length(content->attachments[i].length) + 2048;
	if (entity.has_html && content->attachment_count > 0)
		find_inline_parts(&entity);
	reserve(out, size);

	if (entity.has_html || content->attachment_count > 0)
		choose_boundary(&entity);
	write_date(out, content->date);
	if (strchr(content->message_id, '@') != NULL)
		appendStringInfo(out, "Message-ID: <%s>\r\n", content->message_id);
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

/* "=_" can stand neither in quoted-printable nor in base64. */
static void
choose_boundary(Entity *entity)
{
	static const char hex[] = "0123456789abcdef";
	const char *message_id = entity->content->message_id;
	uint8		random[12];

	if (!pg_strong_random(random, sizeof(random)))
	{
		/* Nobody could foresee the Message-ID either. */
		Size		length = strlen(message_id);

		for (int i = 0; i < lengthof(random) && length > 0; i++)
			random[i] = (uint8) (message_id[i % length] * 31 + i);
	}
	strcpy(entity->boundary, "=_0_");
	for (int i = 0; i < lengthof(random); i++)
	{
		entity->boundary[4 + 2 * i] = hex[random[i] >> 4];
		entity->boundary[5 + 2 * i] = hex[random[i] & 15];
	}
	entity->boundary[4 + 2 * lengthof(random)] = '\0';
}

bool
klm_mime_has_header(const char *message, Size length, const char *name)
{
	Size		name_length = strlen(name);
	const char *end = message + length;
	const char *newline;

	for (const char *line = message; line < end && *line != '\r'; line = newline + 1)
	{
		if (end - line > name_length && line[name_length] == ':' &&
			pg_strncasecmp(line, name, name_length) == 0)
			return true;
		newline = memchr(line, '\n', end - line);
		if (newline == NULL)
			break;
	}
	return false;
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

/* RFC 5322, 3.3, in UTC. */
static void
write_date(StringInfo out, TimestampTz date)
{
	static const char *const days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
	static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul",
	"Aug", "Sep", "Oct", "Nov", "Dec"};
	int64		day = date / USECS_PER_DAY - (date % USECS_PER_DAY < 0 ? 1 : 0);
	int			second = (int) ((date - day * USECS_PER_DAY) / USECS_PER_SEC);
	int			julian = (int) day + POSTGRES_EPOCH_JDATE;
	int			year;
	int			month;
	int			mday;

	j2date(julian, &year, &month, &mday);
	appendStringInfo(out, "Date: %s, %d %s %04d %02d:%02d:%02d +0000\r\n",
					 days[j2day(julian)], mday, months[month - 1], year,
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
		put_folded(&line, value);
	else
		write_unstructured(&line, value);
	end_line(&line);
}

/* A value as it is, with line breaks at single spaces only. */
static void
put_folded(Line *line, const char *value)
{
	const char *chunk = value;

	while (*chunk != '\0')
	{
		const char *end = chunk;

		while (*end != '\0' &&
			   !(end[0] == ' ' && end > value && end[-1] != ' ' && end[-1] != '\t' &&
				 end[1] != ' ' && end[1] != '\t'))
			end++;
		put_word(line, chunk, end - chunk);
		chunk = *end != '\0' ? end + 1 : end;
	}
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
		else if (++stretch > KLM_LONGEST_WORD)
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
		bool		encode = (end == word || end - word > KLM_LONGEST_WORD);
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
	return klm_is_alnum(ch) || ch == '!' || ch == '*' || ch == '+' || ch == '-' || ch == '/';
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

/* Can the name stand in quotes as it is? */
static bool
is_plain_filename(const char *filename)
{
	for (const char *pos = filename; *pos != '\0'; pos++)
		if ((unsigned char) *pos < 0x20 || (unsigned char) *pos >= 0x7F || *pos == '"' ||
			*pos == '\\' || (pos[0] == '=' && pos[1] == '?'))
			return false;
	return true;
}

/*
 * The name in Content-Disposition: in quotes where it can stand there, else by
 * RFC 2231 alone, whole or in pieces.  An ASCII likeness beside it would be
 * what many readers show.
 */
static void
put_filename(Line *line, const char *filename)
{
	static const char hex[] = "0123456789ABCDEF";
	const char *next;
	int			piece = 0;
	StringInfoData word;
	StringInfoData encoded;

	initStringInfo(&word);
	if (is_plain_filename(filename))
	{
		appendStringInfo(&word, "filename=\"%s\"", filename);
		put_word(line, word.data, word.len);
		pfree(word.data);
		return;
	}

	initStringInfo(&encoded);
	for (const char *pos = filename; *pos != '\0'; pos++)
	{
		unsigned char ch = (unsigned char) *pos;

		if (klm_is_alnum(ch) || strchr("!#$&+-.^_`|~", ch) != NULL)
			appendStringInfoChar(&encoded, ch);
		else
			appendStringInfo(&encoded, "%%%c%c", hex[ch >> 4], hex[ch & 15]);
	}
	next = encoded.data;
	if (encoded.len <= 56)
	{
		appendStringInfo(&word, "filename*=utf-8''%s", encoded.data);
		put_word(line, word.data, word.len);
		next += encoded.len;
	}
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
		if (*next != '\0')
			appendStringInfoChar(&word, ';');
		put_word(line, word.data, word.len);
	}
	pfree(word.data);
	pfree(encoded.data);
}

/*
 * The same name in Content-Type, as encoded words in quotes: what RFC 2047
 * forbids, and what mail programs that know no RFC 2231 read and write.
 */
static void
put_encoded_name(Line *line, const char *filename)
{
	char		encoded[NAME_PIECE / 3 * 4];
	StringInfoData word;

	initStringInfo(&word);
	appendStringInfoString(&word, "name=\"");
	while (*filename != '\0')
	{
		Size		length = strnlen(filename, NAME_PIECE);

		while (length > 1 && is_continuation(filename[length]))
			length--;
		appendStringInfoString(&word, "=?utf-8?B?");
		appendBinaryStringInfo(&word, encoded, (int) encode_base64(encoded, filename, length));
		appendStringInfoString(&word, "?=");
		filename += length;
		if (*filename == '\0')
			appendStringInfoChar(&word, '"');
		put_word(line, word.data, word.len);
		resetStringInfo(&word);
	}
	pfree(word.data);
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
	bool		plain = is_plain_filename(attachment->filename);
	Size		type_length = strlen(attachment->content_type);
	char	   *type;
	Line		line;

	while (type_length > 0 && attachment->content_type[type_length - 1] == ' ')
		type_length--;
	type = psprintf("%.*s%s", (int) type_length, attachment->content_type, plain ? "" : ";");
	start_line(&line, out, "Content-Type");
	put_folded(&line, type);
	if (!plain)
		put_encoded_name(&line, attachment->filename);
	end_line(&line);
	pfree(type);
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

#define ONES		UINT64CONST(0x0101010101010101)
#define HIGH_BITS	(ONES * 0x80)

/* Is one of eight bytes a control (of ASCII) or "="? */
static inline bool
has_special(uint64 chunk)
{
	uint64		equals = chunk ^ (ONES * '=');
	uint64		dels = chunk ^ (ONES * 0x7F);

	return ((((chunk - ONES * 0x20) & ~chunk) | ((equals - ONES) & ~equals) |
			 ((dels - ONES) & ~dels)) & HIGH_BITS) != 0;
}

/*
 * Is it printable ASCII in lines of LF that can go out as 7bit?  Most texts are, and
 * of these nothing else has to be known than the number of lines.
 */
static bool
is_plain_text(const char *text, Size length, Size *breaks)
{
	const char *end = text + length;
	const char *line = text;

	for (*breaks = 0;; (*breaks)++)
	{
		const char *newline = memchr(line, '\n', Min(end - line, LINE_CHARS + 1));
		const char *stop = newline ? newline : end;
		const char *pos = line;
		uint64		odd = 0;

		if (stop - line > LINE_CHARS || (stop > line && stop[-1] == ' ') ||
			(stop - line >= 5 && memcmp(line, "From ", 5) == 0))
			return false;
		/* Less than a space, or more than "~", sets a byte's highest bit. */
		for (uint64 chunk; stop - pos >= 8; pos += 8)
		{
			memcpy(&chunk, pos, 8);
			odd |= (chunk - ONES * 0x20) | (chunk + ONES);
		}
		if (odd & HIGH_BITS)
			return false;
		for (; pos < stop; pos++)
			if ((unsigned char) *pos < 0x20 || (unsigned char) *pos >= 0x7F)
				return false;
		if (newline == NULL)
			return true;
		line = newline + 1;
	}
}

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
	Size		breaks;
	Size		pairs = 0;		/* breaks that are CRLF already */
	Size		extra = 0;		/* bytes that quoted-printable triples */
	Size		longest = 0;
	Size		quoted;
	Size		broken;
	bool		clean = true;

	part->subtype = subtype;
	part->data = data;
	part->length = end - pos;
	if (is_plain_text(data, part->length, &breaks))
	{
		part->encoding = TEXT_7BIT;
		part->bound = part->normal_length = part->length + breaks;
		return;
	}

	breaks = 0;
	for (;;)
	{
		unsigned char ch;

		/* Eight bytes at a time while none is a control or "=". */
		while (end - pos >= 8)
		{
			uint64		chunk;

			memcpy(&chunk, pos, 8);
			if (has_special(chunk))
				break;
			if (chunk & HIGH_BITS)
			{
				clean = false;
				extra += (((chunk & HIGH_BITS) >> 7) * ONES) >> 56; /* their number */
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

		/* What needs no thought; an F at a line's start might, a space at its end does. */
		if (out > line || *text != 'F')
		{
			for (uint64 chunk; stop - text >= 8; text += 8, out += 8)
			{
				memcpy(&chunk, text, 8);
				if (has_special(chunk) || (chunk & HIGH_BITS))
					break;
				memcpy(out, &chunk, 8);
			}
			while (text < stop && *text >= 0x20 && *text < 0x7F && *text != '=')
				*out++ = *text++;
			if (out > line && out[-1] == ' ' && (text == end || *text == '\r' || *text == '\n'))
			{
				out--;
				text--;
			}
		}
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

/* Does a URL "cid:..." name this part?  url is what follows the colon. */
static bool
url_names(const char *url, const char *content_id)
{
	for (; *content_id != '\0'; content_id++)
	{
		/* A URL may carry any character percent-encoded (RFC 2392). */
		if (*url == *content_id)
			url++;
		else if (url[0] == '%' && isxdigit((unsigned char) url[1]) &&
				 isxdigit((unsigned char) url[2]) &&
				 strtol((char[]) {url[1], url[2], '\0'}, NULL, 16) == *content_id)
			url += 3;
		else
			return false;
	}
	return !klm_is_alnum((unsigned char) *url) && (*url == '\0' || strchr("@._%+-", *url) == NULL);
}

/* Which attachments does the HTML show?  It is read once, however many there are. */
static void
find_inline_parts(Entity *entity)
{
	const KlmContent *content = entity->content;
	const char *pos = content->html;

	while ((pos = strchr(pos, ':')) != NULL)
	{
		pos++;
		if (pos - content->html < 4 || pg_strncasecmp(pos - 4, "cid", 3) != 0)
			continue;
		for (int i = 0; i < content->attachment_count; i++)
			if (!entity->inline_part[i] && content->attachments[i].content_id != NULL &&
				url_names(pos, content->attachments[i].content_id))
			{
				entity->inline_part[i] = true;
				entity->inline_count++;
			}
	}
}
