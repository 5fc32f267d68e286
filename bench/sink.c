/*-------------------------------------------------------------------------
 *
 * sink.c
 *		An SMTP server that takes everything, for what Postfix's smtp-sink has
 *		not: TLS, a reply to the final dot that takes its time, and the moment of
 *		each reply to it.
 *
 * sink [--tls CERTIFICATE KEY] [--dot MILLISECONDS] [--chunking] [--ledger FILE]
 *
 * It prints the port that it listens at (of 127.0.0.1), and ends with its
 * standard input.  The ledger gets a line for each mail: CLOCK_MONOTONIC in
 * seconds, taken when the 250 was handed to the kernel, and the recipient.
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
#include <openssl/ssl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct Connection
{
	int			fd;
	SSL		   *ssl;
	char		in[65536];
	size_t		in_length;
	char		out[8192];
	size_t		out_length;
	bool		body;			/* between DATA and the final dot */
	size_t		chunk;			/* of BDAT, still to come */
	bool		last;
	bool		quit;
	bool		gone;
	double		reply_at;		/* 0, or when the dot's reply is due */
	char		recipient[256];
	struct Connection *next;	/* that waits for its dot's reply */
} Connection;

static SSL_CTX *tls;
static double dot_delay;
static bool chunking;
static int	ledger = -1;
static int	poller;

/* Each waits as long as any other, so the first that came is the first due. */
static Connection *first_waiting;
static Connection **last_waiting = &first_waiting;

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

/* Its memory stays: what still points to it sees that it is gone. */
static void
hang_up(Connection *c)
{
	if (c->gone)
		return;
	c->gone = true;
	if (c->ssl)
		SSL_free(c->ssl);
	close(c->fd);
}

/* What is said to a client that does not read is lost: none of ours does that. */
static bool
flush_out(Connection *c)
{
	ssize_t		written;

	if (c->out_length == 0)
		return true;
	written = c->ssl ? SSL_write(c->ssl, c->out, c->out_length)
		: write(c->fd, c->out, c->out_length);
	if (written != (ssize_t) c->out_length)
		return false;
	c->out_length = 0;
	return true;
}

static void
say(Connection *c, const char *reply)
{
	size_t		length = strlen(reply);

	if (c->out_length + length > sizeof(c->out))
		flush_out(c);
	if (c->out_length + length <= sizeof(c->out))
	{
		memcpy(c->out + c->out_length, reply, length);
		c->out_length += length;
	}
}

static void
accepted(Connection *c)
{
	say(c, "250 2.0.0 Ok: queued\r\n");
	if (ledger >= 0)
	{
		char		line[320];

		flush_out(c);
		if (write(ledger, line, snprintf(line, sizeof(line), "%.6f %s\n", now(), c->recipient)) < 0)
			fail("ledger");
	}
}

static void
mail_came(Connection *c)
{
	c->body = false;
	if (dot_delay == 0)
	{
		accepted(c);
		return;
	}
	c->reply_at = now() + dot_delay;
	c->next = NULL;
	*last_waiting = c;
	last_waiting = &c->next;
}

static void
command(Connection *c, char *line)
{
	if (strncasecmp(line, "EHLO", 4) == 0)
		say(c, chunking ? "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-CHUNKING\r\n250 SIZE\r\n"
			: "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n");
	else if (strncasecmp(line, "DATA", 4) == 0)
	{
		say(c, "354 End data with <CR><LF>.<CR><LF>\r\n");
		c->body = true;
	}
	else if (strncasecmp(line, "BDAT ", 5) == 0)
	{
		char	   *rest;

		c->chunk = strtoul(line + 5, &rest, 10);
		c->last = strcasestr(rest, "LAST") != NULL;
		if (c->chunk == 0 && c->last)
			mail_came(c);
	}
	else if (strncasecmp(line, "QUIT", 4) == 0)
	{
		say(c, "221 2.0.0 Bye\r\n");
		c->quit = true;
	}
	else
	{
		const char *start;

		if (strncasecmp(line, "RCPT", 4) == 0 && (start = strchr(line, '<')))
			snprintf(c->recipient, sizeof(c->recipient), "%.*s", (int) strcspn(start + 1, ">"), start + 1);
		say(c, "250 2.0.0 Ok\r\n");
	}
}

/* All that is in the buffer, until a reply has to wait. */
static void
work(Connection *c)
{
	size_t		at = 0;

	while (c->reply_at == 0 && !c->quit)
	{
		char	   *from = c->in + at;
		size_t		length = c->in_length - at;

		if (c->chunk > 0)
		{
			size_t		taken = length < c->chunk ? length : c->chunk;

			c->chunk -= taken;
			at += taken;
			if (c->chunk > 0)
				break;
			if (c->last)
				mail_came(c);
			else
				say(c, "250 2.0.0 Ok\r\n");
		}
		else if (c->body)
		{
			char	   *dot = memmem(from, length, "\r\n.\r\n", 5);

			if (!dot)
			{
				at += length > 4 ? length - 4 : 0;
				break;
			}
			at += dot - from + 5;
			mail_came(c);
		}
		else
		{
			char	   *end = memchr(from, '\n', length);
			size_t		size;

			if (!end)
				break;
			*end = '\0';
			size = end - from + 1;
			command(c, from);
			*end = '\n';
			/* The line's own end begins the body, which may be a dot alone. */
			at += c->body ? size - 2 : size;
		}
	}
	memmove(c->in, c->in + at, c->in_length - at);
	c->in_length -= at;
	/* (a line that does not fit is nobody's of ours) */
	if (!flush_out(c) || c->quit || c->in_length == sizeof(c->in))
		hang_up(c);
}

/* Until nothing more is there.  What comes while a dot's reply is due stays in the kernel. */
static void
readable(Connection *c)
{
	while (!c->gone && c->reply_at == 0)
	{
		size_t		room = sizeof(c->in) - c->in_length;
		ssize_t		got = c->ssl ? SSL_read(c->ssl, c->in + c->in_length, room)
			: read(c->fd, c->in + c->in_length, room);

		if (got <= 0)
		{
			if (c->ssl ? SSL_get_error(c->ssl, got) != SSL_ERROR_WANT_READ : got == 0 || errno != EAGAIN)
				hang_up(c);
			return;
		}
		c->in_length += got;
		work(c);
	}
}

static void
welcome(int listener)
{
	Connection *c = calloc(1, sizeof(Connection));
	int			one = 1;
	struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.ptr = c};

	c->fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	if (c->fd < 0)
	{
		free(c);
		return;
	}
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (tls)
	{
		/* The handshake of one client at a time: connections are opened once. */
		fcntl(c->fd, F_SETFL, 0);
		c->ssl = SSL_new(tls);
		SSL_set_fd(c->ssl, c->fd);
		if (SSL_accept(c->ssl) != 1)
		{
			hang_up(c);
			return;
		}
		fcntl(c->fd, F_SETFL, O_NONBLOCK);
	}
	epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
	say(c, "220 sink ESMTP\r\n");
	flush_out(c);
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t	length = sizeof(address);
	int			listener = socket(AF_INET, SOCK_STREAM, 0);
	struct epoll_event event = {.events = EPOLLIN};

	signal(SIGPIPE, SIG_IGN);
	for (int i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "--tls") == 0 && i + 2 < argc)
		{
			tls = SSL_CTX_new(TLS_server_method());
			if (SSL_CTX_use_certificate_chain_file(tls, argv[i + 1]) != 1 ||
				SSL_CTX_use_PrivateKey_file(tls, argv[i + 2], SSL_FILETYPE_PEM) != 1)
				fail("certificate");
			i += 2;
		}
		else if (strcmp(argv[i], "--dot") == 0 && i + 1 < argc)
			dot_delay = atof(argv[++i]) / 1000;
		else if (strcmp(argv[i], "--chunking") == 0)
			chunking = true;
		else if (strcmp(argv[i], "--ledger") == 0 && i + 1 < argc)
			ledger = open(argv[++i], O_WRONLY | O_CREAT | O_APPEND, 0644);
		else
			return fprintf(stderr, "sink: %s is no option\n", argv[i]), 2;
	}
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
		struct epoll_event events[64];
		double		wait = first_waiting ? first_waiting->reply_at - now() : -1;
		struct timespec until = {.tv_sec = 0, .tv_nsec = wait > 0 ? wait * 1e9 : 0};
		int			count = epoll_pwait2(poller, events, 64, first_waiting ? &until : NULL, NULL);

		for (int i = 0; i < count; i++)
		{
			if (events[i].data.ptr == &listener)
				welcome(listener);
			else if (events[i].data.ptr == stdin)
				return 0;
			else
				readable(events[i].data.ptr);
		}
		while (first_waiting && first_waiting->reply_at <= now())
		{
			Connection *c = first_waiting;

			first_waiting = c->next;
			if (!first_waiting)
				last_waiting = &first_waiting;
			c->reply_at = 0;
			accepted(c);
			work(c);
			readable(c);
		}
	}
}
