/*-------------------------------------------------------------------------
 *
 * sender_grant.c
 *		Which claimed deliveries may begin: what a commit has stamped.
 *
 * A claim takes hundreds of deliveries, of which a server can have only those
 * that were handed to a connection.  So a row of _batch says which may be, and
 * is committed before that; a death of ours leaves those in doubt and no others.
 * Calls sender_pools.c.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "utils/memutils.h"

#include "worker/sender.h"

/* A transaction costs about as much as so many mails by itself. */
#define WORTH_A_TRANSACTION 8

static KlmGrant *next_grant;	/* of the transaction under way */
static int64 granted_at;		/* by the last one, of klm_clock_us() */

static bool half_done(KlmPool *pool);

/* As many second copies a death of ours can cost. */
static int
window(KlmPool *pool)
{
	return 2 * Max(1, klm_connection_limit(pool));
}

bool
klm_wants_grants(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (pool->queued > 0 && !pool->paused && pool->granted == 0 &&
			(pool->open == 0 || half_done(pool)))
			return true;
	}
	return false;
}

/*
 * While half of what may begin is with the server, our transaction for the other half
 * costs no time, unless it has few mails, or the disk takes longer than the server:
 * then one commit has all.
 */
static bool
half_done(KlmPool *pool)
{
	return pool->open < window(pool) &&
		klm_sender.outcome_count >= Max(WORTH_A_TRANSACTION, klm_connection_limit(pool)) &&
		klm_clock_us() - granted_at >= klm_sender.commit_us;
}

/* All outcomes that there are become known with it, and leave their room. */
void
klm_grant(List *claims)
{
	int64	   *claimed = palloc(Max(1, list_length(claims)) * sizeof(int64));
	int64	   *begun;
	int			claimed_count = 0;
	int			begun_count = 0;
	int			waiting = 0;
	int			space = list_length(claims);
	dlist_iter	iter;
	ListCell   *lc;

	if (next_grant == NULL)
		next_grant = MemoryContextAlloc(klm_sender.context, sizeof(KlmGrant));
	dlist_foreach(iter, &klm_sender.pools)
		space += dlist_container(KlmPool, node, iter.cur)->queued;
	begun = palloc(Max(1, space) * sizeof(int64));

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);
		dlist_iter	queue_iter;

		pool->to_grant = 0;
		pool->room = pool->paused ? 0 : Max(0, window(pool) - pool->granted - pool->open);
		dlist_foreach(queue_iter, &pool->queue)
		{
			KlmDelivery *delivery = dlist_container(KlmDelivery, node, queue_iter.cur);

			if (pool->room == 0)
				break;
			if (delivery->grant != NULL)
				continue;
			begun[begun_count++] = delivery->id;
			pool->to_grant++;
			pool->room--;
		}
	}
	foreach(lc, claims)
	{
		KlmClaim   *claim = lfirst(lc);
		KlmPool	   *pool = klm_find_pool(claim->account);

		claimed[claimed_count++] = claim->id;
		claim->granted = pool->room > 0;
		if (claim->granted)
		{
			begun[begun_count++] = claim->id;
			pool->room--;
		}
		else
			waiting++;
	}
	/* Where all of the claim may begin, that says enough. */
	if (waiting == 0)
		claimed_count = 0;
	if (claimed_count > 0 || begun_count > 0 || klm_sender.done_count > 0)
		klm_outbox_stamp(klm_sender.epoch, klm_sender.last_batch + 1, claimed, claimed_count,
						 begun, begun_count, klm_sender.done, klm_sender.done_count);
}

KlmGrant *
klm_granted(void)
{
	KlmGrant   *grant = next_grant;
	dlist_iter	iter;

	next_grant = NULL;
	granted_at = klm_clock_us();
	klm_sender.last_batch += 2;
	klm_sender.done_count = 0;
	grant->number = klm_sender.last_batch;
	grant->open = 1;			/* the caller's */
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);
		dlist_iter	queue_iter;

		dlist_foreach(queue_iter, &pool->queue)
		{
			KlmDelivery *delivery = dlist_container(KlmDelivery, node, queue_iter.cur);

			if (pool->to_grant == 0)
				break;
			if (delivery->grant != NULL)
				continue;
			klm_may_begin(delivery, grant);
			pool->to_grant--;
		}
	}
	return grant;
}

/* What is granted stands first in its pool's queue. */
void
klm_may_begin(KlmDelivery *delivery, KlmGrant *grant)
{
	delivery->grant = grant;
	delivery->pool->granted++;
	grant->open++;
}
