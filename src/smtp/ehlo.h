/*-------------------------------------------------------------------------
 *
 * ehlo.h
 *		What a server offers in its reply to EHLO.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_EHLO_H
#define KLM_EHLO_H

#include "base/kliv_mail.h"

/* What the last EHLO reply offers. */
typedef struct KlmSmtpCaps
{
	bool		pipelining;
	bool		chunking;
	bool		smtputf8;
	bool		eightbitmime;
	bool		dsn;
	bool		starttls;
	bool		auth;
	char		auth_mechanisms[256];	/* "PLAIN LOGIN" */
	bool		size_offered;	/* the SIZE extension, so that MAIL may state ours */
	uint64		size;			/* its limit; 0: none stated */
} KlmSmtpCaps;

/* Parse the bytes of a whole EHLO reply; keywords without case. */
extern void klm_smtp_parse_ehlo(const char *raw, Size length, KlmSmtpCaps *caps);

/* Is the mechanism among those that the server offers? */
extern bool klm_smtp_offers(const KlmSmtpCaps *caps, const char *mechanism);

#endif							/* KLM_EHLO_H */
