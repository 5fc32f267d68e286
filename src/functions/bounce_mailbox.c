/*-------------------------------------------------------------------------
 *
 * bounce_mailbox.c
 *		SQL functions: configure_bounce_mailbox and test_bounce_mailbox.
 *
 * In kliv_mail_net.  As configure_smtp() does: everything is checked, then the
 * network test runs, with no lock held and nothing written; then comes the lock
 * under which all that is sealed changes, the password is sealed, and one call
 * writes.  Whatever configure_bounce_mailbox() raises hides its statement.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/text.h"
#include "db/bounce_mailbox.h"
#include "db/owner_call.h"
#include "functions/account_arguments.h"
#include "functions/probe_rows.h"
#include "hooks/secrets_in_logs.h"
#include "net/mailbox.h"
#include "secret/seal.h"

#define INVALID ERRCODE_INVALID_PARAMETER_VALUE

#define MAX_USERNAME 320
#define MAX_MAILBOX 200
#define DEFAULT_EVERY (5 * USECS_PER_MINUTE)
#define MAX_EVERY USECS_PER_DAY

PG_FUNCTION_INFO_V1(kliv_mail_configure_bounce_mailbox);
PG_FUNCTION_INFO_V1(kliv_mail_test_bounce_mailbox);

/* Positions of the arguments, as the SQL declaration has them. */
enum
{
	ARG_HOST, ARG_USERNAME, ARG_PASSWORD, ARG_PORT, ARG_MAILBOX, ARG_ENCRYPTION, ARG_FILED_MAILBOX,
	ARG_FETCH_EVERY, ARG_ENABLED, ARG_PASSWORD_SEALED, ARG_TEST
};

static Datum configure(FunctionCallInfo fcinfo);
static KlmBounceMailbox *read_saved(void);
static void resolve_place(FunctionCallInfo fcinfo, const KlmBounceMailbox *saved,
						  KlmBounceMailbox *wanted);
static KlmSecret *read_password(FunctionCallInfo fcinfo, const KlmBounceMailbox *wanted);
static const char *check_name(const char *argument, const char *given, const char *saved,
							  const char *usual);
static int64 check_every(FunctionCallInfo fcinfo, const KlmBounceMailbox *saved);
static bool is_other_service(int port);

Datum
kliv_mail_configure_bounce_mailbox(PG_FUNCTION_ARGS)
{
	return klm_call_hidden(fcinfo, configure);
}

static Datum
configure(FunctionCallInfo fcinfo)
{
	KlmBounceMailbox none = {0};
	KlmBounceMailbox wanted = {0};
	const KlmBounceMailbox *saved;
	KlmSecret  *password;
	KlmCaller	caller;
	KlmCall		call = {0};
	KlmError	error;
	Interval   *every = palloc0(sizeof(Interval));
	bytea	   *cipher = NULL;
	char	   *key_id = NULL;
	bool		changed;
	bool		enabled;
	bool		test;
	bool		may_create;

	PreventCommandIfReadOnly("kliv_mail.configure_bounce_mailbox()");
	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);
	saved = read_saved();
	enabled = !PG_ARGISNULL(ARG_ENABLED) ? PG_GETARG_BOOL(ARG_ENABLED) :
		saved != NULL ? saved->enabled : true;
	test = enabled && (PG_ARGISNULL(ARG_TEST) || PG_GETARG_BOOL(ARG_TEST));
	klm_read_domain(&wanted.domain);
	resolve_place(fcinfo, saved ? saved : &none, &wanted);
	wanted.mailbox = check_name("mailbox", klm_argument(fcinfo, ARG_MAILBOX),
								saved ? saved->mailbox : NULL, "INBOX");
	wanted.filed_mailbox = check_name("filed_mailbox", klm_argument(fcinfo, ARG_FILED_MAILBOX),
									  saved ? saved->filed_mailbox : NULL, "kliv_mail");
	if (pg_strcasecmp(wanted.mailbox, wanted.filed_mailbox) == 0)
		klm_refuse("filed_mailbox", INVALID, true, "Choose another mailbox for what was handled.",
				   "is the mailbox that is looked into");
	every->time = check_every(fcinfo, saved);

	password = read_password(fcinfo, &wanted);
	changed = saved == NULL || strcmp(wanted.target.host, saved->target.host) != 0 ||
		wanted.target.port != saved->target.port ||
		wanted.target.encryption != saved->target.encryption ||
		strcmp(wanted.target.username, saved->target.username) != 0;
	if (password == NULL && changed)
		klm_refuse("password", INVALID, true,
				   saved == NULL ? "Give the password of the mailbox." :
				   "The saved one was saved for another host, port, encryption or user name; give "
				   "it again.", "is needed");
	if (password != NULL)
		wanted.target.password = password->data;
	else if (test)
	{
		wanted.password_cipher = saved->password_cipher;
		wanted.key_id = saved->key_id;
		if (!klm_bounce_mailbox_open(&wanted, NULL, &error))
			klm_raise("password", &error, true);
	}

	if (test)
	{
		KlmProbe	probe;

		klm_probe_mailbox(&wanted.target, wanted.mailbox, wanted.filed_mailbox, &probe);
		if (!probe.ok)
			klm_probe_raise(&probe, true);
	}

	/* Nothing was locked or written up to here. */
	SPI_connect();
	klm_add_text(&call, NULL);
	klm_add(&call, TIMESTAMPTZOID, (Datum) 0, true);
	klm_run(&call, "lock_accounts", false);
	may_create = klm_result_bool(1);
	if (password != NULL)
	{
		KlmBinding	binding;

		klm_bounce_mailbox_binding(&wanted, &binding);
		if (!klm_seal(password, &binding, may_create, &cipher, &key_id, &error))
			klm_raise("password", &error, true);
	}

	memset(&call, 0, sizeof(call));
	klm_add_caller(&call, &caller);
	klm_add(&call, TIMESTAMPTZOID, TimestampTzGetDatum(saved ? saved->settings : 0), saved == NULL);
	klm_add_text(&call, wanted.target.host);
	klm_add_int4(&call, wanted.target.port);
	klm_add_text(&call, wanted.target.encryption == KLM_TLS ? "tls" : "starttls");
	klm_add_text(&call, wanted.target.username);
	klm_add_bool(&call, password != NULL);
	klm_add_bytea(&call, cipher);
	klm_add_text(&call, password ? klm_mask(password->data) : NULL);
	klm_add_text(&call, key_id);
	klm_add_text(&call, wanted.mailbox);
	klm_add_text(&call, wanted.filed_mailbox);
	klm_add(&call, INTERVALOID, IntervalPGetDatum(every), false);
	klm_add_bool(&call, enabled);
	klm_add_bool(&call, test);
	klm_run(&call, "save_bounce_mailbox", false);
	klm_return_rows(fcinfo);
	SPI_finish();
	klm_become_caller(&caller);
	if (password != NULL)
		klm_secret_wipe(password);
	if (wanted.secret != NULL)
		klm_secret_wipe(wanted.secret);
	return (Datum) 0;
}

/* What is saved; NULL: nothing. */
static KlmBounceMailbox *
read_saved(void)
{
	KlmCall		call = {0};
	TupleDesc	desc;
	HeapTuple	row = klm_look(&call, "read_bounce_mailbox", &desc);
	KlmBounceMailbox *saved;

	if (row == NULL)
		return NULL;
	saved = palloc0(sizeof(KlmBounceMailbox));
	klm_bounce_mailbox_unpack(row, desc, saved);
	return saved;
}

/* Host, port, encryption and user name: as given, as saved, or as usual. */
static void
resolve_place(FunctionCallInfo fcinfo, const KlmBounceMailbox *saved, KlmBounceMailbox *wanted)
{
	const char *host = klm_argument(fcinfo, ARG_HOST);
	const char *username = klm_argument(fcinfo, ARG_USERNAME);
	const char *encryption = klm_argument(fcinfo, ARG_ENCRYPTION);
	KlmTarget  *target = &wanted->target;
	bool		same_host;

	if (host != NULL && host[0])
		target->host = klm_check_host(host, true);
	else if (host == NULL && saved->target.host != NULL)
		target->host = saved->target.host;
	else
		klm_refuse("host", INVALID, true, "Give the IMAP server, such as imap.example.com.",
				   "is needed");
	same_host = saved->target.host != NULL && strcmp(target->host, saved->target.host) == 0;

	if (encryption != NULL && strcmp(encryption, "none") == 0)
		klm_refuse("encryption", INVALID, true, "Use tls or starttls.",
				   "none would send the password in clear");
	if (encryption != NULL && strcmp(encryption, "tls") != 0 && strcmp(encryption, "starttls") != 0)
		klm_refuse("encryption", INVALID, true,
				   "Choose tls or starttls; leave it out to have it chosen by the port.",
				   "\"%s\" is not known", klm_shown(encryption, strlen(encryption)));
	target->port = !PG_ARGISNULL(ARG_PORT) ? PG_GETARG_INT32(ARG_PORT) :
		same_host && encryption == NULL ? saved->target.port :
		encryption != NULL && strcmp(encryption, "starttls") == 0 ? 143 : 993;
	if (target->port < 1 || target->port > 65535 || is_other_service(target->port))
		klm_refuse("port", INVALID, true, "IMAP is on 993 (tls) or 143 (starttls).",
				   "%d is not a port for IMAP", target->port);
	target->encryption = encryption != NULL ?
		(strcmp(encryption, "tls") == 0 ? KLM_TLS : KLM_STARTTLS) :
		same_host && target->port == saved->target.port ? saved->target.encryption :
		target->port == 143 ? KLM_STARTTLS : KLM_TLS;

	klm_check_text("username", username, MAX_USERNAME, true);
	if (username == NULL && same_host)
		username = saved->target.username;
	if (username == NULL || username[0] == '\0')
		klm_refuse("username", INVALID, true,
				   "Give the user name of the mailbox; with many providers it is the address.",
				   "is needed");
	target->username = username;
	target->guarded = true;
	target->imap = true;
}

/* From either argument; NULL: from neither. */
static KlmSecret *
read_password(FunctionCallInfo fcinfo, const KlmBounceMailbox *wanted)
{
	KlmSecret  *password = NULL;

	if (!PG_ARGISNULL(ARG_PASSWORD) && !PG_ARGISNULL(ARG_PASSWORD_SEALED))
		klm_refuse("password", INVALID, true, "Give one of password and password_sealed.",
				   "is given more than once");
	if (!PG_ARGISNULL(ARG_PASSWORD))
	{
		char	   *plain = text_to_cstring(PG_GETARG_TEXT_PP(ARG_PASSWORD));
		char	   *utf8 = klm_argument_to_utf8("password", plain);

		password = klm_secret_create(utf8, strlen(utf8));
		if (utf8 != plain)
			explicit_bzero(utf8, strlen(utf8));
		explicit_bzero(plain, strlen(plain));
	}
	else if (!PG_ARGISNULL(ARG_PASSWORD_SEALED))
	{
		char	   *account;
		char	   *host;
		KlmError	error;

		if (!klm_open_sealed(PG_GETARG_BYTEA_PP(ARG_PASSWORD_SEALED), &wanted->domain, &account,
							 &host, &password, &error))
			klm_raise("password_sealed", &error, true);
		if (strcmp(account, KLM_BOUNCE_MAILBOX) != 0 ||
			pg_strcasecmp(host, wanted->target.host) != 0)
			klm_refuse("password_sealed", INVALID, true,
					   "The first line in the box is \"bounce mailbox\", the second the host as the "
					   "view kliv_mail.bounce_mailbox shows it.",
					   "was sealed for \"%s\" at the host \"%s\"", klm_shown(account, strlen(account)),
					   klm_shown(host, strlen(host)));
	}
	if (password != NULL)
		klm_check_password(NULL, password, true);
	return password;
}

/* The name of a mailbox goes to the server as it is. */
static const char *
check_name(const char *argument, const char *given, const char *saved, const char *usual)
{
	if (given == NULL || given[0] == '\0')
		return given == NULL && saved != NULL ? saved : usual;
	if (strlen(given) > MAX_MAILBOX)
		klm_refuse(argument, ERRCODE_PROGRAM_LIMIT_EXCEEDED, true, NULL, "has more than %d bytes",
				   MAX_MAILBOX);
	for (const char *p = given; *p; p++)
		if (*p < ' ' || *p > '~' || *p == '*' || *p == '%')
			klm_refuse(argument, INVALID, true,
					   "Names are ASCII; a server lists others in a form of their own (modified "
					   "UTF-7), such as \"&ZeVnLIqe-\": give that.",
					   "\"%s\" is no name of a mailbox", klm_shown(given, strlen(given)));
	return given;
}

/* In microseconds. */
static int64
check_every(FunctionCallInfo fcinfo, const KlmBounceMailbox *saved)
{
	const Interval *every;
	int64		result;

	if (PG_ARGISNULL(ARG_FETCH_EVERY))
		return saved != NULL ? saved->every : DEFAULT_EVERY;
	every = PG_GETARG_INTERVAL_P(ARG_FETCH_EVERY);
	result = every->month == 0 && every->day == 0 ? every->time :
		every->month == 0 && every->day == 1 && every->time == 0 ? USECS_PER_DAY : 0;
	if (result < USECS_PER_MINUTE || result > MAX_EVERY)
		klm_refuse("fetch_every", INVALID, true, "Give something like '5 minutes'.",
				   "is not between 1 minute and 1 day");
	return result;
}

/* Ports that belong to something else: FTP, SSH, Telnet, SMTP, DNS, POP3, LDAP, SMB. */
static bool
is_other_service(int port)
{
	static const int others[] = {20, 21, 22, 23, 25, 53, 110, 389, 445, 465, 587, 636, 995};

	for (int i = 0; i < lengthof(others); i++)
		if (port == others[i])
			return true;
	return false;
}

/* test_bounce_mailbox() */
Datum
kliv_mail_test_bounce_mailbox(PG_FUNCTION_ARGS)
{
	KlmBounceMailbox *saved;
	KlmCaller	caller;
	KlmProbe	probe;
	KlmError	error;

	InitMaterializedSRF(fcinfo, 0);
	klm_become_owner(fcinfo->flinfo->fn_oid, &caller);
	saved = read_saved();
	if (saved == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("no bounce mailbox is configured"),
				 errhint("SELECT * FROM kliv_mail.configure_bounce_mailbox('imap.example.com', "
						 "'bounces@example.com', 'the mailbox password');")));
	klm_read_domain(&saved->domain);
	if (!klm_bounce_mailbox_open(saved, NULL, &error))
		klm_raise(NULL, &error, false);
	klm_probe_mailbox(&saved->target, saved->mailbox, saved->filed_mailbox, &probe);
	klm_secret_wipe(saved->secret);

	if (!XactReadOnly && !RecoveryInProgress())
	{
		KlmCall		call = {0};

		SPI_connect();
		klm_add_time(&call, saved->settings);
		klm_add_bool(&call, probe.ok);
		klm_run(&call, "record_mailbox_test", false);
		SPI_finish();
	}
	klm_become_caller(&caller);
	for (int i = 0; i < probe.count; i++)
		klm_put_step(fcinfo, &probe.steps[i]);
	return (Datum) 0;
}
