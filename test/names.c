/*-------------------------------------------------------------------------
 *
 * names.c
 *		Names and ports of the world, played on this machine.
 *
 * Preloaded (LD_PRELOAD) into the PostgreSQL of a test.  It stands between the
 * C library and whoever asks it for an address or a connection: the lines of
 * the file that KLIV_MAIL_TEST_NAMES names, "name address port real-port",
 * answer for the DNS, and lead a connection to address and port to the port
 * that the test's server has.  The address "-" means that there is none, "..."
 * that the answer takes 2 s.  So the real host names and ports are asked for,
 * looked at by the address guard and checked against certificates, without
 * root, a name server or a namespace, which a container may forbid.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct Line
{
	char		name[256];
	char		address[64];
	int			port;
	int			real_port;
} Line;

/* The first line of that name, or of that address and port. */
static int
find(const char *name, const char *address, int port, Line *line)
{
	const char *path = getenv("KLIV_MAIL_TEST_NAMES");
	FILE	   *file = path ? fopen(path, "re") : NULL;
	int			found = 0;

	if (file == NULL)
		return 0;
	while (!found && fscanf(file, "%255s %63s %d %d", line->name, line->address, &line->port,
							&line->real_port) == 4)
		found = name ? strcasecmp(line->name, name) == 0 :
			strcmp(line->address, address) == 0 && line->port == port;
	fclose(file);
	return found;
}

int
getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
			struct addrinfo **result)
{
	int			(*real) (const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		dlsym(RTLD_NEXT, "getaddrinfo");
	Line		line;

	if (name && find(name, NULL, 0, &line))
	{
		if (strcmp(line.address, "...") == 0)
			sleep(2);
		if (line.address[0] == '-' || line.address[0] == '.')
			return EAI_NONAME;
		/* Asked for IPv6 only: such a name has none. */
		if (hints && hints->ai_family == AF_INET6)
			return EAI_NONAME;
		return real(line.address, service, hints, result);
	}
	return real(name, service, hints, result);
}

int
connect(int fd, const struct sockaddr *address, socklen_t length)
{
	int			(*real) (int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
	struct sockaddr_in changed;
	char		text[64];
	Line		line;

	if (address && address->sa_family == AF_INET && length >= sizeof(changed))
	{
		memcpy(&changed, address, sizeof(changed));
		if (inet_ntop(AF_INET, &changed.sin_addr, text, sizeof(text)) &&
			find(NULL, text, ntohs(changed.sin_port), &line))
		{
			changed.sin_port = htons(line.real_port);
			return real(fd, (struct sockaddr *) &changed, sizeof(changed));
		}
	}
	return real(fd, address, length);
}
