/*-------------------------------------------------------------------------
 *
 * text.h
 *		UTF-8 character by character, and text made fit to be shown.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_TEXT_H
#define KLM_TEXT_H

#include "base/kliv_mail.h"

/* The code point at *text, which moves on; a byte that is no UTF-8 counts as U+FFFD. */
extern PGDLLEXPORT uint32 klm_utf8_next(const char **text, const char *end);

/* A space of any width. */
extern bool klm_is_space(uint32 ch);

/* U+200C and U+200D, with which Persian, Indic scripts and emoji are written. */
extern bool klm_is_joiner(uint32 ch);

/* C0, C1, bidi controls, line separators, characters without a width. */
extern bool klm_is_unsafe(uint32 ch);

/* Those, the joiners, and what else shows nothing by itself. */
extern bool klm_is_invisible(uint32 ch);

/*
 * Has the text what may stand in no name: an unsafe character, or a joiner
 * that does not stand between two characters that are neither ASCII nor spaces?
 */
extern PGDLLEXPORT bool klm_has_unsafe_char(const char *utf8, bool allow_tab);

/*
 * A name without what people cannot see and did not mean to type: characters
 * that change the direction or have no width, joiners that join nothing, and
 * line ends before and behind it.  What is left may still be no name.
 */
extern char *klm_without_invisible(const char *utf8);

/*
 * Text for a message: the first 80 characters, what is invisible by its number.
 * Whatever a caller gave goes through this before an error repeats it.
 */
extern PGDLLEXPORT char *klm_shown(const char *text, Size length);

#endif							/* KLM_TEXT_H */
