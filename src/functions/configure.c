/*-------------------------------------------------------------------------
 *
 * configure.c
 *		SQL functions: configure_smtp and update_sender.
 *
 * In kliv_mail_net.  configure_smtp() goes in an order that matters:
 * everything is checked, then the network test runs, with no lock held and
 * nothing written; then comes the lock under which accounts change, the
 * password is sealed, and one call writes.
 *
 * Whatever configure_smtp() raises hides its statement.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "db/owner_call.h"
#include "functions/account_arguments.h"
#include "hooks/secrets_in_logs.h"
#include "net/probe.h"
#include "secret/seal.h"
#include "smtp/providers.h"

#define INVALID ERRCODE_INVALID_PARAMETER_VALUE

PG_FUNCTION_INFO_V1(kliv_mail_configure_smtp);
PG_FUNCTION_INFO_V1(kliv_mail_update_sender);

static Datum configure(FunctionCallInfo fcinfo);
static void read_request(FunctionCallInfo fcinfo, KlmRequest *request);
static void seal_login(const char *account, const KlmResolved *resolved, bool may_create,
					   bytea **password_cipher, bytea **username_cipher, char **key_id);
static void test_connection(const KlmResolved *resolved, const char *reply_to);
static void tell(const KlmRequest *request, const KlmResolved *resolved, const char *reply_to,
				 bool test, int hourly, int daily);
static void warn_smtputf8(const char *argument);
static void read_password(FunctionCallInfo fcinfo, KlmRequest *request);

/* Positions of the arguments, as the SQL declaration has them. */
enum
{
	ARG_PROVIDER, ARG_HOST, ARG_PORT, ARG_USERNAME, ARG_PASSWORD, ARG_ENCRYPTION, ARG_FROM_ADDRESS,
	ARG_FROM_NAME, ARG_REPLY_TO, ARG_ALLOWED_SENDERS, ARG_HOURLY_LIMIT, ARG_DAILY_LIMIT, ARG_REGION,
	ARG_AUTH, ARG_PASSWORD_SEALED, ARG_PASSWORD_FILE, ARG_TEST, ARG_DRY_RUN, ARG_ACCOUNT
};

Datum
kliv_mail_configure_smtp(PG_FUNCTION_ARGS)
{
	return klm_call_hidden(fcinfo, configure);
}

static Datum
configure(FunctionCallInfo fcinfo)
{
	KlmRequest	request = {0};
	KlmResolved resolved;
	KlmCaller caller;
	KlmCall		call = {0};
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

	read_request(fcinfo, &request);
	from_name = klm_check_text("from_name",
							   klm_argument(fcinfo, ARG_FROM_NAME), KLM_MAX_FROM_NAME, true);
	reply_to = klm_check_reply_to(klm_argument(fcinfo, ARG_REPLY_TO), true);
	if (!PG_ARGISNULL(ARG_ALLOWED_SENDERS))
		senders = klm_check_senders(PG_GETARG_DATUM(ARG_ALLOWED_SENDERS), true);
	if (!PG_ARGISNULL(ARG_HOURLY_LIMIT) && hourly < 0)
		klm_refuse("hourly_limit", INVALID, true, "0 pauses the account.",
			"%d is negative", hourly);
	if (!PG_ARGISNULL(ARG_DAILY_LIMIT) && daily < 0)
		klm_refuse("daily_limit", INVALID, true, "0 pauses the account.",
			"%d is negative", daily);

	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);
	klm_resolve(&request, &resolved);
	if (hourly < 0)
		hourly = resolved.hourly_limit;
	if (daily < 0)
		daily = resolved.daily_limit;
	klm_check_limits(request.account, hourly, daily);
	if (from_name == NULL)
		from_name = resolved.from_name;

	if (test)
		test_connection(&resolved, reply_to);

	/* Nothing was locked or written up to here. */
	SPI_connect();
	username = resolved.target.username;
	if (!dry_run)
	{
		bool		may_create;

		klm_add_text(&call, request.account);
		klm_add(&call, TIMESTAMPTZOID, TimestampTzGetDatum(resolved.updated_at),
				!resolved.saved);
		klm_run(&call, "lock_accounts", false);
		may_create = klm_result_bool(1);

		if (resolved.new_password)
			seal_login(request.account, &resolved, may_create, &password_cipher,
					   &username_cipher, &key_id);
	}
	if (resolved.new_password)
		password_masked = klm_mask(resolved.password->data);

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
	klm_add_bool(&call, resolved.new_password);
	klm_add_bool(&call, resolved.changed);
	klm_add_bool(&call, test);
	klm_add_text(&call, resolved.from_address);
	klm_add_text(&call, from_name);
	klm_add_text(&call, reply_to);
	klm_add(&call, TEXTARRAYOID, senders, senders == (Datum) 0);
	klm_add_int4(&call, hourly);
	klm_add_int4(&call, daily);
	klm_add_text(&call, resolved.sender_kept ? "from_address" : NULL);
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

	if (!dry_run)
		tell(&request, &resolved, reply_to, test, hourly, daily);
	return (Datum) 0;
}

static void
read_request(FunctionCallInfo fcinfo, KlmRequest *request)
{
	request->secret = true;
	request->sender_needed = true;
	request->account = PG_ARGISNULL(ARG_ACCOUNT) ? "custom" : klm_argument(fcinfo, ARG_ACCOUNT);
	request->provider = klm_argument(fcinfo, ARG_PROVIDER);
	request->host = klm_argument(fcinfo, ARG_HOST);
	request->has_port = !PG_ARGISNULL(ARG_PORT);
	request->port = request->has_port ? PG_GETARG_INT32(ARG_PORT) : 0;
	request->username = klm_argument(fcinfo, ARG_USERNAME);
	request->encryption = klm_argument(fcinfo, ARG_ENCRYPTION);
	request->region = klm_argument(fcinfo, ARG_REGION);
	request->auth = klm_argument(fcinfo, ARG_AUTH);
	request->from_address = klm_argument(fcinfo, ARG_FROM_ADDRESS);
	read_password(fcinfo, request);
}

/* The password, and the user name where that is a secret; both by one key. */
static void
seal_login(const char *account, const KlmResolved *resolved, bool may_create,
		   bytea **password_cipher, bytea **username_cipher, char **key_id)
{
	const char *username = resolved->target.username;
	KlmBinding	binding = {account, resolved->target.host, resolved->target.port, username,
		&resolved->domain};
	KlmError	error;

	if (!klm_seal(resolved->password, &binding, may_create, password_cipher, key_id, &error))
		klm_raise("password", &error, true);
	if (resolved->username_secret)
	{
		KlmSecret  *plain = klm_secret_create(username, strlen(username));

		binding.username = NULL;
		if (!klm_seal(plain, &binding, may_create, username_cipher, key_id, &error))
			klm_raise("username", &error, true);
		klm_secret_wipe(plain);
	}
}

/* Raises what a connection meets: nothing was locked or written yet. */
static void
test_connection(const KlmResolved *resolved, const char *reply_to)
{
	KlmProbe	probe;

	klm_probe(&resolved->target, resolved->provider, resolved->from_address, &probe);
	if (probe.ok)
	{
		if (!probe.smtputf8 && klm_needs_smtputf8(NULL, reply_to))
			klm_refuse("reply_to", INVALID, true,
					   "Use an address whose part before the @ is ASCII.",
					   "needs a server with SMTPUTF8, and %s has none", resolved->target.host);
		return;
	}
	klm_explain_failure(resolved, &probe);
	klm_probe_raise(&probe, true);
}

/* What a caller should know about what was saved. */
static void
tell(const KlmRequest *request, const KlmResolved *resolved, const char *reply_to, bool test,
	 int hourly, int daily)
{
	const char *account = klm_from_utf8(request->account);
	const KlmProvider *preset = klm_find_provider(resolved->provider);
	const char *unproven = preset ? preset->unproven : NULL;
	const char *argument;

	if (resolved->replaced_host != NULL)
		ereport(NOTICE,
				(errmsg("the account \"%s\" used %s until now", account,
						klm_from_utf8(resolved->replaced_host)),
				 errhint("To have both, save one of them under another name: "
						 "kliv_mail.configure_smtp(account => 'its_name', ...)."),
				 errhidestmt(true), errhidecontext(true)));
	if (resolved->sender_kept)
		ereport(NOTICE,
				(errmsg("the sender address \"%s\" was saved with the former settings and is kept",
						klm_from_utf8(resolved->from_address)),
				 errhint("kliv_mail.update_sender(from_address => ..., account => '%s') changes it.",
						 account),
				 errhidestmt(true), errhidecontext(true)));
	/* The sender or its server is another than before. */
	if (test && unproven != NULL && (resolved->changed || request->from_address != NULL))
		ereport(NOTICE,
				(errmsg("what the test cannot show: %s", klm_from_utf8(unproven)),
				 errhint("SELECT * FROM kliv_mail.test_smtp(send_to => 'you@example.com', account => "
						 "'%s'); proves it with a mail.", account),
				 errhidestmt(true), errhidecontext(true)));
	if (!test && (argument = klm_needs_smtputf8(resolved->from_address, reply_to)) != NULL)
		warn_smtputf8(argument);
	if (hourly == 0 || daily == 0)
		ereport(NOTICE,
				(errmsg("a limit of 0 pauses the account \"%s\"", account),
				 errhidestmt(true), errhidecontext(true)));
	else if (hourly > daily)
		ereport(NOTICE,
				(errmsg("the hourly limit %d is above the daily limit %d, which rules",
						hourly, daily),
				 errhidestmt(true), errhidecontext(true)));
}

static void
warn_smtputf8(const char *argument)
{
	ereport(NOTICE,
			(errmsg("%s: needs a server with SMTPUTF8", argument),
			 errhint("Where the server has none it takes no mail: use an address whose part before "
					 "the @ is ASCII."),
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
		request->sealed = PG_GETARG_BYTEA_PP(ARG_PASSWORD_SEALED);
	else if (!PG_ARGISNULL(ARG_PASSWORD_FILE))
	{
		char	   *path = text_to_cstring(PG_GETARG_TEXT_PP(ARG_PASSWORD_FILE));
		KlmSecret  *whole;
		Size		length = 0;

		if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
			klm_refuse("password_file", ERRCODE_INSUFFICIENT_PRIVILEGE, request->secret,
				"Only members of pg_read_server_files may; use password or password_sealed.",
				"permission denied to read files of the server");
		if (!klm_secret_read_file(path, "the file", KLM_OWNER_ANY, KLM_MAX_PASSWORD, &whole, NULL,
								  &error))
			klm_raise("password_file", &error, request->secret);
		/* Its first line, whatever is in it: check_password() judges that. */
		while (length < whole->length && whole->data[length] != '\r' && whole->data[length] != '\n')
			length++;
		request->password = klm_secret_create(whole->data, length);
		klm_secret_wipe(whole);
	}
}


Datum
kliv_mail_update_sender(PG_FUNCTION_ARGS)
{
	KlmCaller caller;
	KlmCall		call = {0};
	KlmCall		own = {0};
	char	   *from_address = klm_argument(fcinfo, 0);
	const char *from_name = klm_check_text("from_name",
										   klm_argument(fcinfo, 1), KLM_MAX_FROM_NAME, false);
	char	   *reply_to = klm_check_reply_to(klm_argument(fcinfo, 2), false);
	char	   *name = NULL;
	Datum		senders = (Datum) 0;
	Datum		account;
	const char *argument;
	bool		isnull;

	PreventCommandIfReadOnly("kliv_mail.update_sender()");
	if (!PG_ARGISNULL(3))
		senders = klm_check_senders(PG_GETARG_DATUM(3), false);
	if (from_address && from_address[0])
		from_address = klm_check_from(from_address, &name, false);

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
	argument = klm_needs_smtputf8(from_address, reply_to);
	if (argument != NULL)
		warn_smtputf8(argument);
	return (Datum) 0;
}
