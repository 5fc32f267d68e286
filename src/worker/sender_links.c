/*-------------------------------------------------------------------------
 *
 * sender_links.c
 *		A sender's connections: opening, feeding, results, deadlines.
 *
 * A pool has as many links as its server lets it have; each takes deliveries
 * from the pool's queue and speaks its session (smtp/session.h).  No
 * transaction is open while anything here runs.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/error.h"
#include "base/guc.h"
#include "cluster/slots.h"
#include "smtp/providers.h"
#include "worker/sender.h"

/* RFC 5321 section 4.5.3.2.6: the server may take ten minutes over the final dot. */
#define DOT_TIMEOUT_MS		600000

/* An idle connection is closed after this, before most servers would. */
#define LINK_IDLE_MS		60000

/* What is known of a server's connection limit counts for ten minutes. */
#define CEILING_MS			600000

/* A server heard of so shortly ago has not become unreachable without a word. */
#define CHUNK_MS			2000

/* A server that chunks fail at gets none for ten minutes, then for twice as long, up to a day. */
#define CHUNK_PAUSE_MS		600000
#define CHUNK_PAUSE_MAX_MS	86400000

/* Without a descriptor for a connection we wait this long. */
#define STARVED_MS			1000

/* A server that takes a message more slowly than 10 kB a second does not get all of it. */
#define BODY_BYTES_PER_MS	10

/* So often a mail goes back because a connection was used up. */
#define MAX_REFUSED		5

static int64 starved_until;		/* idle connections make room for others */

static void take_back_waiting(KlmPool *pool);
static bool is_spent(KlmLink *link);
static bool is_silent(const KlmLink *link);
static bool keep_pace(KlmPool *pool);
static KlmDelivery *next_delivery(KlmPool *pool);
static void begin(KlmLink *link, KlmDelivery *delivery);
static void open_link(KlmPool *pool);
static void link_opened(KlmLink *link);
static void link_failed(KlmLink *link);
static bool flush_link(KlmLink *link);
static void read_link(KlmLink *link);
static void take_results(KlmLink *link);
static void set_deadline(KlmLink *link);
static void learn_limit(KlmPool *pool, int connections);
static bool is_local(const KlmSmtpResult *result);
static bool is_nobodys(KlmLink *link, const KlmSmtpResult *result, const KlmDelivery *delivery);
static bool meets_limit(KlmPool *pool, int64 id);
static void decide(const KlmLink *link, const KlmDelivery *delivery, const KlmSmtpResult *result,
				   KlmDecision *decision);
static int	reply_time(KlmStage stage);
static int64 deadline_of(const KlmLink *link);

/*
 * Nothing new leaves of an account that is paused: only what has its dot is
 * waited for.
 */
void
klm_stop_paused(KlmPool *pool)
{
	dlist_mutable_iter iter;

	if (!pool->paused)
		return;
	klm_return_queue(pool);
	dlist_foreach_modify(iter, &pool->links)
	{
		KlmLink	   *link = dlist_container(KlmLink, node, iter.cur);

		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) > 0 &&
			!klm_waits_for_dot(link))
			klm_close_link(link, "mail was paused");
	}
}

bool
klm_waits_for_dot(const KlmLink *link)
{
	KlmStage	stage;

	return klm_smtp_awaits(link->smtp, &stage) && stage == KLM_STAGE_DOT;
}

/*
 * Hand queued deliveries to links: idle ones first, then new ones as far as
 * the pool may grow, then behind another delivery's dot.
 */
void
klm_feed(KlmPool *pool)
{
	int			limit = klm_connection_limit(pool);
	int64		now = klm_clock_ms();
	dlist_mutable_iter surplus;

	/*
	 * Where the pool had to shrink, or others have no descriptor, connections
	 * go as they become idle.
	 */
	dlist_foreach_modify(surplus, &pool->links)
	{
		KlmLink	   *link = dlist_container(KlmLink, node, surplus.cur);

		if (pool->link_count <= limit && (now >= starved_until || pool->queued > 0))
			break;
		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) == 0)
			klm_close_link(link, NULL);
	}
	take_back_waiting(pool);
	for (int open = 0; open < 2 && pool->granted > 0; open++)
	{
		dlist_mutable_iter iter;

		/* Behind another delivery, which may stall, only when all connections are open. */
		if (open > 0 && (pool->link_count < limit || pool->opening > 0))
			break;

		dlist_foreach_modify(iter, &pool->links)
		{
			KlmLink	   *link = dlist_container(KlmLink, node, iter.cur);

			if (link->state != LINK_OPEN || pool->granted == 0)
				continue;
			if (strcmp(link->settings->account->fingerprint,
					   pool->settings->account->fingerprint) != 0 ||
				is_spent(link) || pool->link_count > limit)
			{
				if (is_silent(link))
					klm_close_link(link, NULL);
				continue;
			}
			if (klm_smtp_open_count(link->smtp) <= open && klm_smtp_can_begin(link->smtp))
			{
				KlmDelivery   *delivery;

				if (!keep_pace(pool) || (delivery = next_delivery(pool)) == NULL)
					return;
				begin(link, delivery);
			}
		}
		if (open == 0)
		{
			/* One connection for every two that wait: each takes two in its stride. */
			while (pool->link_count < limit && pool->opening < (pool->queued + 1) / 2 &&
				   !pool->hold && now >= pool->next_open)
			{
				int			before = pool->link_count;

				open_link(pool);
				if (pool->link_count == before)
					break;
			}
		}
	}
}

/*
 * A delivery that waits behind another one's reply, which may take ten minutes
 * at the dot, is better off with a link that is idle, or that can still be
 * opened: back to the head of the queue.
 */
static void
take_back_waiting(KlmPool *pool)
{
	int			better = klm_connection_limit(pool) - pool->link_count;
	dlist_iter	iter;

	dlist_foreach(iter, &pool->links)
	{
		KlmLink	   *link = dlist_container(KlmLink, node, iter.cur);

		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) == 0 &&
			klm_smtp_can_begin(link->smtp))
			better++;
	}
	better -= pool->granted;
	dlist_foreach(iter, &pool->links)
	{
		KlmLink	   *link = dlist_container(KlmLink, node, iter.cur);
		KlmDelivery   *delivery;

		if (better <= 0)
			break;
		if (link->state != LINK_OPEN || (delivery = klm_smtp_withdraw(link->smtp)) == NULL)
			continue;
		link->begun--;
		pool->open--;
		pool->queued++;
		pool->granted++;
		dlist_push_head(&pool->queue, &delivery->node);
		better--;
	}
}

/* Has the link had as many messages as its provider takes on one? */
static bool
is_spent(KlmLink *link)
{
	const KlmProvider *provider = klm_find_provider(link->settings->account->provider);

	return link->spent ||
		(provider && provider->messages_per_connection > 0 &&
		 link->begun >= provider->messages_per_connection);
}

/* Is nothing open, and no reply due to what has failed, so that QUIT may follow? */
static bool
is_silent(const KlmLink *link)
{
	KlmStage	stage;

	return klm_smtp_open_count(link->smtp) == 0 && !klm_smtp_awaits(link->smtp, &stage);
}

/*
 * The server showed that it takes no more than so many: that lasts, whatever it
 * accepts meanwhile.
 */
static void
learn_limit(KlmPool *pool, int connections)
{
	if (connections != pool->ceiling)
		klm_note_connections(pool, connections);
	pool->allowed = pool->ceiling = connections;
	pool->ceiling_until = klm_clock_ms() + CEILING_MS;
	pool->refused = 0;
}

/* May another delivery begin now?  Where the provider publishes a rate, at its pace. */
static bool
keep_pace(KlmPool *pool)
{
	const KlmProvider *provider = klm_find_provider(pool->settings->account->provider);
	int64		now;

	if (provider == NULL || provider->per_second <= 0)
		return true;
	now = klm_clock_ms();
	if (now < pool->next_begin)
		return false;
	pool->next_begin = now + 1000 * Max(1, klm_sender.shared.senders) / provider->per_second;
	return true;
}

/* The first one that may begin; what has expired while it waited here goes back; NULL: none. */
static KlmDelivery *
next_delivery(KlmPool *pool)
{
	while (pool->granted > 0)
	{
		KlmDelivery   *delivery = dlist_container(KlmDelivery, node,
												  dlist_pop_head_node(&pool->queue));

		pool->queued--;
		pool->granted--;
		if (delivery->expires_at == 0 || delivery->expires_at > klm_now())
			return delivery;
		klm_give_back(delivery->id, pool, delivery->priority, delivery->place);
		klm_finish_delivery(delivery);
	}
	return NULL;
}

static void
begin(KlmLink *link, KlmDelivery *delivery)
{
	int64		now = klm_clock_ms();

	link->begun++;
	link->pool->begun++;
	link->largest = Max(link->largest, delivery->size);
	link->pool->open++;
	/* What leaves as a chunk on a connection that has ended is in doubt; an envelope is not. */
	delivery->smtp.chunk = link->chunking && now < link->heard + CHUNK_MS &&
		now >= link->pool->chunks_from &&
		(klm_smtp_open_count(link->smtp) > 0 || klm_connection_quiet(link->connection));
	klm_smtp_begin(link->smtp, &delivery->smtp);
	(void) flush_link(link);
	take_results(link);			/* what could not even be begun */
}

static void
open_link(KlmPool *pool)
{
	MemoryContext context = AllocSetContextCreate(klm_sender.context, "kliv_mail link", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	KlmLink	   *link = palloc0(sizeof(KlmLink));
	KlmError	error;

	link->context = context;
	link->pool = pool;
	link->settings = pool->settings;
	link->state = LINK_OPENING;
	link->deadline = KLM_NEVER;
	link->connection =
		klm_connection_open(klm_sender.connector, &pool->settings->account->target, link, &error);
	MemoryContextSwitchTo(old);
	if (link->connection == NULL)
	{
		if (pool->link_count == 0)
		{
			klm_note_hold(pool, pool->settings, klm_verdict_name(KLM_ACCOUNT_TROUBLE), 0,
						  KLM_STAGE_CONNECT, error.message, error.hint);
			klm_return_queue(pool);
		}
		MemoryContextDelete(context);
		return;
	}
	link->settings->users++;
	dlist_push_tail(&pool->links, &link->node);
	pool->link_count++;
	pool->opening++;
}

/* why: what open deliveries lose their connection to; NULL: none is open, part politely. */
void
klm_close_link(KlmLink *link, const char *why)
{
	KlmPool	   *pool = link->pool;

	if (link->state == LINK_OPEN)
	{
		take_results(link);
		/* With nothing open, politely: some servers punish who goes without a word. */
		if (why == NULL || (klm_smtp_usable(link->smtp) && klm_smtp_open_count(link->smtp) == 0))
		{
			Size		length;
			const char *quit;

			klm_smtp_quit(link->smtp);
			quit = klm_smtp_output(link->smtp, &length);
			if (length > 0)
				(void) klm_connection_send(link->connection, quit, length);
		}
		else
		{
			klm_smtp_closed(link->smtp, why);
			take_results(link);
		}
		klm_smtp_destroy(link->smtp);
	}
	else
		pool->opening--;
	klm_connection_close(link->connection);
	dlist_delete(&link->node);
	pool->link_count--;
	klm_release_settings(link->settings);
	MemoryContextDelete(link->context);
}

static void
link_opened(KlmLink *link)
{
	KlmConnectReport report;
	MemoryContext old = MemoryContextSwitchTo(link->context);

	klm_connection_report(link->connection, &report);
	link->smtp = klm_smtp_create(&report.caps);
	link->state = LINK_OPEN;
	link->smtputf8 = report.caps.smtputf8;
	link->chunking = report.caps.chunking;
	link->pool->opening--;
	MemoryContextSwitchTo(old);
	/* Others were turned away, so that this was not about the account. */
	if (link->pool->refused > 0)
		learn_limit(link->pool, link->pool->link_count);
	set_deadline(link);
	klm_sender_progress();
}

/*
 * A connection could not be opened.  While others of the account work or may
 * still, the server wants fewer; otherwise it is the account's trouble, and
 * nobody's attempt.
 */
static void
link_failed(KlmLink *link)
{
	KlmPool	   *pool = link->pool;
	KlmConnectReport report;
	MemoryContext old = MemoryContextSwitchTo(link->context);
	int			working = pool->link_count - pool->opening;
	bool		for_now;

	klm_connection_report(link->connection, &report);
	for_now = report.reply.code / 100 == 4 ||
		(report.reply.code == 0 && report.reply.stage == KLM_STAGE_GREETING);
	if (report.starved)
	{
		/* Ours, and nobody's fault: what is idle goes, and soon it is tried again. */
		starved_until = pool->next_open = klm_clock_ms() + STARVED_MS;
	}
	else if (working > 0)
	{
		/* Those that are still opening may be let in, or lower it further. */
		if (for_now)
			learn_limit(pool, pool->link_count - 1);
		else
			pool->allowed = working;
	}
	else if (for_now && pool->opening > 1)
	{
		pool->refused++;
		pool->allowed = pool->opening - 1;
	}
	else if (!pool->hold)
	{
		/* What is known about a refusal says more than where it came. */
		bool		replied = report.reply.code >= 400;
		KlmDecision decision;

		klm_classify_reply(&report.reply, link->settings->account->provider, NULL,
						   report.reply.code == 0, klm_now(), &decision);
		pool->refused = 0;
		klm_note_hold(pool, link->settings,
					  klm_verdict_name(decision.verdict == KLM_PROVIDER_LIMIT ? KLM_PROVIDER_LIMIT
									   : KLM_ACCOUNT_TROUBLE),
					  decision.pause_s, report.reply.stage,
					  psprintf("%s%s%s", replied || report.detail == NULL ? decision.reason : report.detail,
							   report.reply.text && report.reply.text[0] ? ": " : "", report.reply.text ? report.reply.text : ""),
					  (replied && decision.hint) || report.hint == NULL ?
					  klm_cure_of(&decision, link->settings->account) : report.hint);
		klm_return_queue(pool);
	}
	MemoryContextSwitchTo(old);
	klm_close_link(link, "not connected");
}

/* Has anything left? */
static bool
flush_link(KlmLink *link)
{
	bool		left = false;

	for (;;)
	{
		Size		length;
		const char *output = klm_smtp_output(link->smtp, &length);
		ssize_t		sent;

		if (length == 0)
		{
			klm_connection_want_write(link->connection, false);
			break;
		}
		sent = klm_connection_send(link->connection, output, length);
		if (sent < 0)
		{
			/* What the server said before it closed may still be there to read. */
			klm_connection_want_write(link->connection, false);
			break;
		}
		if (sent == 0)
		{
			klm_connection_want_write(link->connection, true);
			break;
		}
		klm_smtp_sent(link->smtp, sent);
		link->moved = klm_clock_ms();
		left = true;
	}
	set_deadline(link);
	return left;
}

static void
read_link(KlmLink *link)
{
	static char buffer[65536];
	KlmPool	   *pool = link->pool;
	ssize_t		length = 0;

	/* Not beyond the session's end: a server that never stops talking must not keep us. */
	while (klm_smtp_usable(link->smtp) &&
		   (length = klm_connection_recv(link->connection, buffer, sizeof(buffer))) > 0)
	{
		klm_smtp_received(link->smtp, buffer, length);
		link->heard = klm_clock_ms();
	}
	if (length < 0)
	{
		klm_close_link(link, "the server closed the connection");
		return;
	}
	take_results(link);
	if (!klm_smtp_usable(link->smtp) && klm_smtp_open_count(link->smtp) == 0)
	{
		klm_close_link(link, "the session cannot be used any more");
		return;
	}
	/* The next one's message would go out now, behind the dot that it waited for. */
	if (pool->paused && klm_smtp_open_count(link->smtp) > 0 && !klm_waits_for_dot(link))
	{
		klm_close_link(link, "mail was paused");
		return;
	}
	if (!flush_link(link) && !is_silent(link))
		klm_connection_acknowledge(link->connection);
	if (link->spent && is_silent(link))
		klm_close_link(link, NULL);
}

/* What fails within the pause had left before it. */
static void
pause_chunks(KlmPool *pool)
{
	int64		now = klm_clock_ms();

	if (now < pool->chunks_from)
		return;
	pool->chunk_pause = Min(Max(2 * pool->chunk_pause, CHUNK_PAUSE_MS), CHUNK_PAUSE_MAX_MS);
	pool->chunks_from = now + pool->chunk_pause;
}

/* Turn the machine's results into outcomes. */
static void
take_results(KlmLink *link)
{
	KlmPool	   *pool = link->pool;
	KlmSmtpResult result;
	MemoryContext old = MemoryContextSwitchTo(klm_sender.outcome_context);

	while (klm_smtp_result(link->smtp, &result))
	{
		KlmDelivery *delivery = result.tag;
		KlmDecision decision;

		pool->open--;
		if (result.chunk_failed)
			pause_chunks(pool);
		decide(link, delivery, &result, &decision);
		if (is_nobodys(link, &result, delivery))
			klm_give_back(delivery->id, pool, delivery->priority, delivery->place);
		else if (delivery->signed_path && decision.sender)
		{
			/* Not the account's address is refused, but ours for its bounces. */
			if (!pool->own_path)
				ereport(LOG,
						(errmsg("kliv_mail: the server of the account \"%s\" refuses return paths at \"%s\"",
								pool->name, klm_bounce_domain),
						 errdetail("Its mail leaves with the sender's address there, and its bounces are known by their Message-ID alone.")));
			pool->own_path = true;
			klm_give_back(delivery->id, pool, delivery->priority, delivery->place);
			klm_return_queue(pool);
		}
		else if (is_local(&result) && delivery->account_smtputf8 && !link->smtputf8)
		{
			klm_give_back(delivery->id, pool, delivery->priority, delivery->place);
			klm_note_hold(pool, link->settings, klm_verdict_name(KLM_ACCOUNT_TROUBLE), 0,
						  KLM_STAGE_MAIL,
						  "an address of the account itself (from_address or reply_to) is not ASCII before the @, and its server has no SMTPUTF8",
						  psprintf("Give it another one: SELECT * FROM kliv_mail.update_sender(from_address => '...', reply_to => '...', account => '%s');",
								   pool->name));
			klm_return_queue(pool);
		}
		else
		{
			klm_add_outcome(delivery, link->settings->account, &result.reply, &decision);
			if (decision.verdict == KLM_ACCEPTED)
			{
				link->accepted++;
				pool->allowed = Min(klm_sender.connections, pool->allowed + 1);
			}
			else
			{
				if (result.reply.code == 421 || result.reply.code == 451)
					pool->allowed = Max(1, pool->allowed / 2);
				/* Another one tries, before the rest. */
				if (decision.scope == KLM_SCOPE_ACCOUNT && decision.verdict != KLM_IN_DOUBT)
					klm_return_queue(pool);
			}
			klm_sender_progress();
		}
		link->served += !result.lost;
		klm_finish_delivery(delivery);
	}
	MemoryContextSwitchTo(old);
}

/* A refusal of our own, before a byte was sent. */
static bool
is_local(const KlmSmtpResult *result)
{
	return !result->started && !result->lost && result->reply.code != 421;
}

/*
 * Given back, with nobody's attempt burned: what put nothing on the wire that
 * counts, such as an envelope on a used connection that the server had closed
 * or closes now, also with the words that it has idled too long.  So what is
 * refused because the connection has carried as many mails as it may; one that
 * has carried none has another reason, and would be followed by the next for ever.
 * The same where we have to go in the middle of it: that is no fault of anybody there.
 */
static bool
is_nobodys(KlmLink *link, const KlmSmtpResult *result, const KlmDelivery *delivery)
{
	if (!result->started && (result->lost || result->reply.code == 421))
		return true;
	if (result->lost && result->reply.stage != KLM_STAGE_DOT &&
		(ShutdownRequestPending || klm_sender_must_leave() || link->pool->paused))
		return true;
	if (result->lost)
		return false;
	if ((link->served > 0 && result->reply.stage == KLM_STAGE_MAIL &&
		 result->reply.code == 451 && strcmp(result->reply.enhanced, "4.4.2") == 0) ||
		(link->accepted > 0 &&
		 klm_connection_used_up(&result->reply, delivery->smtp.rcpt_to) &&
		 meets_limit(link->pool, delivery->id)))
	{
		link->spent = true;
		return true;
	}
	return false;
}

/*
 * A few times: a mail may be the one too many of several connections, but one whose
 * own address is answered so would otherwise never end.
 */
static bool
meets_limit(KlmPool *pool, int64 id)
{
	for (int i = 0; i < KLM_REFUSED; i++)
		if (pool->refused_ids[i] == id)
			return ++pool->refused_times[i] <= MAX_REFUSED;
	pool->refused_ids[pool->refused_next] = id;
	pool->refused_times[pool->refused_next] = 1;
	pool->refused_next = (pool->refused_next + 1) % KLM_REFUSED;
	return true;
}

/* What the reply means, and whether it may be about the account, which _record() finds out. */
static void
decide(const KlmLink *link, const KlmDelivery *delivery, const KlmSmtpResult *result,
	   KlmDecision *decision)
{
	bool		envelope = result->reply.stage == KLM_STAGE_MAIL ||
		result->reply.stage == KLM_STAGE_RCPT;

	klm_classify_reply(&result->reply, link->settings->account->provider, delivery->smtp.rcpt_to,
					   result->lost, klm_now(), decision);
	if (is_local(result))
	{
		/* Of this message, whatever the words are like. */
		if (decision->scope == KLM_SCOPE_ACCOUNT)
		{
			decision->scope = KLM_SCOPE_MESSAGE;
			decision->verdict = KLM_MESSAGE_FAULT;
		}
	}
	else if (result->reply.stage == KLM_STAGE_MAIL && delivery->foreign_sender &&
			 decision->scope == KLM_SCOPE_ACCOUNT && decision->verdict == KLM_ACCOUNT_TROUBLE)
	{
		/* The account's own address is another one. */
		decision->scope = KLM_SCOPE_MESSAGE;
		decision->verdict = result->reply.code >= 500 ? KLM_MESSAGE_FAULT : KLM_TEMPORARY;
	}
	else if (envelope && (result->lost || (decision->unknown && result->reply.code >= 500)))
	{
		/* Nobody knows: about the account, if others in a row meet it. */
		decision->scope = KLM_SCOPE_ACCOUNT;
	}
}

/*
 * When the reply that a link waits for, or its idleness, has lasted too long.
 * A reply has its time as a whole, however its bytes trickle in.
 */
static void
set_deadline(KlmLink *link)
{
	int64		now = klm_clock_ms();
	uint64		replies = klm_smtp_replies(link->smtp);
	KlmStage	stage;

	if (!klm_smtp_awaits(link->smtp, &stage))
	{
		link->waiting = false;
		link->deadline = now + LINK_IDLE_MS;
	}
	else if (!link->waiting || link->replies != replies || link->stage != stage)
	{
		link->waiting = true;
		link->replies = replies;
		link->stage = stage;
		link->deadline = now + reply_time(stage);
		/* The message itself may take longer, but not for ever. */
		if (stage == KLM_STAGE_DATA)
			link->deadline += link->largest / BODY_BYTES_PER_MS;
		link->moved = now;
	}
}

static int
reply_time(KlmStage stage)
{
	return stage == KLM_STAGE_DOT ? Max(klm_reply_timeout, DOT_TIMEOUT_MS) : klm_reply_timeout;
}

static int64
deadline_of(const KlmLink *link)
{
	if (link->state != LINK_OPEN)
		return KLM_NEVER;
	if (link->waiting && link->stage == KLM_STAGE_DATA)
		return Min(link->deadline, link->moved + klm_reply_timeout);
	return link->deadline;
}

int64
klm_pool_deadline(KlmPool *pool, int64 now)
{
	int64		until = KLM_NEVER;
	dlist_iter	iter;

	if (pool->queued > 0 && pool->next_begin > now)
		until = pool->next_begin;
	if (pool->queued > 0 && pool->next_open > now)
		until = Min(until, pool->next_open);
	dlist_foreach(iter, &pool->links)
		until = Min(until, deadline_of(dlist_container(KlmLink, node, iter.cur)));
	return until;
}

void
klm_drive_network(void)
{
	KlmConnection *connection;
	KlmConnEvent event;

	while ((event = klm_connector_next(klm_sender.connector, &connection)) != KLM_CONN_NONE)
	{
		KlmLink	   *link = klm_connection_owner(connection);

		switch (event)
		{
			case KLM_CONN_OPEN:
				link_opened(link);
				break;
			case KLM_CONN_FAILED:
				link_failed(link);
				break;
			case KLM_CONN_READABLE:
				read_link(link);
				break;
			case KLM_CONN_WRITABLE:
				(void) flush_link(link);
				break;
			case KLM_CONN_NONE:
				break;
		}
	}
}

void
klm_check_deadlines(int64 now)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);
		dlist_mutable_iter link_iter;

		dlist_foreach_modify(link_iter, &pool->links)
		{
			KlmLink	   *link = dlist_container(KlmLink, node, link_iter.cur);
			char		reason[64] = "the server takes no more data";
			KlmStage	stage;

			if (now < deadline_of(link))
				continue;
			if (klm_smtp_open_count(link->smtp) > 0 && klm_smtp_awaits(link->smtp, &stage) &&
				now >= link->deadline)
				snprintf(reason, sizeof(reason), "no reply within %d s", reply_time(stage) / 1000);
			klm_close_link(link, klm_smtp_open_count(link->smtp) > 0 ? reason : NULL);
		}
	}
}

void
klm_close_all_links(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		while (!dlist_is_empty(&pool->links))
			klm_close_link(dlist_head_element(KlmLink, node, &pool->links), NULL);
	}
}
