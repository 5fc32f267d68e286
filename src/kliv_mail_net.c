/*-------------------------------------------------------------------------
 *
 * kliv_mail_net.c
 *		The second library: its magic block and _PG_init.
 *
 * What needs libcurl or libsodium is here, so that the processes that never
 * connect nor decrypt do not carry them.  Senders load it, and a session at
 * its first use of such a function.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

#include "base/compat.h"
#include "base/kliv_mail.h"

KLM_MODULE_MAGIC("kliv_mail_net");

extern PGDLLEXPORT void _PG_init(void);

/*
 * The dynamic linker has brought kliv_mail along, whose symbols are used here;
 * its settings exist once PostgreSQL has loaded it, too.  libcurl and libsodium
 * are initialized at their first use.
 */
void
_PG_init(void)
{
	load_file("$libdir/kliv_mail", false);
}
