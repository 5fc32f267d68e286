/*-------------------------------------------------------------------------
 *
 * connection_report.c
 *		What happened on the way to an open connection, in words.
 *
 * Edge: reads what connection.c and libcurl noted; runs outside of libcurl's
 * callbacks, so that it may allocate.  Never tells a secret.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/base64.h"
#include "lib/stringinfo.h"

#include "net/connection.h"
#include "net/connection_private.h"
#include "smtp/reply_parse.h"

#define SLOW_HINT \
	" If the server is only slow, an administrator can give it longer with " \
	"kliv_mail.connect_timeout."

/* Somebody else's text, made printable. */
static char *
printable(const char *text, Size length)
{
	KlmReply	reply;

	klm_read_reply(KLM_STAGE_CONNECT, text, length, &reply);
	return reply.text;
}

static char *
printable_or_null(const char *text)
{
	return text[0] != '\0' ? printable(text, strlen(text)) : NULL;
}

static char *
base64(const char *data, Size length)
{
	int			size = pg_b64_enc_len(length) + 1;
	char	   *text = palloc0(size);

	if (pg_b64_encode((const void *) data, length, text, size - 1) < 0)
		text[0] = '\0';
	return text;
}

/* A server may repeat what it was given, plain or as AUTH carries it. */
bool
klm_connection_repeats_secret(const KlmConnection *connection, const char *text)
{
	const KlmTarget *target = &connection->target;
	Size		length;
	StringInfoData plain;
	char	   *alone;
	char	   *both;
	bool		found;

	if (target->username == NULL || target->password == NULL || strlen(target->password) < 4)
		return false;
	length = strlen(target->password);
	alone = base64(target->password, length);
	initStringInfo(&plain);
	appendStringInfoChar(&plain, '\0');
	appendStringInfoString(&plain, target->username);
	appendStringInfoChar(&plain, '\0');
	appendStringInfoString(&plain, target->password);
	both = base64(plain.data, plain.len);
	found = strstr(text, target->password) != NULL || strstr(text, alone) != NULL ||
		strstr(text, both) != NULL;
	explicit_bzero(plain.data, plain.len);
	explicit_bzero(alone, strlen(alone));
	explicit_bzero(both, strlen(both));
	pfree(plain.data);
	pfree(alone);
	pfree(both);
	return found;
}

/* An XOAUTH2 refusal stands in a 334 line: base64 of {"status":"401",...}. */
static char *
oauth2_refusal(const RawReply *raw)
{
	const char *text = raw->raw + 4;
	Size		length = 0;
	int			size;
	char	   *json;
	int			decoded;

	while (length + 4 < raw->length && (unsigned char) text[length] > ' ')
		length++;
	size = pg_b64_dec_len(length) + 1;
	json = palloc0(size + 4);
	decoded = pg_b64_decode(text, length, (void *) (json + 4), size);
	if (decoded <= 0)
		return NULL;
	memcpy(json, "535 ", 4);
	json[decoded + 4] = '\0';
	return json;
}

/* What the server said in the stage that failed. */
static void
report_reply(const KlmConnection *connection, KlmReply *reply)
{
	const RawReply *raw = &connection->reply;
	char	   *refusal = NULL;

	memset(reply, 0, sizeof(*reply));
	reply->stage = connection->stage;
	reply->text = pstrdup("");
	if (!raw->complete || raw->stage != connection->stage)
		return;
	if (raw->stage == KLM_STAGE_AUTH && raw->code == 334)
	{
		/* Challenges are nobody's business, but for this one. */
		if (!connection->target.oauth2 || (refusal = oauth2_refusal(raw)) == NULL)
			return;
		klm_read_reply(raw->stage, refusal, strlen(refusal), reply);
	}
	else if (raw->code >= 400)
	{
		klm_read_reply(raw->stage, raw->raw, raw->length, reply);
		if (connection->target.imap)
			reply->code = raw->code;
	}
	else
		return;
	if (klm_connection_repeats_secret(connection, reply->text))
		reply->text = pstrdup("(the reply repeats the credentials and is not shown)");
}

/* How the connection ended, where the server did not say. */
static const char *
ending(const KlmConnection *connection)
{
	if (connection->result == CURLE_LOGIN_DENIED)
		return "the login was not completed";
	if (connection->result == CURLE_RECV_ERROR || connection->result == CURLE_SEND_ERROR)
		return connection->socket_errno == ECONNRESET ? "the server reset the connection" :
			"the server closed the connection";
	return connection->error[0] != '\0' ?
		printable(connection->error, strlen(connection->error)) :
		curl_easy_strerror(connection->result);
}

static bool
library_says(const KlmConnection *connection, const char *words)
{
	return strstr(connection->error, words) != NULL;
}

/* "DNS:a.example, DNS:b.example" as people write it. */
static char *
plain_names(const char *names)
{
	StringInfoData text;

	initStringInfo(&text);
	while (*names)
	{
		if (strncmp(names, "DNS:", 4) == 0)
			names += 4;
		else
			appendStringInfoChar(&text, *names++);
	}
	return text.data;
}

/* The host, and the address that it led to. */
static const char *
place(const KlmConnection *connection)
{
	const char *host = connection->target.host;

	return connection->address[0] == '\0' || strcmp(connection->address, host) == 0 ? host :
		psprintf("%s (%s)", host, connection->address);
}

/* The words for a connection that did not come about. */
static void
explain_connect(const KlmConnection *connection, KlmConnectReport *report)
{
	const KlmTarget *target = &connection->target;
	double		timeout = connection->timeout_ms / 1000.0;
	bool		timed_out = connection->result == CURLE_OPERATION_TIMEDOUT;

	if (connection->guard_refused && !connection->address_tried)
	{
		report->refused = true;
		report->detail = psprintf("host \"%s\" is %s, a loopback, link-local, private or "
								  "reserved address", target->host,
								  connection->refused_address);
		report->hint = pstrdup("Use the provider's public host name; an administrator can "
							   "allow the address in kliv_mail.allowed_hosts.");
	}
	else if (connection->descriptors_exhausted)
	{
		report->starved = true;
		report->detail = pstrdup("too many open files in this server process");
	}
	else if (connection->result == CURLE_COULDNT_RESOLVE_HOST)
	{
		report->detail = psprintf("no address was found for host \"%s\"", target->host);
		report->hint = pstrdup("Check the host's spelling, and that the database server "
							   "can look up names.");
	}
	else if (timed_out && !connection->resolved)
	{
		report->detail = psprintf("the look-up of host \"%s\" did not end within %g s",
								  target->host, timeout);
		report->hint = pstrdup("Check that the database server can look up names.");
	}
	else
	{
		report->detail = timed_out ?
			psprintf("no answer from %s port %d within %g s", place(connection), target->port,
					 timeout) :
			psprintf("could not connect to %s port %d: %s", place(connection), target->port,
					 connection->socket_errno ? strerror(connection->socket_errno) :
					 connection->error);
		report->hint = pstrdup("Check host and port (587 with starttls, 465 with tls), and "
							   "that a firewall lets the database server out.");
	}
}

/* The words for a failed greeting. */
static void
explain_greeting(const KlmConnection *connection, KlmConnectReport *report)
{
	const KlmTarget *target = &connection->target;
	double		timeout = connection->timeout_ms / 1000.0;
	bool		timed_out = connection->result == CURLE_OPERATION_TIMEDOUT;

	if (report->reply.code != 0)
		report->detail = pstrdup("the server does not take the connection");
	else
	{
		report->detail = timed_out ?
			psprintf("the server on port %d sent no greeting within %g s", target->port,
					 timeout) :
			psprintf("the server on port %d sent no %s greeting: %s", target->port,
					 target->imap ? "IMAP" : "SMTP", ending(connection));
		if (target->encryption != KLM_TLS && (target->port == 465 || target->port == 2465))
			report->hint = psprintf("Port %d begins with TLS: use encryption => 'tls', "
									"or port 587 with encryption => 'starttls'.",
									target->port);
		else if (target->encryption != KLM_STARTTLS)
			report->hint = psprintf("Check that this is a mail server's port.%s",
									timed_out ? SLOW_HINT : "");
		else
			report->hint = psprintf("If port %d begins with TLS, use encryption => "
									"'tls'; else use port 587 with encryption => "
									"'starttls', or port 465 with encryption => 'tls'.%s",
									target->port, timed_out ? SLOW_HINT : "");
	}
}

/* The words for a failed TLS stage. */
static void
explain_tls(const KlmConnection *connection, KlmConnectReport *report)
{
	const KlmTarget *target = &connection->target;

	if (connection->owes == OWES_STARTTLS)
	{
		if (connection->reply.complete && connection->reply.stage == KLM_STAGE_TLS)
		{
			report->detail = pstrdup("the server refused STARTTLS");
			report->hint = pstrdup("Try again later, or use encryption => 'tls' (usually "
								   "port 465).");
		}
		else if (connection->caps.starttls)
			report->detail = connection->result == CURLE_OPERATION_TIMEDOUT ?
				psprintf("no reply to STARTTLS within %g s", connection->timeout_ms / 1000.0) :
				psprintf("no reply to STARTTLS: %s", ending(connection));
		else
		{
			report->detail = pstrdup("the server offers no STARTTLS");
			report->hint = pstrdup("Nothing was sent in clear. Use encryption => 'tls' "
								   "(usually port 465), or the host and port that the provider "
								   "names for sending.");
		}
		return;
	}

	if (connection->result == CURLE_PEER_FAILED_VERIFICATION)
	{
		switch (connection->verify_result)
		{
				/* X509_V_ERR_* */
			case 9:
				report->detail = pstrdup("the server's certificate is not valid yet");
				report->hint = pstrdup("Check this server's clock.");
				return;
			case 10:
				report->detail = pstrdup("the server's certificate has expired");
				report->hint = pstrdup("The server's operator must renew it; check also this "
									   "server's clock.");
				return;
			case 18:
				report->detail = pstrdup("the server's certificate is self-signed");
				break;
			case 19:
				report->detail = pstrdup("the server's certificate comes from an authority that is "
										 "not trusted here (self-signed certificate in chain)");
				break;
			case 20:
			case 21:
				report->detail = pstrdup("the server's certificate comes from an authority that is "
										 "not known here");
				break;
			default:
				if (connection->tls_done &&
					(connection->verify_result == 0 || library_says(connection, "subject name")))
				{
					report->detail = psprintf("the server's certificate is not for \"%s\" but for %s",
											  target->host, report->cert_names ?
											  plain_names(report->cert_names) :
											  report->cert_subject ? report->cert_subject :
											  "another host");
					report->hint = pstrdup("Use as host a name that the certificate is for; it is "
										   "never accepted for another one.");
					return;
				}
				report->detail = psprintf("the server's certificate was not accepted: %s",
										  printable(connection->error, strlen(connection->error)));
				break;
		}
		report->hint = pstrdup("An administrator can make the authority known to the machine (Debian: a "
							   "file.crt in /usr/local/share/ca-certificates, then update-ca-certificates), "
							   "or name its certificate in kliv_mail.ca_file.");
		return;
	}
	if (connection->result == CURLE_SSL_CACERT_BADFILE)
	{
		report->detail = psprintf("the trusted authorities' certificates could not be read: %s",
								  printable(connection->error, strlen(connection->error)));
		report->hint = pstrdup("An administrator must mend kliv_mail.ca_file.");
		return;
	}
	if (target->encryption == KLM_TLS &&
		(library_says(connection, "wrong version number") ||
		 library_says(connection, "packet length too long") ||
		 library_says(connection, "unknown protocol") ||
		 library_says(connection, "unexpected TLS packet")))
	{
		report->detail = psprintf("the server on port %d does not begin with TLS (%s)",
								  target->port,
								  printable(connection->error, strlen(connection->error)));
		report->hint = psprintf("Use encryption => 'starttls'%s, or encryption => 'tls' with %s.",
								target->port == 465 ? " with port 587" :
								psprintf(" with port %d", target->port),
								target->port == 465 ? "the port that the provider names for it" :
								"port 465");
		return;
	}
	if (library_says(connection, "unsupported protocol") ||
		library_says(connection, "protocol version") || library_says(connection, "version too low"))
	{
		report->detail = psprintf("the server offers no TLS 1.2 or newer (%s)",
								  printable(connection->error, strlen(connection->error)));
		return;
	}
	if (connection->result == CURLE_OPERATION_TIMEDOUT)
	{
		report->detail = psprintf("the TLS handshake was not finished within %g s",
								  connection->timeout_ms / 1000.0);
		if (target->encryption == KLM_TLS)
			report->hint = psprintf("If port %d begins without TLS, use encryption => "
									"'starttls'%s.", target->port,
									target->port == 465 ? " with port 587" : "");
		return;
	}
	report->detail = psprintf("the TLS handshake failed: %s",
							  printable(connection->error, strlen(connection->error)));
	report->hint = pstrdup("The server must offer TLS 1.2 or newer.");
}

/* The words for a failed login, where it did not end before the server said anything. */
static void
explain_auth(const KlmConnection *connection, KlmConnectReport *report)
{
	const KlmTarget *target = &connection->target;

	if (report->reply.code / 100 == 4)
		report->detail = pstrdup("the server does not take the login now");
	else if (report->reply.code != 0)
	{
		report->detail = pstrdup(target->oauth2 ? "the server refused the token" :
								 "the server refused the user name or password");
		report->hint = pstrdup(target->oauth2 ?
							   "Get a new access token for SMTP, and check the user name." :
							   "Check username and password; many providers want an API "
							   "key or an app password instead of the account's own.");
	}
	else if (!connection->caps.auth)
	{
		report->detail = pstrdup("the server offers no AUTH");
		report->hint = pstrdup("Use the provider's port for sending (587 or 465), or leave "
							   "out username and password if the server wants none.");
	}
	else if (target->oauth2 ? !klm_smtp_offers(&connection->caps, "XOAUTH2") :
			 !klm_smtp_offers(&connection->caps, "PLAIN") && !klm_smtp_offers(&connection->caps, "LOGIN"))
	{
		report->detail = psprintf("the server offers AUTH %s, none of which can be used "
								  "(usable: %s)",
								  printable(connection->caps.auth_mechanisms,
											strlen(connection->caps.auth_mechanisms)),
								  target->oauth2 ? "XOAUTH2" : "PLAIN, LOGIN");
		report->hint = pstrdup(target->oauth2 ?
							   "Use auth => 'password' if the provider has passwords for "
							   "SMTP." :
							   "Use auth => 'oauth2' if the provider wants a token.");
	}
}

/* What went wrong and what to do about it. */
static void
explain(const KlmConnection *connection, KlmConnectReport *report)
{
	switch (connection->stage)
	{
		case KLM_STAGE_CONNECT:
			explain_connect(connection, report);
			break;
		case KLM_STAGE_GREETING:
			explain_greeting(connection, report);
			break;
		case KLM_STAGE_TLS:
			explain_tls(connection, report);
			break;
		case KLM_STAGE_AUTH:
			explain_auth(connection, report);
			break;
		default:
			if (report->reply.code != 0)
				report->detail = pstrdup(connection->target.imap ?
										 "the server does not say what it can do" :
										 "the server refused EHLO");
			break;
	}

	/* SMTP's ports are no help here. */
	if (connection->target.imap && report->hint != NULL &&
		(strstr(report->hint, "465") != NULL || strstr(report->hint, "587") != NULL))
		report->hint = pstrdup("Check host and port (993 with encryption => 'tls', 143 with "
							   "'starttls'), and that a firewall lets the database server out.");

	if (report->detail == NULL)
		report->detail = connection->result == CURLE_OPERATION_TIMEDOUT ?
			psprintf("no reply from the server within %g s", connection->timeout_ms / 1000.0) :
			pstrdup(ending(connection));
}

void
klm_connection_report(KlmConnection *connection, KlmConnectReport *report)
{
	memset(report, 0, sizeof(*report));
	report->ok = connection->open;
	report->caps = connection->caps;
	report->address = connection->connected ? pstrdup(connection->address) : NULL;
	report->refused_address = connection->guard_refused ?
		pstrdup(connection->refused_address) : NULL;
	report->ehlo = connection->ehlo_length > 0 ?
		printable(connection->ehlo, connection->ehlo_length) : NULL;
	report->tls_version = printable_or_null(connection->tls_version);
	report->cert_subject = printable_or_null(connection->cert_subject);
	report->cert_issuer = printable_or_null(connection->cert_issuer);
	report->cert_expires = printable_or_null(connection->cert_expires);
	report->cert_names = printable_or_null(connection->cert_names);
	report->dns_ms = connection->dns_ms;
	report->connect_ms = connection->connect_ms;
	report->tls_ms = connection->tls_ms;
	report->ehlo_ms = connection->ehlo_ms;
	report->auth_ms = connection->auth_ms;
	if (report->ok)
		report->reply.text = pstrdup("");
	else
	{
		report_reply(connection, &report->reply);
		explain(connection, report);
	}
}
