/*-------------------------------------------------------------------------
 *
 * key_ring.h
 *		The master keys.
 *
 * In kliv_mail_net.  The ring is read for each use and wiped after it.  It is
 * lines of text, newest key first, in kliv_mail.key_file or as the output of
 * kliv_mail.key_command:
 *
 *		kliv_mail root <64 hex digits>			tokens derive from it; never changes
 *		kliv_mail key [<id>] <64 hex digits>	the id is a hash of the key
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_KEY_RING_H
#define KLM_KEY_RING_H

#include "secret/secret_memory.h"

#define KLM_KEY_BYTES 32
#define KLM_KEY_ID_LENGTH 8

typedef struct KlmKey
{
	char		id[KLM_KEY_ID_LENGTH + 1];
	unsigned char key[KLM_KEY_BYTES];
} KlmKey;

/* In guarded memory. */
typedef struct KlmRing
{
	bool		has_root;
	unsigned char root[KLM_KEY_BYTES];
	int			count;
	KlmKey		keys[FLEXIBLE_ARRAY_MEMBER];	/* newest first */
} KlmRing;

/*
 * The ring, in guarded memory owned by *memory, which the caller wipes.
 * *missing: there is no key file at all.  false: *error says what is wrong
 * (55000).
 */
extern bool klm_read_ring(KlmRing **ring, KlmSecret **memory, bool *missing, KlmError *error);

/*
 * For a process that must not wait, the sender: from its first call on
 * klm_read_ring() does not run kliv_mail.key_command but takes what was fetched
 * here.  To be called outside of any transaction, as often as one likes: it
 * starts the command where what is at hand is old, and looks at one that runs.
 * The first call waits for it a second, but not beyond a shutdown request.
 */
extern void klm_ring_fetch(void);

/* The same, in a transaction; the first key is made when there is no key file and may_create. */
extern bool klm_ring_for_sealing(bool may_create, KlmRing **ring, KlmSecret **memory,
								 KlmError *error);

/* Set by a process that may have to go while kliv_mail.key_command runs: must it now? */
extern bool (*klm_key_wait_ends) (void);

/* The key of that id, or NULL. */
extern const KlmKey *klm_find_key(const KlmRing *ring, const char *id);

/* "the key file ..." or "the output of ...", for an error's text. */
extern const char *klm_ring_source(void);

/* The ids of the ring's keys, newest first, palloc'd; *missing: there is no key file. */
extern bool klm_key_ids(char ***ids, int *count, bool *missing, KlmError *error);

/* What rotation has to know of databases and of who asks. */
typedef struct KlmKeyUse
{
	bool		may_create;		/* the first key, where there is no file */
	bool		young_too;		/* add a key although the newest is younger than a day */
	char	  **named;			/* ids of keys that databases need */
	int			named_count;
} KlmKeyUse;

/*
 * Rotation, in a transaction: put a new key in front of the file's.  Where the
 * newest is young, or kliv_mail.key_command gives the ring, its newest is taken
 * as the new one.  A file never has more than a hundred keys.
 */
extern bool klm_add_key(const KlmKeyUse *use, KlmError *error);

#endif							/* KLM_KEY_RING_H */
