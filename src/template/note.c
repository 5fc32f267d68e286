/*-------------------------------------------------------------------------
 *
 * note.c
 *		What the author of a template would want to know about it.
 *
 * Pure: palloc.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "template/note.h"

void
klm_note_source(KlmNotes *notes, const char *source, int length)
{
	if (notes == NULL)
		return;
	notes->source = source;
	notes->length = length;
	notes->near = 0;
}

void
klm_note_place(KlmNotes *notes, const char *text)
{
	if (notes != NULL && text >= notes->source && text < notes->source + notes->length)
		notes->near = text - notes->source;
}

void
klm_note(KlmNotes *notes, KlmNoteKind kind, const char *detail)
{
	KlmNote    *note;

	if (notes == NULL || notes->count == KLM_MOST_NOTES)
		return;
	note = palloc(sizeof(KlmNote));
	note->kind = kind;
	note->offset = notes->near;
	note->detail = detail ? pstrdup(detail) : NULL;
	note->next = notes->last;
	notes->last = note;
	notes->count++;
}

/* The host of a URL, or of what looks like one; its length, 0: it does not. */
static int
host_of(const char *text, const char **host)
{
	int			length;

	*host = text;
	if (pg_strncasecmp(text, "https://", 8) == 0)
		*host = text + 8;
	else if (pg_strncasecmp(text, "http://", 7) == 0)
		*host = text + 7;
	else if (pg_strncasecmp(text, "www.", 4) != 0)
		return 0;
	length = strcspn(*host, "/?#< \t\n");
	if (length > 4 && pg_strncasecmp(*host, "www.", 4) == 0)
	{
		*host += 4;
		length -= 4;
	}
	return length;
}

void
klm_note_link(KlmNotes *notes, const char *text, const char *url)
{
	const char *shown;
	const char *host;
	int			shown_length;
	int			length;

	if (notes == NULL)
		return;
	while (*text != '\0' && strchr("<> \t\n", *text))
		text += *text == '<' ? strcspn(text, ">") : 1;
	shown_length = host_of(text, &shown);
	length = host_of(url, &host);
	if (shown_length > 0 && length > 0 &&
		(shown_length != length || pg_strncasecmp(shown, host, length) != 0))
		klm_note(notes, KLM_NOTE_OTHER_ADDRESS, url);
}

void
klm_note_http(KlmNotes *notes, const char *url)
{
	if (pg_strncasecmp(url, "http:", 5) == 0)
		klm_note(notes, KLM_NOTE_NOT_HTTPS, url);
}
