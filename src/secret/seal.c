/*-------------------------------------------------------------------------
 *
 * seal.c
 *		The key ring, and passwords sealed with it.
 *
 * Layer: edge.  Owns libsodium, pgcrypto, the key file and the key command.
 *
 * A master key is used only through crypto_kdf: one subkey for each account
 * is the passphrase of pgcrypto, one more the seed of the key pair to which
 * clients seal.  pgcrypto is called through fmgr, never through SQL text, so
 * that neither pg_stat_statements nor auto_explain meets a plaintext.  Inside
 * the ciphertext the password stands behind what it belongs to (account, host,
 * port, user name), because pgcrypto has no associated data.
 *
 * Key material and plaintexts live in sodium_malloc() memory (locked, not
 * dumped, wiped when freed); what pgcrypto needs as a varlena is wiped right
 * after the call.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <fcntl.h>
#include <signal.h>
#include <sodium.h>
#include <spawn.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "access/htup_details.h"
#include "catalog/dependency.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_proc.h"
#include "commands/extension.h"
#include "common/file_perm.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "port/pg_bswap.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "secret/seal.h"

#define KEY_BYTES 32
#define KEY_HEX (2 * KEY_BYTES)
#define KEY_ID_LENGTH 8
#define RING_FILE_MAX (1024 * 1024)
#define KEY_LINE_MIN 78			/* "kliv_mail root " and the digits, less one */
#define KEY_COMMAND_SECONDS 30

/* Contexts of crypto_kdf: eight characters, never to be changed. */
#define KDF_PGCRYPTO "klm_pgp1"
#define KDF_SEALING "klm_box1"

/* No string-to-key work: the passphrase is 256 random bits, not a human's. */
#define PGP_OPTIONS "cipher-algo=aes256, compress-algo=0, s2k-mode=1, s2k-digest-algo=sha256"

/* The lock, in the whole cluster, under which the key file is made or changed. */
#define KEY_FILE_LOCK_CLASS ExtensionRelationId
#define KEY_FILE_LOCK_OBJECT 1

typedef struct KlmKey
{
	char		id[KEY_ID_LENGTH + 1];
	unsigned char key[KEY_BYTES];
} KlmKey;

/* In guarded memory. */
typedef struct KlmRing
{
	bool		has_root;
	unsigned char root[KEY_BYTES];
	int			count;
	KlmKey		keys[FLEXIBLE_ARRAY_MEMBER];	/* newest first */
} KlmRing;

/* A KlmSecret as it is allocated: the callback frees its guarded memory. */
typedef struct KlmSecretOwner
{
	KlmSecret	secret;
	MemoryContextCallback callback;
} KlmSecretOwner;

extern char **environ;

static void init_sodium(void);
static void free_secret(void *arg);
static bool fail(KlmError *error, const char *hint, const char *format,...)
			pg_attribute_printf(3, 4);
static bool read_ring(KlmRing **ring, KlmSecret **memory, bool *missing, KlmError *error);
static bool ring_for_sealing(bool may_create, KlmRing **ring, KlmSecret **memory, KlmError *error);
static bool parse_ring(const KlmSecret *text, const char *source, KlmRing **ring,
					   KlmSecret **memory, KlmError *error);
static bool run_key_command(KlmSecret **output, KlmError *error);
static bool write_ring(const KlmRing *ring, bool replace, bool *exists, KlmError *error);
static void new_key(KlmKey *key);
static void key_id(const unsigned char *key, char *id);
static const KlmKey *find_key(const KlmRing *ring, const char *id);
static pg_noinline Oid pgcrypto_function(const char *name);
static bool call_pgcrypto(const char *function, const KlmKey *key, const char *account,
						  const KlmSecret *input, KlmSecret **output);
static void sealing_pair(const KlmKey *key, unsigned char *public_key, unsigned char *secret_key);
static KlmSecret *bind_secret(const KlmBinding *binding, const KlmSecret *secret);
static bool unbind_secret(const KlmBinding *binding, const KlmSecret *bound, KlmSecret **secret);

/* ---- guarded memory ---- */

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

/* Fill an error for a state that must be mended first; false for the caller to return. */
static bool
fail(KlmError *error, const char *hint, const char *format,...)
{
	StringInfoData text;
	int			saved_errno = errno;

	initStringInfo(&text);
	for (;;)
	{
		va_list		args;
		int			needed;

		errno = saved_errno;
		va_start(args, format);
		needed = appendStringInfoVA(&text, format, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&text, needed);
	}
	error->sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;
	error->message = klm_to_utf8(text.data);
	error->hint = hint ? klm_to_utf8(hint) : NULL;
	return false;
}

/* ---- files ---- */

bool
klm_secret_read_file(const char *path, const char *what, KlmFileOwner private_to,
					 Size max_length, KlmSecret **secret, bool *missing, KlmError *error)
{
	struct stat st;
	int			fd;
	KlmSecret  *text;
	Size		have = 0;

	if (missing)
		*missing = false;

	/* O_NONBLOCK: a FIFO must not hold us up before fstat() can tell. */
	fd = OpenTransientFile(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | PG_BINARY);
	if (fd < 0)
	{
		if (errno == ENOENT && missing)
			*missing = true;
		if (errno == ENOENT)
			return fail(error, NULL, "%s \"%s\" does not exist", what, path);
		if (errno == ELOOP)
			return fail(error,
						"Put the file itself there; a link could be turned to another file.",
						"%s \"%s\" is a symbolic link", what, path);
		return fail(error, "The server's operating system user must be able to read it.",
					"%s \"%s\" could not be opened: %m", what, path);
	}
	if (fstat(fd, &st) != 0)
	{
		fail(error, NULL, "%s \"%s\" could not be examined: %m", what, path);
		CloseTransientFile(fd);
		return false;
	}
	if (!S_ISREG(st.st_mode))
		fail(error, NULL, "%s \"%s\" is not a regular file", what, path);
	else if (private_to != KLM_OWNER_ANY && st.st_uid != geteuid() &&
			 (private_to != KLM_OWNER_SERVER_OR_ROOT || st.st_uid != 0))
		fail(error,
			 psprintf("Run chown %u \"%s\" as root.", (unsigned) geteuid(), path),
			 "%s \"%s\" belongs to another user (id %u) than the server's (id %u)",
			 what, path, (unsigned) st.st_uid, (unsigned) geteuid());
	else if (private_to != KLM_OWNER_ANY && (st.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		fail(error, psprintf("Run chmod 600 \"%s\".", path),
			 "%s \"%s\" is open to group or others (mode %04o)",
			 what, path, (unsigned) (st.st_mode & 07777));
	else if (st.st_size == 0)
		fail(error, NULL, "%s \"%s\" is empty", what, path);
	else if ((uint64) st.st_size > max_length)
		fail(error, NULL, "%s \"%s\" has more than %zu bytes", what, path, max_length);
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
		fail(error, NULL, "%s \"%s\" could not be read", what, path);
		klm_secret_wipe(text);
	}
	CloseTransientFile(fd);
	return false;
}

/*
 * Write the ring to the key file: all of it or nothing, on disk before we
 * return.  Without replace an existing file is left alone and *exists set.
 */
static bool
write_ring(const KlmRing *ring, bool replace, bool *exists, KlmError *error)
{
	const char *hint = "The server's operating system user must be able to write to the directory "
		"of \"kliv_mail.key_file\"; or set \"kliv_mail.key_command\" and keep the key elsewhere.";
	char	   *temp = psprintf("%s.new.%d", klm_key_file, MyProcPid);
	char	   *directory = pstrdup(klm_key_file);
	KlmSecret  *text = klm_secret_create(NULL, (Size) (ring->count + 1) * 96);
	char		hex[KEY_HEX + 1];
	Size		length;
	Size		done = 0;
	int			fd;
	bool		ok = false;

	*exists = false;
	sodium_bin2hex(hex, sizeof(hex), ring->root, KEY_BYTES);
	length = snprintf(text->data, text->length, "kliv_mail root %s\n", hex);
	for (int i = 0; i < ring->count; i++)
	{
		sodium_bin2hex(hex, sizeof(hex), ring->keys[i].key, KEY_BYTES);
		length += snprintf(text->data + length, text->length - length, "kliv_mail key %s %s\n",
						   ring->keys[i].id, hex);
	}
	sodium_memzero(hex, sizeof(hex));

	/* What an earlier process of this number left behind names no stored password. */
	unlink(temp);
	fd = OpenTransientFilePerm(temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | PG_BINARY,
							   S_IRUSR | S_IWUSR);
	if (fd < 0)
	{
		fail(error, hint, "the key file \"%s\" could not be created: %m", temp);
		klm_secret_wipe(text);
		return false;
	}
	while (done < length)
	{
		ssize_t		n = write(fd, text->data + done, length - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		done += n;
	}
	if (done < length)
		fail(error, hint, "the key file \"%s\" could not be written: %m", temp);
	else if (pg_fsync(fd) != 0)
		fail(error, hint, "the key file \"%s\" could not be flushed to disk: %m", temp);
	else
		ok = true;
	klm_secret_wipe(text);
	CloseTransientFile(fd);

	/* link() never replaces anything and never shows half a file. */
	if (ok && replace && rename(temp, klm_key_file) != 0)
		ok = fail(error, hint, "the key file \"%s\" could not be replaced: %m", klm_key_file);
	if (ok && !replace && link(temp, klm_key_file) != 0)
	{
		*exists = (errno == EEXIST);
		ok = fail(error, hint, "the key file \"%s\" could not be created: %m", klm_key_file);
	}
	if (!ok || !replace)
		unlink(temp);
	get_parent_directory(directory);
	if (ok && fsync_fname_ext(directory[0] ? directory : ".", true, false, LOG) != 0)
		ok = fail(error, hint, "the directory of \"%s\" could not be flushed to disk",
				  klm_key_file);
	return ok;
}

/* ---- the ring ---- */

/*
 * The ring, in guarded memory owned by *memory.  *missing: there is no key
 * file at all.
 */
static bool
read_ring(KlmRing **ring, KlmSecret **memory, bool *missing, KlmError *error)
{
	KlmSecret  *text;
	bool		ok;

	init_sodium();
	*missing = false;
	if (klm_key_command && klm_key_command[0])
	{
		if (!run_key_command(&text, error))
			return false;
		ok = parse_ring(text, "the output of \"kliv_mail.key_command\"", ring, memory, error);
	}
	else
	{
		if (!klm_secret_read_file(klm_key_file, "the key file", KLM_OWNER_SERVER, RING_FILE_MAX,
								  &text, missing, error))
		{
			if (error->hint == NULL)
				error->hint = "Put the key file back from where you keep it: stored passwords "
					"open with no other key. If it is lost for good, call kliv_mail.reset_smtp() "
					"and then kliv_mail.configure_smtp() for each account.";
			return false;
		}
		ok = parse_ring(text, psprintf("the key file \"%s\"", klm_key_file), ring, memory, error);
	}
	klm_secret_wipe(text);
	return ok;
}

/* The ring; its first key is made when there is no key file and may_create. */
static bool
ring_for_sealing(bool may_create, KlmRing **ring, KlmSecret **memory, KlmError *error)
{
	bool		missing;
	bool		exists;

	if (read_ring(ring, memory, &missing, error))
		return true;
	if (!missing || !may_create)
		return false;

	LockSharedObject(KEY_FILE_LOCK_CLASS, KEY_FILE_LOCK_OBJECT, 0, ExclusiveLock);
	*memory = klm_secret_create(NULL, offsetof(KlmRing, keys) + sizeof(KlmKey));
	*ring = (KlmRing *) (*memory)->data;
	(*ring)->has_root = true;
	randombytes_buf((*ring)->root, KEY_BYTES);
	(*ring)->count = 1;
	new_key(&(*ring)->keys[0]);
	if (write_ring(*ring, false, &exists, error))
		return true;
	klm_secret_wipe(*memory);

	/* Another database was faster: its key is ours too. */
	return exists && read_ring(ring, memory, &missing, error);
}

static bool
parse_ring(const KlmSecret *text, const char *source, KlmRing **ring, KlmSecret **memory,
		   KlmError *error)
{
	const char *hint = "It must hold the line \"kliv_mail root\" and at least one line "
		"\"kliv_mail key\", each with 64 hexadecimal digits; restore it from where you keep it.";
	const char *end = text->data + text->length;
	int			lines = 1;
	int			line_number = 0;
	KlmRing    *result;

	if (text->length < KEY_LINE_MIN)
		return fail(error, hint, "%s is too short to hold a key (%zu bytes)", source, text->length);
	for (const char *p = text->data; p < end; p++)
		lines += (*p == '\n');

	*memory = klm_secret_create(NULL, offsetof(KlmRing, keys) + (Size) lines * sizeof(KlmKey));
	result = (KlmRing *) (*memory)->data;

	for (const char *line = text->data; line < end;)
	{
		const char *stop = memchr(line, '\n', end - line);
		const char *next;
		const char *p = line;
		const char *word[4];
		Size		length[4];
		int			words = 0;
		bool		is_root;
		unsigned char bytes[KEY_BYTES];
		size_t		count = 0;

		if (stop == NULL)
			stop = end;
		next = stop + 1;
		line_number++;
		while (p < stop)
		{
			const char *start;

			while (p < stop && (*p == ' ' || *p == '\t' || *p == '\r'))
				p++;
			start = p;
			while (p < stop && *p != ' ' && *p != '\t' && *p != '\r')
				p++;
			if (p == start)
				break;
			if (words == lengthof(word))
			{
				words++;
				break;
			}
			word[words] = start;
			length[words++] = p - start;
		}
		line = next;
		if (words == 0)
			continue;

		is_root = words == 3 && length[1] == 4 && memcmp(word[1], "root", 4) == 0;
		if (length[0] != 9 || memcmp(word[0], "kliv_mail", 9) != 0 ||
			(!is_root && (words < 3 || words > 4 ||
						  length[1] != 3 || memcmp(word[1], "key", 3) != 0)))
		{
			klm_secret_wipe(*memory);
			return fail(error, hint, "line %d of %s is no key", line_number, source);
		}
		if (length[words - 1] != KEY_HEX ||
			sodium_hex2bin(bytes, sizeof(bytes), word[words - 1], KEY_HEX,
						   NULL, &count, NULL) != 0 || count != KEY_BYTES)
		{
			klm_secret_wipe(*memory);
			return fail(error, hint, "the key in line %d of %s is not 64 hexadecimal digits",
						line_number, source);
		}
		if (is_root)
		{
			result->has_root = true;
			memcpy(result->root, bytes, KEY_BYTES);
		}
		else
		{
			KlmKey	   *key = &result->keys[result->count++];

			memcpy(key->key, bytes, KEY_BYTES);
			key_id(key->key, key->id);
			if (words == 4 &&
				(length[2] != KEY_ID_LENGTH || memcmp(word[2], key->id, KEY_ID_LENGTH) != 0))
			{
				sodium_memzero(bytes, sizeof(bytes));
				klm_secret_wipe(*memory);
				return fail(error, hint, "the key in line %d of %s does not belong to its id",
							line_number, source);
			}
		}
		sodium_memzero(bytes, sizeof(bytes));
	}
	if (result->count == 0 || !result->has_root)
	{
		bool		no_key = (result->count == 0);

		klm_secret_wipe(*memory);
		return fail(error, hint, "%s has no line \"kliv_mail %s\"", source,
					no_key ? "key" : "root");
	}
	*ring = result;
	return true;
}

/*
 * Run kliv_mail.key_command in a process group of its own, so that a cancelled
 * query, a stopped server or a command that hangs takes all of it along:
 * popen() would wait for it without an end.
 */
static bool
run_key_command(KlmSecret **output, KlmError *error)
{
	const char *hint = "Run \"kliv_mail.key_command\" as the server's operating system user.";
	char	   *argv[] = {"sh", "-c", klm_key_command, NULL};
	TimestampTz deadline = GetCurrentTimestamp() + KEY_COMMAND_SECONDS * USECS_PER_SEC;
	KlmSecret  *buffer = klm_secret_create(NULL, 64 * 1024);
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t	signals;
	volatile Size have = 0;
	volatile bool ended = false;
	volatile int status = 0;
	int			pipes[2];
	pid_t		pid;
	int			result;

	if (pipe2(pipes, O_CLOEXEC) != 0)
		return fail(error, NULL, "\"kliv_mail.key_command\" could not be started: %m");
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, pipes[1], STDOUT_FILENO);
	posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setpgroup(&attributes, 0);
	sigemptyset(&signals);
	posix_spawnattr_setsigmask(&attributes, &signals);
	sigaddset(&signals, SIGPIPE);	/* the server ignores it */
	posix_spawnattr_setsigdefault(&attributes, &signals);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
							 POSIX_SPAWN_SETSIGDEF);
	result = posix_spawn(&pid, "/bin/sh", &actions, &attributes, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	close(pipes[1]);
	if (result != 0)
	{
		close(pipes[0]);
		errno = result;
		return fail(error, NULL, "\"kliv_mail.key_command\" could not be started: %m");
	}

	PG_TRY();
	{
		while (have < buffer->length)
		{
			long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
			int			events;
			ssize_t		n;

			if (left <= 0)
				break;
			events = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT |
									   WL_EXIT_ON_PM_DEATH, pipes[0], left, PG_WAIT_EXTENSION);
			if (events & WL_LATCH_SET)
			{
				ResetLatch(MyLatch);
				CHECK_FOR_INTERRUPTS();
			}
			if ((events & WL_SOCKET_READABLE) == 0)
				continue;
			n = read(pipes[0], buffer->data + have, buffer->length - have);
			if (n < 0 && (errno == EINTR || errno == EAGAIN))
				continue;
			if (n <= 0)
			{
				ended = true;
				break;
			}
			have = have + n;
		}
	}
	PG_FINALLY();
	{
		int			code;

		close(pipes[0]);
		if (!ended)
			kill(-pid, SIGKILL);
		while (waitpid(pid, &code, 0) < 0 && errno == EINTR)
			;
		status = code;
	}
	PG_END_TRY();

	if (ended && status == 0 && have > 0)
	{
		*output = klm_secret_create(buffer->data, have);
		klm_secret_wipe(buffer);
		return true;
	}
	klm_secret_wipe(buffer);
	if (!ended && have == 64 * 1024)
		return fail(error, hint, "\"kliv_mail.key_command\" printed more than 64 kB");
	if (!ended)
		return fail(error, hint, "\"kliv_mail.key_command\" did not end within %d s",
					KEY_COMMAND_SECONDS);
	if (status != 0)
		return fail(error, hint, "\"kliv_mail.key_command\" failed: %s",
					wait_result_to_str(status));
	return fail(error, hint, "\"kliv_mail.key_command\" printed nothing");
}

static void
new_key(KlmKey *key)
{
	crypto_kdf_keygen(key->key);
	key_id(key->key, key->id);
}

/* The key's name: a hash that tells nothing about it. */
static void
key_id(const unsigned char *key, char *id)
{
	static const char label[] = "kliv_mail key id";
	unsigned char hash[crypto_generichash_BYTES];

	crypto_generichash(hash, sizeof(hash), (const unsigned char *) label, sizeof(label) - 1,
					   key, KEY_BYTES);
	sodium_bin2hex(id, KEY_ID_LENGTH + 1, hash, KEY_ID_LENGTH / 2);
}

static const KlmKey *
find_key(const KlmRing *ring, const char *id)
{
	for (int i = 0; i < ring->count; i++)
		if (strcmp(ring->keys[i].id, id) == 0)
			return &ring->keys[i];
	return NULL;
}

bool
klm_key_ids(char ***ids, int *count, bool *missing, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;

	if (!read_ring(&ring, &memory, missing, error))
		return false;
	*count = ring->count;
	*ids = palloc(sizeof(char *) * ring->count);
	for (int i = 0; i < ring->count; i++)
		(*ids)[i] = pstrdup(ring->keys[i].id);
	klm_secret_wipe(memory);
	return true;
}

bool
klm_add_key(bool may_create, KlmError *error)
{
	KlmRing    *ring;
	KlmRing    *longer;
	KlmSecret  *memory;
	KlmSecret  *longer_memory;
	bool		missing;
	bool		exists;
	bool		ok;

	if (klm_key_command && klm_key_command[0])
	{
		ok = read_ring(&ring, &memory, &missing, error);
		if (ok)
			klm_secret_wipe(memory);
		return ok;
	}

	/* Two databases that rotate at once must not lose each other's key. */
	LockSharedObject(KEY_FILE_LOCK_CLASS, KEY_FILE_LOCK_OBJECT, 0, ExclusiveLock);
	if (!read_ring(&ring, &memory, &missing, error))
	{
		if (!missing || !may_create || !ring_for_sealing(true, &ring, &memory, error))
			return false;
		klm_secret_wipe(memory);
		return true;
	}
	longer_memory = klm_secret_create(NULL, offsetof(KlmRing, keys) +
									  (Size) (ring->count + 1) * sizeof(KlmKey));
	longer = (KlmRing *) longer_memory->data;
	longer->has_root = true;
	memcpy(longer->root, ring->root, KEY_BYTES);
	longer->count = ring->count + 1;
	new_key(&longer->keys[0]);
	memcpy(&longer->keys[1], ring->keys, sizeof(KlmKey) * ring->count);
	klm_secret_wipe(memory);
	ok = write_ring(longer, true, &exists, error);
	klm_secret_wipe(longer_memory);
	return ok;
}

/* ---- passwords ---- */

bool
klm_seal(const KlmSecret *secret, const KlmBinding *binding, bool may_create,
		 bytea **ciphertext, char **id, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	KlmSecret  *bound;
	KlmSecret  *sealed = NULL;
	KlmSecret  *opened = NULL;
	bool		same;

	if (!ring_for_sealing(may_create, &ring, &memory, error))
		return false;
	bound = bind_secret(binding, secret);

	/* What cannot be read back must not be stored. */
	same = call_pgcrypto("pgp_sym_encrypt_bytea", &ring->keys[0], binding->account,
						 bound, &sealed) &&
		call_pgcrypto("pgp_sym_decrypt_bytea", &ring->keys[0], binding->account,
					  sealed, &opened) &&
		opened->length == bound->length &&
		sodium_memcmp(opened->data, bound->data, bound->length) == 0;
	klm_secret_wipe(bound);
	klm_secret_wipe(opened);
	if (same)
	{
		*id = pstrdup(ring->keys[0].id);
		*ciphertext = palloc(VARHDRSZ + sealed->length);
		SET_VARSIZE(*ciphertext, VARHDRSZ + sealed->length);
		memcpy(VARDATA(*ciphertext), sealed->data, sealed->length);
	}
	klm_secret_wipe(sealed);
	klm_secret_wipe(memory);
	if (!same)
		return fail(error, "Check the installation of the extension pgcrypto.",
					"could not be encrypted so that it can be read back");
	return true;
}

bool
klm_open(const bytea *ciphertext, const char *id, const KlmBinding *binding,
		 KlmSecret **secret, bool *key_missing, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	KlmSecret  *sealed;
	KlmSecret  *bound = NULL;
	const KlmKey *key;
	bool		missing;
	bool		ok;

	if (key_missing)
		*key_missing = true;
	if (!read_ring(&ring, &memory, &missing, error))
		return false;
	key = id ? find_key(ring, id) : NULL;
	if (key == NULL)
	{
		klm_secret_wipe(memory);
		return fail(error, "Put that key back into the ring (it came with another server, or was "
					"removed), or save the password again with kliv_mail.configure_smtp().",
					"the key %s of the stored password is not in %s", id ? id : "(none)",
					klm_key_command && klm_key_command[0] ?
					"the output of \"kliv_mail.key_command\"" :
					psprintf("the key file \"%s\"", klm_key_file));
	}
	if (key_missing)
		*key_missing = false;

	sealed = klm_secret_create(VARDATA_ANY(ciphertext), VARSIZE_ANY_EXHDR(ciphertext));
	ok = call_pgcrypto("pgp_sym_decrypt_bytea", key, binding->account, sealed, &bound);
	klm_secret_wipe(sealed);
	klm_secret_wipe(memory);
	if (ok)
		ok = unbind_secret(binding, bound, secret);
	klm_secret_wipe(bound);
	if (!ok)
		return fail(error, "Save it again: SELECT kliv_mail.configure_smtp(...) with the password.",
					"the stored password does not belong to account \"%s\", host \"%s\", port %d "
					"and its user name: the row was changed by other means than configure_smtp()",
					binding->account, binding->host ? binding->host : "", binding->port);
	return true;
}

/* The plaintext of a ciphertext: what it belongs to, each with its length, then the secret. */
static KlmSecret *
bind_secret(const KlmBinding *binding, const KlmSecret *secret)
{
	const char *fields[3] = {binding->account, binding->host ? binding->host : "",
	binding->username ? binding->username : ""};
	KlmSecret  *bound;
	char	   *p;
	uint32		number;
	Size		length = 4 + secret->length;

	for (int i = 0; i < lengthof(fields); i++)
		length += 4 + strlen(fields[i]);
	bound = klm_secret_create(NULL, length);
	p = bound->data;
	for (int i = 0; i < lengthof(fields); i++)
	{
		number = pg_hton32((uint32) strlen(fields[i]));
		memcpy(p, &number, 4);
		memcpy(p + 4, fields[i], strlen(fields[i]));
		p += 4 + strlen(fields[i]);
	}
	number = pg_hton32((uint32) binding->port);
	memcpy(p, &number, 4);
	memcpy(p + 4, secret->data, secret->length);
	return bound;
}

static bool
unbind_secret(const KlmBinding *binding, const KlmSecret *bound, KlmSecret **secret)
{
	KlmSecret	nothing = {"", 0};
	KlmSecret  *expected = bind_secret(binding, &nothing);
	bool		same = bound->length >= expected->length &&
		memcmp(bound->data, expected->data, expected->length) == 0;

	if (same)
		*secret = klm_secret_create(bound->data + expected->length,
									bound->length - expected->length);
	klm_secret_wipe(expected);
	return same;
}

/*
 * pgcrypto's function, found by name among those that belong to the extension,
 * wherever it is installed and whatever the search path.
 */
static pg_noinline Oid
pgcrypto_function(const char *name)
{
	Oid			extension = get_extension_oid("pgcrypto", true);
	Oid			function = InvalidOid;
	CatCList   *list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(name));

	for (int i = 0; i < list->n_members && !OidIsValid(function); i++)
	{
		Form_pg_proc form = (Form_pg_proc) GETSTRUCT(&list->members[i]->tuple);

		if (form->pronargs == 3 && OidIsValid(extension) &&
			getExtensionOfObject(ProcedureRelationId, form->oid) == extension)
			function = form->oid;
	}
	ReleaseSysCacheList(list);
	if (!OidIsValid(function))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the extension \"pgcrypto\" has no function %s(bytea, text, text)", name),
				 errhidestmt(true)));
	return function;
}

/*
 * Encrypt or decrypt with the account's passphrase.  false: pgcrypto says wrong
 * key or corrupt data; anything else that it raises goes on.
 */
static bool
call_pgcrypto(const char *function, const KlmKey *key, const char *account,
			  const KlmSecret *input, KlmSecret **output)
{
	Oid			oid = pgcrypto_function(function);
	MemoryContext outer = CurrentMemoryContext;
	MemoryContext scratch = AllocSetContextCreate(outer, "kliv_mail pgcrypto",
												  ALLOCSET_DEFAULT_SIZES);
	unsigned char subkey[KEY_BYTES];
	uint64		subkey_number;
	char	   *volatile passphrase = NULL;
	bytea	   *volatile data = NULL;
	volatile bool ok = true;

	crypto_generichash((unsigned char *) &subkey_number, sizeof(subkey_number),
					   (const unsigned char *) account, strlen(account), NULL, 0);
	subkey_number = pg_ntoh64(subkey_number);
	crypto_kdf_derive_from_key(subkey, sizeof(subkey), subkey_number, KDF_PGCRYPTO, key->key);

	MemoryContextSwitchTo(scratch);
	passphrase = palloc(VARHDRSZ + KEY_HEX + 1);
	SET_VARSIZE(passphrase, VARHDRSZ + KEY_HEX);
	sodium_bin2hex(VARDATA(passphrase), KEY_HEX + 1, subkey, sizeof(subkey));
	sodium_memzero(subkey, sizeof(subkey));
	data = palloc(VARHDRSZ + input->length);
	SET_VARSIZE(data, VARHDRSZ + input->length);
	memcpy(VARDATA(data), input->data, input->length);

	PG_TRY();
	{
		text	   *options = cstring_to_text(PGP_OPTIONS);
		bytea	   *result = DatumGetByteaPP(OidFunctionCall3(oid, PointerGetDatum(data),
															  PointerGetDatum(passphrase),
															  PointerGetDatum(options)));

		MemoryContextSwitchTo(outer);
		*output = klm_secret_create(VARDATA_ANY(result), VARSIZE_ANY_EXHDR(result));
		sodium_memzero(result, VARSIZE_ANY(result));
	}
	PG_CATCH();
	{
		sodium_memzero((void *) passphrase, VARHDRSZ + KEY_HEX);
		sodium_memzero((void *) data, VARHDRSZ + input->length);
		MemoryContextSwitchTo(outer);

		/* pgcrypto has freed what it held before it raises this one. */
		if (geterrcode() != ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION)
			PG_RE_THROW();
		FlushErrorState();
		ok = false;
	}
	PG_END_TRY();

	if (ok)
	{
		sodium_memzero((void *) passphrase, VARHDRSZ + KEY_HEX);
		sodium_memzero((void *) data, VARHDRSZ + input->length);
	}
	MemoryContextDelete(scratch);
	return ok;
}

/* ---- passwords sealed by clients ---- */

static void
sealing_pair(const KlmKey *key, unsigned char *public_key, unsigned char *secret_key)
{
	unsigned char seed[crypto_box_SEEDBYTES];

	crypto_kdf_derive_from_key(seed, sizeof(seed), 1, KDF_SEALING, key->key);
	crypto_box_seed_keypair(public_key, secret_key, seed);
	sodium_memzero(seed, sizeof(seed));
}

bool
klm_public_key(bool may_create, bytea **public_key, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	unsigned char secret_key[crypto_box_SECRETKEYBYTES];

	if (!ring_for_sealing(may_create, &ring, &memory, error))
		return false;
	*public_key = palloc(VARHDRSZ + crypto_box_PUBLICKEYBYTES);
	SET_VARSIZE(*public_key, VARHDRSZ + crypto_box_PUBLICKEYBYTES);
	sealing_pair(&ring->keys[0], (unsigned char *) VARDATA(*public_key), secret_key);
	sodium_memzero(secret_key, sizeof(secret_key));
	klm_secret_wipe(memory);
	return true;
}

bool
klm_token(const char *text, Size length, bool may_create, unsigned char *token, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	unsigned char key[crypto_auth_KEYBYTES];
	unsigned char hash[crypto_auth_BYTES];

	StaticAssertStmt(KLM_TOKEN_BYTES <= crypto_auth_BYTES, "a token is a part of a hash");
	StaticAssertStmt(KEY_BYTES == crypto_kdf_KEYBYTES, "keys derive from keys");
	if (!ring_for_sealing(may_create, &ring, &memory, error))
		return false;
	crypto_kdf_derive_from_key(key, sizeof(key), 1, "klmtoken", ring->root);
	crypto_auth(hash, (const unsigned char *) text, length, key);
	memcpy(token, hash, KLM_TOKEN_BYTES);
	sodium_memzero(key, sizeof(key));
	klm_secret_wipe(memory);
	return true;
}

bool
klm_open_sealed(const bytea *sealed, KlmSecret **secret, KlmError *error)
{
	KlmRing    *ring;
	KlmSecret  *memory;
	KlmSecret  *opened;
	Size		length = VARSIZE_ANY_EXHDR(sealed);
	bool		missing;
	bool		ok = false;

	if (!read_ring(&ring, &memory, &missing, error))
		return false;
	if (length > crypto_box_SEALBYTES)
	{
		opened = klm_secret_create(NULL, length - crypto_box_SEALBYTES);
		for (int i = 0; i < ring->count && !ok; i++)
		{
			unsigned char public_key[crypto_box_PUBLICKEYBYTES];
			unsigned char secret_key[crypto_box_SECRETKEYBYTES];

			sealing_pair(&ring->keys[i], public_key, secret_key);
			ok = crypto_box_seal_open((unsigned char *) opened->data,
									  (const unsigned char *) VARDATA_ANY(sealed), length,
									  public_key, secret_key) == 0;
			sodium_memzero(secret_key, sizeof(secret_key));
		}
		if (ok)
			*secret = opened;
		else
			klm_secret_wipe(opened);
	}
	klm_secret_wipe(memory);
	if (!ok)
	{
		fail(error, "Seal the password with libsodium's crypto_box_seal() for what "
			 "kliv_mail.public_key() of this server returns.",
			 "was not sealed for this server's public key");
		error->sqlstate = ERRCODE_INVALID_PARAMETER_VALUE;
	}
	return ok;
}

char *
klm_mask(const char *utf8)
{
	int			length = 0;
	int			shown;
	const char *p;

	for (p = utf8; *p; p++)
		length += ((*p & 0xC0) != 0x80);
	shown = length >= 18 ? 6 : length / 3;
	for (p = utf8 + strlen(utf8); shown > 0; shown -= ((*p & 0xC0) != 0x80))
		p--;
	return psprintf("****%s", p);
}
