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
 * root, a name server or a namespace, which a container may forbid.  So the folder
 * KLIV_MAIL_TEST_CERTS stands for the system's own of certificate authorities.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dlfcn.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct Line
{
	char		name[256];
	char		address[64];
	int			port;
	int			real_port;
} Line;

/* The path below our folder where it is one below the system's. */
static const char *
own_path(const char *path, char *buffer, size_t size)
{
	static const char system_folder[] = "/etc/ssl/certs/";
	const char *folder = getenv("KLIV_MAIL_TEST_CERTS");

	if (folder == NULL || strncmp(path, system_folder, strlen(system_folder)) != 0)
		return path;
	snprintf(buffer, size, "%s/%s", folder, path + strlen(system_folder));
	return buffer;
}

FILE *
fopen(const char *path, const char *mode)
{
	FILE	   *(*real) (const char *, const char *) = dlsym(RTLD_NEXT, "fopen");
	char		buffer[1024];

	return real(own_path(path, buffer, sizeof(buffer)), mode);
}

FILE *
fopen64(const char *path, const char *mode)
{
	FILE	   *(*real) (const char *, const char *) = dlsym(RTLD_NEXT, "fopen64");
	char		buffer[1024];

	return real(own_path(path, buffer, sizeof(buffer)), mode);
}

int
stat(const char *path, struct stat *result)
{
	int			(*real) (const char *, struct stat *) = dlsym(RTLD_NEXT, "stat");
	char		buffer[1024];

	return real(own_path(path, buffer, sizeof(buffer)), result);
}

int
lstat(const char *path, struct stat *result)
{
	int			(*real) (const char *, struct stat *) = dlsym(RTLD_NEXT, "lstat");
	char		buffer[1024];

	return real(own_path(path, buffer, sizeof(buffer)), result);
}

static FILE *
open_names(void)
{
	const char *path = getenv("KLIV_MAIL_TEST_NAMES");

	return path ? fopen(path, "re") : NULL;
}

static int
next_line(FILE *file, Line *line)
{
	return fscanf(file, "%255s %63s %d %d", line->name, line->address, &line->port,
				  &line->real_port) == 4;
}

int
getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
			struct addrinfo **result)
{
	int			(*real) (const char *, const char *, const struct addrinfo *, struct addrinfo **) =
		dlsym(RTLD_NEXT, "getaddrinfo");
	struct addrinfo **end = result;
	FILE	   *file = name ? open_names() : NULL;
	int			ours = 0;
	char		last[64] = "";
	Line		line;

	*result = NULL;
	while (file && next_line(file, &line))
	{
		if (strcasecmp(line.name, name) != 0 || strcmp(line.address, last) == 0)
			continue;
		ours = 1;
		strcpy(last, line.address);
		if (strcmp(line.address, "...") == 0)
			sleep(2);
		/* All that we know is IPv4; several addresses are answered in their order. */
		if (isdigit((unsigned char) line.address[0]) && !(hints && hints->ai_family == AF_INET6) &&
			real(line.address, service, hints, end) == 0)
			while (*end)
				end = &(*end)->ai_next;
	}
	if (file)
		fclose(file);
	if (!ours)
		return real(name, service, hints, result);
	return *result ? 0 : EAI_NONAME;
}

/* The addresses of the name "this-machine" are interfaces of it. */
static struct ifaddrs own;
static struct sockaddr_in own_address;

int
getifaddrs(struct ifaddrs **list)
{
	int			(*real) (struct ifaddrs **) = dlsym(RTLD_NEXT, "getifaddrs");
	int			result = real(list);
	FILE	   *file = open_names();
	Line		line;

	while (result == 0 && file && next_line(file, &line))
		if (strcmp(line.name, "this-machine") == 0)
		{
			own_address.sin_family = AF_INET;
			inet_pton(AF_INET, line.address, &own_address.sin_addr);
			own.ifa_addr = (struct sockaddr *) &own_address;
			own.ifa_next = *list;
			*list = &own;
			break;
		}
	if (file)
		fclose(file);
	return result;
}

void
freeifaddrs(struct ifaddrs *list)
{
	void		(*real) (struct ifaddrs *) = dlsym(RTLD_NEXT, "freeifaddrs");

	real(list == &own ? own.ifa_next : list);
}

int
connect(int fd, const struct sockaddr *address, socklen_t length)
{
	int			(*real) (int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
	struct sockaddr_in changed;
	char		text[64];
	FILE	   *file;
	Line		line;

	if (address == NULL || address->sa_family != AF_INET || length < sizeof(changed))
		return real(fd, address, length);
	memcpy(&changed, address, sizeof(changed));
	inet_ntop(AF_INET, &changed.sin_addr, text, sizeof(text));
	file = open_names();
	while (file && next_line(file, &line))
		if (strcmp(line.address, text) == 0 && line.port == ntohs(changed.sin_port))
		{
			changed.sin_port = htons(line.real_port);
			break;
		}
	if (file)
		fclose(file);
	return real(fd, (struct sockaddr *) &changed, sizeof(changed));
}
