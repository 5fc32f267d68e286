/*-------------------------------------------------------------------------
 *
 * address.c
 *		RFC 5321/5322 addresses: parse, check, write.
 *
 * Pure: palloc, StringInfo and libidn2 (of which this file is the only
 * caller).  Raises nothing for bad input.
 *
 * The grammar is RFC 5322's without its obsolete forms, narrowed to what SMTP
 * can carry: no groups, no address literals, no single-label domains, no line
 * breaks, no comment beside the at sign.  It is widened where mail that exists
 * needs it: dots in display names, UTF-8 (RFC 6532), and the dots at odd places
 * that Japanese mobile carriers once handed out, which are sent quoted.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <idn2.h>

#include "lib/stringinfo.h"

#include "base/error.h"
#include "base/text.h"
#include "message/address.h"

#define LIST_BYTES 1048576		/* longest list that is looked at */
#define LIST_ADDRESSES 20000	/* keeps one list's memory and time in bounds */
#define NAME_BYTES 1000			/* longest display name */
#define LOCAL_BYTES 64			/* RFC 5321, 4.5.3.1.1 */
#define ADDRESS_BYTES 254		/* RFC 5321, 4.5.3.1.3, less the angle brackets */
#define LABEL_BYTES 63			/* RFC 1035, 2.3.4 */

/* What is being parsed, and why it cannot be. */
typedef struct Parser
{
	const char *pos;
	const char *end;
	const char *hint;			/* static text, or NULL */
	int			sqlstate;		/* 0, or that of a limit */
	bool		empty;			/* nothing but spaces and comments */
} Parser;

static bool check_characters(const char *list, Size length, KlmError *error);
static const char *find_plain(const char *characters, const char *pos, const char *end);
static bool has_colon(const char *pos, const char *end);
static bool parse_mailbox(Parser *parser, KlmAddress *address);
static bool parse_phrase(Parser *parser, char **name);
static bool parse_addr_spec(Parser *parser, KlmAddress *address);
static bool parse_quoted_local(Parser *parser, StringInfo local);
static bool parse_dotted_local(Parser *parser, StringInfo local);
static bool parse_domain(Parser *parser, char *domain, Size size);
static bool to_ascii_domain(const char *text, Size length, char *domain, Size size);
static bool skip_cfws(Parser *parser);
static bool refuse(Parser *parser, const char *hint);
static char *corrected(const char *list, Size length);
static int	merge_repeats(KlmAddress *addresses, int count);
static void append_local_part(StringInfo out, const char *local, Size length);

/* atext of RFC 5322; a byte above 0x7F is judged as a character elsewhere. */
static bool
is_atext(char ch)
{
	return (ch >= 'a' && ch <= 'z') || (ch >= 'A' && ch <= 'Z') || (ch >= '0' && ch <= '9') ||
		(ch != '\0' && strchr("!#$%&'*+-/=?^_`{|}~", ch) != NULL);
}

/* The commas and semicolons of Chinese and Japanese keyboards. */
static bool
is_wide_separator(uint32 ch)
{
	return ch == 0xFF0C || ch == 0xFF1B || ch == 0x3001 || ch == 0xFF64;
}

/* Full-width ASCII and the ideographic full stops, which look like an address's. */
static bool
is_wide_ascii(uint32 ch)
{
	return (ch >= 0xFF01 && ch <= 0xFF5E) || ch == 0x3002 || ch == 0xFF61;
}

/* What may stand in a display name but in no address, where it would be lost or hidden. */
static bool
is_bad_in_address(uint32 ch)
{
	return klm_is_space(ch) || klm_is_invisible(ch) || is_wide_ascii(ch) || is_wide_separator(ch) ||
		ch == 0xFFFC || ch == 0xFFFD;
}

/* single: only one address is wanted, so that the list need not be read behind a second one. */
static bool
parse_list(const char *list, bool single, KlmAddress **addresses, int *count, KlmError *error)
{
	Size		length = strlen(list);
	const char *end = list + length;
	const char *pos = list;
	int			allocated = 4;
	int			found = 0;
	KlmAddress *result;

	*addresses = NULL;
	*count = 0;

	if (length > LIST_BYTES)
		return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED,
						"Call send() once for each recipient; one statement can: SELECT kliv_mail.send(email, ...) FROM ....",
						"the address list has %zu bytes, more than %d", length, LIST_BYTES);
	if (!check_characters(list, length, error))
		return false;

	result = palloc(sizeof(KlmAddress) * allocated);
	for (;;)
	{
		/* A comma; a semicolon should have been one. */
		const char *stop = find_plain(",;", pos, end);
		Parser		parser = {.pos = pos, .end = stop};
		const char *hint;
		bool		good;

		if (stop < end && *stop == ';' && has_colon(pos, stop))
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"Give the addresses themselves; recipients that shall not see each "
							"other go into bcc.",
							"\"%s\" is a group, not an e-mail address",
							klm_shown(pos, stop + 1 - pos));

		if (found == LIST_ADDRESSES)
			return klm_fail(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, NULL,
							"the address list has more than %d addresses", LIST_ADDRESSES);
		if (found == allocated)
		{
			allocated *= 2;
			result = repalloc(result, sizeof(KlmAddress) * allocated);
		}

		good = parse_mailbox(&parser, &result[found]);
		if (good && (stop == end || *stop == ','))
		{
			found++;
			if (stop == end)
				break;
			if (single && strcmp(result[found - 1].addr, result[0].addr) != 0)
				break;
			pos = stop + 1;
			continue;
		}
		if (error == NULL)
			return false;

		/* Why not?  First without the spaces, as it is shown. */
		while (pos < stop && (*pos == ' ' || *pos == '\t'))
			pos++;
		if (parser.sqlstate == ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			return klm_fail(error, parser.sqlstate, NULL,
							"\"%s\" has a name of more than %d bytes",
							klm_shown(pos, stop - pos), NAME_BYTES);
		if (stop == end && found == 0 && parser.empty)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							"Give at least one address, such as ana@example.com.",
							"no e-mail address is given");

		/*
		 * Where nothing but the width of characters or the separators is wrong,
		 * the hint is the list as it should have been written.
		 */
		hint = parser.hint;
		if (length <= 1000)
		{
			char	   *fixed = corrected(list, length);
			KlmAddress *ignored;
			int			ignored_count;

			if (strcmp(fixed, list) != 0 &&
				klm_parse_address_list(fixed, &ignored, &ignored_count, NULL))
				hint = psprintf("Write %s.", fixed);
		}
		if (parser.empty)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							hint != NULL ? hint : "Write one comma between two addresses.",
							"address %d of the list is empty", found + 1);
		if (good)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							hint != NULL ? hint : "Separate addresses with commas.",
							"the semicolon after \"%s\" does not separate addresses",
							klm_shown(pos, stop - pos));
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, hint,
						"\"%s\" is not an e-mail address", klm_shown(pos, stop - pos));
	}

	*count = merge_repeats(result, found);
	*addresses = result;
	return true;
}

bool
klm_parse_address_list(const char *list, KlmAddress **addresses, int *count, KlmError *error)
{
	return parse_list(list, false, addresses, count, error);
}

bool
klm_parse_address(const char *text, KlmAddress *address, KlmError *error)
{
	KlmAddress *addresses;
	int			count;

	if (!parse_list(text, true, &addresses, &count, error))
		return false;
	if (count != 1)
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE, "Give exactly one address here.",
						"\"%s\" is more than one e-mail address", klm_shown(text, strlen(text)));
	*address = addresses[0];
	return true;
}

/* No character that must not be in any address list; the message shows which. */
static bool
check_characters(const char *list, Size length, KlmError *error)
{
	const char *end = list + length;
	const char *pos = list;
	const char *from;
	const char *to;
	uint32		ch = 0;

	if (!klm_has_unsafe_char(list, true))
		return true;
	if (error == NULL)
		return false;

	/* Find it, and the element around it. */
	while (pos < end)
	{
		ch = klm_utf8_next(&pos, end);
		if ((klm_is_unsafe(ch) && ch != '\t') || klm_is_joiner(ch))
			break;
	}
	from = pos;
	while (from > list && from[-1] != ',' && pos - from < 60)
		from--;
	while (from > list && ((unsigned char) *from & 0xC0) == 0x80)
		from--;
	to = pos;
	while (to < end && *to != ',')
		to++;

	if (ch == '\r' || ch == '\n')
		return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
						"Separate addresses with commas, and remove the line break.",
						"\"%s\" contains a line break", klm_shown(from, to - from));
	return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
					"Remove the character; it cannot be seen.",
					"\"%s\" contains the character U+%04X", klm_shown(from, to - from), ch);
}

/* The first of these characters outside of quotes and comments, or the end. */
static const char *
find_plain(const char *characters, const char *pos, const char *end)
{
	bool		quoted = false;
	int			comments = 0;

	for (; pos < end; pos++)
	{
		if (*pos == '\\' && (quoted || comments > 0))
		{
			if (pos + 1 < end)
				pos++;
		}
		else if (quoted)
			quoted = (*pos != '"');
		else if (*pos == '(')
			comments++;
		else if (comments > 0)
			comments -= (*pos == ')');
		else if (*pos == '"')
			quoted = true;
		else if (strchr(characters, *pos) != NULL)
			break;
	}
	return pos;
}

/* Does a colon stand there before any at sign? */
static bool
has_colon(const char *pos, const char *end)
{
	pos = find_plain(":@", pos, end);
	return pos < end && *pos == ':';
}

/* The whole of the parser's text as: [name] <addr-spec>, or addr-spec. */
static bool
parse_mailbox(Parser *parser, KlmAddress *address)
{
	const char *start;
	const char *pos;
	bool		quoted = false;
	int			comments = 0;

	address->name = NULL;
	if (!skip_cfws(parser))
		return false;
	if (parser->pos == parser->end)
	{
		parser->empty = true;
		return false;
	}

	if (has_colon(parser->pos, parser->end))
	{
		if (parser->end - parser->pos > 7 && pg_strncasecmp(parser->pos, "mailto:", 7) == 0)
			return refuse(parser, "Leave \"mailto:\" away.");
		return refuse(parser, "Groups are not accepted; quote a name that has a colon.");
	}

	/* Is there an angle bracket, outside of quotes and comments? */
	start = parser->pos;
	for (pos = start; pos < parser->end; pos++)
	{
		if (*pos == '\\' && (quoted || comments > 0) && pos + 1 < parser->end)
			pos++;
		else if (quoted)
			quoted = (*pos != '"');
		else if (*pos == '(')
			comments++;
		else if (comments > 0)
			comments -= (*pos == ')');
		else if (*pos == '"')
			quoted = true;
		else if (*pos == '<')
			break;
	}

	if (quoted)
		return refuse(parser, "The quotation mark has no partner.");
	if (comments > 0)
		return refuse(parser, "The comment's parenthesis has no partner.");

	if (pos == parser->end)
	{
		if (!parse_addr_spec(parser, address) || !skip_cfws(parser))
			return false;
	}
	else
	{
		if (!parse_phrase(parser, &address->name))
			return false;
		parser->pos++;			/* '<' */
		if (!skip_cfws(parser) || !parse_addr_spec(parser, address) || !skip_cfws(parser))
			return false;
		if (parser->pos == parser->end || *parser->pos != '>')
			return refuse(parser, "An address in angle brackets ends with \">\".");
		parser->pos++;
		if (!skip_cfws(parser))
			return false;
	}
	if (parser->pos < parser->end)
		return refuse(parser, parser->pos[-1] == '>' || parser->pos[-1] == ' ' ?
					  "Nothing may follow an address but a comma and the next one." :
					  "Separate addresses with commas, and put a name before the address: "
					  "Ana <ana@example.com>.");
	return true;
}

/* A display name, up to the angle bracket. */
static bool
parse_phrase(Parser *parser, char **name)
{
	StringInfoData buf;
	bool		space = false;
	const char *start;
	const char *end;

	initStringInfo(&buf);
	for (;;)
	{
		char		ch = *parser->pos;

		if (ch == '<')
			break;
		if (ch == ' ' || ch == '\t' || ch == '(')
		{
			if (!skip_cfws(parser))
				return false;
			space = true;
			continue;
		}
		if (space && buf.len > 0)
			appendStringInfoChar(&buf, ' ');
		space = false;

		if (ch == '"')
		{
			for (parser->pos++; parser->pos < parser->end && *parser->pos != '"'; parser->pos++)
			{
				if (*parser->pos == '\\' && parser->pos + 1 < parser->end)
					parser->pos++;
				appendStringInfoChar(&buf, *parser->pos == '\t' ? ' ' : *parser->pos);
			}
			if (parser->pos == parser->end)
				return refuse(parser, "The quotation mark has no partner.");
			parser->pos++;
		}
		else if (is_atext(ch) || ch == '.' || (unsigned char) ch >= 0x80)
		{
			appendStringInfoChar(&buf, ch);
			parser->pos++;
		}
		else
			return refuse(parser, "Quote a name with special characters: "
						  "\"Smith, Ana\" <ana@example.com>.");
	}

	if (buf.len > NAME_BYTES)
	{
		parser->sqlstate = ERRCODE_PROGRAM_LIMIT_EXCEEDED;
		return false;
	}

	/* Spaces of any width around it are no part of it. */
	start = buf.data;
	end = buf.data + buf.len;
	while (start < end)
	{
		const char *next = start;

		if (!klm_is_space(klm_utf8_next(&next, end)))
			break;
		start = next;
	}
	while (end > start)
	{
		const char *last = end - 1;
		const char *next;

		while (last > start && ((unsigned char) *last & 0xC0) == 0x80)
			last--;
		next = last;
		if (!klm_is_space(klm_utf8_next(&next, end)))
			break;
		end = last;
	}
	*name = end > start ? pnstrdup(start, end - start) : NULL;
	pfree(buf.data);
	return true;
}

/* local-part "@" domain, nothing around the at sign. */
static bool
parse_addr_spec(Parser *parser, KlmAddress *address)
{
	StringInfoData local;
	StringInfoData addr;
	char		domain[256];
	const char *start = parser->pos;
	bool		quoted = (start < parser->end && *start == '"');
	int			i;

	initStringInfo(&local);
	if (!(quoted ? parse_quoted_local(parser, &local) : parse_dotted_local(parser, &local)))
		return false;
	if (parser->pos == parser->end || *parser->pos != '@')
	{
		if (quoted)
			return refuse(parser, "A quoted local part is followed by \"@\" at once.");
		if (parser->pos < parser->end && (*parser->pos == ' ' || *parser->pos == '\t'))
			return refuse(parser, "An address has no space in it, unless its local part is "
						  "quoted: \"a b\"@example.com.");
		return refuse(parser, *parser->end == ',' ?
					  "An address has the form name@example.com; quote a name that has a comma: "
					  "\"Smith, Ana\" <ana@example.com>." :
					  "An address has the form name@example.com.");
	}
	if (parser->pos == start)
		return refuse(parser, "There is nothing before the \"@\".");
	if (parser->pos - start > LOCAL_BYTES)
		return refuse(parser, "The part before the \"@\" has more than 64 bytes.");
	parser->pos++;
	if (!parse_domain(parser, domain, sizeof(domain)))
		return false;

	initStringInfo(&addr);
	append_local_part(&addr, local.data, local.len);
	if (addr.len > LOCAL_BYTES)
		return refuse(parser, "The part before the \"@\" has more than 64 bytes.");
	appendStringInfoChar(&addr, '@');
	appendStringInfoString(&addr, domain);
	if (addr.len > ADDRESS_BYTES)
		return refuse(parser, "The address has more than 254 bytes.");

	address->addr = addr.data;
	address->smtputf8 = false;
	for (i = 0; i < addr.len; i++)
		if ((unsigned char) addr.data[i] >= 0x80)
			address->smtputf8 = true;
	pfree(local.data);
	return true;
}

/* A quoted local part; what it means, without the quotes, goes to local. */
static bool
parse_quoted_local(Parser *parser, StringInfo local)
{
	parser->pos++;
	while (parser->pos < parser->end && *parser->pos != '"')
	{
		const char *from = parser->pos;
		uint32		ch;

		if (*parser->pos == '\\')
		{
			from = ++parser->pos;
			if (from == parser->end)
				break;
			if ((unsigned char) *from < 0x20 || (unsigned char) *from > 0x7E)
				return refuse(parser, "A backslash may only stand before an ASCII character.");
		}
		ch = klm_utf8_next(&parser->pos, parser->end);
		if (ch != ' ' && is_bad_in_address(ch))
			return refuse(parser, "The quoted part has a character that no address can have.");
		/* RFC 5321 would let it; a server that reads the path up to the first ">" would not. */
		if (ch == '<' || ch == '>')
			return refuse(parser, "An address with \"<\" or \">\" in it cannot be sent safely.");
		appendBinaryStringInfo(local, from, parser->pos - from);
	}
	if (parser->pos == parser->end)
		return refuse(parser, "The quotation mark has no partner.");
	parser->pos++;
	return true;
}

/* Letters and dots, up to what cannot belong to it. */
static bool
parse_dotted_local(Parser *parser, StringInfo local)
{
	const char *start = parser->pos;
	bool		only_dots = true;

	while (parser->pos < parser->end)
	{
		const char *from = parser->pos;

		if (is_atext(*from) || *from == '.')
		{
			only_dots &= (*from == '.');
			parser->pos++;
		}
		else if ((unsigned char) *from >= 0x80)
		{
			if (is_bad_in_address(klm_utf8_next(&parser->pos, parser->end)))
			{
				parser->pos = from;
				return refuse(parser, "The part before the \"@\" has a character that no "
							  "address can have.");
			}
			only_dots = false;
		}
		else
			break;
	}
	if (parser->pos > start && only_dots && parser->pos < parser->end && *parser->pos == '@')
		return refuse(parser, "There is nothing but dots before the \"@\".");
	appendBinaryStringInfo(local, start, parser->pos - start);
	return true;
}

/* A domain name of at least two labels, as lower-case A-labels. */
static bool
parse_domain(Parser *parser, char *domain, Size size)
{
	const char *start = parser->pos;
	const char *label;
	int			labels = 0;
	bool		ascii = true;

	while (parser->pos < parser->end && strchr(" \t(>", *parser->pos) == NULL)
	{
		const char *from = parser->pos;
		uint32		ch = klm_utf8_next(&parser->pos, parser->end);

		if (ch >= 0x80)
		{
			if (klm_is_space(ch))
			{
				parser->pos = from;
				break;
			}
			if (is_bad_in_address(ch))
				return refuse(parser, "The domain has a character that no domain can have.");
			ascii = false;
		}
		else if (ch == '@')
			return refuse(parser, "An address has one \"@\"; quote the part before it if it "
						  "contains another.");
		else if (ch == '[' && from == start)
			return refuse(parser, "Address literals are not accepted; write a domain name.");
		else if (strchr("-.abcdefghijklmnopqrstuvwxyz0123456789",
						pg_ascii_tolower((unsigned char) *from)) == NULL)
			return refuse(parser, "A domain has only letters, digits, hyphens and dots.");
	}
	if (parser->pos == start)
		return refuse(parser, "There is no domain right after the \"@\".");

	if (ascii)
	{
		Size		i;

		if (parser->pos - start >= size)
			return refuse(parser, "The address has more than 254 bytes.");
		for (i = 0; i < parser->pos - start; i++)
			domain[i] = pg_ascii_tolower((unsigned char) start[i]);
		domain[i] = '\0';
	}
	else if (!to_ascii_domain(start, parser->pos - start, domain, size))
		return refuse(parser, "The domain is not a valid internationalised domain name.");

	/* Whatever it came from: letters, digits, hyphens. */
	for (label = domain;; label++)
	{
		Size		length = strspn(label, "abcdefghijklmnopqrstuvwxyz0123456789-");

		if (length == 0)
			return refuse(parser, label == domain || *label == '.' ?
						  "A domain neither begins with a dot nor has two in a row." :
						  "A domain does not end with a dot.");
		if (length > LABEL_BYTES)
			return refuse(parser, "A part of the domain has more than 63 bytes.");
		if (label[0] == '-' || label[length - 1] == '-')
			return refuse(parser, "No part of a domain begins or ends with a hyphen.");
		labels++;
		if (label[length] == '\0')
			break;
		if (label[length] != '.')
			return refuse(parser, "A domain has only letters, digits, hyphens and dots.");
		label += length;
	}
	if (labels < 2)
		return refuse(parser, "The domain must be a full one, such as example.com.");
	if (strspn(label, "0123456789") == strlen(label))
		return refuse(parser, "The last part of a domain is no number.");
	return true;
}

/* UTS 46, non-transitional; libidn2 allocates with malloc, so copy at once. */
static bool
to_ascii_domain(const char *text, Size length, char *domain, Size size)
{
	char		input[1024];
	char	   *output = NULL;
	bool		ok;

	if (length >= sizeof(input))
		return false;
	memcpy(input, text, length);
	input[length] = '\0';
	if (idn2_to_ascii_8z(input, &output, IDN2_NFC_INPUT | IDN2_NONTRANSITIONAL) != IDN2_OK)
		return false;
	ok = (strlcpy(domain, output, size) < size);
	idn2_free(output);
	return ok;
}

/* Spaces of every width, and comments. */
static bool
skip_cfws(Parser *parser)
{
	while (parser->pos < parser->end)
	{
		const char *next = parser->pos;
		int			depth = 0;

		if (klm_is_space(klm_utf8_next(&next, parser->end)))
		{
			parser->pos = next;
			continue;
		}
		if (*parser->pos != '(')
			break;
		do
		{
			if (*parser->pos == '(')
				depth++;
			else if (*parser->pos == ')')
				depth--;
			else if (*parser->pos == '\\' && parser->pos + 1 < parser->end)
				parser->pos++;
			parser->pos++;
		} while (depth > 0 && parser->pos < parser->end);
		if (depth > 0)
			return refuse(parser, "The comment's parenthesis has no partner.");
	}
	return true;
}

static bool
refuse(Parser *parser, const char *hint)
{
	parser->hint = hint;
	return false;
}

/*
 * The list with the separators and the widths that were probably meant.  Only
 * words with an at sign change; quoted text stays.
 */
static char *
corrected(const char *list, Size length)
{
	const char *end = list + length;
	const char *pos = list;
	StringInfoData out;

	initStringInfo(&out);
	while (pos < end)
	{
		const char *word = pos;
		bool		is_address = false;
		uint32		ch = 0;

		/* A word, up to a delimiter. */
		while (pos < end)
		{
			const char *next = pos;

			ch = klm_utf8_next(&next, end);
			if (klm_is_space(ch) || ch == '<' || ch == '>' || ch == 0xFF1C || ch == 0xFF1E ||
				ch == ',' || ch == ';' || ch == '"' || is_wide_separator(ch))
				break;
			if (ch == '@' || ch == 0xFF20)
				is_address = true;
			pos = next;
		}
		while (word < pos)
		{
			const char *from = word;

			ch = klm_utf8_next(&word, pos);
			if (is_address && is_wide_ascii(ch))
				appendStringInfoChar(&out, ch == 0x3002 || ch == 0xFF61 ? '.' : ch - 0xFEE0);
			else
				appendBinaryStringInfo(&out, from, word - from);
		}
		if (pos == end)
			break;

		/* The delimiter. */
		word = pos;
		ch = klm_utf8_next(&pos, end);
		if (ch == '"')
		{
			while (pos < end && *pos != '"')
				pos += (*pos == '\\' && pos + 1 < end) ? 2 : 1;
			if (pos < end)
				pos++;
			appendBinaryStringInfo(&out, word, pos - word);
		}
		else if (ch == ';' || is_wide_separator(ch))
		{
			const char *next = pos;

			appendStringInfoChar(&out, ',');
			if (pos < end && !klm_is_space(klm_utf8_next(&next, end)))
				appendStringInfoChar(&out, ' ');
		}
		else if (ch == 0xFF1C || ch == 0xFF1E)
			appendStringInfoChar(&out, ch - 0xFEE0);
		else if (klm_is_space(ch))
			appendStringInfoChar(&out, ' ');
		else
			appendBinaryStringInfo(&out, word, pos - word);
	}

	/* A separator at the end was meant to end the list. */
	while (out.len > 0 && (out.data[out.len - 1] == ' ' || out.data[out.len - 1] == ','))
		out.data[--out.len] = '\0';
	return out.data;
}

static int
compare_addresses(const void *a, const void *b)
{
	const KlmAddress *const *left = a;
	const KlmAddress *const *right = b;
	int			order = strcmp((*left)->addr, (*right)->addr);

	if (order != 0)
		return order;
	return *left < *right ? -1 : 1;
}

/* Drop every address that stands earlier in the array; the new count. */
static int
merge_repeats(KlmAddress *addresses, int count)
{
	KlmAddress **sorted;
	int			kept = 0;
	int			i;

	if (count < 2)
		return count;
	sorted = palloc(sizeof(KlmAddress *) * count);
	for (i = 0; i < count; i++)
		sorted[i] = &addresses[i];
	qsort(sorted, count, sizeof(KlmAddress *), compare_addresses);
	for (i = count - 1; i > 0; i--)
		if (strcmp(sorted[i]->addr, sorted[i - 1]->addr) == 0)
			sorted[i]->addr = NULL;
	for (i = 0; i < count; i++)
		if (addresses[i].addr != NULL)
			addresses[kept++] = addresses[i];
	pfree(sorted);
	return kept;
}

/* As a dot-atom where it is one, else quoted. */
static void
append_local_part(StringInfo out, const char *local, Size length)
{
	bool		quote = (length == 0 || local[0] == '.' || local[length - 1] == '.');
	Size		i;

	for (i = 0; i < length && !quote; i++)
	{
		if (local[i] == '.')
			quote = (local[i + 1] == '.');
		else
			quote = !is_atext(local[i]) && (unsigned char) local[i] < 0x80;
	}
	if (!quote)
	{
		appendBinaryStringInfo(out, local, length);
		return;
	}
	appendStringInfoChar(out, '"');
	for (i = 0; i < length; i++)
	{
		if (local[i] == '"' || local[i] == '\\')
			appendStringInfoChar(out, '\\');
		appendStringInfoChar(out, local[i]);
	}
	appendStringInfoChar(out, '"');
}

char *
klm_format_address(const char *name, const char *addr)
{
	StringInfoData out;
	const char *end;
	const char *pos;
	bool		quote = false;
	uint32		previous = ' ';

	if (name == NULL || name[0] == '\0')
		return pstrdup(addr);

	/* A phrase of atoms needs no quotes; a dot in it would be obsolete syntax. */
	end = name + strlen(name);
	for (pos = name; pos < end && !quote;)
	{
		uint32		ch = klm_utf8_next(&pos, end);

		if (klm_is_space(ch))
			quote = (klm_is_space(previous) || pos == end || ch == '\t');
		else if (ch < 0x80)
			quote = !is_atext((char) ch);
		previous = ch;
	}

	initStringInfo(&out);
	if (quote)
		appendStringInfoChar(&out, '"');
	for (pos = name; pos < end; pos++)
	{
		if (quote && (*pos == '"' || *pos == '\\'))
			appendStringInfoChar(&out, '\\');
		appendStringInfoChar(&out, *pos);
	}
	appendStringInfo(&out, "%s <%s>", quote ? "\"" : "", addr);
	return out.data;
}

/* Domains compare without case, local parts exactly. */
static bool
matches_sender(const char *addr, const char *pattern)
{
	const char *domain = strrchr(addr, '@');
	const char *pattern_domain = pattern ? strrchr(pattern, '@') : NULL;

	if (domain == NULL || pattern_domain == NULL || pg_strcasecmp(pattern_domain, domain) != 0)
		return false;
	if (pattern_domain == pattern)
		return true;
	return pattern_domain - pattern == domain - addr && memcmp(pattern, addr, domain - addr) == 0;
}

bool
klm_may_send_as(const char *addr, const char *from_address, char **senders, int count)
{
	if (matches_sender(addr, from_address))
		return true;
	for (int i = 0; i < count; i++)
		if (matches_sender(addr, senders[i]))
			return true;
	return false;
}
