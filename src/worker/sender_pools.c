/*-------------------------------------------------------------------------
 *
 * sender_pools.c
 *		What a sender has in hand: its pools' deliveries, and the outcomes of
 *		those that are finished.
 *
 * Owns the sender's state.  Outcomes and holds wait in a context of their own
 * until a transaction has recorded them.  Called by the sender's other files,
 * calls none of them.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "worker/sender.h"

KlmSender	klm_sender = {
	.pools = DLIST_STATIC_INIT(klm_sender.pools),
	.recovery_wanted = true,
	.claim_wanted = true
};

static int	outcome_space;

static void batch_done(int64 number);

static KlmOutcome *
new_outcome(int64 id, const KlmPool *pool)
{
	KlmOutcome *outcome;

	if (klm_sender.outcome_count == outcome_space)
	{
		outcome_space = Max(64, 2 * outcome_space);
		klm_sender.outcomes = klm_sender.outcomes ? repalloc(klm_sender.outcomes,
															 outcome_space * sizeof(KlmOutcome))
			: MemoryContextAlloc(klm_sender.outcome_context, outcome_space * sizeof(KlmOutcome));
	}
	outcome = &klm_sender.outcomes[klm_sender.outcome_count++];
	memset(outcome, 0, sizeof(KlmOutcome));
	outcome->id = id;
	outcome->account = pool->name;
	return outcome;
}

/* An outcome that no server gave: "returned", or what is wrong with the row. */
void
klm_add_local_outcome(int64 id, const KlmPool *pool, const char *verdict, const char *reason)
{
	KlmOutcome *outcome = new_outcome(id, pool);

	outcome->verdict = verdict;
	outcome->scope = klm_scope_name(KLM_SCOPE_MESSAGE);
	outcome->reason = MemoryContextStrdup(klm_sender.outcome_context, reason);
}

void
klm_give_back(int64 id, KlmPool *pool, int priority, KlmPlace place)
{
	KlmLine    *line = &pool->lines[priority];

	if (klm_place_before(place, line->from))
		line->from = place;
	if (TransactionIdIsValid(line->until) && klm_place_before(place, line->next))
		line->until = InvalidTransactionId;
	klm_add_local_outcome(id, pool, "returned", "");
}

/*
 * What to do about a reply to an account: where its password is the matter,
 * also the statement, which next_step() hands on.  In the current context, or static.
 */
const char *
klm_cure_of(const KlmDecision *decision, const KlmAccount *account)
{
	if (!decision->login || account->target.username == NULL ||
		strcmp(account->name, KLM_PLATFORM) == 0)
		return decision->hint;
	return psprintf("%s SELECT * FROM kliv_mail.configure_smtp(password => 'the new one', account "
					"=> '%s'); saves it.",
					decision->hint, account->name);
}

void
klm_add_outcome(KlmDelivery *delivery, const KlmAccount *account, const KlmReply *reply,
				const KlmDecision *decision)
{
	KlmOutcome *outcome = new_outcome(delivery->id, delivery->pool);
	MemoryContext old = MemoryContextSwitchTo(klm_sender.outcome_context);

	outcome->verdict = klm_verdict_name(decision->verdict);
	outcome->scope = klm_scope_name(decision->scope);
	outcome->bounce_type = decision->bounce_type;
	outcome->pause_s = decision->pause_s;
	outcome->stage = klm_stage_name(reply->stage);
	outcome->code = reply->code;
	outcome->enhanced = reply->enhanced[0] ? pstrdup(reply->enhanced) : NULL;
	outcome->reply = pstrdup(reply->text ? reply->text : "");
	outcome->reason = decision->reason;
	outcome->hint = klm_cure_of(decision, account);
	outcome->fingerprint = pstrdup(account->fingerprint);
	outcome->identity = delivery->identity ? pstrdup(delivery->identity) : NULL;
	if (decision->verdict == KLM_ACCEPTED && klm_redirect_to && klm_redirect_to[0])
		outcome->reason = psprintf("the server accepted it for %s (kliv_mail.redirect_to)", klm_redirect_to);
	else if (decision->verdict == KLM_ACCEPTED)
		outcome->reason = "the server accepted it";
	if (decision->verdict == KLM_ACCEPTED)
		outcome->server_id = klm_server_message_id(
			reply, delivery->pool->settings ? delivery->pool->settings->account->provider : NULL);
	MemoryContextSwitchTo(old);
}

/* A delivery has its outcome.  Others of the batch may hang elsewhere: its mail goes now. */
void
klm_finish_delivery(KlmDelivery *delivery)
{
	KlmBatch	   *batch = delivery->batch;

	delivery->pool->bytes -= delivery->size;
	klm_sender.claimed_bytes -= delivery->size;
	if (--delivery->message->users == 0)
		pfree(delivery->message->entity - VARHDRSZ);
	klm_leave_grant(delivery->grant);
	if (--batch->open == 0)
		klm_batch_free(batch);
}

/* What no link has begun goes back as it was. */
void
klm_return_queue(KlmPool *pool)
{
	pool->granted = 0;
	while (!dlist_is_empty(&pool->queue))
	{
		KlmDelivery   *delivery = dlist_container(KlmDelivery, node,
												  dlist_pop_head_node(&pool->queue));

		pool->queued--;
		klm_give_back(delivery->id, pool, delivery->priority, delivery->place);
		klm_finish_delivery(delivery);
	}
}

void
klm_note_hold(KlmPool *pool, const KlmSettings *settings, const char *verdict, int pause_s,
			  KlmStage stage, const char *reason, const char *hint)
{
	KlmOutcome *outcome = new_outcome(0, pool);

	pool->hold = true;
	/* What it was met with may be mended without a setting that changes: a file, say. */
	if (pool->version)
		pool->version[0] = '\0';
	outcome->verdict = verdict;
	outcome->scope = klm_scope_name(KLM_SCOPE_ACCOUNT);
	outcome->pause_s = pause_s;
	outcome->stage = klm_stage_name(stage);
	outcome->reason = MemoryContextStrdup(klm_sender.outcome_context, reason);
	outcome->hint = hint ? MemoryContextStrdup(klm_sender.outcome_context, hint) : NULL;
	outcome->fingerprint =
		settings ? MemoryContextStrdup(klm_sender.outcome_context, settings->account->fingerprint)
			: NULL;
}

void
klm_note_connections(KlmPool *pool, int connections)
{
	KlmOutcome *outcome = new_outcome(0, pool);

	outcome->verdict = "connections";
	outcome->scope = klm_scope_name(KLM_SCOPE_ACCOUNT);
	outcome->code = connections;
}

void
klm_drop_outcomes(void)
{
	dlist_iter	iter;

	klm_sender.outcome_count = outcome_space = 0;
	klm_sender.outcomes = NULL;
	dlist_foreach(iter, &klm_sender.pools)
		dlist_container(KlmPool, node, iter.cur)->hold = false;
	MemoryContextReset(klm_sender.outcome_context);
}

void
klm_release_settings(KlmSettings *settings)
{
	if (settings && --settings->users == 0)
		MemoryContextDelete(settings->context);
}

void
klm_leave_grant(KlmGrant *grant)
{
	if (grant != NULL && --grant->open == 0)
	{
		batch_done(grant->number);
		pfree(grant);
	}
}

void
klm_batch_free(KlmBatch *batch)
{
	batch_done(batch->number);
	MemoryContextDelete(batch->context);
}

/* The next transaction, which records what is not recorded yet, deletes its row. */
static void
batch_done(int64 number)
{
	static int	space = 0;

	/* What is let go must be found when we are gone. */
	if (klm_sender.claims_abandoned)
		return;
	if (klm_sender.done_count == space)
	{
		space = Max(64, 2 * space);
		klm_sender.done = klm_sender.done ?
			repalloc(klm_sender.done, space * sizeof(int64)) :
			MemoryContextAlloc(klm_sender.context, space * sizeof(int64));
	}
	klm_sender.done[klm_sender.done_count++] = number;
}

KlmPool *
klm_find_pool(const char *name)
{
	dlist_iter	iter;
	KlmPool	   *pool;

	dlist_foreach(iter, &klm_sender.pools)
	{
		pool = dlist_container(KlmPool, node, iter.cur);
		if (strcmp(pool->name, name) == 0)
			return pool;
	}
	pool = MemoryContextAllocZero(klm_sender.context, sizeof(KlmPool));
	pool->name = MemoryContextStrdup(klm_sender.context, name);
	dlist_init(&pool->queue);
	dlist_init(&pool->links);
	pool->allowed = Min(4, klm_sender.connections);
	for (int i = 0; i < KLM_PRIORITIES; i++)
		pool->lines[i].from.due = DT_NOBEGIN;
	dlist_push_tail(&klm_sender.pools, &pool->node);
	return pool;
}

int
klm_connection_limit(KlmPool *pool)
{
	if (pool->ceiling > 0 && klm_clock_ms() >= pool->ceiling_until)
		pool->ceiling = 0;
	return Min(Min(pool->allowed, klm_sender.connections),
			   pool->ceiling > 0 ? pool->ceiling : pool->allowed);
}
