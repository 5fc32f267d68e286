/*-------------------------------------------------------------------------
 *
 * note.h
 *		What the author of a template would want to know about it.
 *
 * Pure.  Who writes HTML takes notes by the way, where they are asked for;
 * 59_template_checks.sql says them in words.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_NOTE_H
#define KLM_NOTE_H

#include "base/kliv_mail.h"

/* More of them nobody reads. */
#define KLM_MOST_NOTES 200

typedef enum KlmNoteKind
{
	KLM_NOTE_NO_ALT,			/* an image without a text */
	KLM_NOTE_REFUSED_URL,		/* a link or an image whose URL is not allowed */
	KLM_NOTE_NOT_HTTPS,
	KLM_NOTE_OTHER_ADDRESS,		/* a link's text names another address than the link's */
	KLM_NOTE_RAW_VALUE,			/* {{{name}}} in a text, without raw HTML */
	KLM_NOTE_MISPLACED,			/* a value in a tag or a script of raw HTML */
	KLM_NOTE_SCRIPT,
	KLM_NOTE_OPEN_TAG			/* raw HTML that ends within a tag */
} KlmNoteKind;

typedef struct KlmNote
{
	struct KlmNote *next;
	KlmNoteKind kind;
	int			offset;			/* in the source, near it; -1: unknown */
	char	   *detail;			/* the URL, the place of a value, or NULL */
} KlmNote;

typedef struct KlmNotes
{
	KlmNote    *last;			/* the list, from the last one to the first */
	int			count;

	const char *source;			/* what is read */
	int			length;
	int			near;			/* how far in it we are */
} KlmNotes;

/* Of all of them: notes may be NULL, for nobody asks. */

/* From now on this is what is read. */
extern void klm_note_source(KlmNotes *notes, const char *source, int length);

/* We are at text, if it is a part of the source. */
extern void klm_note_place(KlmNotes *notes, const char *text);

extern void klm_note(KlmNotes *notes, KlmNoteKind kind, const char *detail);

/* Of a link: what its text, which may begin with tags, says of where it leads. */
extern void klm_note_link(KlmNotes *notes, const char *text, const char *url);

/* Of a URL that others could read and change on its way. */
extern void klm_note_http(KlmNotes *notes, const char *url);

#endif							/* KLM_NOTE_H */
