/*-------------------------------------------------------------------------
 *
 * keys.c
 *		SQL functions: public_key, rotate_key, and what views say of the ring.
 *
 * In kliv_mail_net.  Calls secret/ for the keys and db/owner_call for what is
 * sealed with them.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "db/account.h"
#include "db/owner_call.h"
#include "functions/account_arguments.h"
#include "secret/key_ring.h"
#include "secret/seal.h"

PG_FUNCTION_INFO_V1(kliv_mail_public_key);
PG_FUNCTION_INFO_V1(kliv_mail_rotate_key);
PG_FUNCTION_INFO_V1(kliv_mail__key_ring);

static bool first_key_allowed(void);
static void read_named_keys(KlmKeyUse *use);

Datum
kliv_mail_public_key(PG_FUNCTION_ARGS)
{
	KlmCaller caller;
	KlmError	error;
	KlmDomain	domain;
	MemoryContext context = CurrentMemoryContext;
	bytea	   *key;
	bool		may_create;

	klm_enter_owner(fcinfo, &caller);
	klm_load_domain(&domain);
	may_create = first_key_allowed();
	/* Last, since a statement leaves SPI's memory current, which goes with the owner. */
	MemoryContextSwitchTo(context);
	if (!klm_public_key(&domain, may_create, &key, &error))
		klm_raise(NULL, &error, false);
	klm_leave_owner(&caller);
	PG_RETURN_BYTEA_P(key);
}

/*
 * Everything that is sealed here is opened before the key is added, and sealed
 * anew after it, in one transaction under the lock of all changes: whoever
 * reads a row in between finds the old ciphertext and, in the ring, its key.
 */
Datum
kliv_mail_rotate_key(PG_FUNCTION_ARGS)
{
	KlmCaller caller;
	KlmCall		call = {0};
	KlmError	error;
	SPITupleTable *rows;
	TupleDesc	desc;
	KlmSecret **passwords;
	KlmSecret **usernames;
	KlmBinding *bindings;
	int			count;
	KlmKeyUse	use = {0};
	bool		isnull;
	KlmDomain	domain;

	PreventCommandIfReadOnly("kliv_mail.rotate_key()");
	klm_enter_owner(fcinfo, &caller);
	klm_load_domain(&domain);
	klm_add_text(&call, NULL);
	klm_add(&call, TIMESTAMPTZOID, (Datum) 0, true);
	klm_run(&call, "lock_accounts", false);
	use.may_create = klm_result_bool(1);
	use.young_too = superuser_arg(caller.user);
	read_named_keys(&use);

	memset(&call, 0, sizeof(call));
	klm_run(&call, "sealed_accounts", false);
	rows = SPI_tuptable;
	desc = rows->tupdesc;
	count = (int) SPI_processed;
	passwords = palloc0(sizeof(KlmSecret *) * (count + 1));
	usernames = palloc0(sizeof(KlmSecret *) * (count + 1));
	bindings = palloc0(sizeof(KlmBinding) * (count + 1));
	for (int i = 0; i < count; i++)
	{
		HeapTuple	row = rows->vals[i];
		char	   *key = klm_saved_text(row, desc, "key_id");
		Datum		cipher;

		bindings[i].domain = &domain;
		bindings[i].account = klm_saved_text(row, desc, "name");
		bindings[i].host = klm_saved_text(row, desc, "host");
		bindings[i].port = DatumGetInt32(klm_saved_column(row, desc, "port", &isnull));
		cipher = klm_saved_column(row, desc, "username_cipher", &isnull);
		if (!isnull && !klm_open(DatumGetByteaPP(cipher), key, &bindings[i], &usernames[i], NULL,
								 &error))
			klm_raise(psprintf("account \"%s\"", bindings[i].account), &error, false);
		bindings[i].username = usernames[i] ? usernames[i]->data :
			klm_saved_text(row, desc, "username");
		cipher = klm_saved_column(row, desc, "password_cipher", &isnull);
		if (!isnull && !klm_open(DatumGetByteaPP(cipher), key, &bindings[i], &passwords[i], NULL,
								 &error))
			klm_raise(psprintf("account \"%s\"", bindings[i].account), &error, false);
	}

	if (!klm_add_key(&use, &error))
		klm_raise(NULL, &error, false);

	for (int i = 0; i < count; i++)
	{
		bytea	   *password = NULL;
		bytea	   *username = NULL;
		char	   *key = NULL;

		if (passwords[i] && !klm_seal(passwords[i], &bindings[i], false, &password, &key, &error))
			klm_raise(NULL, &error, false);
		if (usernames[i])
		{
			bindings[i].username = NULL;
			if (!klm_seal(usernames[i], &bindings[i], false, &username, &key, &error))
				klm_raise(NULL, &error, false);
		}
		memset(&call, 0, sizeof(call));
		klm_add_text(&call, bindings[i].account);
		klm_add_bytea(&call, username);
		klm_add_bytea(&call, password);
		klm_add_text(&call, key);
		klm_run(&call, "reseal_account", false);
		klm_secret_wipe(passwords[i]);
		klm_secret_wipe(usernames[i]);
	}

	memset(&call, 0, sizeof(call));
	klm_run(&call, "label", false);
	klm_add_text(&call, "key_rotated");
	klm_add_text(&call, NULL);
	klm_add_text(&call, psprintf("%d accounts were encrypted anew", count));
	klm_add(&call, JSONBOID, (Datum) 0, true);
	klm_add_caller(&call, &caller);
	klm_run(&call, "log_event", false);
	klm_leave_owner(&caller);
	PG_RETURN_INT32(count);
}

/* (ids text[], missing boolean, problem text, hint text) */
Datum
kliv_mail__key_ring(PG_FUNCTION_ARGS)
{
	TupleDesc	desc;
	Datum		values[4] = {0};
	bool		nulls[4] = {true, false, true, true};
	char	  **ids;
	int			count;
	bool		missing;
	KlmError	error;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (klm_key_ids(&ids, &count, &missing, &error))
	{
		Datum	   *elements = palloc(sizeof(Datum) * count);

		for (int i = 0; i < count; i++)
			elements[i] = CStringGetTextDatum(ids[i]);
		values[0] = PointerGetDatum(construct_array(elements, count, TEXTOID, -1, false,
													TYPALIGN_INT));
		nulls[0] = false;
	}
	else
	{
		values[2] = CStringGetTextDatum(klm_from_utf8(error.message));
		nulls[2] = false;
		if (error.hint)
		{
			values[3] = CStringGetTextDatum(klm_from_utf8(error.hint));
			nulls[3] = false;
		}
	}
	values[1] = BoolGetDatum(missing);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* May the first key be made: are we primary, and does nothing that is stored name one? */
static bool
first_key_allowed(void)
{
	KlmCall		call = {0};
	bool		allowed;

	if (RecoveryInProgress())
		return false;
	klm_run_one(&call, "first_key_allowed", false);
	allowed = klm_result_bool(1);
	return allowed;
}

/* The ids of the keys that the labels of all databases name. */
static void
read_named_keys(KlmKeyUse *use)
{
	KlmCall		call = {0};

	klm_run(&call, "named_keys", false);
	use->named_count = (int) SPI_processed;
	use->named = palloc(sizeof(char *) * (use->named_count + 1));
	for (int i = 0; i < use->named_count; i++)
		use->named[i] = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
}
