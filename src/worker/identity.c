/*-------------------------------------------------------------------------
 *
 * identity.c
 *		Who a message says it is from: the lines that the sender puts before what
 *		send() composed.
 *
 * The same message and account give the same lines, so that a retry is the
 * same bytes until the account changes.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "db/owner_call.h"
#include "message/compose.h"
#include "secret/bounce_token.h"
#include "secret/unsubscribe_token.h"
#include "smtp/providers.h"
#include "worker/sender.h"

/* _record() has what waits for the key come back in a minute. */
#define KEY_LOOK_MS			55000

static bool needs_smtputf8(const char *list);
static const char *list_id(const char *topic, const char *link, const char *from);

char *
klm_compose_identity(const KlmAccount *account, const KlmStoredMessage *message,
					 const KlmClaim *claimed, const char **from, bool *smtputf8,
					 const char **problem)
{
	KlmIdentity identity = {0};
	KlmHeader	headers[KLM_PROVIDER_HEADERS_MAX + 5];
	const char *reply_to = message->reply_to;
	KlmAddress *addresses = NULL;
	KlmError	error;
	StringInfoData out;
	bool		platform = strcmp(account->name, KLM_PLATFORM) == 0;

	/* Failover: the claim made sure that this account may send for the other. */
	identity.from_address = claimed->sender ? claimed->sender : account->from_address;
	if (message->from_address)
	{
		if (!platform &&
			klm_may_send_as(message->from_address, account->from_address, account->allowed_senders,
							account->allowed_sender_count))
			identity.from_address = message->from_address;
		else if (reply_to == NULL)
			reply_to = message->from_address;
	}
	identity.from_name = message->from_name ? message->from_name :
		claimed->sender ? claimed->sender_name : account->from_name;
	if (identity.from_name && klm_has_unsafe_char(identity.from_name, false))
	{
		*problem = "the sender's name has a line break or control character";
		return NULL;
	}
	/* What the message brought was looked at by send(). */
	*smtputf8 = !message->from_address && needs_smtputf8(identity.from_address);
	if (reply_to == NULL)
	{
		reply_to = account->reply_to;
		*smtputf8 |= reply_to && needs_smtputf8(reply_to);
	}
	if (reply_to && reply_to[0])
	{
		if (!klm_parse_address_list(reply_to, &addresses, &identity.reply_to_count, &error))
		{
			*problem = psprintf("reply_to: %s", error.message);
			return NULL;
		}
		identity.reply_to = addresses;
	}
	identity.headers = headers;
	identity.header_count =
		klm_provider_headers(klm_find_provider(account->provider), account->target.host,
							 message->header_id, claimed->id, headers);

	if (message->topic && klm_has_unsafe_char(message->topic, false))
	{
		*problem = "its topic has a line break or control character";
		return NULL;
	}
	if (message->topic)
	{
		headers[identity.header_count].name = "List-Id";
		headers[identity.header_count++].value =
			list_id(message->topic, claimed->unsubscribe_link, identity.from_address);
	}

	/* What the caller set, such as Postmark's stream, counts; twice it would be nothing. */
	for (int i = 0; i < identity.header_count;)
	{
		if (klm_mime_has_header(message->entity, message->entity_length, headers[i].name))
			headers[i] = headers[--identity.header_count];
		else
			i++;
	}
	/* What was queued while there was no account. */
	if (!klm_mime_has_header(message->entity, message->entity_length, "Message-ID"))
	{
		headers[identity.header_count].name = "Message-ID";
		headers[identity.header_count++].value = psprintf("<%s>", message->header_id);
	}
	if (claimed->unsubscribe_link)
	{
		headers[identity.header_count].name = "List-Unsubscribe";
		headers[identity.header_count++].value = psprintf("<%s>", claimed->unsubscribe_link);
		headers[identity.header_count].name = "List-Unsubscribe-Post";
		headers[identity.header_count++].value = "List-Unsubscribe=One-Click";
	}
	if (klm_redirect_to && klm_redirect_to[0])
	{
		headers[identity.header_count].name = "X-Kliv-Mail-Original-Recipient";
		headers[identity.header_count++].value = claimed->recipient;
		if (klm_has_unsafe_char(claimed->recipient, false))
		{
			*problem = "the recipient's address has a line break or control character";
			return NULL;
		}
	}
	/* A provider sets a return path of its own, and some refuse another one. */
	*from = pstrdup(claimed->return_path && account->provider == NULL ? claimed->return_path :
					identity.from_address);
	initStringInfo(&out);
	klm_mime_identity(&identity, &out);
	return out.data;
}

const char *
klm_new_message_domain(const KlmAccount *account, const KlmStoredMessage *message)
{
	const char *from = account->from_address;

	if (strchr(message->header_id, '@') != NULL)
		return NULL;
	if (message->from_address && strcmp(account->name, KLM_PLATFORM) != 0 &&
		klm_may_send_as(message->from_address, from, account->allowed_senders,
						account->allowed_sender_count))
		from = message->from_address;
	return from && strrchr(from, '@') ? strrchr(from, '@') + 1 : NULL;
}

/*
 * A list's name (RFC 2919) lies below the application's own domain, whatever
 * account its mail leaves by: that of the page where recipients leave it.
 */
static const char *
list_id(const char *topic, const char *link, const char *from)
{
	const char *host = link ? strstr(link, "://") : NULL;

	if (host == NULL)
		host = strrchr(from, '@');
	else
		host += 2;
	host = host ? host + 1 : "localhost";
	return psprintf("<%s.%.*s>", topic, (int) strcspn(host, ":/?"), host);
}

/* Has an address of the list a local part that is not ASCII? */
static bool
needs_smtputf8(const char *list)
{
	KlmAddress *addresses;
	int			count;
	KlmError	error;

	if (!klm_parse_address_list(list, &addresses, &count, &error))
		return false;
	for (int i = 0; i < count; i++)
		if (addresses[i].smtputf8)
			return true;
	return false;
}

/*
 * Marketing mail: each recipient's unsubscribe link, in the given context; with
 * one look at the key.  False: the key is missing,
 * these deliveries wait.
 */
bool
klm_make_unsubscribe_links(List *claims, List *messages, const char *url, const KlmDomain *domain,
						   MemoryContext context)
{
	static int64 look_at = 0;
	static char reason[256];
	MemoryContext old = MemoryContextSwitchTo(context);
	bool		found = false;
	KlmSecret  *key = NULL;
	char	   *trouble = klm_clock_ms() < look_at ? reason : NULL;
	ListCell   *lc;
	ListCell   *mc;

	foreach(lc, claims)
	{
		KlmClaim   *claimed = lfirst(lc);

		foreach(mc, messages)
		{
			KlmStoredMessage *message = lfirst(mc);
			KlmError	error = {0};

			if (message->id != claimed->message_id || !message->unsubscribe)
				continue;
			if (message->topic == NULL)
				claimed->problem = "its topic is missing, which marketing mail needs";
			else if (url == NULL)
				claimed->problem = "set_brand() has no unsubscribe_url any more, which marketing mail needs";
			else if (trouble == NULL && key == NULL && !klm_token_key(domain, false, &key, &error))
			{
				trouble = reason;
				strlcpy(reason, error.message, sizeof(reason));
				look_at = klm_clock_ms() + KEY_LOOK_MS;
			}
			else if (key != NULL)
				claimed->unsubscribe_link =
					klm_unsubscribe_link(key, url, claimed->recipient, message->topic);
			if (trouble != NULL)
			{
				claimed->problem = trouble;
				claimed->key_trouble = found = true;
			}
		}
	}
	klm_secret_wipe(key);
	MemoryContextSwitchTo(old);
	return !found;
}

/* Mail does not wait for it: a bounce then has its Message-ID alone to be known by. */
void
klm_sign_return_paths(List *claims, MemoryContext context)
{
	static bool told = false;
	MemoryContext old = MemoryContextSwitchTo(context);
	int			day = (int) (klm_now() / USECS_PER_DAY);
	KlmDomain	domain;
	KlmSecret  *key;
	KlmError	error;
	ListCell   *lc;

	klm_load_domain(&domain);
	if (!klm_bounce_key(&domain, false, &key, &error))
	{
		KlmCall		call = {0};
		bool		may_create;

		klm_run_one(&call, "first_key_allowed", false);
		may_create = klm_result_bool(1);
		MemoryContextSwitchTo(context);
		if (!may_create || !klm_bounce_key(&domain, true, &key, &error))
		{
			if (!told)
				ereport(WARNING,
						(errmsg("kliv_mail: return paths cannot be signed: %s",
								klm_from_utf8_lossy(error.message))));
			told = true;
			MemoryContextSwitchTo(old);
			return;
		}
	}
	told = false;
	foreach(lc, claims)
	{
		KlmClaim   *claimed = lfirst(lc);

		claimed->return_path = klm_return_path(key, claimed->id, day, klm_bounce_domain);
	}
	klm_secret_wipe(key);
	MemoryContextSwitchTo(old);
}
