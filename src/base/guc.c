/*-------------------------------------------------------------------------
 *
 * guc.c
 *		The settings kliv_mail.* and the clock they move.
 *
 * Owns the variables of guc.h.  Check hooks never raise: they also run in the
 * postmaster, where an error at reload would end the server.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <limits.h>

#include "access/parallel.h"
#include "common/int.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/guc.h"

/* How far test_clock_offset may move the clock: a hundred years. */
#define MAX_CLOCK_OFFSET (INT64CONST(36525) * USECS_PER_DAY)

typedef enum OnInDoubt
{
	ON_IN_DOUBT_RETRY,
	ON_IN_DOUBT_HOLD
} OnInDoubt;

typedef enum Delivery
{
	DELIVERY_ON,
	DELIVERY_HOLD,
	DELIVERY_SANDBOX
} Delivery;

char	   *klm_platform_url = NULL;
char	   *klm_platform_from = NULL;
char	   *klm_key_file = NULL;
char	   *klm_key_command = NULL;
char	   *klm_allowed_hosts = NULL;
char	   *klm_ehlo_setting = NULL;
char	   *klm_bounce_domain = NULL;
char	   *klm_ca_file = NULL;
int			klm_connections_per_account = 8;
int			klm_max_senders = 4;
int			klm_senders_per_database = 1;
int			klm_sender_memory = 65536;
int			klm_connect_timeout = 30000;
int			klm_reply_timeout = 300000;
int			klm_retention = 30 * SECS_PER_DAY;
int			klm_max_message_size = 25600;
char	   *klm_prohibited_extensions = NULL;
int			klm_sender_idle_timeout = 5000;
bool		klm_notify = false;
bool		klm_mask_secrets = true;
char	   *klm_redirect_to = NULL;
int64		klm_test_clock_offset = 0;

const char *const klm_database_settings[KLM_DATABASE_SETTINGS] = {
	"kliv_mail.bounce_domain", "kliv_mail.delivery", "kliv_mail.quota_timezone",
	"kliv_mail.redirect_to", "kliv_mail.test_clock_offset"
};

/* Read by SQL alone. */
static char *platform_username = NULL;
static char *platform_password_file = NULL;
static int	platform_hourly_limit = 2;
static int	platform_daily_limit = 2;
static int	max_daily_limit = 10000;
static int	reserved_share = 10;
static int	retry_for = 3 * SECS_PER_DAY;
static int	recipient_hourly_limit = 0;
static int	hard_bounces = 1;
static int	on_in_doubt = ON_IN_DOUBT_RETRY;
static int	max_in_doubt_retries = 2;
static char *quota_timezone = NULL;
static int	delivery = DELIVERY_ON;
static bool test_in_session = false;

static GucStringCheckHook check_mail_address = NULL;

/* From which klm_test_clock_offset is derived. */
static char *test_clock_offset = NULL;

static const struct config_enum_entry on_in_doubt_options[] = {
	{"retry", ON_IN_DOUBT_RETRY, false},
	{"hold", ON_IN_DOUBT_HOLD, false},
	{NULL, 0, false}
};

static const struct config_enum_entry delivery_options[] = {
	{"on", DELIVERY_ON, false},
	{"hold", DELIVERY_HOLD, false},
	{"sandbox", DELIVERY_SANDBOX, false},
	{NULL, 0, false}
};

static bool check_platform_url(char **newval, void **extra, GucSource source);
static bool check_ehlo_name(char **newval, void **extra, GucSource source);
static bool check_bounce_domain(char **newval, void **extra, GucSource source);
static bool check_allowed_hosts(char **newval, void **extra, GucSource source);
static bool check_time_zone(char **newval, void **extra, GucSource source);
static bool check_delivery(int *newval, void **extra, GucSource source);
static bool check_redirect_to(char **newval, void **extra, GucSource source);
static bool check_clock_offset(char **newval, void **extra, GucSource source);
static void assign_clock_offset(const char *newval, void *extra);

/*
 * Define every setting.
 *
 * What ALTER DATABASE may set is SUSET, since a session reads it at its start;
 * the rest is the server's.  GUC_SUPERUSER_ONLY hides what tells about the
 * machine or its credentials.  long: a table, one setting after the other.
 */
void
klm_define_settings(GucStringCheckHook check_address)
{
	check_mail_address = check_address;

	DefineCustomStringVariable("kliv_mail.platform_url",
		"The SMTP server of the account \"platform\".",
		"smtps://host:port, smtp+starttls://host:port or smtp://host:port (in "
		"clear, without a user name). Unset: the account is not configured, and "
		"its mail waits.",
		&klm_platform_url, "",
		PGC_SIGHUP, GUC_SUPERUSER_ONLY,
		check_platform_url, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.platform_username",
		"The user name at the platform's SMTP server; empty: no authentication.",
		NULL,
		&platform_username, "",
		PGC_SIGHUP, GUC_SUPERUSER_ONLY,
		NULL, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.platform_password_file",
		"The file that holds the password at the platform's SMTP server.",
		"Its first line is the password. A relative path starts in the data "
		"directory.",
		&platform_password_file, "",
		PGC_SIGHUP, GUC_SUPERUSER_ONLY,
		NULL, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.platform_from",
		"The address that the platform's mail comes from.",
		"One address, with a display name or without. Needed with platform_url.",
		&klm_platform_from, "",
		PGC_SIGHUP, 0,
		check_address, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.platform_hourly_limit",
		"How many deliveries an hour a database may make by the platform's account.",
		NULL,
		&platform_hourly_limit, 2, 0, 10000000,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.platform_daily_limit",
		"How many deliveries a day a database may make by the platform's account.",
		NULL,
		&platform_daily_limit, 2, 0, 10000000,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.max_daily_limit",
		"The most that set_limits() allows a database a day over all its own accounts.",
		NULL,
		&max_daily_limit, 10000, 1, 10000000,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.reserved_share",
		"The share of each quota, in percent, that marketing mail may not use.",
		NULL,
		&reserved_share, 10, 0, 100,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.key_file",
		"The file that holds the keys with which passwords are encrypted.",
		"Mode 0600, one key a line, newest first. A relative path starts in the "
		"data directory; a place outside it keeps the keys out of base backups.",
		&klm_key_file, "kliv_mail.key",
		PGC_SIGHUP, GUC_SUPERUSER_ONLY,
		NULL, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.key_command",
		"A shell command that prints the keys, in place of key_file.",
		"For a secret store.",
		&klm_key_command, "",
		PGC_SIGHUP, GUC_SUPERUSER_ONLY,
		NULL, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.ehlo_name",
		"The name that this machine calls itself by to SMTP servers (EHLO).",
		"A full host name that leads to this machine, or its address in brackets; "
		"empty: the domain of the account's sender.",
		&klm_ehlo_setting, "",
		PGC_SIGHUP, 0,
		check_ehlo_name, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.allowed_hosts",
		"Exceptions to the refusal of loopback, link-local and private addresses.",
		"Host names, addresses or networks (10.1.0.0/16), separated by commas or "
		"spaces; for accounts that users configure.",
		&klm_allowed_hosts, "",
		PGC_SIGHUP, GUC_SUPERUSER_ONLY,
		check_allowed_hosts, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.ca_file",
		"Certificates of authorities (PEM) that SMTP servers are verified with.",
		"Beside the system's own; empty: the system's alone.",
		&klm_ca_file, "",
		PGC_SIGHUP, GUC_SUPERUSER_ONLY,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.connections_per_account",
		"The most connections to one account's server, of all senders of a database together.",
		NULL,
		&klm_connections_per_account, 8, 1, 256,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);

	/*
	 * Read once, when shared memory is made.  A library that a session loads
	 * may not define a POSTMASTER setting; there it rules nothing, and stands
	 * only so that a line in postgresql.conf can be read and is no error.
	 */
	DefineCustomIntVariable("kliv_mail.max_senders",
		"The most senders that run at the same time, over all databases.",
		"Each takes one of max_worker_processes while it runs.",
		&klm_max_senders, 4, 1, 256,
		process_shared_preload_libraries_in_progress ? PGC_POSTMASTER : PGC_SIGHUP,
		0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.senders_per_database",
		"The most senders that one database has at the same time.",
		"Another one is started when mail has waited for a connection for a second, no other database "
		"waits for a sender, and connections_per_account leaves it a connection.",
		&klm_senders_per_database, 1, 1, 32,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.sender_memory",
		"The memory that a sender uses for messages on their way.",
		"An account gets at most half of what the others leave, and at least one message.",
		&klm_sender_memory, 65536, 1024, MAX_KILOBYTES,
		PGC_SIGHUP, GUC_UNIT_KB,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.connect_timeout",
		"The longest time for each step of opening a connection.",
		"Name lookup and TCP are one step, TLS is one, EHLO and login are one; the greeting may take a "
		"minute (reply_timeout if that is less), or this if it is more.",
		&klm_connect_timeout, 30000, 100, 3600000,
		PGC_SIGHUP, GUC_UNIT_MS,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.reply_timeout",
		"The longest time that a server may take to reply.",
		"After the final dot it is never below 10 minutes.",
		&klm_reply_timeout, 300000, 100, 3600000,
		PGC_SIGHUP, GUC_UNIT_MS,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.retry_for",
		"How long after its first attempt a delivery is tried again.",
		NULL,
		&retry_for, 3 * SECS_PER_DAY, 0, INT_MAX,
		PGC_SIGHUP, GUC_UNIT_S,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.retention",
		"How long finished mail, events and idempotency keys are kept.",
		NULL,
		&klm_retention, 30 * SECS_PER_DAY, 60, INT_MAX,
		PGC_SIGHUP, GUC_UNIT_S,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.max_message_size",
		"The largest message, as it goes on the wire.",
		NULL,
		&klm_max_message_size, 25600, 16, 262144,
		PGC_SIGHUP, GUC_UNIT_KB,
		NULL, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.prohibited_extensions",
		"File name extensions that an attachment may not have.",
		"Separated by spaces, without dots: mail providers refuse programs.",
		&klm_prohibited_extensions,
		"exe dll com bat cmd scr pif vbs vbe js jse wsf wsh msi msp hta cpl jar "
		"ps1 lnk reg",
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.recipient_hourly_limit",
		"How many mails an hour one address gets from a database; 0: no limit.",
		NULL,
		&recipient_hourly_limit, 0, 0, 1000000,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.hard_bounces",
		"How many hard bounces suppress an address.",
		"1: the first one; an address whose bounces are counted gets mail until then.",
		&hard_bounces, 1, 1, 10,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomEnumVariable("kliv_mail.on_in_doubt",
		"What happens to a delivery of which nobody knows whether it arrived.",
		"retry: it is sent again, with the same Message-ID; hold: it waits for "
		"retry() or cancel().",
		&on_in_doubt, ON_IN_DOUBT_RETRY, on_in_doubt_options,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.max_in_doubt_retries",
		"How often a delivery in doubt is sent again before it is held.",
		NULL,
		&max_in_doubt_retries, 2, 0, 10,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);
	DefineCustomIntVariable("kliv_mail.sender_idle_timeout",
		"How long a sender with nothing to do stays before it ends.",
		NULL,
		&klm_sender_idle_timeout, 5000, 0, 3600000,
		PGC_SIGHUP, GUC_UNIT_MS,
		NULL, NULL, NULL);
	DefineCustomBoolVariable("kliv_mail.notify",
		"NOTIFY kliv_mail with message id and status when outcomes are recorded.",
		"Any role that may connect to the database can listen, and hears the ids and states of everybody's mail.",
		&klm_notify, false,
		PGC_SIGHUP, 0,
		NULL, NULL, NULL);

	DefineCustomBoolVariable("kliv_mail.test_in_session",
		"Lets a session set what otherwise only its database or the configuration file may set.",
		"For tests of SQL functions: the sender does not have what a session sets.",
		&test_in_session, false,
		PGC_SUSET, GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
		NULL, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.quota_timezone",
		"The time zone whose hours and days quotas count in.",
		"A change never opens a second window.",
		&quota_timezone, "UTC",
		PGC_SUSET, 0,
		check_time_zone, NULL, NULL);
	DefineCustomEnumVariable("kliv_mail.delivery",
		"on: mail is sent; hold: it is queued and none leaves; sandbox: it goes the whole way but to a server.",
		"hold is for copies of a server; sandbox for development and tests: mail is delivered as far as views tell, or what its address at simulator.invalid says (bounced@simulator.invalid, ...).",
		&delivery, DELIVERY_ON, delivery_options,
		PGC_SUSET, 0,
		check_delivery, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.redirect_to",
		"The one address that all mail goes to, instead of its recipients.",
		"For tests and copies; the original recipient is named in a header.",
		&klm_redirect_to, "",
		PGC_SUSET, 0,
		check_redirect_to, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.bounce_domain",
		"The domain that mail comes back to, at an address that is signed for each delivery.",
		"Its mail must get to kliv_mail.ingest_bounce(). For the platform and accounts of a server "
		"without a preset: providers set their own return path, and to a server that refuses such a "
		"sender mail goes with the sender's address. Empty: it comes back there, too.",
		&klm_bounce_domain, "",
		PGC_SUSET, 0,
		check_bounce_domain, NULL, NULL);
	DefineCustomBoolVariable("kliv_mail.mask_secrets",
		"Masks in the server's log the constants of calls that take a password.",
		"Only those, and only in databases with the extension.",
		&klm_mask_secrets, true,
		PGC_SUSET, 0,
		NULL, NULL, NULL);
	DefineCustomStringVariable("kliv_mail.test_clock_offset",
		"Moves the clock that kliv_mail sees, for tests.",
		"An interval of days and smaller units, at most 100 years either way.",
		&test_clock_offset, "0",
		PGC_SUSET, 0,
		check_clock_offset, assign_clock_offset, NULL);

	MarkGUCPrefixReserved("kliv_mail");
}

bool
klm_in_sandbox(void)
{
	return delivery == DELIVERY_SANDBOX;
}

TimestampTz
klm_now(void)
{
	return GetCurrentTimestamp() + klm_test_clock_offset;
}

/* scheme://host:port, with an IPv6 address in brackets */
static bool
check_platform_url(char **newval, void **extra, GucSource source)
{
	static const char *const schemes[] = {"smtps://", "smtp+starttls://", "smtp://"};
	const char *host = NULL;
	const char *host_end;
	const char *port;
	char	   *port_end;
	long		number;

	if (*newval == NULL || **newval == '\0')
		return true;

	for (int i = 0; i < lengthof(schemes); i++)
	{
		if (pg_strncasecmp(*newval, schemes[i], strlen(schemes[i])) == 0)
			host = *newval + strlen(schemes[i]);
	}
	if (host == NULL)
	{
		GUC_check_errdetail("A platform URL begins with \"smtps://\", \"smtp+starttls://\" or "
							"\"smtp://\".");
		return false;
	}

	if (*host == '[')
	{
		host_end = host + 1 + strspn(host + 1, "0123456789abcdefABCDEF:.");
		port = host_end[0] == ']' && host_end[1] == ':' ? host_end + 2 : NULL;
		if (host_end == host + 1)
			port = NULL;
	}
	else
	{
		host_end = host + strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
								 "0123456789-._");
		port = host_end > host && *host_end == ':' ? host_end + 1 : NULL;
	}
	if (port == NULL)
	{
		GUC_check_errdetail("A scheme is followed by a host name or address (IPv6 in brackets), a "
							"colon and a port, and nothing else.");
		GUC_check_errhint("For example \"smtps://mail.example.com:465\"; the user name belongs "
						  "into kliv_mail.platform_username.");
		return false;
	}

	number = isdigit((unsigned char) *port) ? strtol(port, &port_end, 10) : 0;
	if (number < 1 || number > 65535 || *port_end != '\0')
	{
		GUC_check_errdetail("The port must be a number from 1 to 65535, and the last thing in the "
							"URL.");
		GUC_check_errhint("A user name belongs into kliv_mail.platform_username, a password into "
						  "the file that kliv_mail.platform_password_file names.");
		return false;
	}
	return true;
}

/* A name with a dot in it, or an address in brackets: what servers take in EHLO. */
static bool
check_ehlo_name(char **newval, void **extra, GucSource source)
{
	const char *name = *newval;
	Size		length = strlen(name);
	bool		good = length <= 255;

	if (length == 0)
		return true;
	if (name[0] == '[')
		good &= strspn(name + 1, "0123456789abcdefABCDEF.:IPv") == length - 2 &&
			name[length - 1] == ']';
	else
		good &= strchr(name, '.') != NULL && name[length - 1] != '.' &&
			strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") == length;
	for (const char *label = name; good && name[0] != '[' && label != NULL;)
	{
		Size		label_length = strcspn(label, ".");

		good = label_length > 0 && label_length <= 63 && label[0] != '-' &&
			label[label_length - 1] != '-';
		label = label[label_length] == '.' ? label + label_length + 1 : NULL;
	}
	if (!good)
		GUC_check_errdetail("It must be a full host name such as mail.example.com, or an address in "
							"brackets such as [192.0.2.1].");
	return good;
}

bool
klm_is_of_database(const char *setting)
{
	for (int i = 0; i < KLM_DATABASE_SETTINGS; i++)
	{
		if (pg_strcasecmp(setting, klm_database_settings[i]) == 0)
			return true;
	}
	return false;
}

/*
 * Is this set where the sender has it, too?  A session that may set it would
 * be told that its mail is held or redirected, and the mail would leave.
 */
static bool
reaches_sender(const char *name, GucSource source)
{
	/* A parallel worker takes over what its leader has, in whatever order. */
	if (source <= PGC_S_DATABASE || source == PGC_S_OVERRIDE || source == PGC_S_TEST ||
		test_in_session || InitializingParallelWorker)
		return true;
	GUC_check_errcode(ERRCODE_CANT_CHANGE_RUNTIME_PARAM);
	GUC_check_errmsg("%s can be set neither in a session nor for a role", name);
	GUC_check_errdetail("The sender, which it is for, would not have it.");
	GUC_check_errhint("Use ALTER DATABASE ... SET %s = ..., or the configuration file.", name);
	return false;
}

static bool
check_delivery(int *newval, void **extra, GucSource source)
{
	return reaches_sender("kliv_mail.delivery", source);
}

static bool
check_redirect_to(char **newval, void **extra, GucSource source)
{
	return reaches_sender("kliv_mail.redirect_to", source) &&
		check_mail_address(newval, extra, source);
}

/*
 * Names, addresses and networks, commas between.  An entry that could name nothing
 * is a mistake that would be met only when a mail is refused.
 */
static bool
check_allowed_hosts(char **newval, void **extra, GucSource source)
{
	static const char *const separators = ", \t\r\n";

	for (const char *p = *newval + strspn(*newval, separators); *p; p += strspn(p, separators))
	{
		int			length = strcspn(p, separators);
		int			host_length = strcspn(p, ", \t\r\n/");
		char		host[256];
		uint8		address[16];
		int			family = AF_UNSPEC;
		bool		good = length < (int) sizeof(host);

		if (good)
		{
			memcpy(host, p, host_length);
			host[host_length] = '\0';
			family = inet_pton(AF_INET, host, address) == 1 ? AF_INET :
				inet_pton(AF_INET6, host, address) == 1 ? AF_INET6 : AF_UNSPEC;
		}
		if (good && host_length < length)
		{
			char	   *end;
			long		bits = strtol(p + host_length + 1, &end, 10);

			good = family != AF_UNSPEC && isdigit((unsigned char) p[host_length + 1]) &&
				end == p + length && bits <= (family == AF_INET ? 32 : 128);
		}
		else if (good && family == AF_UNSPEC)
			good = strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
						  "0123456789-._") == length && strspn(host, "0123456789.") < length;
		if (!good)
		{
			GUC_check_errdetail("\"%.*s\" is no host name, no address and no network.",
								Min(length, 100), p);
			GUC_check_errhint("Write names, addresses or networks with commas between, as in "
							  "\"mail.internal, 10.0.0.0/8, fd00::/8\".");
			return false;
		}
		p += length;
	}
	return true;
}

static bool
check_bounce_domain(char **newval, void **extra, GucSource source)
{
	if (!reaches_sender("kliv_mail.bounce_domain", source))
		return false;
	if ((*newval)[0] != '[' && strlen(*newval) <= 190 && check_ehlo_name(newval, extra, source))
		return true;
	GUC_check_errdetail("It must be a domain such as bounce.example.com.");
	return false;
}

static bool
check_time_zone(char **newval, void **extra, GucSource source)
{
	pg_tz	   *zone = *newval != NULL ? pg_tzset(*newval) : NULL;

	if (!reaches_sender("kliv_mail.quota_timezone", source))
		return false;
	if (zone == NULL)
	{
		GUC_check_errdetail("There is no time zone of this name.");
		GUC_check_errhint("The view pg_timezone_names lists them.");
		return false;
	}
	if (!pg_tz_acceptable(zone))
	{
		GUC_check_errdetail("A time zone that uses leap seconds cannot be used.");
		return false;
	}
	return true;
}

/*
 * An interval to microseconds, in *extra.  The parser's parts are called
 * rather than interval_in(), which raises.
 */
static bool
check_clock_offset(char **newval, void **extra, GucSource source)
{
	char		buffer[256];
	char	   *fields[MAXDATEFIELDS];
	int			types[MAXDATEFIELDS];
	int			count;
	int			kind = 0;
	struct pg_itm_in parts;
	int64		days;
	int64		offset = 0;
	int64	   *result;

	if (!reaches_sender("kliv_mail.test_clock_offset", source))
		return false;
	if (*newval != NULL && **newval != '\0')
	{
		memset(&parts, 0, sizeof(parts));
		if (((ParseDateTime(*newval, buffer, sizeof(buffer), fields, types, MAXDATEFIELDS,
							&count) != 0 ||
			  DecodeInterval(fields, types, count, INTERVAL_FULL_RANGE, &kind, &parts) != 0) &&
			 DecodeISO8601Interval(*newval, &kind, &parts) != 0) ||
			kind != DTK_DELTA)
		{
			GUC_check_errdetail("It is not an interval.");
			GUC_check_errhint("For example \"1 day 2 hours\" or \"-30 minutes\".");
			return false;
		}
		if (parts.tm_year != 0 || parts.tm_mon != 0)
		{
			GUC_check_errdetail("Months and years have no fixed length.");
			GUC_check_errhint("Give days, hours, minutes or seconds.");
			return false;
		}
		if (pg_mul_s64_overflow(parts.tm_mday, USECS_PER_DAY, &days) ||
			pg_add_s64_overflow(days, parts.tm_usec, &offset) ||
			offset > MAX_CLOCK_OFFSET || offset < -MAX_CLOCK_OFFSET)
		{
			GUC_check_errdetail("The clock can be moved by at most 36525 days.");
			return false;
		}
	}

	result = klm_guc_malloc(sizeof(int64));
	if (result == NULL)
		return false;
	*result = offset;
	*extra = result;
	return true;
}

static void
assign_clock_offset(const char *newval, void *extra)
{
	klm_test_clock_offset = *(int64 *) extra;
}
