/*-------------------------------------------------------------------------
 *
 * error.h
 *		Errors as values, and how they are raised.
 *
 * A pure module neither raises nor needs PG_TRY: it returns false and fills a
 * KlmError, which its caller raises, stores or throws away.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ERROR_H
#define KLM_ERROR_H

#include "base/kliv_mail.h"

/* Message and hint are palloc'd, in UTF-8; the message completes "<argument>: ". */
typedef struct KlmError
{
	int			sqlstate;
	char	   *message;		/* lower case, no full stop */
	char	   *hint;			/* full sentence, or NULL */
} KlmError;

/*
 * Fill *error and return false, for the caller to return; error NULL: the
 * caller wants no words.  %m and errno work; the text must be UTF-8.
 */
extern PGDLLEXPORT bool klm_fail(KlmError *error, int sqlstate, const char *hint,
								 const char *format,...) pg_attribute_printf(4, 5);

/*
 * Raise an error value for the argument it is about (NULL: for none).  secret:
 * the statement carries a password, so that neither it nor the context may
 * reach the log.
 */
extern PGDLLEXPORT void klm_raise(const char *argument, const KlmError *error, bool secret)
	pg_attribute_noreturn();

/* klm_fail() and klm_raise() in one: klm_refuse(argument, sqlstate, secret, hint, format, ...). */
#define klm_refuse(argument, sqlstate, secret, hint, ...) \
	do { \
		KlmError	refused_; \
\
		(void) klm_fail(&refused_, sqlstate, hint, __VA_ARGS__); \
		klm_raise(argument, &refused_, secret); \
	} while (0)

/*
 * In a PG_CATCH() around a call of our own SQL functions that ran without
 * error_context_stack: raise the error anew.  What they raise on purpose comes
 * without the lines of code where that was, which are no business of a caller;
 * the context of what the caller does is kept.
 */
extern void klm_rethrow(MemoryContext context) pg_attribute_noreturn();

#endif							/* KLM_ERROR_H */
