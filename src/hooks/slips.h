/*-------------------------------------------------------------------------
 *
 * slips.h
 *		Hints for what PostgreSQL itself refuses about a call of ours: a wrong
 *		argument name, a missing right.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SLIPS_H
#define KLM_SLIPS_H

/* A public function and its arguments' names, separated by ", ", or NULL. */
typedef struct KlmCallNames
{
	const char *name;
	const char *arguments;
} KlmCallNames;

/* From _PG_init: chain the hook. */
extern void klm_slips_init(void);

/* Where a whole word stands in the text, in any case; NULL: nowhere. */
extern const char *klm_find_word(const char *text, const char *word);
extern bool klm_is_word_char(char c);

/*
 * Is what a syntax error quotes the name of an argument, or the "=>" behind it?
 * That is no secret: a word of SQL (from) or of ours, before "=>" in the statement.
 */
extern bool klm_quotes_argument(const ErrorData *edata, const KlmCallNames *functions, int count);

/* A hint for an error about a call of one of the functions, which the statement has. */
extern void klm_help_with_slip(ErrorData *edata, const KlmCallNames *functions, int count);

#endif							/* KLM_SLIPS_H */
