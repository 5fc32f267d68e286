/*-------------------------------------------------------------------------
 *
 * mailbox.h
 *		A mailbox on an IMAP server: log in, look for mail, fetch it, file it.
 *
 * In kliv_mail_net.  Each call waits for the server, with the latch; none may be
 * made while a lock or a transaction is held that others could want.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_MAILBOX_H
#define KLM_MAILBOX_H

#include "net/connection.h"
#include "net/probe.h"

typedef struct KlmMailbox KlmMailbox;

/* Why a call failed.  Texts are UTF-8, palloc'd in the mailbox's context. */
typedef struct KlmMailboxTrouble
{
	const char *step;			/* static: dns, connect, tls, login, select, read, file */
	int			sqlstate;
	const char *problem;		/* our words */
	const char *reply;			/* the server's, printable; "" */
	const char *hint;			/* or NULL */
	bool		final;			/* to try again would be answered the same way */
	bool		stopped;		/* must_stop() said so, and nothing is wrong */
} KlmMailboxTrouble;

/*
 * In a context of its own below the current one, whose end closes the connection;
 * target, with imap set, must live as long.  must_stop (may be NULL) is asked
 * whenever the latch was set.
 */
extern KlmMailbox *klm_mailbox_create(const KlmTarget *target, bool (*must_stop) (void));

/* Says LOGOUT, waits for nothing, and frees it. */
extern void klm_mailbox_close(KlmMailbox *mailbox);

/* Of the last call that gave false. */
extern const KlmMailboxTrouble *klm_mailbox_trouble(const KlmMailbox *mailbox);

/* One after the other: */
extern bool klm_mailbox_connect(KlmMailbox *mailbox, KlmConnectReport *report);
extern bool klm_mailbox_login(KlmMailbox *mailbox);
extern bool klm_mailbox_select(KlmMailbox *mailbox, const char *name, uint32 *uid_validity);

/* The mailbox for what was handled is there from now on. */
extern bool klm_mailbox_make(KlmMailbox *mailbox, const char *name);

/* The numbers of mails above that one, the lowest of them; until the next call. */
extern bool klm_mailbox_search(KlmMailbox *mailbox, uint32 after, const uint32 **uids, int *count);

/*
 * The beginning of a mail, which stays as unread as it is; valid until the next
 * call.  *data NULL: there is none (any more), or the server does not give it.
 */
extern bool klm_mailbox_fetch(KlmMailbox *mailbox, uint32 uid, const char **data, Size *length);

/* Move mails there; those that are gone already are no trouble. */
extern bool klm_mailbox_file(KlmMailbox *mailbox, const uint32 *uids, int count, const char *name);

/* The connection test, step by step: dns, connect, tls, login, select, file. */
extern void klm_probe_mailbox(const KlmTarget *target, const char *name, const char *filed,
							  KlmProbe *probe);

#endif							/* KLM_MAILBOX_H */
