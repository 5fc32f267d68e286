/*-------------------------------------------------------------------------
 *
 * kliv_mail.c
 *		The preloaded library: its magic block and _PG_init.
 *
 * Words, used everywhere: a "message" is what one send() made; a "delivery" is
 * one message to one recipient, the unit of queueing, quota and tracking; the
 * "outbox" holds the deliveries that are not finished; an "account" is an SMTP
 * server with credentials, sender identity and limits; a "verdict" is what a
 * reply means.  src/README.md has the rest.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "base/compat.h"
#include "base/guc.h"
#include "hooks/hooks.h"
#include "cluster/slots.h"

KLM_MODULE_MAGIC("kliv_mail");

extern PGDLLEXPORT void _PG_init(void);

/*
 * Without the preload (a session loads the library at its first use) there is
 * no shared memory, and so no launcher and no sender for the hook to move out
 * of the way: mail is queued and waits.
 */
void
_PG_init(void)
{
	klm_define_settings();
	klm_label_init();
	klm_loghook_init();

	if (!process_shared_preload_libraries_in_progress)
		return;

	klm_shmem_init();
	klm_utility_init();
	klm_launcher_init();
	klm_keycheck_init();
}
