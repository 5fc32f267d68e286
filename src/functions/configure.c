/*-------------------------------------------------------------------------
 *
 * configure.c
 *		SQL entry points for accounts: configure_smtp, update_sender, key
 *		rotation, and the way in for the others, which are SQL.
 *
 * Layer: processes and SQL entry points.  In kliv_mail_net.  Sees address.h,
 * providers.h, crypto.h, settings.h, probe.h.
 *
 * configure_smtp() goes in an order that matters: everything is checked, then
 * the network test runs, with no lock held and nothing written; then comes the
 * lock under which accounts change, the password is sealed, and one call
 * writes.  A caller needs EXECUTE and nothing else: we remember who it is and
 * go on as the extension's owner.
 *
 * Whatever configure_smtp() raises hides its statement.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "db/owner_call.h"
#include "functions/configure.h"
#include "message/address.h"
#include "net/probe.h"
#include "smtp/address_guard.h"
#include "smtp/providers.h"

#define MAX_NAME 63
#define MAX_HOST 253
#define MAX_USERNAME 320
#define MAX_PASSWORD 8192
#define MAX_FROM_NAME 200
#define MAX_REPLY_TO 2000
#define MAX_SENDERS 100

#define INVALID ERRCODE_INVALID_PARAMETER_VALUE
#define TOO_LONG ERRCODE_PROGRAM_LIMIT_EXCEEDED

PG_FUNCTION_INFO_V1(kliv_mail_configure_smtp);
PG_FUNCTION_INFO_V1(kliv_mail_update_sender);
PG_FUNCTION_INFO_V1(kliv_mail_as_owner);
PG_FUNCTION_INFO_V1(kliv_mail_public_key);
PG_FUNCTION_INFO_V1(kliv_mail_rotate_key);
PG_FUNCTION_INFO_V1(kliv_mail__key_ring);

static void configure(FunctionCallInfo fcinfo);
static void read_password(FunctionCallInfo fcinfo, KlmRequest *request);
static HeapTuple look(KlmCall *call, const char *function, TupleDesc *desc);
static HeapTuple read_saved(const char *account, TupleDesc *desc);
static void check_limits(const char *account, HeapTuple saved, TupleDesc desc,
						 int *hourly, int *daily);
static void resolve(const KlmRequest *request, HeapTuple row, TupleDesc desc,
					KlmResolved *resolved);
static void check_account_name(const KlmRequest *request);
static void check_password(const KlmProvider *preset, KlmSecret *password, bool secret);
static char *check_host(const char *host, bool secret);
static char *check_from(const char *address, char **name, bool secret);
static char *check_reply_to(const char *list, bool secret);
static Datum check_senders(Datum array, bool secret);
static const char *check_text(const char *argument, const char *value, Size max, bool secret);
static char *saved_text(HeapTuple saved, TupleDesc desc, const char *column);
static Datum saved_column(HeapTuple saved, TupleDesc desc, const char *column, bool *isnull);
static bool same(const char *a, const char *b);
static bool first_key_allowed(void);

/*
 * <function>(...) runs _<function>(caller, ...) as its owner, so that functions
 * that need no C still know who called them: SECURITY DEFINER would forget it.
 */
Datum
kliv_mail_as_owner(PG_FUNCTION_ARGS)
{
	Oid			function = fcinfo->flinfo->fn_oid;
	char	   *name = get_func_name(function);
	KlmCaller caller;
	KlmCall		call = {0};
	Oid		   *types;
	int			count;
	Datum		result = (Datum) 0;

	/* unsubscribe_url() alone writes nothing. */
	if (strcmp(name, "unsubscribe_url") != 0)
		PreventCommandIfReadOnly(psprintf("kliv_mail.%s()", name));
	(void) get_func_signature(function, &types, &count);
	klm_become_owner(function, &caller);
	klm_add_caller(&call, &caller);
	for (int i = 0; i < count; i++)
		klm_add(&call, types[i], PG_GETARG_DATUM(i), PG_ARGISNULL(i));
	SPI_connect();
	klm_run(&call, name, false);
	if (get_func_retset(function))
		klm_return_rows(fcinfo);
	else
	{
		Form_pg_attribute column = TupleDescAttr(SPI_tuptable->tupdesc, 0);

		result = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &fcinfo->isnull);
		if (!fcinfo->isnull)
			result = SPI_datumTransfer(result, column->attbyval, column->attlen);
	}
	SPI_finish();
	klm_become_caller(&caller);
	return result;
}

/* ---- configure_smtp ---- */

/* Positions of the arguments, as sql/install/30_accounts.sql has them. */
enum
{
	ARG_PROVIDER, ARG_HOST, ARG_PORT, ARG_USERNAME, ARG_PASSWORD, ARG_ENCRYPTION, ARG_FROM_ADDRESS,
	ARG_FROM_NAME, ARG_REPLY_TO, ARG_ALLOWED_SENDERS, ARG_HOURLY_LIMIT, ARG_DAILY_LIMIT, ARG_REGION,
	ARG_AUTH, ARG_PASSWORD_SEALED, ARG_PASSWORD_FILE, ARG_TEST, ARG_DRY_RUN, ARG_ACCOUNT
};

Datum
kliv_mail_configure_smtp(PG_FUNCTION_ARGS)
{
	PG_TRY();
	{
		configure(fcinfo);
	}
	PG_CATCH();
	{
		/*
		 * What comes from below, too: no statement in the log, whichever
		 * argument the secret stands in (Postmark's user name is one).
		 */
		errhidestmt(true);
		errhidecontext(true);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return (Datum) 0;
}

static void
configure(FunctionCallInfo fcinfo)
{
	KlmRequest	request = {0};
	KlmResolved resolved;
	KlmCaller caller;
	KlmCall		call = {0};
	KlmBinding	binding;
	KlmError	error;
	HeapTuple	saved;
	TupleDesc	desc;
	bool		test = PG_ARGISNULL(ARG_TEST) || PG_GETARG_BOOL(ARG_TEST);
	bool		dry_run = !PG_ARGISNULL(ARG_DRY_RUN) && PG_GETARG_BOOL(ARG_DRY_RUN);
	const char *from_name;
	char	   *reply_to;
	Datum		senders = (Datum) 0;
	int			hourly = PG_ARGISNULL(ARG_HOURLY_LIMIT) ? -1 : PG_GETARG_INT32(ARG_HOURLY_LIMIT);
	int			daily = PG_ARGISNULL(ARG_DAILY_LIMIT) ? -1 : PG_GETARG_INT32(ARG_DAILY_LIMIT);
	bytea	   *password_cipher = NULL;
	bytea	   *username_cipher = NULL;
	char	   *key_id = NULL;
	char	   *password_masked = NULL;
	const char *username;

	/* dry_run too, which writes and takes it back */
	PreventCommandIfReadOnly("kliv_mail.configure_smtp()");

	request.secret = true;
	request.sender_needed = true;
	request.account = PG_ARGISNULL(ARG_ACCOUNT) ? "custom" : klm_argument(fcinfo, ARG_ACCOUNT);
	request.provider = klm_argument(fcinfo, ARG_PROVIDER);
	request.host = klm_argument(fcinfo, ARG_HOST);
	request.has_port = !PG_ARGISNULL(ARG_PORT);
	request.port = request.has_port ? PG_GETARG_INT32(ARG_PORT) : 0;
	request.username = klm_argument(fcinfo, ARG_USERNAME);
	request.encryption = klm_argument(fcinfo, ARG_ENCRYPTION);
	request.region = klm_argument(fcinfo, ARG_REGION);
	request.auth = klm_argument(fcinfo, ARG_AUTH);
	request.from_address = klm_argument(fcinfo, ARG_FROM_ADDRESS);
	read_password(fcinfo, &request);
	from_name = check_text("from_name", klm_argument(fcinfo, ARG_FROM_NAME), MAX_FROM_NAME, true);
	reply_to = check_reply_to(klm_argument(fcinfo, ARG_REPLY_TO), true);
	if (!PG_ARGISNULL(ARG_ALLOWED_SENDERS))
		senders = check_senders(PG_GETARG_DATUM(ARG_ALLOWED_SENDERS), true);
	if (!PG_ARGISNULL(ARG_HOURLY_LIMIT) && hourly < 0)
		klm_refuse("hourly_limit", INVALID, true, "0 pauses the account.",
			"%d is negative", hourly);
	if (!PG_ARGISNULL(ARG_DAILY_LIMIT) && daily < 0)
		klm_refuse("daily_limit", INVALID, true, "0 pauses the account.",
			"%d is negative", daily);

	check_account_name(&request);

	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);
	saved = read_saved(request.account, &desc);
	resolve(&request, saved, desc, &resolved);
	check_limits(request.account, saved, desc, &hourly, &daily);
	if (from_name == NULL)
		from_name = resolved.from_name;

	if (test)
	{
		KlmProbe	probe;

		klm_probe(&resolved.target, resolved.provider, resolved.from_address, &probe);
		if (!probe.ok)
			klm_probe_raise(&probe, true);
	}

	/* Nothing was locked or written up to here. */
	SPI_connect();
	username = resolved.target.username;
	if (!dry_run)
	{
		bool		may_create;

		klm_add_text(&call, request.account);
		klm_add(&call, TIMESTAMPTZOID, TimestampTzGetDatum(resolved.updated_at), !resolved.saved);
		klm_run(&call, "lock_accounts", false);
		may_create = klm_result_bool(1);

		if (request.password)
		{
			binding.account = request.account;
			binding.host = resolved.target.host;
			binding.port = resolved.target.port;
			binding.username = username;
			if (!klm_seal(request.password, &binding, may_create, &password_cipher, &key_id,
						  &error))
				klm_raise("password", &error, true);
			if (resolved.username_secret)
			{
				KlmSecret  *plain = klm_secret_create(username, strlen(username));

				/* Both ciphertexts of a row are of one key. */
				binding.username = NULL;
				if (!klm_seal(plain, &binding, may_create, &username_cipher, &key_id, &error))
					klm_raise("username", &error, true);
				klm_secret_wipe(plain);
			}
		}
	}
	if (request.password)
		password_masked = klm_mask(request.password->data);

	memset(&call, 0, sizeof(call));
	klm_add_caller(&call, &caller);
	klm_add_text(&call, request.account);
	klm_add_text(&call, resolved.provider);
	klm_add_text(&call, resolved.region);
	klm_add_text(&call, resolved.target.host);
	klm_add_int4(&call, resolved.target.port);
	klm_add_text(&call, resolved.encryption);
	klm_add_text(&call, resolved.auth);
	klm_add_text(&call, resolved.username_secret ? NULL : username);
	klm_add_bytea(&call, username_cipher);
	klm_add_text(&call, resolved.username_secret ? klm_mask(username) : NULL);
	klm_add_bytea(&call, password_cipher);
	klm_add_text(&call, password_masked);
	klm_add_text(&call, key_id);
	klm_add_bool(&call, request.password != NULL);
	klm_add_bool(&call, resolved.changed);
	klm_add_bool(&call, test);
	klm_add_text(&call, resolved.from_address);
	klm_add_text(&call, from_name);
	klm_add_text(&call, reply_to);
	klm_add(&call, TEXTARRAYOID, senders, senders == (Datum) 0);
	klm_add_int4(&call, hourly);
	klm_add_int4(&call, daily);
	klm_add_bool(&call, dry_run);
	klm_run(&call, "save_account", false);
	klm_return_rows(fcinfo);
	SPI_finish();
	klm_become_caller(&caller);

	klm_secret_wipe(request.password);
	if (resolved.password != request.password)
		klm_secret_wipe(resolved.password);
	if (resolved.username_secret && request.username)
		explicit_bzero(unconstify(char *, request.username), strlen(request.username));

	if (resolved.replaced_host != NULL && !dry_run)
		ereport(NOTICE,
				(errmsg("the account \"%s\" used %s until now", klm_from_utf8(request.account),
						klm_from_utf8(resolved.replaced_host)),
				 errhint("To have both, save one of them under another name: "
						 "kliv_mail.configure_smtp(account => 'its_name', ...)."),
				 errhidestmt(true), errhidecontext(true)));
	if (hourly == 0 || daily == 0)
		ereport(NOTICE,
				(errmsg("a limit of 0 pauses the account \"%s\"", klm_from_utf8(request.account)),
				 errhidestmt(true), errhidecontext(true)));
	else if (hourly > daily)
		ereport(NOTICE,
				(errmsg("the hourly limit %d is above the daily limit %d, which rules",
						hourly, daily),
				 errhidestmt(true), errhidecontext(true)));
}

/* The password from whichever of three arguments gives it. */
static void
read_password(FunctionCallInfo fcinfo, KlmRequest *request)
{
	KlmError	error;
	int			given = !PG_ARGISNULL(ARG_PASSWORD) + !PG_ARGISNULL(ARG_PASSWORD_SEALED) +
		!PG_ARGISNULL(ARG_PASSWORD_FILE);

	if (given > 1)
		klm_refuse("password", INVALID, request->secret,
			"Give one of password, password_sealed and password_file.", "is given more than once");
	if (!PG_ARGISNULL(ARG_PASSWORD))
	{
		text	   *given_text = PG_GETARG_TEXT_PP(ARG_PASSWORD);
		char	   *plain = text_to_cstring(given_text);
		char	   *utf8 = klm_argument_to_utf8("password", plain);

		request->password = klm_secret_create(utf8, strlen(utf8));
		if (utf8 != plain)
			explicit_bzero(utf8, strlen(utf8));
		explicit_bzero(plain, strlen(plain));
		if ((Pointer) given_text != DatumGetPointer(PG_GETARG_DATUM(ARG_PASSWORD)))
			explicit_bzero(given_text, VARSIZE_ANY(given_text));
	}
	else if (!PG_ARGISNULL(ARG_PASSWORD_SEALED))
	{
		if (!klm_open_sealed(PG_GETARG_BYTEA_PP(ARG_PASSWORD_SEALED), &request->password, &error))
			klm_raise("password_sealed", &error, request->secret);
	}
	else if (!PG_ARGISNULL(ARG_PASSWORD_FILE))
	{
		char	   *path = text_to_cstring(PG_GETARG_TEXT_PP(ARG_PASSWORD_FILE));
		KlmSecret  *whole;
		Size		length = 0;

		if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
			klm_refuse("password_file", ERRCODE_INSUFFICIENT_PRIVILEGE, request->secret,
				"Only members of pg_read_server_files may; use password or password_sealed.",
				"permission denied to read files of the server");
		if (!klm_secret_read_file(path, "the file", KLM_OWNER_ANY, MAX_PASSWORD, &whole, NULL,
								  &error))
			klm_raise("password_file", &error, request->secret);
		/* Its first line, whatever is in it: check_password() judges that. */
		while (length < whole->length && whole->data[length] != '\r' && whole->data[length] != '\n')
			length++;
		request->password = klm_secret_create(whole->data, length);
		klm_secret_wipe(whole);
	}
}

/*
 * Call a function that only reads, in a subtransaction that is rolled back, so
 * that not even the locks of reading stay over the network.  Its first row.
 */
static HeapTuple
look(KlmCall *call, const char *function, TupleDesc *desc)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	HeapTuple volatile row = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		SPI_connect();
		klm_run(call, function, false);
		MemoryContextSwitchTo(context);
		if (SPI_processed > 0)
		{
			row = heap_copytuple(SPI_tuptable->vals[0]);
			*desc = CreateTupleDescCopy(SPI_tuptable->tupdesc);
		}
		SPI_finish();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(context);
		CurrentResourceOwner = owner;
		ReThrowError(error);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return row;
}

static HeapTuple
read_saved(const char *account, TupleDesc *desc)
{
	KlmCall		call = {0};

	klm_add_text(&call, account);
	return look(&call, "read_account", desc);
}

/* Complete the limits with what is saved or the defaults, and check them. */
static void
check_limits(const char *account, HeapTuple saved, TupleDesc desc, int *hourly, int *daily)
{
	KlmCall		call = {0};
	TupleDesc	ignored;
	bool		isnull;

	if (*hourly < 0)
		*hourly = saved ? DatumGetInt32(saved_column(saved, desc, "hourly_limit", &isnull)) : 50;
	if (*daily < 0)
		*daily = saved ? DatumGetInt32(saved_column(saved, desc, "daily_limit", &isnull)) : 500;
	klm_add_text(&call, account);
	klm_add_int4(&call, *hourly);
	klm_add_int4(&call, *daily);
	(void) look(&call, "check_limits", &ignored);
}

/* ---- what a connection will be ---- */

/* What is saved of an account; nothing where it is not. */
typedef struct KlmSaved
{
	bool		exists;
	char	   *provider;
	char	   *region;
	char	   *host;
	int			port;
	char	   *encryption;
	char	   *auth;
	char	   *username;
	bytea	   *username_cipher;
	bytea	   *password_cipher;
	char	   *key_id;
	char	   *from_address;
} KlmSaved;

static void unpack_saved(HeapTuple row, TupleDesc desc, KlmSaved *saved, KlmResolved *resolved);
static const KlmProvider *resolve_host(const KlmRequest *request, KlmSaved *saved,
									   KlmResolved *resolved);
static void resolve_port(const KlmRequest *request, const KlmProvider *preset,
						 const KlmSaved *saved, KlmResolved *resolved);
static void resolve_username(const KlmRequest *request, const KlmProvider *preset,
							 KlmSaved *saved, KlmResolved *resolved);
static void resolve_password(const KlmRequest *request, const KlmProvider *preset,
							 const KlmSaved *saved, KlmResolved *resolved);
static void resolve_sender(const KlmRequest *request, const KlmSaved *saved,
						   KlmResolved *resolved);

void
klm_resolve(const KlmRequest *request, KlmResolved *resolved)
{
	TupleDesc	desc;
	HeapTuple	row;

	check_account_name(request);
	row = read_saved(request->account, &desc);
	resolve(request, row, desc, resolved);
}

/*
 * Another provider or host starts with nothing but its preset; another port or
 * encryption brings the other along; any of the five needs the password again,
 * because the saved one was saved for another place.
 */
static void
resolve(const KlmRequest *request, HeapTuple row, TupleDesc desc, KlmResolved *resolved)
{
	const KlmProvider *preset;
	KlmSaved	saved;

	memset(resolved, 0, sizeof(KlmResolved));
	unpack_saved(row, desc, &saved, resolved);
	preset = resolve_host(request, &saved, resolved);
	resolve_port(request, preset, &saved, resolved);
	resolve_username(request, preset, &saved, resolved);
	resolve_password(request, preset, &saved, resolved);
	if (preset)
	{
		const KlmTarget *target = &resolved->target;
		const char *argument;
		KlmError	error;

		if (!klm_provider_check(preset, target->host, target->port, resolved->encryption,
								target->username, target->password, target->oauth2,
								&argument, &error))
			klm_raise(argument, &error, request->secret);
	}
	/* Last: a user name that is half an address is to be told as that. */
	resolve_sender(request, &saved, resolved);
	resolved->target.guarded = true;
	resolved->target.ehlo_name = klm_ehlo_name(resolved->from_address);
}

static void
check_account_name(const KlmRequest *request)
{
	const char *name = request->account;
	Size		length = strlen(name);

	if (strcmp(name, KLM_PLATFORM) == 0)
		klm_refuse("account", ERRCODE_INSUFFICIENT_PRIVILEGE, request->secret,
			"Leave account out, or choose another name.",
			"\"platform\" belongs to the server's configuration");
	if (length > MAX_NAME || name[0] < 'a' || name[0] > 'z' ||
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != length)
		klm_refuse("account", INVALID, request->secret,
			"A name begins with a letter a-z and has up to 63 of a-z, 0-9 and _.",
			"\"%s\" is no name for an account", klm_shown(name, length));
}

static void
unpack_saved(HeapTuple row, TupleDesc desc, KlmSaved *saved, KlmResolved *resolved)
{
	Datum		value;
	bool		isnull;

	memset(saved, 0, sizeof(KlmSaved));
	if (row == NULL)
		return;
	saved->exists = true;
	saved->provider = saved_text(row, desc, "provider");
	saved->region = saved_text(row, desc, "region");
	saved->host = saved_text(row, desc, "host");
	saved->port = DatumGetInt32(saved_column(row, desc, "port", &isnull));
	saved->encryption = saved_text(row, desc, "encryption");
	saved->auth = saved_text(row, desc, "auth");
	saved->username = saved_text(row, desc, "username");
	saved->key_id = saved_text(row, desc, "key_id");
	saved->from_address = saved_text(row, desc, "from_address");
	value = saved_column(row, desc, "username_cipher", &isnull);
	saved->username_cipher = isnull ? NULL : DatumGetByteaPP(value);
	value = saved_column(row, desc, "password_cipher", &isnull);
	saved->password_cipher = isnull ? NULL : DatumGetByteaPP(value);
	resolved->saved = true;
	resolved->in_use = DatumGetBool(saved_column(row, desc, "in_use", &isnull));
	value = saved_column(row, desc, "updated_at", &isnull);
	resolved->updated_at = DatumGetTimestampTz(value);
}

/* Provider, region and host.  Where they are others, what is saved of the login goes. */
static const KlmProvider *
resolve_host(const KlmRequest *request, KlmSaved *saved, KlmResolved *resolved)
{
	bool		secret = request->secret;
	const KlmProvider *preset = NULL;
	char	   *host = NULL;
	bool		same_provider;

	if (request->provider && request->provider[0])
	{
		preset = klm_find_provider(request->provider);
		if (preset == NULL)
			klm_refuse("provider", INVALID, secret,
				psprintf("Choose one of %s; or leave it out and give host, username and password.",
						 klm_provider_names()),
				"\"%s\" is not known", klm_shown(request->provider, strlen(request->provider)));
		resolved->provider = pstrdup(preset->name);
	}
	if (request->host && request->host[0])
		host = check_host(request->host, secret);
	if (request->provider == NULL && (host == NULL || same(host, saved->host)))
	{
		resolved->provider = saved->provider;
		preset = klm_find_provider(saved->provider);
	}
	same_provider = saved->exists && same(resolved->provider, saved->provider);

	if (request->region)
		resolved->region = request->region[0] ? pstrdup(request->region) : NULL;
	else if (same_provider)
		resolved->region = saved->region;
	if (resolved->region &&
		(preset == NULL ||
		 (preset->regions == NULL && (preset->host == NULL || !strstr(preset->host, "<region>")))))
		klm_refuse("region", INVALID, secret, "Leave it out.",
			"means nothing to %s", preset ? preset->title : "a server without provider");

	if (host == NULL && request->host == NULL && same_provider &&
		same(resolved->region, saved->region))
		host = saved->host;
	if (preset && (host == NULL || request->region))
	{
		char	   *preset_host;
		KlmError	error;

		if (!klm_provider_host(preset, resolved->region, &preset_host, &error))
			klm_raise("region", &error, secret);
		if (host == NULL)
			host = preset_host;
	}
	if (host == NULL)
		klm_refuse("host", INVALID, secret, preset && preset->host_hint ? preset->host_hint :
			"Give host, username and password; or a provider of the view kliv_mail.providers.",
			"is needed");
	resolved->target.host = host;

	if (!same_provider || !same(host, saved->host))
	{
		resolved->changed = true;
		if (resolved->in_use && saved->host && !same(host, saved->host))
			resolved->replaced_host = saved->host;
		saved->host = NULL;
		saved->auth = NULL;
		saved->username = NULL;
		saved->username_cipher = NULL;
	}
	return preset;
}

/* The port to use where only the encryption was given. */
static int
port_of_encryption(const KlmProvider *preset, const char *encryption)
{
	if (preset && strcmp(preset->encryption, encryption) == 0)
		return preset->port;
	if (strcmp(encryption, "tls") == 0)
		return preset && preset->tls_ports ? atoi(preset->tls_ports) : 465;
	if (strcmp(encryption, "starttls") == 0)
		return preset && preset->starttls_ports ? atoi(preset->starttls_ports) : 587;
	return 25;
}

/* Ports that belong to something else: FTP, SSH, Telnet, DNS, POP3, IMAP, LDAP, SMB. */
static bool
is_other_service(int port)
{
	static const int others[] = {20, 21, 22, 23, 53, 110, 143, 389, 445, 636, 993, 995};

	for (int i = 0; i < lengthof(others); i++)
		if (port == others[i])
			return true;
	return false;
}

static void
resolve_port(const KlmRequest *request, const KlmProvider *preset, const KlmSaved *saved,
			 KlmResolved *resolved)
{
	const char *encryption = request->encryption;
	int			port = request->port;

	if (encryption && strcmp(encryption, "tls") != 0 && strcmp(encryption, "starttls") != 0 &&
		strcmp(encryption, "none") != 0)
		klm_refuse("encryption", INVALID, request->secret,
			"Choose tls, starttls or none (none only without a password); leave it out to have it "
			"chosen by the port.",
			"\"%s\" is not known", klm_shown(encryption, strlen(encryption)));
	if (request->has_port && (port < 1 || port > 65535 || is_other_service(port)))
		klm_refuse("port", INVALID, request->secret,
			"Providers speak SMTP on 465 (tls), 587 or 2525 (starttls), some on 25.",
			"%d is not a port for SMTP", port);

	if (saved->host && (!request->has_port || port == saved->port) &&
		(encryption == NULL || same(encryption, saved->encryption)))
	{
		port = saved->port;
		encryption = saved->encryption;
	}
	else
	{
		resolved->changed = true;
		if (!request->has_port)
			port = encryption ? port_of_encryption(preset, encryption) :
				preset ? preset->port : 587;
		if (encryption == NULL)
			encryption = preset && port == preset->port ? preset->encryption :
				klm_port_is_tls(port) ? "tls" : "starttls";
	}
	resolved->target.port = port;
	resolved->encryption = pstrdup(encryption);
	resolved->target.encryption = strcmp(encryption, "tls") == 0 ? KLM_TLS :
		strcmp(encryption, "starttls") == 0 ? KLM_STARTTLS : KLM_CLEAR;
}

/* The user name, which may itself be sealed, and the way to log in. */
static void
resolve_username(const KlmRequest *request, const KlmProvider *preset, KlmSaved *saved,
				 KlmResolved *resolved)
{
	const char *username;
	const char *auth = request->auth;

	if (request->password)
		check_password(preset, request->password, request->secret);
	if (saved->username_cipher)
	{
		KlmBinding	binding = {request->account, saved->host, saved->port, NULL};
		KlmSecret  *plain;
		KlmError	error;

		if (klm_open(saved->username_cipher, saved->key_id, &binding, &plain, NULL, &error))
			saved->username = plain->data;
		else if (request->username == NULL && request->password == NULL)
			klm_raise("username", &error, request->secret);
	}

	check_text("username", request->username, MAX_USERNAME, request->secret);
	if (request->username)
		username = request->username[0] ? request->username : NULL;
	else if (preset && preset->username_is_password && request->password)
		username = request->password->data;
	else if (saved->username)
		username = saved->username;
	else
		username = preset ? preset->username : NULL;
	if (!same(username, saved->username))
		resolved->changed = true;
	resolved->target.username = username;

	if (username == NULL)
		resolved->username_secret = false;
	else if (preset && preset->username_secret)
		resolved->username_secret = true;
	else if (request->password)
		resolved->username_secret = same(username, request->password->data);
	else
		resolved->username_secret = saved->username_cipher != NULL;

	if (auth && strcmp(auth, "password") != 0 && strcmp(auth, "oauth2") != 0)
		klm_refuse("auth", INVALID, request->secret,
			"Choose password or oauth2 (then the password is an access token).",
			"\"%s\" is not known", klm_shown(auth, strlen(auth)));
	resolved->auth = pstrdup(auth ? auth : saved->auth ? saved->auth : "password");
	resolved->target.oauth2 = strcmp(resolved->auth, "oauth2") == 0;
}

/* The password: the given one, or the saved one if this is the place it was saved for. */
static void
resolve_password(const KlmRequest *request, const KlmProvider *preset, const KlmSaved *saved,
				 KlmResolved *resolved)
{
	bool		secret = request->secret;
	const char *username = resolved->target.username;

	if (resolved->target.encryption == KLM_CLEAR && (request->password || username))
		klm_refuse("encryption", INVALID, secret,
			"Use tls or starttls; or, for a relay without login, username => '' and no password.",
			"none would send the password in clear");
	if (username == NULL && request->password)
		klm_refuse("username", INVALID, secret, preset && preset->username_hint ? preset->username_hint :
			"Give the user name that the password belongs to.",
			"is needed with a password");

	/* That there is no login must be said; it is kept where it was. */
	if (username == NULL && request->username == NULL && resolved->changed)
	{
		if (saved->password_cipher)
			klm_refuse("password", INVALID, secret,
				"User name and password were saved for another provider or host; give those of "
				"this one.",
				"is needed");
		klm_refuse("username", INVALID, secret, preset && preset->username_hint ? preset->username_hint :
			"For a relay without login say so: username => ''.",
			"is needed");
	}

	if (request->password)
		resolved->password = request->password;
	else if (username && resolved->changed && saved->password_cipher)
		klm_refuse("password", INVALID, secret,
			"The saved one was saved for another provider, host, port, encryption or user name; "
			"give it again.",
			"is needed");
	else if (username && saved->password_cipher == NULL)
		klm_refuse("password", INVALID, secret, preset && preset->password_hint ? preset->password_hint :
			"Give the password of this user name.",
			"is needed");
	else if (username)
	{
		KlmBinding	binding = {request->account, saved->host, saved->port, username};
		KlmError	error;

		if (!klm_open(saved->password_cipher, saved->key_id, &binding, &resolved->password, NULL,
					  &error))
			klm_raise("password", &error, secret);
	}
	if (resolved->password)
		resolved->target.password = resolved->password->data;
}

/* Who the mail comes from; by default the user name, if that is an address. */
static void
resolve_sender(const KlmRequest *request, const KlmSaved *saved, KlmResolved *resolved)
{
	const char *username = resolved->target.username;
	KlmAddress	address;
	KlmError	error;

	if (request->from_address && request->from_address[0])
		resolved->from_address = check_from(request->from_address, &resolved->from_name,
											request->secret);
	else if (request->from_address == NULL && saved->from_address)
		resolved->from_address = saved->from_address;
	else if (username && !resolved->username_secret &&
			 klm_parse_address(username, &address, &error))
		resolved->from_address = address.addr;
	else if (request->sender_needed)
		klm_refuse("from_address", INVALID, request->secret,
			"Give the address that the mail shall come from.",
			"is needed, since the user name is not an address");
}

/* ---- checks of single arguments ---- */

/* The password, tidied as the provider wants it, is something to log in with. */
static void
check_password(const KlmProvider *preset, KlmSecret *password, bool secret)
{
	if (preset)
		password->length = klm_provider_tidy_password(preset, password->data, password->length);
	if (password->length == 0)
		klm_refuse("password", INVALID, secret,
			"NULL keeps the saved one; kliv_mail.reset_smtp() wipes it.", "is empty");
	if (password->length > MAX_PASSWORD)
		klm_refuse("password", TOO_LONG, secret, NULL, "has more than %d bytes", MAX_PASSWORD);
	if (strlen(password->data) != password->length || strpbrk(password->data, "\r\n") != NULL)
		klm_refuse("password", INVALID, secret,
			"Look whether something was pasted along with it.", "has a line break or a NUL in it");
	if (pg_encoding_verifymbstr(PG_UTF8, password->data, (int) password->length) !=
		(int) password->length)
		klm_refuse("password", ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, secret,
			"Passwords are sent in UTF-8.", "is not UTF-8");
}

/*
 * A host name as it goes into the account: lower case, A-labels.  An address
 * is taken where the guard lets it through; the address that a name leads to
 * is judged when it is connected to.
 */
static char *
check_host(const char *given, bool secret)
{
	const char *hint = "Give the bare name of the server, such as smtp.example.com; port and "
		"encryption are arguments of their own.";
	char	   *host = pstrdup(given);
	char	   *end;
	struct in_addr v4;
	struct in6_addr v6;
	Size		length;

	while (*host == ' ')
		host++;
	end = host + strlen(host);
	while (end > host && end[-1] == ' ')
		*--end = '\0';
	length = end - host;

	/* An international name becomes A-labels by way of an address. */
	for (const char *p = host; *p; p++)
		if (IS_HIGHBIT_SET(*p))
		{
			KlmAddress	address;
			KlmError	error;

			if (strpbrk(host, "@<>,:;\"() \t\r\n") != NULL ||
				!klm_parse_address(psprintf("a@%s", host), &address, &error))
				klm_refuse("host", INVALID, secret, hint, "\"%s\" is no host name",
					klm_shown(host, length));
			return pstrdup(address.addr + 2);
		}

	for (char *p = host; *p; p++)
		*p = pg_tolower((unsigned char) *p);
	if (length > 1 && host[length - 1] == '.')
		host[--length] = '\0';
	if (length > 2 && host[0] == '[' && host[length - 1] == ']')
	{
		host[--length] = '\0';
		host++;
		length--;
	}

	if (inet_pton(AF_INET6, host, &v6) == 1)
	{
		if (klm_address_closed(klm_allowed_hosts, host, AF_INET6, &v6))
			klm_refuse("host", ERRCODE_INSUFFICIENT_PRIVILEGE, secret,
				"Only the administrator of the server can allow it, in kliv_mail.allowed_hosts.",
				"the address %s is loopback, link-local or private", host);
		return host;
	}

	/* Every form that the resolver takes for an address: 127.1, 0x7f.1, 2130706433. */
	if (inet_aton(host, &v4) != 0)
	{
		if (klm_address_closed(klm_allowed_hosts, host, AF_INET, &v4))
			klm_refuse("host", ERRCODE_INSUFFICIENT_PRIVILEGE, secret,
				"Only the administrator of the server can allow it, in kliv_mail.allowed_hosts.",
				"the address %s is loopback, link-local or private", host);
		if (inet_pton(AF_INET, host, &v4) != 1)
			klm_refuse("host", INVALID, secret, hint, "\"%s\" is no host name", host);
		return host;
	}

	if (length == 0 || length > MAX_HOST)
		klm_refuse("host", INVALID, secret, hint, "\"%s\" is no host name",
			klm_shown(host, length));
	for (const char *label = host;;)
	{
		Size		label_length = strcspn(label, ".");

		if (label_length == 0 || label_length > 63 ||
			label[0] == '-' || label[label_length - 1] == '-' ||
			strspn(label, "abcdefghijklmnopqrstuvwxyz0123456789-") < label_length)
			klm_refuse("host", INVALID, secret,
				strstr(host, "://") ?
				"Leave out the scheme: encryption => 'tls' or 'starttls' says what it means." :
				strchr(host, '@') ? "The user name is an argument of its own." :
				strchr(host, ':') ? "The port is an argument of its own." : hint,
				"\"%s\" is no host name", klm_shown(host, length));
		if (label[label_length] == '\0')
			break;
		label += label_length + 1;
	}
	return host;
}

/* One address, with or without a name, which goes to *name. */
static char *
check_from(const char *text, char **name, bool secret)
{
	KlmAddress	address;
	KlmError	error;

	if (!klm_parse_address(text, &address, &error))
		klm_raise("from_address", &error, secret);
	if (name && address.name)
	{
		check_text("from_name", address.name, MAX_FROM_NAME, secret);
		*name = address.name;
	}
	return address.addr;
}

static char *
check_reply_to(const char *list, bool secret)
{
	KlmAddress *addresses;
	KlmError	error;
	int			count;

	if (list == NULL || list[0] == '\0')
		return list ? pstrdup(list) : NULL;
	if (strlen(list) > MAX_REPLY_TO)
		klm_refuse("reply_to", TOO_LONG, secret, NULL, "has more than %d bytes", MAX_REPLY_TO);
	if (!klm_parse_address_list(list, &addresses, &count, &error))
		klm_raise("reply_to", &error, secret);
	return pstrdup(list);
}

/* Addresses and @domains, normalised; a text[] in the database's encoding. */
static Datum
check_senders(Datum array, bool secret)
{
	ArrayType  *given = DatumGetArrayTypeP(array);
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (ARR_NDIM(given) > 1)
		klm_refuse("allowed_senders", INVALID, secret,
			"Give one list: ARRAY['sales@example.com', '@news.example.com'].", "has %d dimensions",
			ARR_NDIM(given));
	deconstruct_array(given, TEXTOID, -1, false, TYPALIGN_INT, &elements, &nulls, &count);
	if (count > MAX_SENDERS)
		klm_refuse("allowed_senders", TOO_LONG, secret,
			"An entry '@example.com' allows every address of a domain.", "has more than %d entries",
			MAX_SENDERS);
	for (int i = 0; i < count; i++)
	{
		KlmAddress	address;
		KlmError	error;
		char	   *entry;
		bool		domain;

		if (nulls[i])
			klm_refuse("allowed_senders", ERRCODE_NULL_VALUE_NOT_ALLOWED, secret, NULL,
				"entry %d is NULL", i + 1);
		entry = klm_argument_to_utf8("allowed_senders", TextDatumGetCString(elements[i]));
		domain = entry[0] == '@';
		if (!klm_parse_address(domain ? psprintf("a%s", entry) : entry, &address, &error))
			klm_raise("allowed_senders", &error, secret);
		elements[i] = CStringGetTextDatum(klm_from_utf8(address.addr + (domain ? 1 : 0)));
	}
	return PointerGetDatum(construct_array(elements, count, TEXTOID, -1, false, TYPALIGN_INT));
}

/* A line of text that gets into a header or onto the wire; returned as it is. */
static const char *
check_text(const char *argument, const char *value, Size max, bool secret)
{
	if (value == NULL)
		return NULL;
	if (strlen(value) > max)
		klm_refuse(argument, TOO_LONG, secret, NULL, "has more than %zu bytes", max);
	if (klm_has_unsafe_char(value, false))
		klm_refuse(argument, INVALID, secret,
			"Look whether something was pasted along with it.",
			"has a line break, a control or an invisible character in it");
	return value;
}

/* ---- the other entry points ---- */

Datum
kliv_mail_update_sender(PG_FUNCTION_ARGS)
{
	KlmCaller caller;
	KlmCall		call = {0};
	KlmCall		own = {0};
	char	   *from_address = klm_argument(fcinfo, 0);
	const char *from_name = check_text("from_name", klm_argument(fcinfo, 1), MAX_FROM_NAME, false);
	char	   *reply_to = check_reply_to(klm_argument(fcinfo, 2), false);
	char	   *name = NULL;
	Datum		senders = (Datum) 0;
	Datum		account;
	bool		isnull;

	PreventCommandIfReadOnly("kliv_mail.update_sender()");
	if (!PG_ARGISNULL(3))
		senders = check_senders(PG_GETARG_DATUM(3), false);
	if (from_address && from_address[0])
		from_address = check_from(from_address, &name, false);

	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);
	SPI_connect();
	klm_add_text(&own, klm_argument(fcinfo, 4));
	klm_add_text(&own, "update_sender");
	klm_run(&own, "own_account", false);
	account = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	klm_add_caller(&call, &caller);
	klm_add(&call, TEXTOID, account, isnull);
	klm_add_text(&call, from_address);
	klm_add_text(&call, from_name ? from_name : name);
	klm_add_text(&call, reply_to);
	klm_add(&call, TEXTARRAYOID, senders, senders == (Datum) 0);
	klm_run(&call, "update_sender", false);
	klm_return_rows(fcinfo);
	SPI_finish();
	klm_become_caller(&caller);
	return (Datum) 0;
}

Datum
kliv_mail_public_key(PG_FUNCTION_ARGS)
{
	KlmCaller caller;
	KlmError	error;
	bytea	   *key;

	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);
	if (!klm_public_key(first_key_allowed(), &key, &error))
		klm_raise(NULL, &error, false);
	klm_become_caller(&caller);
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
	bool		may_create;
	bool		isnull;

	PreventCommandIfReadOnly("kliv_mail.rotate_key()");
	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);
	SPI_connect();
	klm_add_text(&call, NULL);
	klm_add(&call, TIMESTAMPTZOID, (Datum) 0, true);
	klm_run(&call, "lock_accounts", false);
	may_create = klm_result_bool(1);

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
		char	   *key = saved_text(row, desc, "key_id");
		Datum		cipher;

		bindings[i].account = saved_text(row, desc, "name");
		bindings[i].host = saved_text(row, desc, "host");
		bindings[i].port = DatumGetInt32(saved_column(row, desc, "port", &isnull));
		cipher = saved_column(row, desc, "username_cipher", &isnull);
		if (!isnull && !klm_open(DatumGetByteaPP(cipher), key, &bindings[i], &usernames[i], NULL,
								 &error))
			klm_raise(psprintf("account \"%s\"", bindings[i].account), &error, false);
		bindings[i].username = usernames[i] ? usernames[i]->data :
			saved_text(row, desc, "username");
		cipher = saved_column(row, desc, "password_cipher", &isnull);
		if (!isnull && !klm_open(DatumGetByteaPP(cipher), key, &bindings[i], &passwords[i], NULL,
								 &error))
			klm_raise(psprintf("account \"%s\"", bindings[i].account), &error, false);
	}

	if (!klm_add_key(may_create, &error))
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
	SPI_finish();
	klm_become_caller(&caller);
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

/* ---- helpers ---- */

static Datum
saved_column(HeapTuple saved, TupleDesc desc, const char *column, bool *isnull)
{
	int			number = SPI_fnumber(desc, column);

	if (number <= 0)
		elog(ERROR, "_account has no column \"%s\"", column);
	return heap_getattr(saved, number, desc, isnull);
}

/* UTF-8, or NULL; also where nothing is saved. */
static char *
saved_text(HeapTuple saved, TupleDesc desc, const char *column)
{
	bool		isnull;
	Datum		value;

	if (saved == NULL)
		return NULL;
	value = saved_column(saved, desc, column, &isnull);
	return isnull ? NULL : klm_to_utf8(TextDatumGetCString(value));
}

static bool
same(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

/* May the first key be made: are we primary, and does nothing that is stored name one? */
static bool
first_key_allowed(void)
{
	KlmCall		call = {0};
	bool		allowed;

	if (RecoveryInProgress())
		return false;
	SPI_connect();
	klm_run(&call, "first_key_allowed", false);
	allowed = klm_result_bool(1);
	SPI_finish();
	return allowed;
}
