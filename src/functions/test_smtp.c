/*-------------------------------------------------------------------------
 *
 * test_smtp.c
 *		SQL function test_smtp(): the connection test of an account, in rows.
 *
 * In kliv_mail_net.  The network comes before the first lock and the first
 * write.  Calls net/probe for the test and db/owner_call to record it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"		/* get_database_name() since PostgreSQL 19 */
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/text.h"
#include "db/account.h"
#include "db/owner_call.h"
#include "functions/account_arguments.h"
#include "functions/probe_rows.h"
#include "hooks/secrets_in_logs.h"
#include "message/address.h"
#include "net/probe.h"

PG_FUNCTION_INFO_V1(kliv_mail_test_smtp);

static bool read_request(FunctionCallInfo fcinfo, KlmRequest *request);
static void probe_platform(const KlmRequest *request, KlmProbe *probe);
static char *default_account(void);
static bool account_is_saved(const char *account);
static char *record_test(const char *account, bool ok);
static KlmProbeStep queue_test_mail(const char *account, const char *send_to);

/*
 * What is not given comes from the saved account; its password only where host,
 * port and user name are the saved ones, which klm_resolve() sees to.
 */
Datum
kliv_mail_test_smtp(PG_FUNCTION_ARGS)
{
	KlmRequest	request = {0};
	KlmCaller	caller;
	KlmProbe	probe;
	const char *send_to;
	char	   *stays = NULL;
	bool		any_given;
	bool		saved;
	bool		can_send;

	klm_mask_activity();
	InitMaterializedSRF(fcinfo, 0);

	/* Always, so that the log hook knows our messages for harmless ones. */
	request.secret = true;
	send_to = klm_argument(fcinfo, 10);
	if (send_to != NULL)
	{
		KlmAddress	address;
		KlmError	error;

		if (!klm_parse_address(send_to, &address, &error))
			klm_raise("send_to", &error, true);
	}
	any_given = read_request(fcinfo, &request);

	klm_enter_owner(fcinfo, &caller);

	if (request.account == NULL)
	{
		request.account = default_account();
		/* A server that is given is no test of the platform's. */
		if (any_given && strcmp(request.account, KLM_PLATFORM) == 0)
			request.account = "custom";
	}

	if (strcmp(request.account, KLM_PLATFORM) == 0 && !any_given)
	{
		saved = request.from_address == NULL;
		can_send = true;
		probe_platform(&request, &probe);
	}
	else
	{
		KlmResolved resolved;

		if (!any_given && !account_is_saved(request.account))
			klm_refuse("account", ERRCODE_INVALID_PARAMETER_VALUE, true,
				"The view kliv_mail.smtp_settings has those that are saved.",
				"there is no account \"%s\"", klm_shown(request.account, strlen(request.account)));
		klm_resolve(&request, &resolved);
		saved = resolved.saved && resolved.in_use && !resolved.changed &&
			request.password == NULL && request.from_address == NULL;
		/* Only what is saved has a quota, and a sender that keeps to it. */
		can_send = saved;
		if (send_to != NULL && !can_send)
			klm_refuse("send_to", ERRCODE_INVALID_PARAMETER_VALUE, true,
				"Save it first; configure_smtp() tests the connection by itself.",
				"a test mail goes by a saved account as it is");
		klm_probe(&resolved.target, resolved.provider,
				  resolved.from_address && resolved.from_address[0] ? resolved.from_address : NULL,
				  &probe);
		if (!probe.ok)
			klm_explain_failure(&resolved, &probe);
	}

	if (saved && !XactReadOnly && !RecoveryInProgress())
		stays = record_test(request.account, probe.ok);
	klm_become_caller(&caller);

	for (int i = 0; i < probe.count; i++)
	{
		KlmProbeStep *step = &probe.steps[i];

		if (probe.ok && can_send && send_to == NULL && i == probe.count - 1)
			step->hint = psprintf("%s%sSELECT * FROM kliv_mail.test_smtp(send_to => "
								  "'you@example.com', account => '%s'); proves it with a mail.",
								  step->hint ? step->hint : "", step->hint ? " " : "",
								  request.account);
		if (stays != NULL && i == probe.count - 1)
			step->hint = psprintf("The account stays held, for what a mail met behind these steps: "
								  "%s.%s%s", stays, step->hint ? " " : "",
								  step->hint ? step->hint : "");
		klm_put_step(fcinfo, step);
	}
	if (probe.ok && send_to != NULL)
	{
		KlmProbeStep step = queue_test_mail(request.account, send_to);

		klm_put_step(fcinfo, &step);
	}
	SPI_finish();
	return (Datum) 0;
}

/* true: something is given of a connection, so that it is not just what is saved. */
static bool
read_request(FunctionCallInfo fcinfo, KlmRequest *request)
{
	request->provider = klm_argument(fcinfo, 0);
	request->host = klm_argument(fcinfo, 1);
	request->has_port = !PG_ARGISNULL(2);
	request->port = request->has_port ? PG_GETARG_INT32(2) : 0;
	request->username = klm_argument(fcinfo, 3);
	if (!PG_ARGISNULL(4))
	{
		char	   *plain = text_to_cstring(PG_GETARG_TEXT_PP(4));
		char	   *utf8 = klm_argument_to_utf8("password", plain);

		request->password = klm_secret_create(utf8, strlen(utf8));
		explicit_bzero(utf8, strlen(utf8));
		explicit_bzero(plain, strlen(plain));
	}
	request->encryption = klm_argument(fcinfo, 5);
	request->from_address = klm_argument(fcinfo, 6);
	request->region = klm_argument(fcinfo, 7);
	request->auth = klm_argument(fcinfo, 8);
	request->account = klm_argument(fcinfo, 9);
	for (int i = 0; i < 9; i++)
		if (i != 6 && !PG_ARGISNULL(i))
			return true;
	return false;
}

static void
probe_platform(const KlmRequest *request, KlmProbe *probe)
{
	KlmAccount *account = klm_load_account(KLM_PLATFORM);

	if (account == NULL || account->problem != NULL)
	{
		KlmError	error = {
			.sqlstate = ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
			.message = account ? account->problem : "the account \"platform\" is not configured",
			.hint = account ? account->hint : NULL
		};

		klm_raise(NULL, &error, true);
	}
	klm_probe(&account->target, account->provider,
			  request->from_address ? request->from_address : account->from_address, probe);
	if (!probe->ok && probe->reply.stage == KLM_STAGE_AUTH)
		probe->steps[probe->count - 1].hint =
			"The administrator of the server sets kliv_mail.platform_username, and writes the "
			"password into the file that kliv_mail.platform_password_file names.";
}

/* The account that mail leaves by when nothing is said. */
static char *
default_account(void)
{
	KlmCall		call = {0};

	klm_run_one(&call, "default_account", true);
	return klm_result_text(1, CurrentMemoryContext);
}

static bool
account_is_saved(const char *account)
{
	KlmCall		call = {0};

	klm_add_text(&call, account);
	klm_run(&call, "read_account", true);
	return SPI_processed > 0;
}

/* The reason of a hold that a test cannot end, or NULL. */
static char *
record_test(const char *account, bool ok)
{
	KlmCall		call = {0};

	klm_add_text(&call, account);
	klm_add_bool(&call, ok);
	klm_run_one(&call, "record_test", false);
	return klm_result_text(1, CurrentMemoryContext);
}

/*
 * One test mail, as the caller, by the queue: so it keeps to the quota, and
 * goes when this transaction commits.
 */
static KlmProbeStep
queue_test_mail(const char *account, const char *send_to)
{
	Oid			types[] = {TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	const char *name = klm_from_utf8(account);
	char	   *body = psprintf("kliv_mail.test_smtp() sent this mail by the account \"%s\" of the "
								"database %s.\n\nThat it arrived proves that the account can send.\n",
								name, get_database_name(MyDatabaseId));
	Datum		values[] = {
		CStringGetTextDatum(klm_from_utf8(send_to)),
		CStringGetTextDatum(psprintf("Test of the account %s", name)),
		CStringGetTextDatum(body),
		CStringGetTextDatum(name)
	};
	KlmProbeStep step = {.step = "send", .ok = true};
	TimestampTz start = GetCurrentTimestamp();
	bool		isnull;
	int64		id;

	if (SPI_execute_with_args("SELECT kliv_mail.send($1, $2, $3, account => $4)", 4, types, values,
							  NULL, false, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not queue the test mail");
	id = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	step.elapsed_ms = (GetCurrentTimestamp() - start) / 1000.0;
	step.detail = psprintf("queued as message " INT64_FORMAT
						   "; it leaves within the account's quota "
						   "when this transaction commits", id);
	step.hint = psprintf("SELECT kliv_mail.wait(" INT64_FORMAT "); says how it ended.", id);
	return step;
}
