/*-------------------------------------------------------------------------
 *
 * secret_memory.c
 *		Plaintexts in guarded memory, and files that hold one.
 *
 * Owns sodium_malloc() memory: locked, not dumped, wiped when it is freed.
 * What pgcrypto or libcurl needs in ordinary memory is wiped by whoever calls
 * them.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <sodium.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mb/pg_wchar.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "base/error.h"
#include "secret/secret_memory.h"

#define NOT_READY ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE

static void free_secret(void *arg);
static void init_sodium(void);

/* A KlmSecret as it is allocated: the callback frees its guarded memory. */
typedef struct KlmSecretOwner
{
	KlmSecret	secret;
	MemoryContextCallback callback;
} KlmSecretOwner;

KlmSecret *
klm_secret_create(const char *data, Size length)
{
	KlmSecretOwner *owner;

	if (length > MaxAllocSize)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("secret is too long")));
	init_sodium();
	owner = palloc0(sizeof(KlmSecretOwner));
	owner->callback.func = free_secret;
	owner->callback.arg = &owner->secret;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &owner->callback);

	/* sodium_malloc() aligns the end of what it gives: keep the start aligned. */
	owner->secret.data = sodium_malloc(MAXALIGN(length + 1));
	if (owner->secret.data == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory for a secret")));
	memset(owner->secret.data, 0, length + 1);
	if (data != NULL)
		memcpy(owner->secret.data, data, length);
	owner->secret.length = length;
	return &owner->secret;
}

void
klm_secret_wipe(KlmSecret *secret)
{
	if (secret == NULL || secret->data == NULL)
		return;
	sodium_free(secret->data);	/* wipes first */
	secret->data = NULL;
	secret->length = 0;
}

static void
free_secret(void *arg)
{
	klm_secret_wipe((KlmSecret *) arg);
}

void
klm_no_core_dumps(void)
{
	struct rlimit none = {0, 0};

	(void) setrlimit(RLIMIT_CORE, &none);
#ifdef __linux__
	/* A handler in core_pattern is not held by the limit. */
	(void) prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
#endif
}

static void
init_sodium(void)
{
	if (sodium_init() < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not initialize libsodium")));
}

char *
klm_path_text(const char *path)
{
	char	   *shown = pstrdup(path);

	if (pg_encoding_verifymbstr(PG_UTF8, path, (int) strlen(path)) != (int) strlen(path))
		for (char *p = shown; *p; p++)
			if (IS_HIGHBIT_SET(*p))
				*p = '?';
	return shown;
}

bool
klm_secret_read_file(const char *path, const char *what, KlmFileOwner private_to,
					 Size max_length, KlmSecret **secret, bool *missing, KlmError *error)
{
	struct stat st;
	int			fd;
	KlmSecret  *text;
	Size		have = 0;
	mode_t		allowed;
	const char *shown = klm_path_text(path);

	if (missing)
		*missing = false;

	/* O_NONBLOCK: a FIFO must not hold us up before fstat() can tell. */
	fd = OpenTransientFile(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
	{
		if (errno == ENOENT && missing)
			*missing = true;
		if (errno == ENOENT)
			return klm_fail(error, NOT_READY, NULL, "%s \"%s\" does not exist", what, shown);
		if (errno == ELOOP)
			return klm_fail(error, NOT_READY,
							"Put the file itself there; a link could be turned to another file.",
						"%s \"%s\" is a symbolic link", what, shown);
		return klm_fail(error, NOT_READY,
						"The server's operating system user must be able to read it.",
					"%s \"%s\" could not be opened: %m", what, shown);
	}
	if (fstat(fd, &st) != 0)
	{
		klm_fail(error, NOT_READY, NULL, "%s \"%s\" could not be examined: %m", what, shown);
		CloseTransientFile(fd);
		return false;
	}
	allowed = st.st_uid == geteuid() ? 0600 : 0640;
	if (!S_ISREG(st.st_mode))
		klm_fail(error, NOT_READY, NULL, "%s \"%s\" is not a regular file", what, shown);
	else if (private_to != KLM_OWNER_ANY && st.st_uid != geteuid() && st.st_uid != 0)
		klm_fail(error, NOT_READY,
				 psprintf("Run chown %u \"%s\" as root.", (unsigned) geteuid(), shown),
			 "%s \"%s\" belongs to another user (id %u) than the server's (id %u)",
			 what, shown, (unsigned) st.st_uid, (unsigned) geteuid());
	else if (private_to != KLM_OWNER_ANY && (st.st_mode & 077 & ~allowed) != 0)
		klm_fail(error, NOT_READY, psprintf("Run chmod %o \"%s\".", (unsigned) allowed, shown),
			 "%s \"%s\" is open to group or others (mode %04o)",
			 what, shown, (unsigned) (st.st_mode & 07777));
	else if (st.st_size == 0)
		klm_fail(error, NOT_READY, NULL, "%s \"%s\" is empty", what, shown);
	else if ((uint64) st.st_size > max_length)
		klm_fail(error, NOT_READY,
				 NULL, "%s \"%s\" has more than %zu bytes", what, shown, max_length);
	else
	{
		text = klm_secret_create(NULL, (Size) st.st_size);
		while (have < text->length)
		{
			ssize_t		n = read(fd, text->data + have, text->length - have);

			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				break;
			have += n;
		}
		if (have == text->length)
		{
			CloseTransientFile(fd);
			*secret = text;
			return true;
		}
		klm_fail(error, NOT_READY, NULL, "%s \"%s\" could not be read", what, shown);
		klm_secret_wipe(text);
	}
	CloseTransientFile(fd);
	return false;
}
