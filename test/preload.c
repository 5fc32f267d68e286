/*-------------------------------------------------------------------------
 *
 * preload.c
 *		What a test cannot do to a machine that it does not own, for LD_PRELOAD:
 *		a look-up of a name that never ends (never.example), a disk that is
 *		full while the file that KLM_FULL_DISK names exists: then no file of a
 *		database grows; a clock that is off by the seconds that the file
 *		KLM_CLOCK says, while CLOCK_MONOTONIC goes on; and CLOCK_MONOTONIC ahead
 *		by those that the file KLM_MONOTONIC says, for what waits for minutes.
 *
 *		cc -shared -fPIC -o preload.so test/preload.c
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

int
getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
			struct addrinfo **result)
{
	int			(*original) (const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		dlsym(RTLD_NEXT, "getaddrinfo");

	if (node && strcmp(node, "never.example") == 0)
	{
		for (;;)
			sleep(3600);
	}
	return original(node, service, hints, result);
}

/* Would writing there make a database's file longer, on a full disk? */
static int
is_full(int fd, off_t end)
{
	const char *flag = getenv("KLM_FULL_DISK");
	char		link[64];
	char		path[1024];
	ssize_t		length;
	struct stat status;

	if (flag == NULL || access(flag, F_OK) != 0)
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path) - 1);
	if (length < 0)
		return 0;
	path[length] = '\0';
	return strstr(path, "/base/") && fstat(fd, &status) == 0 && end > status.st_size;
}

ssize_t
pwrite(int fd, const void *data, size_t size, off_t offset)
{
	ssize_t		(*original) (int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");

	if (is_full(fd, offset + size))
	{
		errno = ENOSPC;
		return -1;
	}
	return original(fd, data, size, offset);
}

ssize_t
pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
	ssize_t		(*original) (int, const struct iovec *, int, off_t) = dlsym(RTLD_NEXT, "pwritev");
	off_t		end = offset;

	for (int i = 0; i < count; i++)
		end += parts[i].iov_len;
	if (is_full(fd, end))
	{
		errno = ENOSPC;
		return -1;
	}
	return original(fd, parts, count, offset);
}

int
posix_fallocate(int fd, off_t offset, off_t length)
{
	int			(*original) (int, off_t, off_t) = dlsym(RTLD_NEXT, "posix_fallocate");

	return is_full(fd, offset + length) ? ENOSPC : original(fd, offset, length);
}

/* On 64-bit machines the same functions by other names. */
ssize_t
pwrite64(int fd, const void *data, size_t size, off_t offset)
{
	return pwrite(fd, data, size, offset);
}

ssize_t
pwritev64(int fd, const struct iovec *parts, int count, off_t offset)
{
	return pwritev(fd, parts, count, offset);
}

int
posix_fallocate64(int fd, off_t offset, off_t length)
{
	return posix_fallocate(fd, offset, length);
}

/* The number in the file that the variable names; 0: there is none.  Handlers of signals ask for the time, too. */
static long
number_in(const char *variable)
{
	const char *name = getenv(variable);
	int			file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
	char		text[32] = "";
	ssize_t		length = file >= 0 ? read(file, text, sizeof(text) - 1) : 0;

	if (file >= 0)
		close(file);
	return length > 0 ? atol(text) : 0;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	int			(*original) (struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
	int			result = original(now, zone);

	now->tv_sec += number_in("KLM_CLOCK");
	return result;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int			(*original) (clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
	int			result = original(clock, now);

	if (clock == CLOCK_MONOTONIC)
		now->tv_sec += number_in("KLM_MONOTONIC");
	return result;
}
