/*-------------------------------------------------------------------------
 *
 * connection.c
 *		Open authenticated SMTP connections with libcurl; move bytes on them.
 *
 * Layer: edge (libcurl).  Owns every curl handle
 * and descriptor through KlmConnector, whose memory context's reset callback
 * frees them all.
 *
 * libcurl only connects (CURLOPT_CONNECT_ONLY): name lookup, our address
 * guard, TCP, TLS or STARTTLS, EHLO and AUTH, asynchronously in one multi.  Its
 * own SMTP transfer is not used, since it blocks the process on the reply to
 * the final dot.  curl's descriptors and, once open, ours stand in one epoll
 * descriptor, which the caller waits for beside its latch.
 *
 * libcurl's callbacks never raise nor allocate: they write to fixed buffers
 * here, and klm_connection_report() makes texts of them later, outside.  Where
 * a connection failed is known from the order of the server's replies, which
 * CURLOPT_HEADERFUNCTION shows, since libcurl's codes do not tell it.
 *
 * A call that can start libcurl's resolver thread runs with all signals
 * blocked: the thread inherits the mask, and PostgreSQL's handlers must never
 * run in it.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <ifaddrs.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storage/fd.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "base/error.h"
#include "base/guc.h"
#include "net/connection.h"
#include "net/connection_private.h"
#include "smtp/address_guard.h"

#if LIBCURL_VERSION_NUM < 0x075800
#error "kliv_mail needs libcurl 7.88 or newer"
#endif

#define EVENTS 64
#define GREETING_MS 60000		/* at least connect_timeout, at most this or reply_timeout */

/* What klm_connector_next() has still to tell of a connection. */
#define TELL_OPEN 1
#define TELL_FAILED 2
#define TELL_READABLE 4
#define TELL_WRITABLE 8

struct KlmConnector
{
	MemoryContext context;
	MemoryContextCallback callback;
	CURLM	   *multi;
	int			epoll_fd;
	bool		timer_set;
	struct timespec timer_at;
	bool		polled;			/* nothing more without another epoll_wait() */
	int			opening;		/* connections that are neither open nor failed */
	dlist_head	connections;
	dlist_head	ready;
};


/* ---- time and signals ---- */

static double
ms_between(const struct timespec *from, const struct timespec *to)
{
	return (to->tv_sec - from->tv_sec) * 1000.0 + (to->tv_nsec - from->tv_nsec) / 1000000.0;
}

static double
ms_since(const struct timespec *from)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return ms_between(from, &now);
}

static void
block_signals(sigset_t *saved)
{
	sigset_t	all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, saved);
}

static void
restore_signals(const sigset_t *saved)
{
	pthread_sigmask(SIG_SETMASK, saved, NULL);
}


/* ---- libcurl's callbacks: no allocation, no ereport ---- */

/*
 * Is it an address of this machine?  A mail server on it usually trusts those,
 * public ones too, and would relay for whoever comes from there.
 */
static bool
is_own_address(int family, const void *address)
{
	struct ifaddrs *own;
	bool		found = false;

	address = klm_unmap_address(&family, address);
	if (getifaddrs(&own) != 0)
		return false;
	for (struct ifaddrs *p = own; p != NULL && !found; p = p->ifa_next)
	{
		if (p->ifa_addr == NULL || p->ifa_addr->sa_family != family)
			continue;
		if (family == AF_INET)
			found = memcmp(&((struct sockaddr_in *) p->ifa_addr)->sin_addr, address, 4) == 0;
		else
			found = memcmp(&((struct sockaddr_in6 *) p->ifa_addr)->sin6_addr, address, 16) == 0;
	}
	freeifaddrs(own);
	return found;
}

/* CURLOPT_OPENSOCKETFUNCTION: each address, just before it is connected to. */
static curl_socket_t
open_socket(void *argument, curlsocktype purpose, struct curl_sockaddr *wanted)
{
	KlmConnection *connection = argument;
	const void *address;
	curl_socket_t fd;

	if (!connection->resolved)
	{
		connection->resolved = true;
		connection->dns_ms = ms_since(&connection->start);
	}
	if (wanted->family == AF_INET)
		address = &((struct sockaddr_in *) &wanted->addr)->sin_addr;
	else if (wanted->family == AF_INET6)
		address = &((struct sockaddr_in6 *) &wanted->addr)->sin6_addr;
	else
		return CURL_SOCKET_BAD;

	inet_ntop(wanted->family, address, connection->address, sizeof(connection->address));
	if (connection->target.guarded &&
		klm_address_closed(klm_allowed_hosts, connection->target.host, wanted->family, address,
						   is_own_address(wanted->family, address)))
	{
		connection->guard_refused = true;
		strlcpy(connection->refused_address, connection->address,
				sizeof(connection->refused_address));
		return CURL_SOCKET_BAD;
	}
	if (!AcquireExternalFD())
	{
		connection->descriptors_exhausted = true;
		return CURL_SOCKET_BAD;
	}
	connection->address_tried = true;
	fd = socket(wanted->family, wanted->socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, wanted->protocol);
	if (fd < 0)
	{
		connection->socket_errno = errno;
		ReleaseExternalFD();
		return CURL_SOCKET_BAD;
	}
	return fd;
}

/* May come when the connection is gone: no argument. */
static int
close_socket(void *unused, curl_socket_t fd)
{
	ReleaseExternalFD();
	return close(fd);
}

/* Start a reply, or a line of it, in the stage that the server owes one for. */
static KlmStage
owed_stage(const KlmConnection *connection)
{
	switch (connection->owes)
	{
		case OWES_GREETING:
			return KLM_STAGE_GREETING;
		case OWES_EHLO:
			return KLM_STAGE_EHLO;
		case OWES_STARTTLS:
			return KLM_STAGE_TLS;
		case OWES_AUTH:
			return KLM_STAGE_AUTH;
		case OWES_NOTHING:
			break;
	}
	return connection->authenticated ? KLM_STAGE_AUTH : KLM_STAGE_EHLO;
}

/* The reply is complete: what comes next? */
static void
note_reply(KlmConnection *connection)
{
	RawReply   *reply = &connection->reply;

	switch (connection->owes)
	{
		case OWES_GREETING:
			if (reply->code == 220)
				connection->owes = OWES_EHLO;
			break;

		case OWES_EHLO:
			/* After a refusal libcurl tries HELO; its reply is owed in turn. */
			if (reply->code != 250)
				break;
			connection->ehlo_ms = ms_since(&connection->start);
			connection->ehlo_length = reply->length;
			memcpy(connection->ehlo, reply->raw, reply->length);
			klm_smtp_parse_ehlo(reply->raw, reply->length, &connection->caps);

			/*
			 * PLAIN and XOAUTH2 spare a round trip by an initial response.  To
			 * LOGIN it must not be given: a server that does not expect one
			 * takes the password for the user name.
			 */
			if (connection->target.username != NULL)
				curl_easy_setopt(connection->easy, CURLOPT_SASL_IR,
								 (long) (connection->target.oauth2 ||
										 klm_smtp_offers(&connection->caps, "PLAIN")));
			if (connection->target.encryption == KLM_STARTTLS && !connection->starttls_accepted)
				connection->owes = OWES_STARTTLS;
			else if (connection->target.username != NULL)
				connection->owes = OWES_AUTH;
			else
				connection->owes = OWES_NOTHING;
			break;

		case OWES_STARTTLS:
			if (reply->code == 220)
			{
				connection->starttls_accepted = true;
				connection->owes = OWES_EHLO;
			}
			break;

		case OWES_AUTH:
			if (reply->code == 235)
			{
				connection->auth_ms = ms_since(&connection->start);
				connection->authenticated = true;
				connection->owes = OWES_NOTHING;
			}
			break;

		case OWES_NOTHING:
			break;
	}
}

/* "A001 OK ...": is the line's second word that one? */
static bool
second_word_is(const char *line, Size length, const char *word)
{
	Size		at = 0;

	while (at < length && line[at] != ' ')
		at++;
	return length > at + strlen(word) && pg_strncasecmp(line + at + 1, word, strlen(word)) == 0;
}

/*
 * A line of IMAP: what the greeting and libcurl's own two commands, CAPABILITY
 * and STARTTLS, are answered.  A refusal has no code there; it is kept as 421
 * of the greeting, and 500.
 */
static void
note_imap_line(KlmConnection *connection, const char *line, Size length)
{
	static const char starttls[] = "STARTTLS";
	RawReply   *reply = &connection->reply;
	bool		untagged = line[0] == '*';
	bool		good = second_word_is(line, length, "OK");

	if (connection->owes == OWES_GREETING)
		good = good || second_word_is(line, length, "PREAUTH");
	else if (untagged)
	{
		for (Size i = 0; i + sizeof(starttls) - 1 <= length; i++)
			if (pg_strncasecmp(line + i, starttls, sizeof(starttls) - 1) == 0)
				connection->caps.starttls = true;
		good = !second_word_is(line, length, "BYE");
	}

	reply->stage = owed_stage(connection);
	reply->length = Min(length, sizeof(reply->raw));
	memcpy(reply->raw, line, reply->length);
	reply->code = good ? 0 : connection->owes == OWES_GREETING ? 421 : 500;
	reply->complete = true;
	if (!good || (untagged && connection->owes != OWES_GREETING))
		return;

	switch (connection->owes)
	{
		case OWES_GREETING:
			connection->owes = OWES_EHLO;
			break;
		case OWES_EHLO:
			connection->ehlo_ms = ms_since(&connection->start);
			connection->owes = connection->target.encryption == KLM_STARTTLS &&
				!connection->starttls_accepted ? OWES_STARTTLS : OWES_NOTHING;
			break;
		case OWES_STARTTLS:
			connection->starttls_accepted = true;
			connection->owes = OWES_EHLO;
			break;
		default:
			break;
	}
}

/* CURLOPT_HEADERFUNCTION: each line of each reply. */
static size_t
read_line(char *data, size_t size, size_t count, void *argument)
{
	KlmConnection *connection = argument;
	RawReply   *reply = &connection->reply;
	Size		length = size * count;

	/* What comes while libcurl gives up must not cover what went wrong. */
	if (connection->settled || length == 0)
		return length;
	if (connection->target.imap)
	{
		note_imap_line(connection, data, length);
		return length;
	}

	if (reply->complete || reply->length == 0)
	{
		reply->complete = false;
		reply->length = 0;
		reply->code = 0;
		reply->stage = owed_stage(connection);
	}
	if (reply->length + length <= sizeof(reply->raw))
	{
		memcpy(reply->raw + reply->length, data, length);
		reply->length += length;
	}
	else if (reply->length == 0)
	{
		memcpy(reply->raw, data, sizeof(reply->raw));
		reply->length = sizeof(reply->raw);
	}
	if (length >= 4 && data[3] != '-')
	{
		for (int i = 0; i < 3; i++)
			if (data[i] < '0' || data[i] > '9')
				return length;
		reply->code = (data[0] - '0') * 100 + (data[1] - '0') * 10 + (data[2] - '0');
		reply->complete = true;
		note_reply(connection);
	}
	return length;
}

/*
 * CURLOPT_DEBUGFUNCTION: that the handshake begins, and the one line that tells
 * the TLS version and that it is over.  All else, among it commands with
 * credentials, is dropped.
 */
static int
read_debug(CURL *easy, curl_infotype type, char *data, size_t size, void *argument)
{
	static const char prefix[] = "SSL connection using ";
	KlmConnection *connection = argument;
	Size		length = 0;

	/*
	 * With smtps libcurl tells when TCP was connected only once TLS is done;
	 * the first bytes of the handshake tell it, too.
	 */
	if (type == CURLINFO_SSL_DATA_OUT && !connection->connected)
	{
		connection->connected = true;
		connection->connect_ms = ms_since(&connection->start);
	}
	if (type != CURLINFO_TEXT || size < sizeof(prefix) ||
		strncmp(data, prefix, sizeof(prefix) - 1) != 0)
		return 0;
	data += sizeof(prefix) - 1;
	size -= sizeof(prefix) - 1;
	while (length < size && length + 1 < sizeof(connection->tls_version) &&
		   (unsigned char) data[length] > ' ' && (unsigned char) data[length] < 0x7f)
		length++;
	memcpy(connection->tls_version, data, length);
	connection->tls_version[length] = '\0';
	connection->tls_done = true;
	connection->tls_ms = ms_since(&connection->start);
	return 0;
}

/*
 * CURLOPT_SSL_CTX_FUNCTION: the system's authorities, where libcurl looks for them
 * without ca_file.  What cannot be read is passed over: ca_file counts also where
 * the system has none.
 */
static CURLcode
add_system_authorities(CURL *easy, void *context, void *unused)
{
	const curl_version_info_data *libcurl = curl_version_info(CURLVERSION_NOW);

	if (libcurl->cainfo != NULL)
		(void) SSL_CTX_load_verify_locations(context, libcurl->cainfo, NULL);
	if (libcurl->capath != NULL)
		(void) SSL_CTX_load_verify_locations(context, NULL, libcurl->capath);
	if (libcurl->cainfo == NULL && libcurl->capath == NULL)
		(void) SSL_CTX_set_default_verify_paths(context);
	return CURLE_OK;
}

/* CURLOPT_WRITEFUNCTION: nothing that is ours comes this way; never to stdout. */
static size_t
drop_data(char *data, size_t size, size_t count, void *argument)
{
	return size * count;
}

/* CURLMOPT_SOCKETFUNCTION */
static int
watch_socket(CURL *easy, curl_socket_t fd, int what, void *argument, void *unused)
{
	KlmConnector *connector = argument;
	struct epoll_event event;

	if (what == CURL_POLL_REMOVE)
	{
		epoll_ctl(connector->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
		return 0;
	}
	event.events = (what & CURL_POLL_IN ? EPOLLIN : 0) | (what & CURL_POLL_OUT ? EPOLLOUT : 0);
	event.data.u64 = ((uint64) fd << 1) | 1;	/* an odd number is no pointer */
	if (epoll_ctl(connector->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0 && errno == EEXIST)
		epoll_ctl(connector->epoll_fd, EPOLL_CTL_MOD, fd, &event);
	return 0;
}

/* CURLMOPT_TIMERFUNCTION */
static int
set_timer(CURLM *multi, long timeout_ms, void *argument)
{
	KlmConnector *connector = argument;

	connector->timer_set = timeout_ms >= 0;
	if (connector->timer_set)
	{
		clock_gettime(CLOCK_MONOTONIC, &connector->timer_at);
		connector->timer_at.tv_sec += timeout_ms / 1000;
		connector->timer_at.tv_nsec += (timeout_ms % 1000) * 1000000;
		if (connector->timer_at.tv_nsec >= 1000000000)
		{
			connector->timer_at.tv_sec++;
			connector->timer_at.tv_nsec -= 1000000000;
		}
	}
	return 0;
}


/* ---- the connector ---- */

/* Free what a connection holds of libcurl; never blocks. */
static void
release_connection(KlmConnection *connection)
{
	KlmConnector *connector = connection->connector;

	if (!connection->settled)
		connector->opening--;
	connection->settled = true;
	if (connection->tell != 0)
		dlist_delete(&connection->ready_node);
	dlist_delete(&connection->node);
	if (connection->fd >= 0)
	{
		epoll_ctl(connector->epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);

		/*
		 * Half a TLS record may be waiting to be written; ending TLS politely
		 * must not send the rest of it, since we have told that it did not
		 * leave.
		 */
		if (connection->send_blocked)
			shutdown(connection->fd, SHUT_RDWR);
	}
	if (connection->easy != NULL)
	{
		curl_multi_remove_handle(connector->multi, connection->easy);
		curl_easy_cleanup(connection->easy);
	}
}

static void
release_connector(void *argument)
{
	KlmConnector *connector = argument;
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &connector->connections)
		release_connection(dlist_container(KlmConnection, node, iter.cur));
	if (connector->multi != NULL)
		curl_multi_cleanup(connector->multi);
	if (connector->epoll_fd >= 0)
	{
		close(connector->epoll_fd);
		ReleaseExternalFD();
	}
}

KlmConnector *
klm_connector_create(void)
{
	static bool initialized = false;
	MemoryContext context;
	KlmConnector *connector;

	/* Here and not in _PG_init: most processes never connect. */
	if (!initialized)
	{
		if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
			ereport(ERROR,
					(errcode(ERRCODE_OUT_OF_MEMORY),
					 errmsg("could not initialize libcurl")));
		initialized = true;
	}

	context = AllocSetContextCreate(CurrentMemoryContext, "kliv_mail connections",
									ALLOCSET_DEFAULT_SIZES);
	connector = MemoryContextAllocZero(context, sizeof(KlmConnector));
	connector->context = context;
	connector->epoll_fd = -1;
	dlist_init(&connector->connections);
	dlist_init(&connector->ready);
	connector->callback.func = release_connector;
	connector->callback.arg = connector;
	MemoryContextRegisterResetCallback(context, &connector->callback);

	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not open connections: %m")));
	connector->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (connector->epoll_fd < 0)
	{
		ReleaseExternalFD();
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not open connections: %m")));
	}
	connector->multi = curl_multi_init();
	if (connector->multi == NULL ||
		curl_multi_setopt(connector->multi, CURLMOPT_SOCKETFUNCTION, watch_socket) != CURLM_OK ||
		curl_multi_setopt(connector->multi, CURLMOPT_SOCKETDATA, connector) != CURLM_OK ||
		curl_multi_setopt(connector->multi, CURLMOPT_TIMERFUNCTION, set_timer) != CURLM_OK ||
		curl_multi_setopt(connector->multi, CURLMOPT_TIMERDATA, connector) != CURLM_OK ||
		klm_multi_quick_exit(connector->multi) != CURLM_OK ||
		/* Fewer than are open would make libcurl close some to make room. */
		curl_multi_setopt(connector->multi, CURLMOPT_MAXCONNECTS, 65536L) != CURLM_OK)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not initialize libcurl")));
	return connector;
}

int
klm_connector_fd(const KlmConnector *connector)
{
	return connector->epoll_fd;
}

static double step_left(const KlmConnection *connection);

long
klm_connector_timeout(const KlmConnector *connector)
{
	dlist_head *connections = unconstify(dlist_head *, &connector->connections);
	double		left;
	dlist_iter	iter;

	if (!dlist_is_empty(unconstify(dlist_head *, &connector->ready)))
		return 0;
	if (!connector->timer_set && connector->opening == 0)
		return -1;
	if (connector->timer_set)
		left = -ms_since(&connector->timer_at);
	else
		left = PG_INT32_MAX;
	if (connector->opening > 0)
		dlist_foreach(iter, connections)
		{
			const KlmConnection *connection = dlist_container(KlmConnection, node, iter.cur);

			if (!connection->settled)
				left = Min(left, step_left(connection));
		}

	/* Rounded up: a little early would be a call for nothing. */
	return left <= 0 ? 0 : (long) left + 1;
}

static void
tell(KlmConnection *connection, int what)
{
	if (connection->tell == 0)
		dlist_push_tail(&connection->connector->ready, &connection->ready_node);
	connection->tell |= what;
}

/* Where did it stop? */
static KlmStage
failed_stage(const KlmConnection *connection)
{
	switch (connection->result)
	{
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_ISSUER_ERROR:
		case CURLE_SSL_INVALIDCERTSTATUS:
		case CURLE_SSL_ENGINE_INITFAILED:
		case CURLE_USE_SSL_FAILED:
			return KLM_STAGE_TLS;
		default:
			break;
	}
	if (connection->owes == OWES_GREETING)
	{
		if (!connection->connected)
			return KLM_STAGE_CONNECT;
		if (connection->target.encryption == KLM_TLS && !connection->tls_done)
			return KLM_STAGE_TLS;
	}
	if (connection->owes == OWES_EHLO && connection->starttls_accepted && !connection->tls_done)
		return KLM_STAGE_TLS;
	return owed_stage(connection);
}

/* Copy the value of "Key:value" of the server's certificate. */
static void
read_certificate(KlmConnection *connection)
{
	struct curl_certinfo *info = NULL;

	if (curl_easy_getinfo(connection->easy, CURLINFO_CERTINFO, &info) != CURLE_OK ||
		info == NULL || info->num_of_certs < 1)
		return;
	for (struct curl_slist *line = info->certinfo[0]; line != NULL; line = line->next)
	{
		if (strncmp(line->data, "Subject:", 8) == 0)
			strlcpy(connection->cert_subject, line->data + 8, sizeof(connection->cert_subject));
		else if (strncmp(line->data, "Issuer:", 7) == 0)
			strlcpy(connection->cert_issuer, line->data + 7, sizeof(connection->cert_issuer));
		else if (strncmp(line->data, "Expire date:", 12) == 0)
			strlcpy(connection->cert_expires, line->data + 12, sizeof(connection->cert_expires));
		else if (strncmp(line->data, "X509v3 Subject Alternative Name:", 32) == 0)
			strlcpy(connection->cert_names, line->data + 32, sizeof(connection->cert_names));
	}
}

/* Has TCP connected?  With smtps the first bytes of the handshake may have told it before. */
static void
note_connected(KlmConnection *connection)
{
	curl_off_t	microseconds = 0;

	if (curl_easy_getinfo(connection->easy, CURLINFO_CONNECT_TIME_T, &microseconds) == CURLE_OK &&
		microseconds > 0)
	{
		connection->connected = true;
		connection->connect_ms = microseconds / 1000.0;
	}
}

/* libcurl has connected or given up, or we have. */
static void
settle(KlmConnection *connection, CURLcode result)
{
	char	   *address = NULL;
	long		os_errno = 0;

	connection->result = result;
	connection->connector->opening--;
	note_connected(connection);
	if (connection->connected)
	{
		if (curl_easy_getinfo(connection->easy, CURLINFO_PRIMARY_IP, &address) == CURLE_OK &&
			address != NULL && address[0] != '\0')
			strlcpy(connection->address, address, sizeof(connection->address));
	}
	curl_easy_getinfo(connection->easy, CURLINFO_SSL_VERIFYRESULT, &connection->verify_result);
	if (curl_easy_getinfo(connection->easy, CURLINFO_OS_ERRNO, &os_errno) == CURLE_OK &&
		os_errno != 0)
		connection->socket_errno = os_errno;
	read_certificate(connection);
	connection->stage = failed_stage(connection);
	connection->settled = true;

	/* libcurl connects without AUTH where the server offers none. */
	if (result == CURLE_OK && connection->owes == OWES_NOTHING)
	{
		curl_socket_t fd = CURL_SOCKET_BAD;
		struct epoll_event event = {.events = EPOLLIN,.data.ptr = connection};
		size_t		length = 0;

		if (curl_easy_getinfo(connection->easy, CURLINFO_ACTIVESOCKET, &fd) == CURLE_OK &&
			fd != CURL_SOCKET_BAD &&
			epoll_ctl(connection->connector->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0)
		{
			connection->fd = fd;
			connection->open = true;

			/* A first read ties the handle to its connection, which libcurl could prune else. */
			if (curl_easy_recv(connection->easy, connection->early, sizeof(connection->early),
							   &length) == CURLE_OK)
				connection->early_length = length;
			curl_easy_setopt(connection->easy, CURLOPT_VERBOSE, 0L);
		}
	}

	/* The copies that are needed no more; a transfer that is still under way ends at the close. */
	if (result != CURLE_OPERATION_TIMEDOUT)
	{
		curl_easy_setopt(connection->easy, CURLOPT_USERNAME, NULL);
		curl_easy_setopt(connection->easy, CURLOPT_PASSWORD, NULL);
		curl_easy_setopt(connection->easy, CURLOPT_XOAUTH2_BEARER, NULL);
	}

	tell(connection, connection->open ? TELL_OPEN : TELL_FAILED);
	if (connection->early_length > 0)
		tell(connection, TELL_READABLE);
}

/*
 * Which step the connection is in, and until when that may last.  Each has its
 * own patience: a server that can be reached at once may greet late.
 */
static void
note_step(KlmConnection *connection)
{
	ConnectStep step;

	if (!connection->connected)
		note_connected(connection);
	step = !connection->connected ? STEP_CONNECT :
		connection->target.encryption == KLM_TLS && !connection->tls_done ? STEP_TLS :
		connection->owes == OWES_GREETING ? STEP_GREETING : STEP_LOGIN;
	if (step == connection->step)
		return;
	connection->step = step;
	connection->timeout_ms = step == STEP_GREETING ?
		Max(klm_connect_timeout, Min(klm_reply_timeout, GREETING_MS)) : klm_connect_timeout;
	connection->step_start_ms = ms_since(&connection->start);

	/* libcurl's own limit is for the address that it tries; from here on ours counts. */
	curl_easy_setopt(connection->easy, CURLOPT_CONNECTTIMEOUT_MS,
					 (long) connection->step_start_ms + connection->timeout_ms + 1000L);
}

/* Milliseconds that the step may still take. */
static double
step_left(const KlmConnection *connection)
{
	return connection->step_start_ms + connection->timeout_ms - ms_since(&connection->start);
}

/* Give up what has lasted too long. */
static void
check_steps(KlmConnector *connector)
{
	dlist_iter	iter;

	dlist_foreach(iter, &connector->connections)
	{
		KlmConnection *connection = dlist_container(KlmConnection, node, iter.cur);

		if (connection->settled)
			continue;
		note_step(connection);
		if (step_left(connection) <= 0)
			settle(connection, CURLE_OPERATION_TIMEDOUT);
	}
}

static void
drive(KlmConnector *connector)
{
	struct epoll_event events[EVENTS];
	bool		timer_due = connector->timer_set && ms_since(&connector->timer_at) >= 0;
	bool		signals_blocked = false;
	sigset_t	saved;
	int			running;
	int			count;

	if (timer_due)
	{
		connector->timer_set = false;
		block_signals(&saved);
		signals_blocked = true;
		curl_multi_socket_action(connector->multi, CURL_SOCKET_TIMEOUT, 0, &running);
	}
	count = epoll_wait(connector->epoll_fd, events, EVENTS, 0);
	connector->polled = count < EVENTS;
	for (int i = 0; i < count; i++)
	{
		uint32		what = events[i].events;

		if (events[i].data.u64 & 1)
		{
			int			bits = 0;

			if (!signals_blocked)
				block_signals(&saved);
			signals_blocked = true;
			if (what & EPOLLIN)
				bits |= CURL_CSELECT_IN;
			if (what & EPOLLOUT)
				bits |= CURL_CSELECT_OUT;
			if (what & (EPOLLERR | EPOLLHUP))
				bits |= CURL_CSELECT_ERR;
			curl_multi_socket_action(connector->multi, (curl_socket_t) (events[i].data.u64 >> 1),
									 bits, &running);
		}
		else
		{
			KlmConnection *connection = events[i].data.ptr;

			if (what & (EPOLLIN | EPOLLERR | EPOLLHUP))
				tell(connection, TELL_READABLE);
			if (what & EPOLLOUT)
				tell(connection, TELL_WRITABLE);
		}
	}
	if (signals_blocked)
	{
		CURLMsg    *message;
		int			left;

		restore_signals(&saved);
		while ((message = curl_multi_info_read(connector->multi, &left)) != NULL)
		{
			char	   *private = NULL;

			if (message->msg == CURLMSG_DONE &&
				curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &private) == CURLE_OK &&
				private != NULL && !((KlmConnection *) private)->settled)
				settle((KlmConnection *) private, message->data.result);
		}
	}
	if (connector->opening > 0)
		check_steps(connector);
}

KlmConnEvent
klm_connector_next(KlmConnector *connector, KlmConnection **connection)
{
	for (;;)
	{
		if (!dlist_is_empty(&connector->ready))
		{
			KlmConnection *ready = dlist_head_element(KlmConnection, ready_node, &connector->ready);
			int			what = ready->tell & -ready->tell;	/* the lowest */

			ready->tell &= ~what;
			if (ready->tell == 0)
				dlist_delete(&ready->ready_node);
			*connection = ready;
			return what == TELL_OPEN ? KLM_CONN_OPEN : what == TELL_FAILED ? KLM_CONN_FAILED :
				what == TELL_READABLE ? KLM_CONN_READABLE : KLM_CONN_WRITABLE;
		}
		if (connector->polled)
		{
			connector->polled = false;
			*connection = NULL;
			return KLM_CONN_NONE;
		}
		drive(connector);
	}
}


/* ---- one connection ---- */

/* Could it stand in a URL and mean a host only? */
static bool
host_is_plain(const char *host)
{
	uint8		address[16];

	if (inet_pton(AF_INET6, host, address) == 1)
		return true;
	if (host[0] == '\0' || strlen(host) > 253)
		return false;
	return strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") ==
		strlen(host);
}

static bool
set_error(KlmError *error, int sqlstate, char *message, char *hint)
{
	error->sqlstate = sqlstate;
	error->message = message;
	error->hint = hint;
	return false;
}

/* Each option, and which one it was that libcurl did not take. */
#define SET(option, value) \
	do { \
		CURLcode	code_ = curl_easy_setopt(easy, option, value); \
		if (code_ != CURLE_OK) \
			return set_error(error, code_ == CURLE_OUT_OF_MEMORY ? ERRCODE_OUT_OF_MEMORY : \
							 ERRCODE_FEATURE_NOT_SUPPORTED, \
							 psprintf("libcurl refused " #option ": %s", \
									  curl_easy_strerror(code_)), NULL); \
	} while (0)

static bool
set_options(KlmConnection *connection, const char *url, KlmError *error)
{
	const KlmTarget *target = &connection->target;
	CURL	   *easy = connection->easy;

	SET(CURLOPT_PRIVATE, connection);
	SET(CURLOPT_ERRORBUFFER, connection->error);
	SET(CURLOPT_CONNECT_ONLY, 1L);
	SET(CURLOPT_URL, url);
	SET(CURLOPT_PROTOCOLS_STR, target->imap ? "imap,imaps" : "smtp,smtps");
	SET(CURLOPT_NOSIGNAL, 1L);

	/* Give up on a lookup without waiting for its thread. */
	SET(CURLOPT_QUICK_EXIT, 1L);

	/* The postmaster's environment may name a proxy. */
	SET(CURLOPT_PROXY, "");
	SET(CURLOPT_NOPROXY, "*");

	SET(CURLOPT_CONNECTTIMEOUT_MS, connection->timeout_ms);
	SET(CURLOPT_SERVER_RESPONSE_TIMEOUT,
		Max(klm_connect_timeout, Max(klm_reply_timeout, GREETING_MS)) / 1000L + 1);
	SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
	SET(CURLOPT_OPENSOCKETDATA, connection);
	SET(CURLOPT_CLOSESOCKETFUNCTION, close_socket);
	SET(CURLOPT_CLOSESOCKETDATA, NULL);
	SET(CURLOPT_HEADERFUNCTION, read_line);
	SET(CURLOPT_HEADERDATA, connection);
	SET(CURLOPT_WRITEFUNCTION, drop_data);
	SET(CURLOPT_DEBUGFUNCTION, read_debug);
	SET(CURLOPT_DEBUGDATA, connection);
	SET(CURLOPT_VERBOSE, 1L);

	SET(CURLOPT_USE_SSL,
		(long) (target->encryption == KLM_CLEAR ? CURLUSESSL_NONE : CURLUSESSL_ALL));
	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	SET(CURLOPT_CERTINFO, 1L);
	if (klm_ca_file != NULL && klm_ca_file[0] != '\0')
	{
		SET(CURLOPT_CAINFO, klm_ca_file);
		/* libcurl now leaves out the system's file, which may be all that the system has. */
		if (strncmp(curl_version_info(CURLVERSION_NOW)->ssl_version, "OpenSSL/", 8) == 0)
			SET(CURLOPT_SSL_CTX_FUNCTION, add_system_authorities);
	}

	if (target->username != NULL && !target->imap)
	{
		SET(CURLOPT_USERNAME, target->username);
		/*
		 * Named explicitly: left to itself libcurl takes what it holds for the
		 * strongest that is offered, and tries no other.
		 */
		if (target->oauth2)
		{
			SET(CURLOPT_XOAUTH2_BEARER, target->password);
			SET(CURLOPT_LOGIN_OPTIONS, "AUTH=XOAUTH2");
		}
		else
		{
			SET(CURLOPT_PASSWORD, target->password);
			SET(CURLOPT_LOGIN_OPTIONS, "AUTH=PLAIN;AUTH=LOGIN");
		}
	}
	return true;
}

KlmConnection *
klm_connection_open(KlmConnector *connector, const KlmTarget *target, void *owner, KlmError *error)
{
	KlmConnection *connection;
	char	   *url;
	bool		ready;
	sigset_t	saved;
	CURLMcode	code;

	/* Settings are checked when saved; a row may have been altered since. */
	if (!host_is_plain(target->host) || target->port < 1 || target->port > 65535)
	{
		set_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
				  psprintf("\"%s\" port %d is no server that can be connected to", target->host,
						   target->port), NULL);
		return NULL;
	}
	if (target->username != NULL && target->encryption == KLM_CLEAR)
	{
		set_error(error, ERRCODE_INVALID_PARAMETER_VALUE,
				  pstrdup("credentials are not sent without TLS"), NULL);
		return NULL;
	}

	connection = MemoryContextAllocZero(connector->context, sizeof(KlmConnection));
	connection->connector = connector;
	connection->target = *target;
	connection->owner = owner;
	connection->fd = -1;
	connection->dns_ms = connection->connect_ms = connection->tls_ms = -1;
	connection->ehlo_ms = connection->auth_ms = -1;
	connection->timeout_ms = klm_connect_timeout;
	clock_gettime(CLOCK_MONOTONIC, &connection->start);
	dlist_push_tail(&connector->connections, &connection->node);
	connector->opening++;

	url = psprintf(strchr(target->host, ':') ? "%s%s://[%s]:%d/%s" : "%s%s://%s:%d/%s",
				   target->imap ? "imap" : "smtp", target->encryption == KLM_TLS ? "s" : "",
				   target->host, target->port, target->imap ? "" :
				   target->ehlo_name && host_is_plain(target->ehlo_name) ? target->ehlo_name :
				   "localhost");
	connection->easy = curl_easy_init();
	if (connection->easy == NULL)
		ready = set_error(error, ERRCODE_OUT_OF_MEMORY, pstrdup("libcurl is out of memory"), NULL);
	else
		ready = set_options(connection, url, error);
	pfree(url);
	if (ready)
	{
		block_signals(&saved);
		code = curl_multi_add_handle(connector->multi, connection->easy);
		restore_signals(&saved);
		if (code != CURLM_OK)
			ready = set_error(error, ERRCODE_OUT_OF_MEMORY,
							  psprintf("could not start to connect: %s", curl_multi_strerror(code)),
							  NULL);
	}
	if (!ready)
	{
		klm_connection_close(connection);
		return NULL;
	}
	return connection;
}

void *
klm_connection_owner(const KlmConnection *connection)
{
	return connection->owner;
}

void
klm_connection_close(KlmConnection *connection)
{
	release_connection(connection);
	pfree(connection);
}

static void
watch_connection(KlmConnection *connection)
{
	struct epoll_event event = {.events = EPOLLIN,.data.ptr = connection};

	if (connection->wants_write)
		event.events |= EPOLLOUT;
	epoll_ctl(connection->connector->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
}

void
klm_connection_want_write(KlmConnection *connection, bool want)
{
	if (connection->wants_write == want || connection->fd < 0)
		return;
	connection->wants_write = want;
	watch_connection(connection);
}

ssize_t
klm_connection_send(KlmConnection *connection, const char *data, Size length)
{
	size_t		sent = 0;
	CURLcode	code;

	if (!connection->open)
		return -1;
	code = curl_easy_send(connection->easy, data, length, &sent);
	connection->send_blocked = code == CURLE_AGAIN;
	if (code == CURLE_OK)
		return sent;
	return code == CURLE_AGAIN ? 0 : -1;
}

bool
klm_connection_quiet(const KlmConnection *connection)
{
	char		byte;

	return connection->open && connection->early_length == 0 &&
		recv(connection->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

ssize_t
klm_connection_recv(KlmConnection *connection, char *buffer, Size length)
{
	size_t		received = 0;
	CURLcode	code;

	if (!connection->open)
		return -1;
	if (connection->early_length > 0)
	{
		received = Min(length, connection->early_length);
		memcpy(buffer, connection->early, received);
		connection->early_length -= received;
		memmove(connection->early, connection->early + received, connection->early_length);
		return received;
	}
	code = curl_easy_recv(connection->easy, buffer, length, &received);
	if (code == CURLE_AGAIN)
		return 0;
	if (code != CURLE_OK || received == 0)
		return -1;
	return received;
}

void
klm_connection_acknowledge(KlmConnection *connection)
{
	int			on = 1;

	if (connection->open)
		setsockopt(connection->fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof(on));
}
