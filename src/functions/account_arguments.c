/*-------------------------------------------------------------------------
 *
 * account_arguments.c
 *		What the arguments of configure_smtp() and test_smtp() mean, given what
 *		is saved; and the checks of each one.
 *
 * In kliv_mail_net.  Reads the saved account and writes nothing.  Calls the
 * address parser, the provider table, the address guard and secret/.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "db/owner_call.h"
#include "functions/account_arguments.h"
#include "message/address.h"
#include "secret/seal.h"
#include "smtp/address_guard.h"
#include "smtp/providers.h"

#define MAX_NAME 63
#define MAX_HOST 253
#define MAX_USERNAME 320
#define MAX_REPLY_TO 2000
#define MAX_SENDERS 100
#define DEFAULT_HOURLY_LIMIT 50
#define DEFAULT_DAILY_LIMIT 500

#define INVALID ERRCODE_INVALID_PARAMETER_VALUE
#define TOO_LONG ERRCODE_PROGRAM_LIMIT_EXCEEDED

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
	char	   *derived;		/* the address that the user name is, or NULL */
} KlmSaved;

static void unpack_saved(HeapTuple row, TupleDesc desc, KlmSaved *saved, KlmResolved *resolved);
static const KlmProvider *resolve_host(const KlmRequest *request, KlmSaved *saved,
									   KlmResolved *resolved);
static void open_sealed(KlmRequest *request, const KlmResolved *resolved);
static void resolve_port(const KlmRequest *request, const KlmProvider *preset,
						 const KlmSaved *saved, KlmResolved *resolved);
static int	port_of_encryption(const KlmProvider *preset, const char *encryption);
static bool is_other_service(int port);
static void resolve_username(const KlmRequest *request, const KlmProvider *preset,
							 KlmSaved *saved, KlmResolved *resolved);
static void resolve_password(const KlmRequest *request, const KlmProvider *preset,
							 const KlmSaved *saved, KlmResolved *resolved);
static void resolve_sender(const KlmRequest *request, const KlmSaved *saved,
						   KlmResolved *resolved);
static char *address_of(const char *username);
static void check_account_name(const KlmRequest *request);
static HeapTuple read_saved(const char *account, TupleDesc *desc);
static bool same(const char *a, const char *b);

/*
 * Another provider or host starts with nothing but its preset; another port or
 * encryption brings the other along; any of the five needs the password again,
 * because the saved one was saved for another place.
 */
void
klm_resolve(const KlmRequest *given, KlmResolved *resolved)
{
	KlmRequest	opened = *given;
	const KlmRequest *request = &opened;
	const KlmProvider *preset;
	KlmSaved	saved;
	HeapTuple	row;
	TupleDesc	desc;

	check_account_name(request);
	row = read_saved(request->account, &desc);
	memset(resolved, 0, sizeof(KlmResolved));
	unpack_saved(row, desc, &saved, resolved);
	klm_read_domain(&resolved->domain);
	preset = resolve_host(request, &saved, resolved);
	if (request->sealed)
		open_sealed(&opened, resolved);
	resolved->new_password = request->password != NULL;
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
unpack_saved(HeapTuple row, TupleDesc desc, KlmSaved *saved, KlmResolved *resolved)
{
	Datum		value;
	bool		isnull;

	memset(saved, 0, sizeof(KlmSaved));
	resolved->hourly_limit = DEFAULT_HOURLY_LIMIT;
	resolved->daily_limit = DEFAULT_DAILY_LIMIT;
	if (row == NULL)
		return;
	saved->exists = true;
	saved->provider = klm_saved_text(row, desc, "provider");
	saved->region = klm_saved_text(row, desc, "region");
	saved->host = klm_saved_text(row, desc, "host");
	saved->port = DatumGetInt32(klm_saved_column(row, desc, "port", &isnull));
	saved->encryption = klm_saved_text(row, desc, "encryption");
	saved->auth = klm_saved_text(row, desc, "auth");
	saved->username = klm_saved_text(row, desc, "username");
	saved->key_id = klm_saved_text(row, desc, "key_id");
	saved->from_address = klm_saved_text(row, desc, "from_address");
	saved->derived = address_of(saved->username);
	value = klm_saved_column(row, desc, "username_cipher", &isnull);
	saved->username_cipher = isnull ? NULL : DatumGetByteaPP(value);
	value = klm_saved_column(row, desc, "password_cipher", &isnull);
	saved->password_cipher = isnull ? NULL : DatumGetByteaPP(value);
	resolved->saved = true;
	resolved->in_use = DatumGetBool(klm_saved_column(row, desc, "in_use", &isnull));
	resolved->hourly_limit = DatumGetInt32(klm_saved_column(row, desc, "hourly_limit", &isnull));
	resolved->daily_limit = DatumGetInt32(klm_saved_column(row, desc, "daily_limit", &isnull));
	value = klm_saved_column(row, desc, "updated_at", &isnull);
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
		host = klm_check_host(request->host, secret);
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

/*
 * A client sealed the password for one account and one host, so that whoever
 * has seen the box cannot have it opened and sent elsewhere.
 */
static void
open_sealed(KlmRequest *request, const KlmResolved *resolved)
{
	char	   *account;
	char	   *host;
	KlmError	error;

	if (!klm_open_sealed(request->sealed, &resolved->domain, &account, &host, &request->password,
						 &error))
		klm_raise("password_sealed", &error, request->secret);
	if (strcmp(account, request->account) != 0)
		klm_refuse("password_sealed", INVALID, request->secret,
				   "The first line in the box is the account's name, \"custom\" unless another was "
				   "given.",
				   "was sealed for the account \"%s\", not \"%s\"",
				   klm_shown(account, strlen(account)), request->account);
	if (pg_strcasecmp(host, resolved->target.host) != 0)
		klm_refuse("password_sealed", INVALID, request->secret,
				   "The second line in the box is the host as kliv_mail.smtp_settings shows it; that "
				   "of a provider stands in the view kliv_mail.providers.",
				   "was sealed for the host \"%s\", not \"%s\"",
				   klm_shown(host, strlen(host)), resolved->target.host);
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

/* The user name, which may itself be sealed, and the way to log in. */
static void
resolve_username(const KlmRequest *request, const KlmProvider *preset, KlmSaved *saved,
				 KlmResolved *resolved)
{
	const char *username;
	const char *auth = request->auth;

	if (request->password)
		klm_check_password(preset, request->password, request->secret);
	if (saved->username_cipher)
	{
		KlmBinding	binding = {request->account, saved->host, saved->port, NULL,
		&resolved->domain};
		KlmSecret  *plain;
		KlmError	error;

		if (klm_open(saved->username_cipher, saved->key_id, &binding, &plain, NULL, &error))
			saved->username = plain->data;
		else if (request->username == NULL && request->password == NULL)
			klm_raise("username", &error, request->secret);
	}

	klm_check_text("username", request->username, MAX_USERNAME, request->secret);
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
		klm_refuse("username", INVALID, secret,
				   preset && preset->username_hint ? preset->username_hint :
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
		klm_refuse("username", INVALID, secret,
				   preset && preset->username_hint ? preset->username_hint :
			"For a relay without login say so: username => ''.",
			"is needed");
	}

	if (request->password)
		resolved->password = request->password;
	else if (username && resolved->changed && saved->password_cipher)
		klm_refuse("password", INVALID, secret,
				   request->sender_needed ?
				   "The saved one was saved for another provider, host, port, encryption or user "
				   "name; give it again." :
				   "The saved one was saved for another provider, host, port, encryption or user "
				   "name; give it again. With username => '' and from_address => '' the way to the "
				   "login alone is tested.",
			"is needed");
	else if (username && saved->password_cipher == NULL)
		klm_refuse("password", INVALID, secret,
				   preset && preset->password_hint ? preset->password_hint :
			"Give the password of this user name.",
			"is needed");
	else if (username)
	{
		KlmBinding	binding = {request->account, saved->host, saved->port, username,
		&resolved->domain};
		KlmError	error;

		if (!klm_open(saved->password_cipher, saved->key_id, &binding, &resolved->password, NULL,
					  &error))
			klm_raise("password", &error, secret);
	}
	if (resolved->password)
		resolved->target.password = resolved->password->data;
}

/*
 * Who the mail comes from; by default the user name, if that is an address.  An
 * address that was the former user name gives way to the new one, if that is an
 * address; another one was meant for itself and is kept.
 */
static void
resolve_sender(const KlmRequest *request, const KlmSaved *saved, KlmResolved *resolved)
{
	const char *username = resolved->target.username;
	char	   *derived = resolved->username_secret ? NULL : address_of(username);
	bool		moved = saved->exists && (saved->host == NULL || !same(username, saved->username));

	if (request->from_address && request->from_address[0])
		resolved->from_address = klm_check_from(request->from_address, &resolved->from_name,
												request->secret);
	else if (request->from_address == NULL && saved->from_address &&
			 !(moved && derived && same(saved->from_address, saved->derived)))
	{
		resolved->from_address = saved->from_address;
		resolved->sender_kept = moved && !same(saved->from_address, derived);
	}
	else if (derived)
		resolved->from_address = derived;
	else if (request->sender_needed)
		klm_refuse("from_address", INVALID, request->secret,
			"Give the address that the mail shall come from.",
			"is needed, since the user name is not an address");
}

void
klm_explain_failure(const KlmResolved *resolved, KlmProbe *probe)
{
	KlmProbeStep *step = &probe->steps[probe->count - 1];
	const KlmProvider *preset = klm_find_provider(resolved->provider);
	const char *region = resolved->region ? resolved->region :
		preset ? preset->default_region : NULL;

	if (resolved->sender_kept && strcmp(step->step, "sender") == 0)
		step->hint =
			psprintf("\"%s\" was saved with the former settings and kept: give from_address => with "
					 "an address that this user may send from.", resolved->from_address);
	else if (region && probe->reply.stage == KLM_STAGE_AUTH && probe->reply.code >= 500)
		step->hint =
			psprintf("%s was asked in the region '%s', where only credentials of that region are "
					 "known%s: give region => with theirs. %s", preset->title, region,
					 preset->regions ? psprintf(" (there are: %s)", preset->regions) : "",
					 step->hint ? step->hint : "");
}

/* The address that a user name is, or NULL. */
static char *
address_of(const char *username)
{
	KlmAddress	address;

	return username && klm_parse_address(username, &address, NULL) ? address.addr : NULL;
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

const char *
klm_needs_smtputf8(const char *from_address, const char *reply_to)
{
	KlmAddress *addresses;
	int			count;

	if (from_address && from_address[0] &&
		klm_parse_address_list(from_address, &addresses, &count, NULL) && addresses[0].smtputf8)
		return "from_address";
	if (reply_to && reply_to[0] && klm_parse_address_list(reply_to, &addresses, &count, NULL))
		for (int i = 0; i < count; i++)
			if (addresses[i].smtputf8)
				return "reply_to";
	return NULL;
}

/* The password, tidied as the provider wants it, is something to log in with. */
void
klm_check_password(const KlmProvider *preset, KlmSecret *password, bool secret)
{
	if (preset)
		password->length = klm_provider_tidy_password(preset, password->data, password->length);
	if (password->length == 0)
		klm_refuse("password", INVALID, secret,
			"NULL keeps the saved one; kliv_mail.reset_smtp() wipes it.", "is empty");
	if (password->length > KLM_MAX_PASSWORD)
		klm_refuse("password", TOO_LONG, secret, NULL, "has more than %d bytes", KLM_MAX_PASSWORD);
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
char *
klm_check_host(const char *given, bool secret)
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
		if (klm_address_closed(klm_allowed_hosts, host, AF_INET6, &v6, false))
			klm_refuse("host", ERRCODE_INSUFFICIENT_PRIVILEGE, secret,
				"Only the administrator of the server can allow it, in kliv_mail.allowed_hosts.",
				"the address %s is loopback, link-local or private", host);
		return host;
	}

	/* Every form that the resolver takes for an address: 127.1, 0x7f.1, 2130706433. */
	if (inet_aton(host, &v4) != 0)
	{
		if (klm_address_closed(klm_allowed_hosts, host, AF_INET, &v4, false))
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

char *
klm_check_from(const char *text, char **name, bool secret)
{
	KlmAddress	address;
	KlmError	error;

	if (!klm_parse_address(text, &address, &error))
		klm_raise("from_address", &error, secret);
	if (name && address.name)
	{
		klm_check_text("from_name", address.name, KLM_MAX_FROM_NAME, secret);
		*name = address.name;
	}
	return address.addr;
}

char *
klm_check_reply_to(const char *list, bool secret)
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

Datum
klm_check_senders(Datum array, bool secret)
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

const char *
klm_check_text(const char *argument, const char *value, Size max, bool secret)
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

static HeapTuple
read_saved(const char *account, TupleDesc *desc)
{
	KlmCall		call = {0};

	klm_add_text(&call, account);
	return klm_look(&call, "read_account", desc);
}

void
klm_read_domain(KlmDomain *domain)
{
	KlmCall		call = {0};
	TupleDesc	desc;
	HeapTuple	row = klm_look(&call, "salts", &desc);
	bool		isnull;
	Datum		salts = heap_getattr(row, 1, desc, &isnull);

	klm_domain_set(domain, isnull ? NULL : DatumGetByteaPCopy(salts));
}

HeapTuple
klm_look(KlmCall *call, const char *function, TupleDesc *desc)
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

char *
klm_saved_text(HeapTuple saved, TupleDesc desc, const char *column)
{
	bool		isnull;
	Datum		value;

	if (saved == NULL)
		return NULL;
	value = klm_saved_column(saved, desc, column, &isnull);
	return isnull ? NULL : klm_to_utf8(TextDatumGetCString(value));
}

Datum
klm_saved_column(HeapTuple saved, TupleDesc desc, const char *column, bool *isnull)
{
	int			number = SPI_fnumber(desc, column);

	if (number <= 0)
		elog(ERROR, "_account has no column \"%s\"", column);
	return heap_getattr(saved, number, desc, isnull);
}

static bool
same(const char *a, const char *b)
{
	return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

void
klm_check_limits(const char *account, int hourly, int daily)
{
	KlmCall		call = {0};
	TupleDesc	ignored;

	klm_add_text(&call, account);
	klm_add_int4(&call, hourly);
	klm_add_int4(&call, daily);
	(void) klm_look(&call, "check_limits", &ignored);
}
