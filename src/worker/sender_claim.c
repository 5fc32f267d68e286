/*-------------------------------------------------------------------------
 *
 * sender_claim.c
 *		What a sender claims: its batch, the accounts' settings, each row made a
 *		delivery or an outcome.
 *
 * A claim's deliveries and their messages live in one batch, freed when the
 * last of them is finished.  Nothing here touches the network.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/error.h"
#include "base/guc.h"
#include "cluster/wake.h"
#include "worker/sender.h"

/* A claim that met another sender's is tried again after 20 ms, doubling to 1 s. */
#define VAIN_CLAIM_MS		20
#define MAX_VAIN_CLAIM_MS	1000

static int	vain_claims;		/* in a row, though something was due */

static void look_at_accounts(void);
static void prepare(KlmBatch *batch, KlmClaim *claim, KlmStoredMessage *message, KlmPool *pool);
static KlmPool *find_pool(const char *name);
static void load_settings(KlmPool *pool, const char *version);

/*
 * Claim what there is room for, read what is needed of it, commit, and queue
 * it.  The commit is durable before anything reaches a socket.
 */
void
klm_claim(void)
{
	KlmBatch	   *batch;
	List	   *claims;
	List	   *messages = NIL;
	bool		key_trouble = false;
	ListCell   *lc;
	dlist_iter	iter;
	int			pool_count = 0;
	int			offered;
	char	  **names;
	int		   *counts;
	int64	   *held;
	int			room = 4 * klm_sender.connections;
	MemoryContext context = klm_sender.claim_context;
	int64		memory = (int64) klm_sender_memory * 1024;
	int64		recovered = 0;

	batch = MemoryContextAllocZero(context, sizeof(KlmBatch));
	batch->context = context;

	dlist_foreach(iter, &klm_sender.pools)
		pool_count++;
	names = palloc(Max(1, pool_count) * sizeof(char *));
	counts = MemoryContextAlloc(context, Max(1, pool_count) * sizeof(int));
	held = palloc(Max(1, pool_count) * sizeof(int64));
	pool_count = 0;
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		names[pool_count] = pool->name;
		held[pool_count] = pool->bytes;
		counts[pool_count++] = pool->queued + pool->open;
	}
	offered = pool_count;

	if (klm_sender.recovery_wanted)
		recovered = klm_outbox_recover();
	klm_outbox_expire();
	claims = klm_outbox_claim(klm_sender.epoch, room, klm_sender.isolating ? -1 : Max(0, memory - klm_sender.claimed_bytes), names,
							  counts, held, pool_count, &klm_sender.tried_ids, &klm_sender.tried_count);

	if (claims != NIL)
	{
		int64	   *ids = palloc(list_length(claims) * sizeof(int64));
		int			count = 0;
		int			claimed_count = klm_sender.tried_count;

		vain_claims = 0;
		/* An account that cannot be read is no row's fault. */
		klm_sender.tried_count = 0;
		foreach(lc, claims)
		{
			KlmClaim   *claimed = lfirst(lc);
			KlmPool	   *pool = find_pool(claimed->account);

			if (pool->version == NULL || strcmp(pool->version, claimed->settings) != 0)
				load_settings(pool, claimed->settings);
		}
		klm_sender.tried_count = claimed_count;
		foreach(lc, claims)
		{
			KlmClaim   *claimed = lfirst(lc);
			bool		known = false;

			for (int i = 0; i < count && !known; i++)
				known = ids[i] == claimed->message_id;
			if (!known)
				ids[count++] = claimed->message_id;
		}
		messages = klm_outbox_messages(ids, count);
		key_trouble = !klm_make_unsubscribe_links(claims, messages, context);
	}
	else
	{
		TimestampTz due = klm_outbox_next_due();
		TimestampTz soonest = TimestampTzPlusMilliseconds(
			GetCurrentTimestamp(), Min(VAIN_CLAIM_MS << Min(vain_claims, 8), MAX_VAIN_CLAIM_MS));

		klm_sender.next_claim = TIMESTAMP_NOT_FINITE(due) ? due : due - klm_test_clock_offset;
		/* What is due and yet was not claimed is another sender's, or held meanwhile. */
		vain_claims = klm_sender.next_claim < soonest ? vain_claims + 1 : 0;
		klm_sender.next_claim = Max(klm_sender.next_claim, soonest);
	}

	/* Behind the claim, so that this sees all that the claim saw. */
	if (klm_sender.claim_wanted)
		look_at_accounts();
	klm_outbox_commit();
	klm_sender.claim_context = NULL;
	klm_forget_recorded(true);
	klm_sender.claim_wanted = klm_sender.recovery_wanted = false;
	/* What was composed for an account that has changed goes back and is composed anew. */
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (pool->stale)
			klm_return_queue(pool);
		pool->stale = false;
	}
	if (recovered > 0)
	{
		ereport(LOG,
				(errmsg("kliv_mail: %lld deliveries of a sender that ended are in doubt", (long long) recovered)));
		klm_sender_recorded();
	}
	/* Whoever was offered room and took none has nothing that is due. */
	pool_count = 0;
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (pool_count < offered && counts[pool_count] < room)
			pool->more = false;
		pool_count++;
	}
	foreach(lc, claims)
		find_pool(((KlmClaim *) lfirst(lc))->account)->more = true;
	klm_sender.claim_again = false;
	dlist_foreach(iter, &klm_sender.pools)
		klm_sender.claim_again |= dlist_container(KlmPool, node, iter.cur)->more;
	/* Else all that needs the key would be claimed in vain before anything else is sent. */
	if (key_trouble)
		klm_sender.claim_again = false;
	if (claims == NIL)
	{
		klm_sender.isolating = false;
		MemoryContextDelete(context);
		return;
	}
	if (klm_sender.isolating && ++klm_sender.isolated > room)
		klm_sender.isolating = false;
	/* What falls due meanwhile at an account without room here, or without a pool yet. */
	klm_sender.next_claim = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), 1000);
	foreach(lc, claims)
	{
		KlmClaim   *claimed = lfirst(lc);
		KlmStoredMessage *message = NULL;
		KlmPool	   *pool = find_pool(claimed->account);
		ListCell   *mc;

		foreach(mc, messages)
		{
			if (((KlmStoredMessage *) lfirst(mc))->id == claimed->message_id)
				message = lfirst(mc);
		}
		prepare(batch, claimed, message, pool);
	}
	if (batch->open == 0)
		MemoryContextDelete(context);
	/* Held accounts give everything back at once. */
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (pool->settings == NULL)
			klm_return_queue(pool);
		else if (pool->settings->account->problem)
		{
			/* It may be mended without a setting that changes. */
			pool->version[0] = '\0';
			klm_note_hold(pool, pool->settings, pool->settings->account->key_missing ? "key" : "account", 0,
					  pool->settings->account->problem, pool->settings->account->hint, true);
			klm_return_queue(pool);
		}
	}
}

/*
 * What was changed or stopped, which wakes us, counts for what is claimed too:
 * reload the settings that differ, note which accounts stand still.
 */
static void
look_at_accounts(void)
{
	List	   *accounts = klm_outbox_accounts();
	ListCell   *lc;
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		pool->paused = true;
		foreach(lc, accounts)
		{
			KlmAccountState *state = lfirst(lc);

			if (strcmp(state->name, pool->name) != 0 || state->stopped)
				continue;
			pool->paused = false;
			if (pool->version != NULL && strcmp(pool->version, state->settings) != 0)
				load_settings(pool, state->settings);
		}
	}
}

/* Make a delivery of a claimed row, or its outcome if it cannot be one. */
static void
prepare(KlmBatch *batch, KlmClaim *claimed, KlmStoredMessage *message, KlmPool *pool)
{
	KlmDelivery   *delivery;
	const char *problem = NULL;
	const char *from = NULL;
	MemoryContext old;

	if (pool->settings == NULL)
	{
		klm_add_local_outcome(claimed->id, claimed->message_id, "returned", "");
		return;
	}
	if (claimed->suppressed)
	{
		klm_add_local_outcome(claimed->id, claimed->message_id, "suppressed", claimed->suppressed);
		return;
	}
	if (message == NULL)
	{
		klm_add_local_outcome(claimed->id, claimed->message_id, "message_fault", "its message is not there any more");
		return;
	}
	if (claimed->problem && claimed->key_trouble)
	{
		/* Only marketing mail needs the key for its links: the account's other mail goes on. */
		klm_add_local_outcome(claimed->id, claimed->message_id, "postponed", claimed->problem);
		return;
	}
	if (claimed->problem)
	{
		klm_add_local_outcome(claimed->id, claimed->message_id, klm_verdict_name(KLM_TEMPORARY),
						  claimed->problem);
		return;
	}
	old = MemoryContextSwitchTo(batch->context);
	delivery = palloc0(sizeof(KlmDelivery));
	delivery->id = claimed->id;
	delivery->message_id = claimed->message_id;
	delivery->batch = batch;
	delivery->pool = pool;
	delivery->message = message;
	delivery->size = claimed->size;
	if (pool->settings->account->problem == NULL)
		delivery->identity =
			klm_compose_identity(pool->settings->account, message, claimed, &from, &problem);
	MemoryContextSwitchTo(old);
	if (problem)
	{
		klm_add_local_outcome(claimed->id, claimed->message_id, "message_fault", problem);
		return;
	}
	delivery->smtp.tag = delivery;
	delivery->smtp.mail_from = from;
	delivery->smtp.rcpt_to =
		klm_redirect_to && klm_redirect_to[0] ? klm_redirect_to : claimed->recipient;
	delivery->smtp.smtputf8 = message->smtputf8;
	if (delivery->identity)
	{
		delivery->smtp.parts[0].data = delivery->identity;
		delivery->smtp.parts[0].length = strlen(delivery->identity);
	}
	delivery->smtp.parts[1].data = message->entity;
	delivery->smtp.parts[1].length = message->entity_length;
	delivery->smtp.part_count = 2;
	batch->open++;
	message->users++;
	pool->bytes += delivery->size;
	klm_sender.claimed_bytes += delivery->size;
	dlist_push_tail(&pool->queue, &delivery->node);
	pool->queued++;
}

static KlmPool *
find_pool(const char *name)
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
	dlist_push_tail(&klm_sender.pools, &pool->node);
	return pool;
}

/*
 * Read the account's settings, in the transaction.  Links keep those that they
 * were opened with; where a new connection would differ, they finish what they
 * have begun and are then closed (feed()).
 */
static void
load_settings(KlmPool *pool, const char *version)
{
	MemoryContext context = AllocSetContextCreate(klm_sender.context, "kliv_mail account", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ResourceOwner owner = CurrentResourceOwner;
	KlmSettings   *settings = palloc0(sizeof(KlmSettings));
	KlmSettings   *before = pool->settings;

	settings->context = context;

	/* In a subtransaction: one account that cannot be read must not stop the others. */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		settings->account = klm_load_account(pool->name);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		settings->account = palloc0(sizeof(KlmAccount));
		settings->account->name = pstrdup(pool->name);
		settings->account->fingerprint = pstrdup("");
		settings->account->problem = psprintf("its settings cannot be read: %s", edata->message);
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
	if (settings->account == NULL)
	{
		MemoryContextDelete(context);
		settings = NULL;
	}
	else
		settings->users = 1;
	pool->settings = settings;
	if (settings && before &&
		strcmp(settings->account->fingerprint, before->account->fingerprint) != 0)
		pool->stale = true;
	if (pool->version)
		pfree(pool->version);
	pool->version = MemoryContextStrdup(klm_sender.context, version);
	klm_release_settings(before);
}

void
klm_release_settings(KlmSettings *settings)
{
	if (settings && --settings->users == 0)
		MemoryContextDelete(settings->context);
}
