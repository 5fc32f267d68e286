/*-------------------------------------------------------------------------
 *
 * address.h
 *		RFC 5321/5322 addresses: parse, check, write.
 *
 * Layer: pure (palloc only).  All text is UTF-8.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ADDRESS_H
#define KLM_ADDRESS_H

#include "base/error.h"

typedef struct KlmAddress
{
	char	   *name;			/* display name, decoded, not quoted; NULL if none */
	char	   *addr;			/* addr-spec as it goes on the wire: local part
								 * quoted where needed, domain in lower-case A-labels */
	bool		smtputf8;		/* the local part is not ASCII (RFC 6531) */
} KlmAddress;

/*
 * Parse an RFC 5322 address list ("Ana <ana@example.com>, bob@example.org").
 * Exact repeats (same addr) are merged, the first one's name stays.  The array
 * is palloc'd.  An empty list, a group, a separator other than ',', a control
 * or bidi character, a bad address: false with *error filled.
 */
extern PGDLLEXPORT bool klm_parse_address_list(const char *list, KlmAddress **addresses, int *count,
								   KlmError *error);

/* Exactly one address, with or without a display name. */
extern PGDLLEXPORT bool klm_parse_address(const char *text, KlmAddress *address, KlmError *error);

/*
 * "Name <addr>" for use in a header *value that the caller still has to
 * encode*, or in a list given to klm_parse_address_list(): the name quoted as
 * needed, UTF-8 kept.  For RFC 2047 encoded header lines see compose.h.
 */
extern char *klm_format_address(const char *name, const char *addr);

/*
 * May an account send as addr?  It may as its own from_address (or NULL) and as
 * its allowed senders, addresses or "@domain", of which NULL is none.  Domains
 * compare without case, local parts exactly.  SQL asks it by _may_send_as().
 */
extern PGDLLEXPORT bool klm_may_send_as(const char *addr, const char *from_address,
										char **senders, int count);

#endif							/* KLM_ADDRESS_H */
