/*-------------------------------------------------------------------------
 *
 * key_ring.c
 *		The master keys: the key file, the key command, the first key, new ones.
 *
 * Owns the key file and the process that kliv_mail.key_command starts.  Knows
 * nothing of what the keys are for; that is seal.c's and unsubscribe_token.c's.
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
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "catalog/pg_extension.h"
#include "common/file_perm.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/error.h"
#include "base/guc.h"
#include "secret/key_ring.h"

#define NOT_READY ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE

#define KEY_HEX (2 * KLM_KEY_BYTES)
#define RING_FILE_MAX (1024 * 1024)
#define KEY_LINE_MIN 78			/* "kliv_mail root " and the digits, less one */
#define KEY_COMMAND_SECONDS 30
#define KEY_OUTPUT_MAX (64 * 1024)
#define FETCH_GOOD_MS 60000		/* how long the sender goes by what it fetched */
#define FETCH_BAD_MS 10000		/* ... and by the lack of it */
#define FETCH_FIRST_MS 1000		/* ... and what it waits for at its start */
#define COMMAND_HINT "Run \"kliv_mail.key_command\" as the server's operating system user."
#define EXIT_POLL_MS 10			/* how often to look whether the key command has ended */

/*
 * What a file may grow to.  Beyond it, the oldest that no database's label names go;
 * the newest stay, for what was sealed with them and is not committed yet.
 */
#define MAX_KEYS 100
#define RECENT_KEYS 10

/* The lock, in the whole cluster, under which the key file is made or changed. */
#define KEY_FILE_LOCK_CLASS ExtensionRelationId
#define KEY_FILE_LOCK_OBJECT 1

/* How kliv_mail.key_command came to its end. */
typedef enum CommandEnd
{
	COMMAND_RUNS,
	COMMAND_ENDED,				/* by itself */
	COMMAND_TALKS,				/* more than a ring can be */
	COMMAND_HANGS,
	COMMAND_STOPPED				/* this process has to end */
} CommandEnd;

typedef struct KeyCommand
{
	pid_t		pid;
	int			fd;				/* its standard output */
	bool		closed;			/* ... is at its end */
	CommandEnd	end;
	int			status;			/* as waitpid() gives it */
	KlmSecret  *buffer;
	Size		have;
	TimestampTz deadline;
} KeyCommand;

/* What a process that must not wait knows of the command's output; see klm_ring_fetch(). */
static struct
{
	bool		used;
	bool		running;
	KeyCommand	command;
	KlmSecret  *output;			/* NULL: there is none */
	char		problem[256];	/* ... and why */
	TimestampTz again_at;
}			fetch;

extern char **environ;

bool		(*klm_key_wait_ends) (void) = NULL;

static bool parse_ring(const KlmSecret *text, const char *source, KlmRing **ring,
					   KlmSecret **memory, KlmError *error);
static bool run_key_command(KlmSecret **output, KlmError *error);
static bool start_key_command(KeyCommand *command, KlmError *error);
static CommandEnd look_at_command(KeyCommand *command);
static void wait_for_command(const KeyCommand *command, long timeout_ms);
static void end_key_command(KeyCommand *command);
static bool take_output(KeyCommand *command, KlmSecret **output, KlmError *error);
static bool command_ended_well(const KeyCommand *command, KlmError *error);
static bool fetched_output(KlmSecret **output, KlmError *error);
static bool write_ring(const KlmRing *ring, bool replace, bool *exists, KlmError *error);
static bool key_file_is_young(void);
static bool is_named(const KlmKey *key, const KlmKeyUse *use);
static void new_key(KlmKey *key);
static void key_id(const unsigned char *key, char *id);

bool
klm_read_ring(KlmRing **ring, KlmSecret **memory, bool *missing, KlmError *error)
{
	KlmSecret  *text;
	bool		ok;

	*missing = false;
	if (klm_key_command && klm_key_command[0])
	{
		if (!(fetch.used ? fetched_output(&text, error) : run_key_command(&text, error)))
			return false;
		ok = parse_ring(text, klm_ring_source(), ring, memory, error);
	}
	else
	{
		if (!klm_secret_read_file(klm_key_file, "the key file", KLM_OWNER_SERVER_OR_ROOT, RING_FILE_MAX,
								  &text, missing, error))
		{
			if (error->hint == NULL)
				error->hint = "Put the key file back from where you keep it: stored passwords "
					"open with no other key. If it is lost for good: kliv_mail.pause(), so that "
					"nothing leaves by the platform meanwhile, then kliv_mail.reset_smtp() for each "
					"account, kliv_mail.remove_bounce_mailbox(), kliv_mail.configure_webhook() with "
					"secret => '' for each webhook and kliv_mail.set_brand(unsubscribe_url => ''), "
					"which ends the links that were sent, then kliv_mail.configure_smtp() and the "
					"others anew, then kliv_mail.resume().";
			return false;
		}
		ok = parse_ring(text, klm_ring_source(), ring, memory, error);
	}
	klm_secret_wipe(text);
	return ok;
}

bool
klm_ring_for_sealing(bool may_create, KlmRing **ring, KlmSecret **memory, KlmError *error)
{
	bool		missing;
	bool		exists;

	if (klm_read_ring(ring, memory, &missing, error))
		return true;
	if (!missing || !may_create)
		return false;

	LockSharedObject(KEY_FILE_LOCK_CLASS, KEY_FILE_LOCK_OBJECT, 0, ExclusiveLock);
	*memory = klm_secret_create(NULL, offsetof(KlmRing, keys) + sizeof(KlmKey));
	*ring = (KlmRing *) (*memory)->data;
	(*ring)->has_root = true;
	randombytes_buf((*ring)->root, KLM_KEY_BYTES);
	(*ring)->count = 1;
	new_key(&(*ring)->keys[0]);
	if (write_ring(*ring, false, &exists, error))
		return true;
	klm_secret_wipe(*memory);

	/* Another database was faster: its key is ours too. */
	return exists && klm_read_ring(ring, memory, &missing, error);
}

const char *
klm_ring_source(void)
{
	if (klm_key_command && klm_key_command[0])
		return "the output of \"kliv_mail.key_command\"";
	return psprintf("the key file \"%s\"", klm_path_text(klm_key_file));
}

const KlmKey *
klm_find_key(const KlmRing *ring, const char *id)
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

	if (!klm_read_ring(&ring, &memory, missing, error))
		return false;
	*count = ring->count;
	*ids = palloc(sizeof(char *) * ring->count);
	for (int i = 0; i < ring->count; i++)
		(*ids)[i] = pstrdup(ring->keys[i].id);
	klm_secret_wipe(memory);
	return true;
}

bool
klm_add_key(const KlmKeyUse *use, KlmError *error)
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
		ok = klm_read_ring(&ring, &memory, &missing, error);
		if (ok)
			klm_secret_wipe(memory);
		return ok;
	}

	/* Two databases that rotate at once must not lose each other's key. */
	LockSharedObject(KEY_FILE_LOCK_CLASS, KEY_FILE_LOCK_OBJECT, 0, ExclusiveLock);
	if (!klm_read_ring(&ring, &memory, &missing, error))
	{
		if (!missing || !use->may_create || !klm_ring_for_sealing(true, &ring, &memory, error))
			return false;
		klm_secret_wipe(memory);
		return true;
	}
	if (!use->young_too && key_file_is_young())
	{
		klm_secret_wipe(memory);
		return true;
	}

	longer_memory = klm_secret_create(NULL, offsetof(KlmRing, keys) +
									  (Size) (ring->count + 1) * sizeof(KlmKey));
	longer = (KlmRing *) longer_memory->data;
	longer->has_root = true;
	memcpy(longer->root, ring->root, KLM_KEY_BYTES);
	new_key(&longer->keys[0]);
	memcpy(&longer->keys[1], ring->keys, sizeof(KlmKey) * ring->count);
	longer->count = ring->count + 1;
	for (int i = longer->count - 1; longer->count > MAX_KEYS && i > RECENT_KEYS; i--)
		if (!is_named(&longer->keys[i], use))
			memmove(&longer->keys[i], &longer->keys[i + 1],
					sizeof(KlmKey) * (--longer->count - i));
	klm_secret_wipe(memory);
	if (longer->count > MAX_KEYS)
		ok = klm_fail(error, NOT_READY,
					  "Call kliv_mail.rotate_key() in the databases that need old ones; the labels "
					  "in pg_shseclabel name them.",
					  "%s has %d keys, and databases need all of them", klm_ring_source(),
					  longer->count - 1);
	else
		ok = write_ring(longer, true, &exists, error);
	klm_secret_wipe(longer_memory);
	return ok;
}

/* Was the newest key made within a day?  The file is written when a key is added. */
static bool
key_file_is_young(void)
{
	struct stat st;

	return stat(klm_key_file, &st) == 0 && st.st_mtime > time(NULL) - SECS_PER_DAY;
}

/* Does a database's label name the key? */
static bool
is_named(const KlmKey *key, const KlmKeyUse *use)
{
	for (int i = 0; i < use->named_count; i++)
		if (strcmp(use->named[i], key->id) == 0)
			return true;
	return false;
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
		return klm_fail(error, NOT_READY, hint, "%s is too short to hold a key (%zu bytes)", source,
						text->length);
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
		unsigned char bytes[KLM_KEY_BYTES];
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
			return klm_fail(error, NOT_READY, hint, "line %d of %s is no key", line_number, source);
		}
		if (length[words - 1] != KEY_HEX ||
			sodium_hex2bin(bytes, sizeof(bytes), word[words - 1], KEY_HEX,
						   NULL, &count, NULL) != 0 || count != KLM_KEY_BYTES)
		{
			klm_secret_wipe(*memory);
			return klm_fail(error, NOT_READY, hint,
							"the key in line %d of %s is not 64 hexadecimal digits",
							line_number, source);
		}
		if (is_root)
		{
			result->has_root = true;
			memcpy(result->root, bytes, KLM_KEY_BYTES);
		}
		else
		{
			KlmKey	   *key = &result->keys[result->count++];

			memcpy(key->key, bytes, KLM_KEY_BYTES);
			key_id(key->key, key->id);
			if (words == 4 &&
				(length[2] != KLM_KEY_ID_LENGTH ||
				 memcmp(word[2], key->id, KLM_KEY_ID_LENGTH) != 0))
			{
				sodium_memzero(bytes, sizeof(bytes));
				klm_secret_wipe(*memory);
				return klm_fail(error, NOT_READY,
								hint, "the key in line %d of %s does not belong to its id",
							line_number, source);
			}
		}
		sodium_memzero(bytes, sizeof(bytes));
	}
	if (result->count == 0 || !result->has_root)
	{
		bool		no_key = (result->count == 0);

		klm_secret_wipe(*memory);
		return klm_fail(error, NOT_READY, hint, "%s has no line \"kliv_mail %s\"", source,
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
	KeyCommand	command;

	if (!start_key_command(&command, error))
		return false;
	PG_TRY();
	{
		while (look_at_command(&command) == COMMAND_RUNS)
			wait_for_command(&command, KEY_COMMAND_SECONDS * 1000L);
	}
	PG_CATCH();
	{
		end_key_command(&command);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return take_output(&command, output, error);
}

/* Read what there is, and tell how the command stands; does not wait. */
static CommandEnd
look_at_command(KeyCommand *command)
{
	ssize_t		n;

	if (command->end != COMMAND_RUNS)
		return command->end;
	while (!command->closed && command->have < command->buffer->length)
	{
		n = read(command->fd, command->buffer->data + command->have,
				 command->buffer->length - command->have);
		if (n > 0)
			command->have += n;
		else if (n == 0 || (errno != EINTR && errno != EAGAIN))
			command->closed = true;
		else if (errno == EAGAIN)
			break;
	}

	/* Whoever closes its output need not have ended. */
	if (command->closed && waitpid(command->pid, &command->status, WNOHANG) == command->pid)
		command->end = COMMAND_ENDED;
	else if (command->have == command->buffer->length)
		command->end = COMMAND_TALKS;
	else if (ShutdownRequestPending || (klm_key_wait_ends && klm_key_wait_ends()))
		command->end = COMMAND_STOPPED;
	else if (GetCurrentTimestamp() >= command->deadline)
		command->end = COMMAND_HANGS;
	return command->end;
}

/* Sleep until the command says something, at most so long. */
static void
wait_for_command(const KeyCommand *command, long timeout_ms)
{
	int			events = WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH;

	if (command->closed)
		timeout_ms = Min(timeout_ms, EXIT_POLL_MS);
	else
		events |= WL_SOCKET_READABLE;
	if (WaitLatchOrSocket(MyLatch, events, command->fd, timeout_ms, PG_WAIT_EXTENSION) &
		WL_LATCH_SET)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
}

static void
end_key_command(KeyCommand *command)
{
	close(command->fd);
	if (command->end != COMMAND_ENDED)
	{
		kill(-command->pid, SIGKILL);
		while (waitpid(command->pid, &command->status, 0) < 0 && errno == EINTR)
			;
	}
}

/* End it, and give what it printed, or say what was wrong with it. */
static bool
take_output(KeyCommand *command, KlmSecret **output, KlmError *error)
{
	end_key_command(command);
	if (command->end == COMMAND_ENDED && command->status == 0 && command->have > 0)
		*output = klm_secret_create(command->buffer->data, command->have);
	klm_secret_wipe(command->buffer);
	return command_ended_well(command, error);
}

/* The sender ends while the command runs. */
static void
end_fetching(int code, Datum argument)
{
	if (fetch.running)
		end_key_command(&fetch.command);
	fetch.running = false;
}

void
klm_ring_fetch(void)
{
	MemoryContext old;
	TimestampTz until = GetCurrentTimestamp();
	KlmError	error = {0};
	KlmSecret  *output = NULL;

	if (klm_key_command == NULL || klm_key_command[0] == '\0')
	{
		fetch.used = false;
		return;
	}
	if (!fetch.used)
	{
		on_proc_exit(end_fetching, (Datum) 0);
		until = TimestampTzPlusMilliseconds(until, FETCH_FIRST_MS);
	}
	fetch.used = true;
	if (!fetch.running && GetCurrentTimestamp() < fetch.again_at)
		return;

	old = MemoryContextSwitchTo(TopMemoryContext);
	if (!fetch.running)
		fetch.running = start_key_command(&fetch.command, &error);
	while (fetch.running && look_at_command(&fetch.command) == COMMAND_RUNS)
	{
		long		left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);

		if (left <= 0)
		{
			MemoryContextSwitchTo(old);
			return;
		}
		wait_for_command(&fetch.command, left);
		/* The latch may have told our caller something, too. */
		SetLatch(MyLatch);
	}
	if (fetch.running)
		(void) take_output(&fetch.command, &output, &error);
	fetch.running = false;
	klm_secret_wipe(fetch.output);
	fetch.output = output;
	strlcpy(fetch.problem, error.message ? error.message : "", sizeof(fetch.problem));
	fetch.again_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
												 output ? FETCH_GOOD_MS : FETCH_BAD_MS);
	MemoryContextSwitchTo(old);
}

/* What klm_ring_fetch() got. */
static bool
fetched_output(KlmSecret **output, KlmError *error)
{
	if (fetch.output == NULL)
		return klm_fail(error, NOT_READY, COMMAND_HINT, "%s", fetch.problem[0] ? fetch.problem :
						"\"kliv_mail.key_command\" has not ended yet");
	*output = klm_secret_create(fetch.output->data, fetch.output->length);
	return true;
}

/* sh -c "the command", its standard output on a pipe. */
static bool
start_key_command(KeyCommand *command, KlmError *error)
{
	char	   *argv[] = {"sh", "-c", klm_key_command, NULL};
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t	signals;
	int			pipes[2];
	int			result;

	if (pipe2(pipes, O_CLOEXEC) != 0)
		return klm_fail(error, NOT_READY, NULL,
						"\"kliv_mail.key_command\" could not be started: %m");
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
	result = posix_spawn(&command->pid, "/bin/sh", &actions, &attributes, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	close(pipes[1]);
	if (result != 0)
	{
		close(pipes[0]);
		errno = result;
		return klm_fail(error, NOT_READY, NULL,
						"\"kliv_mail.key_command\" could not be started: %m");
	}
	fcntl(pipes[0], F_SETFL, O_NONBLOCK);
	command->fd = pipes[0];
	command->closed = false;
	command->end = COMMAND_RUNS;
	command->status = 0;
	command->have = 0;
	command->buffer = klm_secret_create(NULL, KEY_OUTPUT_MAX + 1);
	command->deadline = GetCurrentTimestamp() + KEY_COMMAND_SECONDS * USECS_PER_SEC;
	return true;
}

static bool
command_ended_well(const KeyCommand *command, KlmError *error)
{
	switch (command->end)
	{
		case COMMAND_TALKS:
			return klm_fail(error, NOT_READY, COMMAND_HINT,
							"\"kliv_mail.key_command\" printed more than %d kB",
							KEY_OUTPUT_MAX / 1024);
		case COMMAND_STOPPED:
			return klm_fail(error, NOT_READY, NULL,
							"\"kliv_mail.key_command\" was ended by a shutdown");
		case COMMAND_ENDED:
			if (command->status != 0)
				return klm_fail(error, NOT_READY, COMMAND_HINT,
								"\"kliv_mail.key_command\" failed: %s",
								wait_result_to_str(command->status));
			if (command->have == 0)
				return klm_fail(error, NOT_READY, COMMAND_HINT,
								"\"kliv_mail.key_command\" printed nothing");
			return true;
		default:
			return klm_fail(error, NOT_READY, COMMAND_HINT,
							"\"kliv_mail.key_command\" did not end within %d s",
							KEY_COMMAND_SECONDS);
	}
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
	char	   *shown = klm_path_text(klm_key_file);
	char	   *directory = pstrdup(klm_key_file);
	KlmSecret  *text = klm_secret_create(NULL, (Size) (ring->count + 1) * 96);
	char		hex[KEY_HEX + 1];
	Size		length;
	Size		done = 0;
	int			fd;
	bool		ok = false;

	*exists = false;
	sodium_bin2hex(hex, sizeof(hex), ring->root, KLM_KEY_BYTES);
	length = snprintf(text->data, text->length, "kliv_mail root %s\n", hex);
	for (int i = 0; i < ring->count; i++)
	{
		sodium_bin2hex(hex, sizeof(hex), ring->keys[i].key, KLM_KEY_BYTES);
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
		klm_fail(error, NOT_READY, hint, "the key file \"%s\" could not be created: %m", shown);
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
		klm_fail(error, NOT_READY, hint, "the key file \"%s\" could not be written: %m", shown);
	else if (pg_fsync(fd) != 0)
		klm_fail(error, NOT_READY,
				 hint, "the key file \"%s\" could not be flushed to disk: %m", shown);
	else
		ok = true;
	klm_secret_wipe(text);
	CloseTransientFile(fd);

	/* link() never replaces anything and never shows half a file. */
	if (ok && replace && rename(temp, klm_key_file) != 0)
		ok = klm_fail(error, NOT_READY,
					  hint, "the key file \"%s\" could not be replaced: %m", shown);
	if (ok && !replace && link(temp, klm_key_file) != 0)
	{
		*exists = (errno == EEXIST);
		ok = klm_fail(error, NOT_READY,
					  hint, "the key file \"%s\" could not be created: %m", shown);
	}
	if (!ok || !replace)
		unlink(temp);
	get_parent_directory(directory);
	if (ok && fsync_fname_ext(directory[0] ? directory : ".", true, false, LOG) != 0)
		ok = klm_fail(error, NOT_READY,
					  hint, "the directory of \"%s\" could not be flushed to disk", shown);
	return ok;
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
					   key, KLM_KEY_BYTES);
	sodium_bin2hex(id, KLM_KEY_ID_LENGTH + 1, hash, KLM_KEY_ID_LENGTH / 2);
}
