/*-------------------------------------------------------------------------
 *
 * link.c
 *		A long link to a server of this machine: whatever comes is passed on
 *		some time later, in both directions, and nothing is lost or held up by
 *		a narrow line.  For machines whose kernel has no netem.
 *
 * link PORT MILLISECONDS
 *
 * MILLISECONDS is the round trip.  It prints the port that it listens at (of
 * 127.0.0.1), and ends with its standard input.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* One end; what it reads is the other one's to write. */
typedef struct End
{
	int			fd;
	struct End *other;
	char	   *waiting;		/* that the kernel does not take yet */
	size_t		waiting_length;
	bool		read_all;
	bool		written_all;
	int			in_flight;		/* pieces on their way to it */
} End;

typedef struct Piece
{
	struct Piece *next;
	double		due;
	End		   *to;
	size_t		length;			/* 0: the end */
	char		bytes[];
} Piece;

/* All travel for the same time: the first that came is the first due. */
static Piece *first;
static Piece **last = &first;
static double one_way;
static int	poller;

static double
now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void
fail(const char *what)
{
	perror(what);
	exit(1);
}

static void
watch(End *end, int operation)
{
	struct epoll_event event = {
		.events = (end->read_all ? 0 : EPOLLIN) | (end->waiting ? EPOLLOUT : 0),
		.data.ptr = end
	};

	epoll_ctl(poller, operation, end->fd, &event);
}

static End *dead[1024];
static int	dead_count;

/* Freed when the events at hand have been looked at. */
static void
close_when_done(End *end)
{
	End		   *other = end->other;

	if (end->written_all && other->written_all && end->fd >= 0 && dead_count < 1022)
	{
		close(end->fd);
		close(other->fd);
		end->fd = other->fd = -1;
		dead[dead_count++] = end;
		dead[dead_count++] = other;
	}
}

static void
depart(End *to, const char *bytes, size_t length)
{
	Piece	   *piece = malloc(sizeof(Piece) + length);

	*piece = (Piece) {.due = now() + one_way, .to = to, .length = length};
	if (length > 0)
		memcpy(piece->bytes, bytes, length);
	*last = piece;
	last = &piece->next;
	to->in_flight++;
}

static void
arrive(End *to, const char *bytes, size_t length)
{
	if (to->fd < 0 || to->written_all)
		return;
	if (length == 0)
	{
		to->written_all = true;
		shutdown(to->fd, SHUT_WR);
		close_when_done(to);
		return;
	}
	if (!to->waiting)
	{
		ssize_t		written = send(to->fd, bytes, length, 0);

		if (written < 0 && errno != EAGAIN)
			return;
		if (written == (ssize_t) length)
			return;
		bytes += written > 0 ? written : 0;
		length -= written > 0 ? written : 0;
	}
	to->waiting = realloc(to->waiting, to->waiting_length + length);
	memcpy(to->waiting + to->waiting_length, bytes, length);
	to->waiting_length += length;
	watch(to, EPOLL_CTL_MOD);
}

static void
readable(End *end)
{
	static char bytes[262144];
	ssize_t		got = recv(end->fd, bytes, sizeof(bytes), 0);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0)
	{
		end->read_all = true;
		watch(end, EPOLL_CTL_MOD);
	}
	depart(end->other, bytes, got > 0 ? got : 0);
}

static void
writable(End *end)
{
	ssize_t		written = send(end->fd, end->waiting, end->waiting_length, 0);

	if (written <= 0)
		return;
	end->waiting_length -= written;
	memmove(end->waiting, end->waiting + written, end->waiting_length);
	if (end->waiting_length == 0)
	{
		free(end->waiting);
		end->waiting = NULL;
		watch(end, EPOLL_CTL_MOD);
	}
}

static void
welcome(int listener, struct sockaddr_in *target)
{
	End		   *ends[2] = {calloc(1, sizeof(End)), calloc(1, sizeof(End))};
	int			one = 1;

	ends[0]->fd = accept(listener, NULL, NULL);
	ends[1]->fd = socket(AF_INET, SOCK_STREAM, 0);
	if (ends[0]->fd < 0 || connect(ends[1]->fd, (struct sockaddr *) target, sizeof(*target)) < 0)
		fail("connection");
	for (int i = 0; i < 2; i++)
	{
		ends[i]->other = ends[1 - i];
		setsockopt(ends[i]->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (fcntl(ends[i]->fd, F_SETFL, O_NONBLOCK) < 0)
			fail("socket");
	}
	watch(ends[0], EPOLL_CTL_ADD);
	watch(ends[1], EPOLL_CTL_ADD);
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in target = address;
	socklen_t	length = sizeof(address);
	int			listener = socket(AF_INET, SOCK_STREAM, 0);
	struct epoll_event event = {.events = EPOLLIN};

	if (argc != 3)
		return fprintf(stderr, "link PORT MILLISECONDS\n"), 2;
	signal(SIGPIPE, SIG_IGN);
	target.sin_port = htons(atoi(argv[1]));
	one_way = atof(argv[2]) / 2000;
	if (bind(listener, (struct sockaddr *) &address, sizeof(address)) < 0 || listen(listener, 1024) < 0)
		fail("listen");
	getsockname(listener, (struct sockaddr *) &address, &length);
	printf("%d\n", ntohs(address.sin_port));
	fflush(stdout);

	poller = epoll_create1(0);
	event.data.ptr = &listener;
	epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
	event.data.ptr = stdin;
	epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event);
	for (;;)
	{
		struct epoll_event events[256];
		double		wait = first ? first->due - now() : 0;
		struct timespec until = {.tv_nsec = wait > 0 ? wait * 1e9 : 0};
		int			count = epoll_pwait2(poller, events, 256, first ? &until : NULL, NULL);

		for (int i = 0; i < count; i++)
		{
			End		   *end = events[i].data.ptr;

			if (events[i].data.ptr == &listener)
				welcome(listener, &target);
			else if (events[i].data.ptr == stdin)
				return 0;
			else
			{
				if (events[i].events & EPOLLOUT && end->fd >= 0 && end->waiting)
					writable(end);
				if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR) && end->fd >= 0 && !end->read_all)
					readable(end);
			}
		}
		while (first && first->due <= now())
		{
			Piece	   *piece = first;

			first = piece->next;
			if (!first)
				last = &first;
			piece->to->in_flight--;
			arrive(piece->to, piece->bytes, piece->length);
			free(piece);
		}
		for (int i = 0; i < dead_count; i++)
		{
			if (dead[i]->in_flight > 0)
				continue;
			free(dead[i]->waiting);
			free(dead[i]);
			dead[i--] = dead[--dead_count];
		}
	}
}
