/*-------------------------------------------------------------------------
 *
 * bounce_mailbox.h
 *		The bounce mailbox as a process needs it, and what the fetcher keeps of it.
 *
 * In kliv_mail_net.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_BOUNCE_MAILBOX_H
#define KLM_BOUNCE_MAILBOX_H

#include "access/htup.h"
#include "access/tupdesc.h"

#include "net/connection.h"
#include "secret/seal.h"

/* What its password is sealed for, as an account's is; a space: no account is named so. */
#define KLM_BOUNCE_MAILBOX "bounce mailbox"

/* Of the row of _bounce_mailbox, in UTF-8. */
typedef struct KlmBounceMailbox
{
	TimestampTz settings;		/* updated_at: which settings these are */
	bool		enabled;
	KlmTarget	target;			/* password once it is opened */
	const char *mailbox;
	const char *filed_mailbox;
	int64		every;			/* microseconds */
	bytea	   *password_cipher;
	char	   *key_id;
	KlmDomain	domain;			/* the caller's to fill */
	KlmSecret  *secret;			/* target.password points into it */
} KlmBounceMailbox;

/* A row of _bounce_mailbox, copied into the current context. */
extern void klm_bounce_mailbox_unpack(HeapTuple row, TupleDesc desc, KlmBounceMailbox *mailbox);

/* What the password is bound to. */
extern void klm_bounce_mailbox_binding(const KlmBounceMailbox *mailbox, KlmBinding *binding);

/* Open the password; false: *error says why not.  key_missing may be NULL. */
extern bool klm_bounce_mailbox_open(KlmBounceMailbox *mailbox, bool *key_missing, KlmError *error);

/*
 * Those of sql/install/67_fetch.sql; in a transaction of klm_outbox_begin().
 * *gone: the settings have changed, so that all that is known of the mailbox is old.
 */

/* When a fetcher is next needed, by this database's clock; DT_NOEND: not before a call. */
extern TimestampTz klm_fetch_due(void);

/* The mailbox, in that context; NULL: there is none. */
extern KlmBounceMailbox *klm_fetch_settings(MemoryContext context);

typedef struct KlmFetchState
{
	int64		seen;			/* mails up to this one were looked at */
	int64	   *to_file;		/* taken, and perhaps not moved yet */
	int			to_file_count;
	int64	   *postponed;		/* to be looked at again */
	int			postponed_count;
} KlmFetchState;

/* false: the settings have changed; so all of them below. */
extern bool klm_fetch_open(TimestampTz settings, uint32 uid_validity, MemoryContext context,
						   KlmFetchState *state);

/* The mail is next; *skip: it is left alone. */
extern bool klm_fetch_hand(TimestampTz settings, uint32 uid, bool *skip);

/* data NULL: the mail is not to be had.  *file: it is to be filed. */
extern bool klm_fetch_take(TimestampTz settings, uint32 uid, const char *data, Size length,
						   bool *file);

extern void klm_fetch_filed(TimestampTz settings, const uint32 *uids, int count);

/* step NULL: without trouble.  true: it is a trouble that was not there before. */
extern bool klm_fetch_end(TimestampTz settings, bool more, const char *step, const char *trouble,
						  const char *hint, bool final);

#endif							/* KLM_BOUNCE_MAILBOX_H */
