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
 * So where a line for the log has, or is about, a call of one of our functions
 * that take a password, the constants of that call are masked, and what the
 * message quotes.  What is a call is told by SQL's tokens, since there is no
 * parse tree where an error is reported: a comment or a literal is none.
 * All else stays, so that nobody hides what he does behind a name; databases
 * without the extension are left alone, and so are lines of other extensions.
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
 * it raises nothing, and writes over text that is there, never longer than that.
 * It allocates for the masked statement, if there is memory, and for the hints
 * of the parser's errors: behind the mask a slip in an argument's name would be
 * hard to see.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/namespace.h"
#include "commands/prepare.h"
#include "common/keywords.h"
#include "nodes/parsenodes.h"
#include "parser/analyze.h"
#include "parser/parser.h"
#include "pgstat.h"
#include "tcop/tcopprot.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/plancache.h"
#include "utils/syscache.h"

#include "base/guc.h"
#include "base/kliv_mail.h"
#include "hooks/secrets_in_logs.h"
#include "hooks/slips.h"


/*
 * Public functions that have a password or another secret among their arguments,
 * and the names of all of these: an error has no catalogue to look them up in.
 */
static const KlmCallNames secret_functions[] = {
	{"configure_smtp", "provider, host, port, username, password, encryption, from_address, from_name, reply_to, "
		"allowed_senders, hourly_limit, daily_limit, region, auth, password_sealed, password_file, test, dry_run, account"},
	{"test_smtp", "provider, host, port, username, password, encryption, from_address, region, auth, account, send_to"},
	{"configure_webhook", "provider, secret, public_key, topic_arn, certificate"},
	{"ingest_webhook", "provider, headers, body"},
	{"http_request", "method, path, query, headers, body"},
	{"configure_bounce_mailbox", "host, username, password, port, mailbox, encryption, filed_mailbox, fetch_every, "
		"enabled, password_sealed, test"}
};

/*
 * Lines that consist of a statement, by the beginning of their untranslated
 * format: durations (also auto_explain's), log_statement (simple and extended
 * protocol), the parse line of DEBUG2.  Another extension's, such as pgaudit's,
 * are its own.
 */
static const char *const statement_lines[] = {
	"duration: ", "statement: ", "%s %s%s%s: %s", "parse %s: %s"
};

/* debug_print_parse and its kin: the tree is the detail. */
static const char tree_line[] = "%s:";

static const char hidden[] = "<hidden>";

/* A scan stays linear, whatever the text. */
#define MAX_LOOK_UPS 16
#define MAX_LOOK_AHEAD 4096

/* What a scan of SQL text tells apart. */
typedef enum Token
{
	TOKEN_SPACE,				/* comments too */
	TOKEN_WORD,
	TOKEN_QUOTED,				/* "identifier" */
	TOKEN_LITERAL,
	TOKEN_DOLLAR,				/* $tag$literal$tag$ */
	TOKEN_PARAMETER,
	TOKEN_NUMBER,
	TOKEN_OTHER					/* one character */
} Token;

typedef struct SqlScan
{
	char	   *out;			/* for the masked text, perhaps the text itself; NULL: only look */
	bool		found;			/* a call */
	uint64		parameters;		/* that stand in one: bit n - 1 for $n, 63 for all beyond */
	int			depth;			/* of literals within literals */
	int			look_ups;		/* of prepared statements, each of which is a scan */
} SqlScan;

/* Is the schema kliv_mail in this database?  Elsewhere nothing is touched. */
static enum
{
	UNKNOWN,					/* before the first statement: as if it were */
	PRESENT,
	ABSENT
}			presence = UNKNOWN;

static emit_log_hook_type previous_hook = NULL;
static post_parse_analyze_hook_type previous_analyze_hook = NULL;

static void hide_secrets(ErrorData *edata);
static bool is_active(void);
static void look_for_schema(void);
static void forget_presence(Datum arg, int cache, uint32 hash);
static bool has_call(const char *text);
static char *masked_copy(MemoryContext context, const char *text);
static uint64 mask_in_place(char *text);
static void mask_activity(const char *query);
static bool scan(SqlScan *scan_state, const char *from, const char *end, int quotes);
static const char *next_token(const char *at, const char *end, int quotes, Token *token);
static const char *literal_end(const char *at, const char *end, int quotes, bool escapes);
static const char *skip_space(const char *at, const char *end, int quotes);
static bool begins_call(SqlScan *scan_state, const char *word, const char *word_end,
						const char *end, int quotes, bool foreign);
static bool is_name(const char *word, const char *word_end, const char *name);
static bool is_secret_name(const char *word, const char *word_end);
static bool is_mistyped(const char *word, const char *word_end, const char *end, int quotes);
static bool is_prepared(SqlScan *scan_state, const char *word, const char *word_end,
						const char *end, int quotes);
static bool is_constant(const char *text, const char *word, const char *word_end, const char *end,
						Token token, int quotes);
static void copy(SqlScan *scan_state, const char *from, const char *to);
static void mask(SqlScan *scan_state, const char *from, const char *to, Token token, int quotes);
static void mask_parameters(char *text, uint64 numbers);
static void mask_message_line(char *message, uint64 parameters);
static bool context_has_call(const char *context);
static void hide_statement(ParseState *pstate, Query *query, KLM_JUMBLE_STATE *jumble);
static bool is_plain_query(const ParseState *pstate, const Query *query);
static bool is_statement_line(const ErrorData *edata);
static void mask_message(char *message, const char *format);
static bool is_made_by(const char *message, const char *format);
static void mask_quoted(char *text, bool pairwise);
static bool is_harmless(const char *text, Size length);
static int	count_quotes(const char *text);
static void overwrite(char *text, const char *with);

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
	if (presence == UNKNOWN)
		look_for_schema();
	if (is_active() && query->queryId != 0 && pstate->p_sourcetext != NULL &&
		!is_plain_query(pstate, query))
	{
		/* This one of what may be a long script. */
		const char *start = pstate->p_sourcetext + Max(query->stmt_location, 0);
		char	   *text = query->stmt_len > 0 ? pnstrdup(start, query->stmt_len) : pstrdup(start);

		if (has_call(text))
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

/*
 * The setting is the superuser's.  What a statement's text says is evidence of
 * nothing but where a call's constants stand: those are masked, and all else
 * is left as it is.
 */
static bool
is_active(void)
{
	return klm_mask_secrets && presence != ABSENT;
}

/* Where an error is reported no catalogue may be read, so it is when a statement is. */
static void
look_for_schema(void)
{
	static bool registered = false;

	if (!registered)
	{
		CacheRegisterSyscacheCallback(NAMESPACENAME, forget_presence, (Datum) 0);
		registered = true;
	}
	presence = OidIsValid(get_namespace_oid(KLM_SCHEMA, true)) ? PRESENT : ABSENT;
}

static void
forget_presence(Datum arg, int cache, uint32 hash)
{
	presence = UNKNOWN;
}

static void
hide_secrets(ErrorData *edata)
{
	SqlScan		statement = {0};
	bool		in_statement = false;
	bool		about_secret = false;

	if (is_active())
	{
		const char *query = debug_query_string;

		if (query != NULL)
			scan(&statement, query, query + strlen(query), 1);
		in_statement = statement.found;
		about_secret = in_statement || has_call(edata->internalquery) ||
			context_has_call(edata->context);
	}

	if (is_active() && is_statement_line(edata))
	{
		mask_message_line(edata->message, statement.parameters);
		mask_parameters(edata->detail, statement.parameters);
	}
	else if (about_secret && !edata->hide_stmt)
	{
		/* Not ours, which hide their statement and say nothing secret. */
		if (!klm_quotes_argument(edata, secret_functions, lengthof(secret_functions)))
			mask_message(edata->message, edata->message_id);
		mask_quoted(edata->hint, false);
		klm_help_with_slip(edata, secret_functions, lengthof(secret_functions));
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
	if (is_active())
	{
		mask_in_place(edata->detail_log);
		mask_in_place(edata->detail);
	}

	if (in_statement && !edata->hide_stmt && edata->elevel >= log_min_error_statement &&
		edata->sqlerrcode != ERRCODE_OUT_OF_MEMORY)
	{
		/* The log has the statement all the same, as its detail. */
		char	   *text = masked_copy(edata->assoc_context, debug_query_string);

		if (text != NULL)
			edata->detail_log = text;
	}
	if (in_statement)
	{
		edata->hide_stmt = true;
		if (edata->elevel >= ERROR)
			mask_activity(debug_query_string);
	}
	if (about_secret)
	{
		edata->hide_ctx = true;
		edata->internalquery = NULL;
	}

	if (previous_hook)
		previous_hook(edata);
}

static bool
has_call(const char *text)
{
	SqlScan		look = {0};

	if (text != NULL)
		scan(&look, text, text + strlen(text), 1);
	return look.found;
}

/* Lines such as: SQL statement "SELECT kliv_mail.test_smtp(...)". */
static bool
context_has_call(const char *context)
{
	const Size	schema = strlen(KLM_SCHEMA);

	for (int i = 0; context != NULL && i < lengthof(secret_functions); i++)
	{
		const char *found = context;

		while ((found = klm_find_word(found, secret_functions[i].name)) != NULL)
		{
			/* (of a schema in quotes it is taken for ours) */
			bool		foreign = found - context > 1 && found[-1] == '.' &&
				klm_is_word_char(found[-2]) &&
				(found - context <= schema ||
				 pg_strncasecmp(found - 1 - schema, KLM_SCHEMA, schema) != 0);

			found += strlen(secret_functions[i].name);
			if (!foreign && found[strspn(found, "\" \t\r\n")] == '(')
				return true;
		}
	}
	return false;
}

/* NULL: there is no memory for it. */
static char *
masked_copy(MemoryContext context, const char *text)
{
	static const char label[] = "Statement: ";
	Size		length = strlen(text);
	char	   *result = MemoryContextAllocExtended(context, sizeof(label) + length,
													MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM);

	if (result != NULL)
	{
		memcpy(result, label, sizeof(label));
		memcpy(result + strlen(label), text, length + 1);
		mask_in_place(result + strlen(label));
	}
	return result;
}

void
klm_mask_activity(void)
{
	const char *query = debug_query_string;

	if (query != NULL && is_active() && has_call(query))
		mask_activity(query);
}

Datum
klm_call_hidden(FunctionCallInfo fcinfo, Datum (*work) (FunctionCallInfo))
{
	Datum		result = (Datum) 0;

	klm_mask_activity();
	PG_TRY();
	{
		result = work(fcinfo);
	}
	PG_CATCH();
	{
		errhidestmt(true);
		errhidecontext(true);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return result;
}

/* Not longer than what is shown: no memory is needed where an error is reported. */
static void
mask_activity(const char *query)
{
	int			size = pgstat_track_activity_query_size;
	char	   *text = MemoryContextAllocExtended(ErrorContext, size,
												  MCXT_ALLOC_HUGE | MCXT_ALLOC_NO_OOM);

	if (text == NULL)
		return;
	/* (a call that is cut within a literal is masked to the end) */
	strlcpy(text, query, size);
	mask_in_place(text);
	pgstat_report_activity(STATE_RUNNING, text);
	pfree(text);
}

/* Returns the parameters that stand in calls. */
static uint64
mask_in_place(char *text)
{
	SqlScan		look = {0};
	SqlScan		write = {.out = text};

	if (text != NULL)
		scan(&look, text, text + strlen(text), 1);
	if (look.found)
	{
		scan(&write, text, text + strlen(text), 1);
		*write.out = '\0';
	}
	return look.parameters;
}

/*
 * The statement is this session's current one, or follows a duration (that of a
 * prepared statement, or auto_explain's plan), or at the least the first colon.
 */
static void
mask_message_line(char *message, uint64 parameters)
{
	static const char query_text[] = "Query Text";
	char	   *statement = NULL;

	if (message == NULL)
		return;
	if (debug_query_string != NULL && *debug_query_string != '\0')
		statement = strstr(message, debug_query_string);
	if (statement == NULL && (statement = strstr(message, " ms  ")) != NULL)
	{
		char	   *text = strstr(statement, query_text);

		statement += strlen(" ms  ");
		/* JSON and YAML quote it, and write lines' ends as \n. */
		if (text != NULL)
			statement = text + strlen(query_text) + strspn(text + strlen(query_text), "\": ");
	}
	if (statement == NULL && (statement = strstr(message, ": ")) != NULL)
		statement += strlen(": ");
	if (statement == NULL)
		statement = message;
	parameters |= mask_in_place(statement);
	mask_parameters(statement, parameters);
}

/*
 * "$1 = '...', $2 = NULL": those that stand in a call.  A detail has them, and
 * since PostgreSQL 16 auto_explain's plan, which JSON and YAML quote.
 */
static void
mask_parameters(char *text, uint64 numbers)
{
	const char *at = text;
	const char *end;
	char	   *to = text;
	int			number = 0;		/* whose value comes */

	if (text == NULL || numbers == 0)
		return;
	end = text + strlen(text);
	while (at < end)
	{
		Token		token;
		const char *next = next_token(at, end, 1, &token);
		SqlScan		write = {.out = to};
		bool		secret = number > 0 && (numbers & UINT64CONST(1) << (Min(number, 64) - 1)) != 0;

		if (token == TOKEN_QUOTED && end - at > 1 && at[1] == '$')
			next = at + 1;
		if (token == TOKEN_PARAMETER)
			number = atoi(at + 1);
		else if (token != TOKEN_SPACE && *at != '=')
			number = 0;
		if (token == TOKEN_LITERAL && secret)
			mask(&write, at, next, token, 1);
		else
			copy(&write, at, next);
		to = write.out;
		at = next;
	}
	*to = '\0';
}

/* ---- SQL text, token by token ---- */

/*
 * Copy the text with the constants of calls masked.  quotes: a literal here
 * begins with so many, 2 where this is a literal's content.  A literal that
 * holds code, as of DO and EXECUTE, is looked through likewise; where a literal
 * within code ends in a call, what is joined to it by || belongs to that call.
 * Returns whether the text ends in a call.
 */
static bool
scan(SqlScan *scan_state, const char *from, const char *end, int quotes)
{
	const char *at = from;
	int			parentheses = 0;	/* of a call that we are in */
	bool		call = false;	/* the next opens one */
	bool		joined = false; /* to a literal that ended in one */
	bool		other = false;	/* the last token is a name, and not our schema's, */
	bool		foreign = false;	/* or the dot behind it */
	bool		format = false; /* the last token is the name of that function */
	bool		in_format = false;	/* it is what we are in, not a call */
	uint64		formats = 0;	/* is a parenthesis around us its?  bit 0: the innermost */

	while (at < end)
	{
		Token		token;
		const char *next = next_token(at, end, quotes, &token);
		bool		word = token == TOKEN_WORD || token == TOKEN_QUOTED;
		bool		now_other = word && !is_name(at, next, KLM_SCHEMA);
		bool		now_foreign = other && token == TOKEN_OTHER && *at == '.';
		bool		now_format = word && is_name(at, next, "format");
		bool		found_before = scan_state->found;

		/* What a literal holds is found anew, for its format(). */
		if (token == TOKEN_LITERAL || token == TOKEN_DOLLAR)
			scan_state->found = false;
		if (token == TOKEN_OTHER && *at == '(' && !call && parentheses == 0)
			formats = formats << 1 | format;
		else if (token == TOKEN_OTHER && *at == ')' &&
				 (parentheses == 0 || (parentheses == 1 && in_format)))
			formats >>= 1;

		if (joined && (token == TOKEN_LITERAL || token == TOKEN_DOLLAR || token == TOKEN_NUMBER))
			mask(scan_state, at, next, token, quotes);
		else if (token == TOKEN_OTHER && *at == '(' && (call || parentheses > 0))
		{
			parentheses++;
			call = false;
			copy(scan_state, at, next);
		}
		else if (token == TOKEN_OTHER && *at == ')' && parentheses > 0)
		{
			parentheses--;
			copy(scan_state, at, next);
		}
		else if (parentheses > 0)
		{
			if (token == TOKEN_PARAMETER)
				scan_state->parameters |= UINT64CONST(1) << (Max(Min(atoi(at + 1), 64), 1) - 1);
			if (is_constant(from, at, next, end, token, quotes))
				mask(scan_state, at, next, token, quotes);
			else
				copy(scan_state, at, next);
		}
		else if (word && !call && begins_call(scan_state, at, next, end, quotes, foreign))
		{
			call = scan_state->found = true;
			copy(scan_state, at, next);
		}
		else if (token == TOKEN_DOLLAR && scan_state->depth < 4)
		{
			int			tag = strcspn(at + 1, "$") + 2;

			scan_state->depth++;
			copy(scan_state, at, at + tag);
			joined = scan(scan_state, at + tag, Max(at + tag, next - tag), quotes) &&
				scan_state->depth > 1;
			copy(scan_state, Max(at + tag, next - tag), next);
			scan_state->depth--;
		}
		else if (token == TOKEN_LITERAL && quotes == 1 && scan_state->depth < 4)
		{
			const char *content = (const char *) memchr(at, '\'', next - at) + 1;
			const char *content_end = next > content && next[-1] == '\'' ? next - 1 : next;

			scan_state->depth++;
			copy(scan_state, at, content);
			joined = scan(scan_state, content, content_end, 2) && scan_state->depth > 1;
			copy(scan_state, content_end, next);
			scan_state->depth--;
		}
		else
		{
			if (token == TOKEN_OTHER && strchr("|()", *at) == NULL)
				joined = false;
			copy(scan_state, at, next);
		}

		/*
		 * format('SELECT kliv_mail.configure_smtp(password => %L)', ...): as if
		 * its arguments were the call's.
		 */
		if ((token == TOKEN_LITERAL || token == TOKEN_DOLLAR) && scan_state->found &&
			parentheses == 0 && (formats & 1) != 0)
		{
			parentheses = 1;
			in_format = true;
		}
		scan_state->found |= found_before;
		if (parentheses == 0)
			in_format = false;
		if (token != TOKEN_SPACE)
		{
			other = now_other;
			foreign = now_foreign;
			format = now_format;
		}
		at = next;
	}
	return parentheses > 0;
}

static const char *
next_token(const char *at, const char *end, int quotes, Token *token)
{
	const char *next = at;

	if (isspace((unsigned char) *at))
	{
		*token = TOKEN_SPACE;
		return at + 1;
	}
	/* a line's end or a tab within JSON or YAML: no SQL has that outside of quotes */
	if (*at == '\\' && end - at > 1 && strchr("nrt", at[1]) != NULL)
	{
		*token = TOKEN_SPACE;
		return at + 2;
	}
	if (*at == '-' && end - at > 1 && at[1] == '-')
	{
		*token = TOKEN_SPACE;
		while (next < end && *next != '\n' && strncmp(next, "\\n", 2) != 0)
			next++;
		return next;
	}
	if (*at == '/' && end - at > 1 && at[1] == '*')
	{
		int			depth = 0;

		*token = TOKEN_SPACE;
		while (next < end)
		{
			if (end - next > 1 && next[0] == '/' && next[1] == '*')
				depth++, next += 2;
			else if (end - next > 1 && next[0] == '*' && next[1] == '/')
			{
				next += 2;
				if (--depth == 0)
					break;
			}
			else
				next++;
		}
		return next;
	}
	if (*at == '\'' && (quotes == 1 || (end - at > 1 && at[1] == '\'')))
	{
		*token = TOKEN_LITERAL;
		return literal_end(at + quotes, end, quotes, !KLM_STANDARD_STRINGS);
	}
	if (*at == '"')
	{
		*token = TOKEN_QUOTED;
		for (next = at + 1; next < end; next++)
		{
			if (*next == '"' && !(end - next > 1 && next[1] == '"' && next++))
				return next + 1;
		}
		return end;
	}
	if (*at == '$')
	{
		const char *tag = at + 1;

		while (tag < end && isdigit((unsigned char) *tag))
			tag++;
		*token = TOKEN_PARAMETER;
		if (tag > at + 1)
			return tag;
		while (tag < end && klm_is_word_char(*tag) && *tag != '$')
			tag++;
		if (tag < end && *tag == '$')
		{
			Size		length = tag - at + 1;

			*token = TOKEN_DOLLAR;
			for (next = tag + 1; (Size) (end - next) >= length; next++)
			{
				if (memcmp(next, at, length) == 0)
					return next + length;
			}
			return end;
		}
		*token = TOKEN_OTHER;
		return at + 1;
	}
	if (isdigit((unsigned char) *at))
	{
		*token = TOKEN_NUMBER;
		while (next < end && (klm_is_word_char(*next) || *next == '.'))
			next++;
		return next;
	}
	if (klm_is_word_char(*at))
	{
		while (next < end && klm_is_word_char(*next))
			next++;
		/* E'...', B'...', N'...', X'...'; of U&'...' the & comes by itself */
		if (next == at + 1 && next < end && *next == '\'' && strchr("eEbBnNxX", *at) != NULL &&
			(quotes == 1 || (end - next > 1 && next[1] == '\'')))
		{
			*token = TOKEN_LITERAL;
			return literal_end(next + quotes, end, quotes,
							   *at == 'e' || *at == 'E' || !KLM_STANDARD_STRINGS);
		}
		*token = TOKEN_WORD;
		return next;
	}
	*token = TOKEN_OTHER;
	return at + 1;
}

/* Behind the closing quote, or the end where there is none. */
static const char *
literal_end(const char *at, const char *end, int quotes, bool escapes)
{
	while (at < end)
	{
		if (escapes && *at == '\\' && end - at > 1)
			at += 2;
		else if (*at == '\'' && (quotes == 1 || (end - at > 1 && at[1] == '\'')))
		{
			at += quotes;
			if (!(end - at >= quotes && *at == '\'' && (quotes == 1 || at[1] == '\'')))
				return at;
			at += quotes;
		}
		else
			at++;
	}
	return end;
}

static const char *
skip_space(const char *at, const char *end, int quotes)
{
	while (at < end)
	{
		Token		token;
		const char *next = next_token(at, end, quotes, &token);

		if (token != TOKEN_SPACE)
			break;
		at = next;
	}
	return at;
}

/*
 * Is the word what a call of a function with secrets begins with?  foreign: behind
 * the name of a schema that is not ours, whose function is none of ours either.
 */
static bool
begins_call(SqlScan *scan_state, const char *word, const char *word_end, const char *end,
			int quotes, bool foreign)
{
	const char *next;

	if (is_secret_name(word, word_end))
	{
		if (foreign)
			return false;
		next = skip_space(word_end, end, quotes);
		return next < end && *next == '(';
	}
	return is_mistyped(word, word_end, end, quotes) ||
		is_prepared(scan_state, word, word_end, end, quotes);
}

static bool
is_secret_name(const char *word, const char *word_end)
{
	for (int i = 0; i < lengthof(secret_functions); i++)
	{
		if (is_name(word, word_end, secret_functions[i].name))
			return true;
	}
	return false;
}

/* With or without quotes. */
static bool
is_name(const char *word, const char *word_end, const char *name)
{
	if (*word == '"')
		word++, word_end--;
	return word_end - word == strlen(name) && pg_strncasecmp(word, name, word_end - word) == 0;
}

/* kliv_mail.configur_smtp(password => ...) */
static bool
is_mistyped(const char *word, const char *word_end, const char *end, int quotes)
{
	static const char secret[] = "passw";
	Token		token;
	const char *at;

	if (word_end - word != strlen(KLM_SCHEMA) ||
		pg_strncasecmp(word, KLM_SCHEMA, word_end - word) != 0)
		return false;
	end = word + Min(end - word, MAX_LOOK_AHEAD);
	at = skip_space(word_end, end, quotes);
	if (at >= end || *at != '.')
		return false;
	at = skip_space(at + 1, end, quotes);
	if (at >= end)
		return false;
	word_end = next_token(at, end, quotes, &token);
	if (token != TOKEN_WORD || is_secret_name(at, word_end))
		return false;
	at = skip_space(word_end, end, quotes);
	if (at >= end || *at != '(')
		return false;
	while (at < end && *at != ';')
	{
		const char *next = next_token(at, end, quotes, &token);

		if (token == TOKEN_WORD && next - at >= strlen(secret) &&
			pg_strncasecmp(at, secret, strlen(secret)) == 0)
		{
			at = skip_space(next, end, quotes);
			return end - at > 1 && (strncmp(at, "=>", 2) == 0 || strncmp(at, ":=", 2) == 0);
		}
		at = next;
	}
	return false;
}

/* EXECUTE of a prepared statement with such a call, whose arguments are the secrets. */
static bool
is_prepared(SqlScan *scan_state, const char *word, const char *word_end, const char *end,
			int quotes)
{
	SqlScan		look = {.look_ups = MAX_LOOK_UPS};
	char		name[NAMEDATALEN];
	int			length = 0;
	Token		token;
	const char *at;
	PreparedStatement *prepared;

	if (word_end - word != strlen("execute") ||
		pg_strncasecmp(word, "execute", word_end - word) != 0 ||
		scan_state->look_ups >= MAX_LOOK_UPS)
		return false;
	at = skip_space(word_end, end, quotes);
	if (at >= end)
		return false;
	word_end = next_token(at, end, quotes, &token);
	if (token != TOKEN_WORD && token != TOKEN_QUOTED)
		return false;
	if (token == TOKEN_QUOTED)
		at++, word_end--;
	while (at < word_end && length < NAMEDATALEN - 1)
	{
		name[length++] = token == TOKEN_QUOTED ? *at : pg_tolower((unsigned char) *at);
		at++;
	}
	name[length] = '\0';
	prepared = FetchPreparedStatement(name, false);
	if (prepared == NULL)
		return false;
	scan_state->look_ups++;
	at = prepared->plansource->query_string;
	scan(&look, at, at + strlen(at), 1);
	scan_state->parameters |= look.parameters;
	return look.found;
}

/* Is a token within a call a constant, or a slip that may be a secret without its quotes? */
static bool
is_constant(const char *text, const char *word, const char *word_end, const char *end, Token token,
			int quotes)
{
	char		name[NAMEDATALEN];
	const char *next;

	if (token == TOKEN_LITERAL || token == TOKEN_DOLLAR || token == TOKEN_NUMBER)
		return true;
	if (token != TOKEN_WORD && token != TOKEN_QUOTED)
		return false;
	next = skip_space(word_end, end, quotes);
	if ((next < end && (*next == '(' || *next == '.')) ||
		(end - next > 1 && (strncmp(next, "=>", 2) == 0 || strncmp(next, ":=", 2) == 0)) ||
		(word > text && (word[-1] == '.' || word[-1] == ':')))
		return false;
	if (token == TOKEN_WORD && word_end - word < sizeof(name))
	{
		strlcpy(name, word, word_end - word + 1);
		return ScanKeywordLookup(name, &ScanKeywords) < 0;
	}
	return true;
}

static void
copy(SqlScan *scan_state, const char *from, const char *to)
{
	if (scan_state->out != NULL)
	{
		memmove(scan_state->out, from, to - from);
		scan_state->out += to - from;
	}
}

/* Never longer than what was there, and at most four stars: no length is told. */
static void
mask(SqlScan *scan_state, const char *from, const char *to, Token token, int quotes)
{
	char		quote = token == TOKEN_QUOTED ? '"' : '\'';
	Size		length = to - from;
	Size		frame = 0;

	if (scan_state->out == NULL)
		return;
	if (token == TOKEN_LITERAL)
		frame = quotes;
	else if (token == TOKEN_QUOTED || token == TOKEN_DOLLAR)
		frame = 1;
	if (length < 2 * frame)
		frame = 0;
	length -= 2 * frame;
	for (int i = 0; i < frame; i++)
		*scan_state->out++ = quote;
	for (int i = 0; i < Min(length, 4); i++)
		*scan_state->out++ = '*';
	for (int i = 0; i < frame; i++)
		*scan_state->out++ = quote;
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
