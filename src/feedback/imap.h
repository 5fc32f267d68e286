/*-------------------------------------------------------------------------
 *
 * imap.h
 *		The client's side of IMAP as a machine: commands out, responses in.
 *
 * Pure (palloc only).  It knows as much of RFC 3501 and RFC 6851 as a mailbox
 * of bounces needs; what the server sends may be hostile, and is bounded.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_IMAP_H
#define KLM_IMAP_H

#include "lib/stringinfo.h"

#include "base/kliv_mail.h"

/* So much of a mail is fetched: klm_read_bounce() looks at no more. */
#define KLM_IMAP_BODY_MAX (1024 * 1024)

/* So many of what a search finds are kept, those with the lowest numbers. */
#define KLM_IMAP_UIDS_MAX 100

typedef enum KlmImapStatus
{
	KLM_IMAP_WAITS,				/* the command has no answer yet */
	KLM_IMAP_GOES_ON,			/* "+": klm_imap_answer() */
	KLM_IMAP_OK,
	KLM_IMAP_NO,				/* also BAD: the server did not do it */
	KLM_IMAP_BROKEN				/* what it sends is no IMAP: nothing more is to be had of it */
} KlmImapStatus;

typedef struct KlmImap
{
	StringInfoData out;			/* to be sent; the caller takes it away */

	/* what the server can do, as it said last */
	bool		auth_plain;
	bool		login_disabled;
	bool		move;
	bool		uidplus;

	/* of the last command */
	KlmImapStatus status;
	char		text[512];		/* the server's words, as they came; "" */
	bool		try_create;		/* the mailbox named does not exist */
	bool		try_later;		/* it says that it is for now only */
	bool		read_only;
	uint32		uid_validity;	/* 0: not told */
	uint64		received;		/* octets of all that came */
	uint32		uids[KLM_IMAP_UIDS_MAX];	/* found, ascending */
	int			uid_count;
	bool		has_body;
	StringInfoData body;		/* of the mail fetched, its first KLM_IMAP_BODY_MAX octets */

	/* its own */
	int			number;			/* of the command */
	uint32		search_after;
	uint32		fetched_uid;
	StringInfoData line;		/* the response so far, without its literals */
	bool		numbers;		/* of a SEARCH: not kept */
	bool		in_number;
	uint64		found;			/* the number that is being read */
	uint64		literal_left;
	bool		literal_is_body;
} KlmImap;

/* In the current context. */
extern void klm_imap_init(KlmImap *imap);

/*
 * Send a command, without tag and line end; forgets the results of the one before.
 * What stands in it must be a server's grammar: klm_imap_quote() for strings.
 */
extern void klm_imap_command(KlmImap *imap, const char *format,...) pg_attribute_printf(2, 3);

/* UIDs above it are wanted; ... and of that mail its beginning. */
extern void klm_imap_search(KlmImap *imap, uint32 after);
extern void klm_imap_fetch(KlmImap *imap, uint32 uid);

/* A line of data where the server goes on. */
extern void klm_imap_answer(KlmImap *imap, const char *line);

/* What came; ends early when the status is KLM_IMAP_BROKEN. */
extern void klm_imap_received(KlmImap *imap, const char *data, Size length);

/* A quoted string, palloc'd; NULL where it cannot be one (NUL, CR, LF). */
extern char *klm_imap_quote(const char *text);

/* "3,5,9", palloc'd. */
extern char *klm_imap_set(const uint32 *uids, int count);

#endif							/* KLM_IMAP_H */
