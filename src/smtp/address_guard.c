/*-------------------------------------------------------------------------
 *
 * address_guard.c
 *		Which addresses are closed to accounts that users configure.
 *
 * Pure: no memory, no look-ups.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <sys/socket.h>

#include "smtp/address_guard.h"

/* Do the first bits of two addresses agree? */
static bool
prefix_matches(const uint8 *a, const uint8 *b, int bits)
{
	int			bytes = bits / 8;
	int			rest = bits % 8;

	if (memcmp(a, b, bytes) != 0)
		return false;
	return rest == 0 || ((a[bytes] ^ b[bytes]) >> (8 - rest)) == 0;
}

typedef struct Network
{
	uint8		address[16];
	int			bits;
} Network;

/* Neither loopback, link-local nor private, and nothing else that is no host on the Internet. */
static bool
is_public4(const uint8 *address)
{
	static const Network closed[] = {
		{{0}, 8}, {{10}, 8}, {{100, 64}, 10}, {{127}, 8}, {{169, 254}, 16}, {{172, 16}, 12},
		{{192, 0, 0}, 24}, {{192, 168}, 16}, {{198, 18}, 15}, {{224}, 4}, {{240}, 4}
	};

	for (int i = 0; i < lengthof(closed); i++)
		if (prefix_matches(address, closed[i].address, closed[i].bits))
			return false;
	return true;
}

static bool
is_public6(const uint8 *address)
{
	static const Network closed[] = {
		{{0xfc}, 7},			/* unique local */
		{{0xfe, 0x80}, 10},		/* link-local */
		{{0xfe, 0xc0}, 10},		/* site-local, the old private ones */
		{{0xff}, 8},			/* multicast */
		{{0x00, 0x64, 0xff, 0x9b, 0x00, 0x01}, 48},	/* NAT64 of local use */
		{{0x20, 0x01}, 32},		/* Teredo, which holds two disguised IPv4 addresses */
	};
	/* Forms that hold an IPv4 address, and at which byte. */
	static const struct
	{
		Network		network;
		int			offset;
	}			embedded[] =
	{
		{{{0}, 96}, 12},		/* ::, ::1, compatible */
		{{{0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 96}, 12}, /* translated */
		{{{0x00, 0x64, 0xff, 0x9b}, 96}, 12},	/* NAT64 */
		{{{0x20, 0x02}, 16}, 2},	/* 6to4 */
	};

	for (int i = 0; i < lengthof(closed); i++)
		if (prefix_matches(address, closed[i].address, closed[i].bits))
			return false;
	for (int i = 0; i < lengthof(embedded); i++)
		if (prefix_matches(address, embedded[i].network.address, embedded[i].network.bits))
			return is_public4(address + embedded[i].offset);
	/* ISATAP: below whatever network, with either value of the bit for "global". */
	if ((address[8] & ~0x02) == 0 && address[9] == 0 && address[10] == 0x5e && address[11] == 0xfe)
		return is_public4(address + 12);
	return true;
}

/*
 * Does allowed (names, addresses, networks; commas between) name the host or
 * the address?
 */
static bool
is_allowed(const char *allowed, const char *host, int family, const uint8 *address)
{
	const char *p = allowed ? allowed : "";

	while (*p)
	{
		char		entry[256];
		Size		length;
		char	   *slash;
		uint8		network[16];
		int			bits = family == AF_INET ? 32 : 128;

		p += strspn(p, ", \t\r\n");
		length = strcspn(p, ", \t\r\n");
		if (length > 0 && length < sizeof(entry))
		{
			memcpy(entry, p, length);
			entry[length] = '\0';
			if (pg_strcasecmp(entry, host) == 0)
				return true;
			slash = strchr(entry, '/');
			if (slash != NULL)
			{
				char	   *end;
				long		wanted = strtol(slash + 1, &end, 10);

				*slash = '\0';
				if (slash[1] < '0' || slash[1] > '9' || *end != '\0' || wanted > bits)
					bits = -1;
				else
					bits = wanted;
			}
			if (bits >= 0 && inet_pton(family, entry, network) == 1 &&
				prefix_matches(address, network, bits))
				return true;
		}
		p += length;
	}
	return false;
}

const void *
klm_unmap_address(int *family, const void *address)
{
	static const uint8 mapped[12] = {[10] = 0xff, 0xff};

	if (*family != AF_INET6 || memcmp(address, mapped, sizeof(mapped)) != 0)
		return address;
	*family = AF_INET;
	return (const uint8 *) address + sizeof(mapped);
}

bool
klm_address_closed(const char *allowed, const char *host, int family, const void *address,
				   bool own)
{
	address = klm_unmap_address(&family, address);
	return (own || !(family == AF_INET ? is_public4(address) : is_public6(address))) &&
		!is_allowed(allowed, host, family, address);
}
