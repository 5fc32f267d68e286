/*-------------------------------------------------------------------------
 *
 * kliv_mail_template.c
 *		The library of templates: its magic block and _PG_init.
 *
 * What needs md4c is here, so that only sessions that use a template carry it,
 * and they carry neither libcurl nor libsodium for it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"

#include "base/compat.h"
#include "base/kliv_mail.h"

KLM_MODULE_MAGIC("kliv_mail_template");

extern PGDLLEXPORT void _PG_init(void);

/* As kliv_mail_net's. */
void
_PG_init(void)
{
	load_file("$libdir/kliv_mail", false);
}
