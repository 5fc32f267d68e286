/*-------------------------------------------------------------------------
 *
 * slips.c
 *		Hints for what PostgreSQL itself refuses about a call of ours: a wrong
 *		argument name or type, a missing right.
 *
 * Owns a log hook.  The server hands the same ErrorData to the client after the
 * log, so that a hint that is set here reaches whoever made the slip.  Like its
 * sister secrets_in_logs.c it raises nothing, reads no catalogue, and goes by the
 * statement's text: a hint that is set for a call of another schema's would be no
 * more than a hint, and so only calls that name ours get one.
 *
 * Where log_min_messages leaves errors out of the log, the hook is not asked.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "common/keywords.h"
#include "parser/parser.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"

#include "base/kliv_mail.h"
#include "hooks/slips.h"

/*
 * What people call by names that other libraries have; those with secrets stand
 * in secrets_in_logs.c.  (An error has no catalogue to look them up in.)
 */
static const KlmCallNames plain_functions[] = {
	{"send", "recipients, subject, body, html, cc, bcc, from_address, from_name, reply_to, headers, attachments, "
		"message_type, send_at, expires_at, idempotency_key, replace_key, tags, metadata, topic, account, on_limit"},
	{"send_template", "template, recipients, variables, locale, cc, bcc, from_address, from_name, reply_to, headers, "
		"attachments, send_at, expires_at, idempotency_key, replace_key, tags, metadata, account, on_limit, topic"},
	{"send_template_batch", "template, recipients, variables, locale, send_at, expires_at, tags, metadata, account, "
		"on_invalid, topic"},
	{"attach", "filename, content, content_type, content_id"},
	{"attach_text", "filename, content, content_type"},
	{"save_template", "name, subject, body, format, plain_text, message_type, locale, variables, expires_in, "
		"description, publish"},
	{"suppress", "address, addresses, scope, reason, expires_at"},
	{"update_sender", "from_address, from_name, reply_to, allowed_senders, account"},
	{"set_limits", "hourly_limit, daily_limit, account"},
	{"set_brand", "name, logo_url, color, postal_address, footer, unsubscribe_url, time_zone"}
};

static const char syntax_error[] = "syntax error at or near ";

static emit_log_hook_type previous_hook = NULL;

static void help(ErrorData *edata);
static bool is_refused_object(const ErrorData *edata, const char *text);
static const char *next_call(const char *text, const char **name, int *length);
static bool calls(const char *text, const char *function);
static void help_with_types(ErrorData *edata, const char *name);
static bool is_argument(const char *word, const char *arguments);
static bool is_given(const char *query, const char *word);
static bool is_before_arrow(const char *text);
static const char *unknown_argument(const char *message, const char *arguments, char *word);
static const char *unknown_keyword(const char *query, const char *arguments, char *word);
static void set_hint(ErrorData *edata, const char *format,...) pg_attribute_printf(2, 3);

void
klm_slips_init(void)
{
	previous_hook = emit_log_hook;
	emit_log_hook = help;
}

static void
help(ErrorData *edata)
{
	if (edata->elevel == ERROR && edata->message != NULL)
	{
		if (edata->sqlerrcode == ERRCODE_INSUFFICIENT_PRIVILEGE && edata->hint == NULL)
		{
			if (is_refused_object(edata, debug_query_string) ||
				is_refused_object(edata, edata->internalquery) ||
				is_refused_object(edata, edata->context))
				set_hint(edata, "SELECT " KLM_SCHEMA ".grant_send('the role'); lets it send and follow its own mail; "
						 "grant_read() read all views, grant_ingest() hand in reports, grant_admin() everything.");
		}
		else if (edata->sqlerrcode == ERRCODE_SYNTAX_ERROR ||
				 edata->sqlerrcode == ERRCODE_UNDEFINED_FUNCTION)
		{
			/* The first that the statement calls; an error of another one gets no hint by it. */
			for (int i = 0; i < lengthof(plain_functions); i++)
			{
				if (!calls(debug_query_string, plain_functions[i].name) &&
					!calls(edata->internalquery, plain_functions[i].name))
					continue;
				klm_help_with_slip(edata, &plain_functions[i], 1);
				break;
			}
		}
	}
	if (previous_hook)
		previous_hook(edata);
}

/*
 * Does the error refuse the schema, or a function or view of it that the text
 * names?  What begins with "_" is nobody's.
 */
static bool
is_refused_object(const ErrorData *edata, const char *text)
{
	const char *name;
	int			length;

	if (edata->message_id == NULL ||
		strncmp(edata->message_id, "permission denied for ", strlen("permission denied for ")) != 0)
		return false;
	if (strcmp(edata->message_id, "permission denied for schema %s") == 0)
		return klm_find_word(edata->message, KLM_SCHEMA) != NULL;
	while ((text = next_call(text, &name, &length)) != NULL)
	{
		char		word[NAMEDATALEN];

		if (length == 0 || length >= NAMEDATALEN || *name == '_')
			continue;
		strlcpy(word, name, length + 1);
		if (klm_find_word(edata->message, word) != NULL)
			return true;
	}
	return false;
}

/* The next "kliv_mail.name" in the text; where to go on, or NULL. */
static const char *
next_call(const char *text, const char **name, int *length)
{
	const char *at = text != NULL ? klm_find_word(text, KLM_SCHEMA) : NULL;

	if (at == NULL)
		return NULL;
	at += strlen(KLM_SCHEMA);
	at += strspn(at, "\" \t\r\n");
	*name = at;
	*length = 0;
	if (*at != '.')
		return at;
	at++;
	at += strspn(at, "\" \t\r\n");
	*name = at;
	while (klm_is_word_char(at[*length]))
		(*length)++;
	return at + *length;
}

static bool
calls(const char *text, const char *function)
{
	const char *name;
	int			length;

	while ((text = next_call(text, &name, &length)) != NULL)
	{
		if (length == strlen(function) && pg_strncasecmp(name, function, length) == 0 &&
			text[strspn(text, "\" \t\r\n")] == '(')
			return true;
	}
	return false;
}

/* Every name is one of the function's, so it is a type. */
static void
help_with_types(ErrorData *edata, const char *name)
{
	const char *arguments = strchr(edata->message, '(');
	const char *files = strstr(edata->message, "attachments => ");

	if (files != NULL)
		set_hint(edata, "Files are an array: attachments => ARRAY[" KLM_SCHEMA ".attach('a.pdf', content)]; from a program "
				 "in one parameter: attachments => " KLM_SCHEMA ".attachments($1), JSON of [{\"filename\", \"content\"}].");
	else if (strncmp(name, "send", strlen("send")) == 0 && arguments != NULL && strstr(arguments, "[]") != NULL &&
			 strcmp(name, "send_template_batch") != 0)
		set_hint(edata, "Addresses are one text with commas between: array_to_string(the list, ', ').");
}

/* A whole word, in any case. */
const char *
klm_find_word(const char *text, const char *word)
{
	Size		length = strlen(word);
	bool		inside = false;

	for (; *text != '\0'; text++)
	{
		if (!inside && pg_strncasecmp(text, word, length) == 0 && !klm_is_word_char(text[length]))
			return text;
		inside = klm_is_word_char(*text);
	}
	return NULL;
}

bool
klm_is_word_char(char c)
{
	return isalnum((unsigned char) c) || c == '_' || c == '$' || IS_HIGHBIT_SET(c);
}

bool
klm_quotes_argument(const ErrorData *edata, const KlmCallNames *functions, int count)
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
	for (int i = 0; i < count; i++)
		known |= is_argument(word, functions[i].arguments);
	return (known || ScanKeywordLookup(word, &ScanKeywords) >= 0) &&
		(is_given(debug_query_string, word) || is_given(edata->internalquery, word));
}

static bool
is_argument(const char *word, const char *arguments)
{
	return arguments != NULL && klm_find_word(arguments, word) != NULL;
}

/* Is the word given as an argument, followed by "=>" or ":="? */
static bool
is_given(const char *query, const char *word)
{
	while (query != NULL && (query = klm_find_word(query, word)) != NULL)
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
void
klm_help_with_slip(ErrorData *edata, const KlmCallNames *functions, int count)
{
	char		word[NAMEDATALEN];

	if (edata->sqlerrcode == ERRCODE_UNDEFINED_COLUMN)
	{
		/* host => "smtp.example.com" */
		set_hint(edata, "Texts stand in single quotes: 'text'.");
		return;
	}
	if (edata->sqlerrcode != ERRCODE_UNDEFINED_FUNCTION &&
		!klm_quotes_argument(edata, functions, count))
		return;

	for (int i = 0; i < count; i++)
	{
		const char *name = functions[i].name;
		const char *arguments = functions[i].arguments;
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
			if (!(debug_query_string && klm_find_word(debug_query_string, name)) &&
				!(edata->internalquery && klm_find_word(edata->internalquery, name)))
				continue;
			strlcpy(word, from, strrchr(from, '"') - from + 1);
			if (is_argument(word, arguments))
			{
				if (strncmp(edata->message, syntax_error, strlen(syntax_error)) == 0)
					set_hint(edata, "Arguments are separated by commas.");
				return;
			}
			unknown = unknown_keyword(debug_query_string, arguments, word);
			if (unknown == NULL)
				unknown = unknown_keyword(edata->internalquery, arguments, word);
		}
		if (unknown != NULL)
			set_hint(edata, KLM_SCHEMA ".%s() has no argument \"%s\"; it has %s.%s", name, unknown, arguments,
					 strcmp(name, "send") == 0 ? " With the names of other libraries: "
					 KLM_SCHEMA ".send('{\"to\": ..., \"text\": ...}')." : "");
		else if (edata->sqlerrcode == ERRCODE_UNDEFINED_FUNCTION)
			help_with_types(edata, name);
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

		while (start > message && klm_is_word_char(start[-1]))
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

		while (klm_is_word_char(query[length]))
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
	char		text[640];
	va_list		args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	edata->hint = MemoryContextStrdup(edata->assoc_context, text);
}

