/*-------------------------------------------------------------------------
 *
 * secrets_in_logs.c
 *		The log hook: no password of a statement reaches the server's log, nor
 *		pg_stat_statements.
 *
 * Owns the log hook and one behind the parser.  Calls nothing of ours.
 *
 * An error that our own functions raise hides its statement by itself.  What
 * PostgreSQL raises or reports around them does not: a wrong argument name, a
 * bad cast, a duration line, a deadlock's report of the other session's query.
 * So whenever a line for the log is about a statement that names one of our
 * functions that take a password, its statement and context are left out, and
 * what the message quotes is masked.
 *
 * The server hands the same ErrorData to the client after the log.  hide_stmt,
 * hide_ctx and detail_log rule the log alone; the message has no such twin, and
 * what it quotes is masked for the client too, whose cursor position stays.
 *
 * pg_stat_statements keeps queries without their constants, but what it calls a
 * utility statement (DO, EXPLAIN, COPY, ...) word for word; so the query of a
 * cursor that the end of the transaction closes, since that is another level
 * than the one it was parsed at.  It skips those that have no query identifier,
 * so we take that away, as soon as it is computed.
 *
 * The log hook runs while an error is being reported, perhaps for lack of memory:
 * it raises nothing, and writes only over text that is there, never longer than
 * that.  It allocates for the parser's errors alone, which it gives better hints:
 * behind the mask a slip in an argument's name would be hard to see.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "commands/prepare.h"
#include "common/keywords.h"
#include "nodes/parsenodes.h"
#include "parser/analyze.h"
#include "tcop/tcopprot.h"
#include "utils/plancache.h"

#include "base/kliv_mail.h"
#include "hooks/secrets_in_logs.h"


/*
 * Public functions that have a password or another secret among their arguments,
 * and the names of all of these: an error has no catalogue to look them up in.
 */
static const struct
{
	const char *name;
	const char *arguments;
}			secret_functions[] = {
	{"configure_smtp", "provider, host, port, username, password, encryption, from_address, from_name, reply_to, "
		"allowed_senders, hourly_limit, daily_limit, region, auth, password_sealed, password_file, test, dry_run, account"},
	{"test_smtp", "provider, host, port, username, password, encryption, from_address, region, auth, account, send_to"},
	{"configure_webhook", NULL},
	{"configure_bounce_mailbox", NULL}
};

/*
 * Lines that consist of a statement, by the beginning of their untranslated
 * format: durations (also auto_explain's), log_statement (simple and extended
 * protocol), the parse line of DEBUG2, pgaudit.
 */
static const char *const statement_lines[] = {
	"duration: ", "statement: ", "%s %s%s%s: %s", "parse %s: %s", "AUDIT: "
};

/* debug_print_parse and its kin: the tree is the detail. */
static const char tree_line[] = "%s:";

static const char hidden[] = "<hidden>";

static emit_log_hook_type previous_hook = NULL;
static post_parse_analyze_hook_type previous_analyze_hook = NULL;

static void hide_secrets(ErrorData *edata);
static void hide_statement(ParseState *pstate, Query *query, KLM_JUMBLE_STATE *jumble);
static bool is_plain_query(const ParseState *pstate, const Query *query);
static bool is_statement_line(const ErrorData *edata);
static bool names_secret(const char *text, bool as_call);
static bool mistypes_secret(const ErrorData *edata);
static bool executes_secret(const char *query);
static const char *find_word(const char *text, const char *word);
static void hide_statement_line(char *message);
static bool quotes_argument(const ErrorData *edata);
static bool is_argument(const char *word, const char *arguments);
static bool is_given(const char *query, const char *word);
static bool is_before_arrow(const char *text);
static void help_with_slip(ErrorData *edata);
static const char *unknown_argument(const char *message, const char *arguments, char *word);
static const char *unknown_keyword(const char *query, const char *arguments, char *word);
static void set_hint(ErrorData *edata, const char *format,...) pg_attribute_printf(2, 3);
static void mask_message(char *message, const char *format);
static bool is_made_by(const char *message, const char *format);
static void mask_quoted(char *text, bool pairwise);
static bool is_harmless(const char *text, Size length);
static int	count_quotes(const char *text);
static void overwrite(char *text, const char *with);
static bool is_word_char(char c);

void
klm_loghook_init(void)
{
	previous_hook = emit_log_hook;
	emit_log_hook = hide_secrets;
	previous_analyze_hook = post_parse_analyze_hook;
	post_parse_analyze_hook = hide_statement;
}

static void
hide_statement(ParseState *pstate, Query *query, KLM_JUMBLE_STATE *jumble)
{
	if (query->queryId != 0 && pstate->p_sourcetext != NULL && !is_plain_query(pstate, query))
	{
		/* This one of what may be a long script. */
		const char *start = pstate->p_sourcetext + Max(query->stmt_location, 0);
		char	   *text = query->stmt_len > 0 ? pnstrdup(start, query->stmt_len) : pstrdup(start);

		if (names_secret(text, false) || executes_secret(text))
			query->queryId = 0;
		pfree(text);
	}
	if (previous_analyze_hook)
		previous_analyze_hook(pstate, query, jumble);
}

/*
 * The client's own text, and at its beginning a query: what most statements
 * are, so that they are not searched.  Else it is a utility statement, a query
 * within one (PostgreSQL 18: DECLARE), or one that a function runs.
 */
static bool
is_plain_query(const ParseState *pstate, const Query *query)
{
	static const char *const words[] = {"select", "with", "insert", "update", "delete", "merge"};
	const char *text = pstate->p_sourcetext + Max(query->stmt_location, 0);

	if (query->commandType == CMD_UTILITY || pstate->p_sourcetext != debug_query_string)
		return false;
	text += strspn(text, " \t\r\n");
	for (int i = 0; i < lengthof(words); i++)
	{
		if (pg_strncasecmp(text, words[i], strlen(words[i])) == 0)
			return true;
	}
	return false;
}

static void
hide_secrets(ErrorData *edata)
{
	bool		about_secret = names_secret(debug_query_string, false) ||
		names_secret(edata->internalquery, false) ||
		names_secret(edata->context, false) ||
		executes_secret(debug_query_string) ||
		mistypes_secret(edata);

	if (is_statement_line(edata))
	{
		if (about_secret || names_secret(edata->message, false) ||
			names_secret(edata->detail, false))
		{
			hide_statement_line(edata->message);
			edata->detail = NULL;
		}
	}
	else if (about_secret && !edata->hide_stmt)
	{
		/* Not ours, which hide their statement and say nothing secret. */
		if (!quotes_argument(edata))
			mask_message(edata->message, edata->message_id);
		mask_quoted(edata->hint, false);
		help_with_slip(edata);
		if (edata->elevel >= ERROR)
		{
			if (edata->detail != NULL || edata->detail_log != NULL)
				edata->detail_log =
					MemoryContextStrdup(edata->assoc_context, hidden); /* errfinish() frees it */
		}
		else
		{
			edata->detail_log = NULL;
			if (edata->message_id != NULL && strcmp(edata->message_id, tree_line) == 0)
				overwrite(edata->detail, hidden);
			else
				mask_quoted(edata->detail, false);
		}
	}

	/*
	 * Another session's statement: a deadlock's other side (where the client
	 * is told nothing of it), the postmaster's word on a process that crashed.
	 */
	if (names_secret(edata->detail_log, true))
		edata->detail_log = NULL;
	if (names_secret(edata->detail, true))
		overwrite(edata->detail, hidden);

	if (about_secret)
	{
		edata->hide_stmt = true;
		edata->hide_ctx = true;
		edata->internalquery = NULL;
	}

	if (previous_hook)
		previous_hook(edata);
}

static bool
is_statement_line(const ErrorData *edata)
{
	if (edata->elevel >= WARNING || edata->message_id == NULL || edata->message == NULL)
		return false;
	for (int i = 0; i < lengthof(statement_lines); i++)
	{
		if (strncmp(edata->message_id, statement_lines[i], strlen(statement_lines[i])) == 0)
			return true;
	}
	return false;
}

/* as_call: only where a parenthesis follows, as it does not in plain words. */
static bool
names_secret(const char *text, bool as_call)
{
	for (int i = 0; text != NULL && i < lengthof(secret_functions); i++)
	{
		const char *found = text;

		while ((found = find_word(found, secret_functions[i].name)) != NULL)
		{
			found += strlen(secret_functions[i].name);
			if (*found == '"')
				found++;
			if (!as_call || found[strspn(found, " \t\r\n")] == '(')
				return true;
		}
	}
	return false;
}

/* kliv_mail.configur_smtp(password => ...) */
static bool
mistypes_secret(const ErrorData *edata)
{
	return edata->sqlerrcode == ERRCODE_UNDEFINED_FUNCTION && edata->message != NULL &&
		strstr(edata->message, KLM_SCHEMA ".") != NULL && strstr(edata->message, "passw") != NULL;
}

/* EXECUTE of a prepared statement that names one, with the secret as its parameter. */
static bool
executes_secret(const char *query)
{
	const char *from = query != NULL ? find_word(query, "execute") : NULL;
	char		name[NAMEDATALEN];
	int			length = 0;
	bool		quoted;
	PreparedStatement *prepared;

	if (from == NULL)
		return false;

	from += strlen("execute");
	from += strspn(from, " \t\r\n");
	quoted = *from == '"';
	if (quoted)
		from++;
	while (length < NAMEDATALEN - 1 && *from != '\0')
	{
		if (quoted ? *from == '"' : !is_word_char(*from))
			break;
		name[length++] = quoted ? *from : pg_tolower((unsigned char) *from);
		from++;
	}
	name[length] = '\0';

	prepared = FetchPreparedStatement(name, false);
	return prepared != NULL && names_secret(prepared->plansource->query_string, false);
}

/* A whole word, in any case. */
static const char *
find_word(const char *text, const char *word)
{
	Size		length = strlen(word);
	bool		inside = false;

	for (; *text != '\0'; text++)
	{
		if (!inside && pg_strncasecmp(text, word, length) == 0 && !is_word_char(text[length]))
			return text;
		inside = is_word_char(*text);
	}
	return NULL;
}

static bool
is_word_char(char c)
{
	return isalnum((unsigned char) c) || c == '_' || c == '$' || IS_HIGHBIT_SET(c);
}

/*
 * Keep what stands before the statement, in whatever language: the statement
 * is this session's current one, or follows a duration (auto_explain's plans,
 * prepared statements), or at the least the first word.
 */
static void
hide_statement_line(char *message)
{
	char	   *statement = NULL;

	if (debug_query_string != NULL && *debug_query_string != '\0')
		statement = strstr(message, debug_query_string);
	if (statement == NULL && (statement = strstr(message, " ms  ")) != NULL)
		statement += strlen(" ms  ");
	if (statement == NULL && (statement = strstr(message, ": ")) != NULL)
		statement += strlen(": ");
	if (statement == NULL)
		statement = message;
	overwrite(statement, hidden);
}

/*
 * Is what a syntax error quotes the name of an argument, or the "=>" behind it?
 * That is no secret: a word of SQL (from) or of ours, before "=>" in the statement.
 */
static bool
quotes_argument(const ErrorData *edata)
{
	char		word[NAMEDATALEN];
	const char *from = edata->message != NULL ? strchr(edata->message, '"') : NULL;
	const char *to = from != NULL ? strrchr(from + 1, '"') : NULL;
	bool		known = false;

	if (edata->sqlerrcode != ERRCODE_SYNTAX_ERROR || to == NULL || to - from > sizeof(word))
		return false;
	strlcpy(word, from + 1, to - from);
	if (strcmp(word, "=>") == 0 || strcmp(word, ":=") == 0)
		return true;
	for (int i = 0; i < lengthof(secret_functions); i++)
		known |= is_argument(word, secret_functions[i].arguments);
	return (known || ScanKeywordLookup(word, &ScanKeywords) >= 0) &&
		(is_given(debug_query_string, word) || is_given(edata->internalquery, word));
}

static bool
is_argument(const char *word, const char *arguments)
{
	return arguments != NULL && find_word(arguments, word) != NULL;
}

/* Is the word given as an argument, followed by "=>" or ":="? */
static bool
is_given(const char *query, const char *word)
{
	while (query != NULL && (query = find_word(query, word)) != NULL)
	{
		query += strlen(word);
		if (is_before_arrow(query))
			return true;
	}
	return false;
}

static bool
is_before_arrow(const char *text)
{
	text += strspn(text, "\" \t\r\n");
	return strncmp(text, "=>", 2) == 0 || strncmp(text, ":=", 2) == 0;
}

/* The parser's own hints know nothing of our functions. */
static void
help_with_slip(ErrorData *edata)
{
	char		word[NAMEDATALEN];

	if (edata->sqlerrcode == ERRCODE_UNDEFINED_COLUMN)
	{
		/* host => "smtp.example.com" */
		set_hint(edata, "Texts stand in single quotes: 'text'.");
		return;
	}
	if (edata->sqlerrcode != ERRCODE_UNDEFINED_FUNCTION && !quotes_argument(edata))
		return;

	for (int i = 0; i < lengthof(secret_functions); i++)
	{
		const char *name = secret_functions[i].name;
		const char *arguments = secret_functions[i].arguments;
		const char *unknown;

		if (arguments == NULL)
			continue;
		if (edata->sqlerrcode == ERRCODE_UNDEFINED_FUNCTION)
		{
			char		called[NAMEDATALEN];

			snprintf(called, sizeof(called), KLM_SCHEMA ".%s(", name);
			if (edata->message == NULL || strstr(edata->message, called) == NULL)
				continue;
			unknown = unknown_argument(edata->message, arguments, word);
		}
		else
		{
			const char *from = strchr(edata->message, '"') + 1;

			/* (a statement that names two is helped with the first) */
			if (!(debug_query_string && find_word(debug_query_string, name)) &&
				!(edata->internalquery && find_word(edata->internalquery, name)))
				continue;
			strlcpy(word, from, strrchr(from, '"') - from + 1);
			if (is_argument(word, arguments))
			{
				if (is_made_by(edata->message, "syntax error at or near "))
					set_hint(edata, "Arguments are separated by commas.");
				return;
			}
			unknown = unknown_keyword(debug_query_string, arguments, word);
			if (unknown == NULL)
				unknown = unknown_keyword(edata->internalquery, arguments, word);
		}
		if (unknown != NULL)
			set_hint(edata, KLM_SCHEMA ".%s() has no argument \"%s\"; it has %s.", name, unknown, arguments);
		return;
	}
}

/* The first name in "function f(a => type, b => type) ..." that is none of them. */
static const char *
unknown_argument(const char *message, const char *arguments, char *word)
{
	const char *end = message;

	while ((end = strstr(end, " => ")) != NULL)
	{
		const char *start = end;

		while (start > message && is_word_char(start[-1]))
			start--;
		if (start < end && end - start < NAMEDATALEN)
		{
			strlcpy(word, start, end - start + 1);
			if (!is_argument(word, arguments))
				return word;
		}
		end += strlen(" => ");
	}
	return NULL;
}

/*
 * The first word of SQL that is given as an argument and is none, as in
 * f(user => 'x'): the parser takes it for something else, and stumbles.
 */
static const char *
unknown_keyword(const char *query, const char *arguments, char *word)
{
	while (query != NULL && *query != '\0')
	{
		int			length = 0;

		while (is_word_char(query[length]))
			length++;
		if (length > 0 && length < NAMEDATALEN && is_before_arrow(query + length))
		{
			strlcpy(word, query, length + 1);
			if (ScanKeywordLookup(word, &ScanKeywords) >= 0 && !is_argument(word, arguments))
				return word;
		}
		query += Max(length, 1);
	}
	return NULL;
}

/* errfinish() frees it. */
static void
set_hint(ErrorData *edata, const char *format,...)
{
	char		text[512];
	va_list		args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	edata->hint = MemoryContextStrdup(edata->assoc_context, text);
}

/*
 * Mask what the message quotes.  A value may hold quotes itself: only where
 * there are as many as in the format is each pair a value.  A translation may
 * use other quotes: then the bare format has to tell enough.
 */
static void
mask_message(char *message, const char *format)
{
	int			quotes = format != NULL ? count_quotes(format) : 0;

	if (message == NULL)
		return;
	if (quotes > 0 && !is_made_by(message, format))
		overwrite(message, format);
	else
		mask_quoted(message, quotes == count_quotes(message));
}

/* Do the fixed parts of the format stand in the message, in their order? */
static bool
is_made_by(const char *message, const char *format)
{
	bool		first = true;

	while (*format != '\0')
	{
		Size		length = strcspn(format, "%");

		if (first && strncmp(message, format, length) != 0)
			return false;
		while (!first && strncmp(message, format, length) != 0)
		{
			if (*message++ == '\0')
				return false;
		}
		message += length;
		format += length;
		if (*format == '%')
		{
			/* flags, width, precision, length modifier; then the conversion */
			format += 1 + strspn(format + 1, "0123456789.*-+ #hlqjzt");
			if (*format != '\0')
				format++;
		}
		first = false;
	}
	return true;
}

/* pairwise: each "..." by itself; otherwise all from the first quote to the last. */
static void
mask_quoted(char *text, bool pairwise)
{
	char	   *from;
	char	   *to;

	if (text == NULL)
		return;

	from = to = strchr(text, '"');
	if (from == NULL)
		return;
	while (*from != '\0')
	{
		char	   *end = *from == '"' ? strchr(from + 1, '"') : NULL;

		if (end != NULL && !pairwise)
			end = strrchr(from + 1, '"');
		if (end == NULL && *from == '"' && from[1] != '\0')
			end = from + strlen(from) - 1;	/* unbalanced: the rest */
		if (end == NULL || is_harmless(from + 1, end - from - 1))
		{
			Size		length = end == NULL ? 1 : end - from + 1;

			memmove(to, from, length);
			to += length;
			from += length;
			continue;
		}

		/* In place: as long as the quoted was, and at most four. */
		*to++ = '"';
		for (int i = 0; i < Min(end - from - 1, 4); i++)
			*to++ = '*';
		*to++ = '"';
		from = end + 1;
	}
	*to = '\0';
}

/* Our schema and functions, which errors about a mistyped call quote. */
static bool
is_harmless(const char *text, Size length)
{
	const Size	prefix = strlen(KLM_SCHEMA ".");

	if (length > prefix && pg_strncasecmp(text, KLM_SCHEMA ".", prefix) == 0)
	{
		text += prefix;
		length -= prefix;
	}
	if (length == strlen(KLM_SCHEMA) && pg_strncasecmp(text, KLM_SCHEMA, length) == 0)
		return true;
	for (int i = 0; i < lengthof(secret_functions); i++)
	{
		if (length == strlen(secret_functions[i].name) &&
			pg_strncasecmp(text, secret_functions[i].name, length) == 0)
			return true;
	}
	return false;
}

static int
count_quotes(const char *text)
{
	int			count = 0;

	for (; *text != '\0'; text++)
		count += *text == '"';
	return count;
}

static void
overwrite(char *text, const char *with)
{
	Size		length;

	if (text == NULL)
		return;
	length = Min(strlen(text), strlen(with));
	memcpy(text, with, length);
	text[length] = '\0';
}
