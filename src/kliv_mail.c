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
#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "base/compat.h"
#include "base/error.h"
#include "base/guc.h"
#include "cluster/database_label.h"
#include "cluster/slots.h"
#include "hooks/ddl.h"
#include "hooks/fresh_settings.h"
#include "hooks/secrets_in_logs.h"
#include "hooks/slips.h"
#include "message/address.h"
#include "worker/launcher.h"

KLM_MODULE_MAGIC("kliv_mail");

extern PGDLLEXPORT void _PG_init(void);

static bool check_address(char **newval, void **extra, GucSource source);

/*
 * Without the preload (a session loads the library at its first use) there is
 * no shared memory, and so no launcher and no sender for the hook to move out
 * of the way: mail is queued and waits.
 */
void
_PG_init(void)
{
	klm_define_settings(check_address);
	klm_label_init();
	klm_loghook_init();
	klm_slips_init();

	if (!process_shared_preload_libraries_in_progress)
		return;

	klm_shmem_init();
	klm_utility_init();
	klm_fresh_settings_init();
	klm_launcher_init();
}

/* The check hook of settings that hold an address: base/ has them, message/ the grammar. */
static bool
check_address(char **newval, void **extra, GucSource source)
{
	KlmAddress	address;
	KlmError	error;

	if (*newval == NULL || **newval == '\0')
		return true;

	/* A configuration file has no encoding of its own. */
	if (!pg_verify_mbstr(PG_UTF8, *newval, strlen(*newval), true))
	{
		GUC_check_errdetail("An address must be in UTF-8.");
		return false;
	}
	if (!klm_parse_address(*newval, &address, &error))
	{
		GUC_check_errdetail("It is not an address: %s.", error.message);
		if (error.hint != NULL)
			GUC_check_errhint("%s", error.hint);
		return false;
	}
	return true;
}
