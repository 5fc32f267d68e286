/*-------------------------------------------------------------------------
 *
 * address_guard.h
 *		Which addresses are closed to accounts that users configure.
 *
 * Pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ADDRESS_GUARD_H
#define KLM_ADDRESS_GUARD_H

#include "base/kliv_mail.h"

/*
 * Is an address (AF_INET or AF_INET6, network order) closed to accounts that
 * users configure: this machine's own (own), loopback, link-local or private,
 * and neither it nor the host named in allowed (as kliv_mail.allowed_hosts, or
 * NULL)?
 */
extern bool klm_address_closed(const char *allowed, const char *host, int family,
							   const void *address, bool own);

/*
 * The address that the network sees: where one of IPv6 is one of IPv4 in
 * disguise (::ffff:192.0.2.1), that one, and family is AF_INET then.
 */
extern const void *klm_unmap_address(int *family, const void *address);

#endif							/* KLM_ADDRESS_GUARD_H */
