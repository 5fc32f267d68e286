/*-------------------------------------------------------------------------
 *
 * secret_memory.h
 *		Plaintexts in guarded memory, and files that hold one.
 *
 * In kliv_mail_net.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SECRET_MEMORY_H
#define KLM_SECRET_MEMORY_H

#include "base/error.h"

/* A plaintext in guarded memory, wiped when its memory context goes. */
typedef struct KlmSecret
{
	char	   *data;			/* NUL-terminated */
	Size		length;
} KlmSecret;

/* In the current context; the caller wipes its own copy of data (NULL: zeros). */
extern KlmSecret *klm_secret_create(const char *data, Size length);
extern void klm_secret_wipe(KlmSecret *secret);

/*
 * This process, which handles passwords all its life, leaves no core dump:
 * what libraries copy of them (libcurl) is not in guarded memory.
 */
extern void klm_no_core_dumps(void);

/* A path of this machine, in whatever bytes, as UTF-8 for an error's text. */
extern char *klm_path_text(const char *path);

/*
 * Read a file with a secret in it; a relative path starts in the data
 * directory.  what: "the key file", for the message.  private_to: who may own
 * it; its mode then is at most 0600, or 0640 where it is root's, as PostgreSQL
 * has it for ssl_key_file.  *missing (may be NULL): there is no such file.
 */
typedef enum KlmFileOwner
{
	KLM_OWNER_ANY,				/* not checked, neither is the mode */
	KLM_OWNER_SERVER_OR_ROOT
} KlmFileOwner;

extern bool klm_secret_read_file(const char *path, const char *what, KlmFileOwner private_to,
								 Size max_length, KlmSecret **secret, bool *missing,
								 KlmError *error);

#endif							/* KLM_SECRET_MEMORY_H */
