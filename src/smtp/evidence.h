/*-------------------------------------------------------------------------
 *
 * evidence.h
 *		What in a reply is the server's own opinion, and not an echo of ours.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_EVIDENCE_H
#define KLM_EVIDENCE_H

#include "base/kliv_mail.h"

/*
 * The words of a reply that a rule may look at, palloc'd: lower case, without
 * the codes before each line, single spaces, so that a phrase is found across
 * line ends.  Left out is what the server only repeats: addresses, what stands
 * in <>, the recipient (NULL: not known) and hosts of its domain, other
 * servers' names, and all that another server said.
 */
extern char *klm_evidence(const char *text, const char *recipient);

/*
 * Take the recipient's local part out of the words where it stands alone, too;
 * false if it does not.  It may be a word of the server's own ("unknown@"), so
 * that what is left is a second opinion.
 */
extern bool klm_evidence_without_name(char *words, const char *recipient);

#endif							/* KLM_EVIDENCE_H */
