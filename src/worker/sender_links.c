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

static void take_back_waiting(KlmPool *pool);
static bool is_spent(KlmLink *link);
static bool keep_pace(KlmPool *pool);
static void begin(KlmLink *link, KlmDelivery *delivery);
static void open_link(KlmPool *pool);
static void link_opened(KlmLink *link);
static void link_failed(KlmLink *link);
static void flush_link(KlmLink *link);
static void read_link(KlmLink *link);
static void take_results(KlmLink *link);
static void set_deadline(KlmLink *link);

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

		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) > 0 && !klm_waits_for_dot(link))
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
	int			limit = Min(pool->allowed, klm_sender.connections);
	dlist_mutable_iter surplus;

	/* Where the pool had to shrink, connections go as they become idle. */
	dlist_foreach_modify(surplus, &pool->links)
	{
		KlmLink	   *link = dlist_container(KlmLink, node, surplus.cur);

		if (pool->link_count <= limit)
			break;
		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) == 0)
			klm_close_link(link, NULL);
	}
	take_back_waiting(pool);
	for (int open = 0; open < 2 && pool->queued > 0; open++)
	{
		dlist_mutable_iter iter;

		/* Behind another delivery, which may stall, only when all connections are open. */
		if (open > 0 && pool->link_count < limit)
			break;

		dlist_foreach_modify(iter, &pool->links)
		{
			KlmLink	   *link = dlist_container(KlmLink, node, iter.cur);

			if (link->state != LINK_OPEN || pool->queued == 0)
				continue;
			if (strcmp(link->settings->account->fingerprint,
					   pool->settings->account->fingerprint) != 0 ||
				is_spent(link) || pool->link_count > limit)
			{
				if (klm_smtp_open_count(link->smtp) == 0)
					klm_close_link(link, NULL);
				continue;
			}
			if (klm_smtp_open_count(link->smtp) <= open && klm_smtp_can_begin(link->smtp))
			{
				KlmDelivery   *delivery;

				if (!keep_pace(pool))
					return;
				delivery = dlist_container(KlmDelivery, node, dlist_pop_head_node(&pool->queue));
				pool->queued--;
				begin(link, delivery);
			}
		}
		if (open == 0)
		{
			/* One connection for every two that wait: each takes two in its stride. */
			while (pool->link_count < limit && pool->opening < (pool->queued + 1) / 2 &&
				   !pool->hold)
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
 * A delivery that waits behind another one's reply is better off with a link
 * that is idle, or that can still be opened: back to the head of the queue.
 */
static void
take_back_waiting(KlmPool *pool)
{
	int			better = Min(pool->allowed, klm_sender.connections) - pool->link_count;
	dlist_iter	iter;

	dlist_foreach(iter, &pool->links)
	{
		KlmLink	   *link = dlist_container(KlmLink, node, iter.cur);

		if (link->state == LINK_OPEN && klm_smtp_open_count(link->smtp) == 0 &&
			klm_smtp_can_begin(link->smtp))
			better++;
	}
	better -= pool->queued;
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
		dlist_push_head(&pool->queue, &delivery->node);
		better--;
	}
}

/* Has the link had as many messages as its provider takes on one? */
static bool
is_spent(KlmLink *link)
{
	const KlmProvider *provider = klm_find_provider(link->settings->account->provider);

	return provider && provider->messages_per_connection > 0 &&
		link->begun >= provider->messages_per_connection;
}

/* May another delivery begin now?  Where the provider publishes a rate, at its pace. */
static bool
keep_pace(KlmPool *pool)
{
	const KlmProvider *provider = klm_find_provider(pool->settings->account->provider);
	TimestampTz now;

	if (provider == NULL || provider->per_second <= 0)
		return true;
	now = GetCurrentTimestamp();
	if (now < pool->next_begin)
		return false;
	pool->next_begin = now + USECS_PER_SEC * Max(1, klm_sender.shared.senders) / provider->per_second;
	return true;
}

static void
begin(KlmLink *link, KlmDelivery *delivery)
{
	link->begun++;
	link->pool->open++;
	klm_smtp_begin(link->smtp, &delivery->smtp);
	flush_link(link);
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
	link->deadline = DT_NOEND;
	link->connection =
		klm_connection_open(klm_sender.connector, &pool->settings->account->target, link, &error);
	MemoryContextSwitchTo(old);
	if (link->connection == NULL)
	{
		if (pool->link_count == 0)
		{
			klm_note_hold(pool, pool->settings, "account", 0, error.message, error.hint, true);
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
		if (why == NULL)
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
	link->pool->opening--;
	MemoryContextSwitchTo(old);
	set_deadline(link);
	klm_sender_progress();
}

/*
 * A connection could not be opened.  While others of the account work, the
 * server wants fewer; otherwise it is the account's trouble, and nobody's
 * attempt.
 */
static void
link_failed(KlmLink *link)
{
	KlmPool	   *pool = link->pool;
	KlmConnectReport report;
	KlmDecision decision;
	MemoryContext old = MemoryContextSwitchTo(link->context);
	int			working;

	klm_connection_report(link->connection, &report);
	working = pool->link_count - pool->opening;
	if (working > 0)
		pool->allowed = Max(1, working);
	else if (!pool->hold)
	{
		/* What is known about a refusal says more than where it came. */
		bool		replied = report.reply.code >= 400;

		klm_classify_reply(&report.reply, link->settings->account->provider, NULL,
						   report.reply.code == 0, &decision);
		klm_note_hold(pool, link->settings, decision.verdict == KLM_PROVIDER_LIMIT ? "quota" : "account", decision.pause_s,
				  psprintf("%s%s%s", replied || report.detail == NULL ? decision.reason : report.detail,
						   report.reply.text && report.reply.text[0] ? ": " : "", report.reply.text ? report.reply.text : ""),
				  (replied && decision.hint) || report.hint == NULL ?
				  klm_cure_of(&decision, link->settings->account) : report.hint,
				  decision.verdict != KLM_PROVIDER_LIMIT);
		klm_return_queue(pool);
	}
	MemoryContextSwitchTo(old);
	klm_close_link(link, "not connected");
}

static void
flush_link(KlmLink *link)
{
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
	}
	set_deadline(link);
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
		klm_smtp_received(link->smtp, buffer, length);
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
	flush_link(link);
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
		KlmDelivery   *delivery = result.tag;
		KlmDecision decision;

		pool->open--;
		/*
		 * Given back, with nobody's attempt burned: what put nothing on the
		 * wire that counts, such as an envelope on a used connection that the
		 * server had closed or closes now.  (A refusal of our own, such as of a
		 * damaged address, was not started either, but counts.)  The same where
		 * we have to go in the middle of it: that is no fault of anybody there.
		 */
		if ((!result.started && (result.lost || result.reply.code == 421)) ||
			(result.lost && result.reply.stage != KLM_STAGE_DOT &&
			 (ShutdownRequestPending || klm_sender_must_leave() || pool->paused)))
			klm_add_local_outcome(delivery->id, delivery->message_id, "returned", "");
		else
		{
			klm_classify_reply(&result.reply, link->settings->account->provider,
							   delivery->smtp.rcpt_to, result.lost,
							   &decision);

			/*
			 * A fresh connection that was dropped at MAIL may be this message's
			 * doing: it alone waits, so that it cannot hold up the account, until
			 * others in a row meet the same.  So at RCPT.
			 */
			if (result.lost && (result.reply.stage == KLM_STAGE_MAIL ||
								result.reply.stage == KLM_STAGE_RCPT))
				decision.unknown = true;
			if (result.lost && result.reply.stage == KLM_STAGE_MAIL)
				decision.scope = KLM_SCOPE_MESSAGE;
			klm_add_outcome(delivery, link, &result.reply, &decision);
			if (decision.verdict == KLM_ACCEPTED)
			{
				pool->allowed = Min(klm_sender.connections, pool->allowed + 1);
			}
			else
			{
				if (result.reply.code == 421 || result.reply.code == 451)
					pool->allowed = Max(1, pool->allowed / 2);
				if (decision.scope == KLM_SCOPE_ACCOUNT && decision.verdict != KLM_IN_DOUBT)
				{
					MemoryContextSwitchTo(old);
					klm_return_queue(pool);
					MemoryContextSwitchTo(klm_sender.outcome_context);
				}
			}
			klm_sender_progress();
		}
		klm_finish_delivery(delivery);
	}
	MemoryContextSwitchTo(old);
}

/* When the reply that a link waits for, or its idleness, has lasted too long. */
static void
set_deadline(KlmLink *link)
{
	TimestampTz now = GetCurrentTimestamp();
	KlmStage	stage;

	if (klm_smtp_awaits(link->smtp, &stage))
		link->deadline = TimestampTzPlusMilliseconds(
			now,
			stage == KLM_STAGE_DOT ? Max(klm_reply_timeout, DOT_TIMEOUT_MS) : klm_reply_timeout);
	else
		link->deadline = TimestampTzPlusMilliseconds(now, LINK_IDLE_MS);
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
				flush_link(link);
				break;
			case KLM_CONN_NONE:
				break;
		}
	}
}

void
klm_check_deadlines(TimestampTz now)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);
		dlist_mutable_iter link_iter;

		dlist_foreach_modify(link_iter, &pool->links)
		{
			KlmLink	   *link = dlist_container(KlmLink, node, link_iter.cur);
			KlmStage	stage;
			char		reason[64] = "the server takes no more data";

			if (link->state != LINK_OPEN || now < link->deadline)
				continue;
			if (klm_smtp_open_count(link->smtp) > 0 && klm_smtp_awaits(link->smtp, &stage))
				snprintf(reason, sizeof(reason), "no reply within %d s",
						 (stage == KLM_STAGE_DOT ? Max(klm_reply_timeout, DOT_TIMEOUT_MS) :
						  klm_reply_timeout) / 1000);
			klm_close_link(link, klm_smtp_open_count(link->smtp) > 0 ? reason : NULL);
		}
	}
}
