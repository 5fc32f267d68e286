/*-------------------------------------------------------------------------
 *
 * bounce_text.h
 *		Reports that only people can read, and mail that is no report.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_BOUNCE_TEXT_H
#define KLM_BOUNCE_TEXT_H

#include "feedback/mime_parse.h"
#include "feedback/report.h"

/* Does the mail say that a mail server wrote it: MAILER-DAEMON, the null sender? */
extern bool klm_is_from_mailer(const KlmPart *mail);

/* Did a program answer for the recipient: vacation, "received, thank you"? */
extern bool klm_is_autoreply(const KlmPart *mail);

/*
 * The recipients that a mail server's text names as not reached, with what it says about each;
 * adds none where it is no such text.  With the Message-ID of what is quoted below it.
 */
extern void klm_read_bounce_text(const KlmPart *mail, const char *text, KlmReport *report);

/* What a text says about an address, printable; NULL: nothing that could be told apart. */
extern char *klm_words_about(const char *text, const char *address);

/* What stands in <> or alone as an id, or NULL. */
extern char *klm_id_of(const char *value);

#endif							/* KLM_BOUNCE_TEXT_H */
