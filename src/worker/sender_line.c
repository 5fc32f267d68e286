/*-------------------------------------------------------------------------
 *
 * sender_line.c
 *		Where in the line a claim begins.
 *
 * A line is what waits of an account and a priority, in the order of due times and
 * ids.  What was sent stays in its index until nobody may see it any more, for hours
 * beside a snapshot that somebody holds, and a claim that began at the front would
 * pass over all of it.  So it begins where an earlier one ended.
 *
 * Who commits late puts a delivery in front of that place.  Hence the place counts
 * only once every transaction that had begun by the end of that earlier claim is over,
 * and another claim has looked behind it; and it is never later than some time
 * before that claim, for who had read the clock and not yet begun to write.
 *
 * What else comes to stand there (retry(), a lock that was passed over and is free
 * again, a clock set back) is found by a claim from the front.  There is one every
 * second at most, and there it begins anew where it found something.  A sender rests
 * only after such a one.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "worker/sender.h"

/* So often, or as seldom as lets it take a twentieth of the time. */
#define WHOLE_EVERY_MS	1000
#define WHOLE_SHARE		20

/* From reading the clock to the first write. */
#define WRITE_WITHIN_MS 500

static int64 whole_at = 0;
static int64 began_at;

static bool
is_before(KlmPlace a, KlmPlace b)
{
	return a.due < b.due || (a.due == b.due && a.id < b.id);
}

KlmPlace *
klm_line_begin(KlmBatch *batch)
{
	KlmPlace   *places = palloc(Max(1, batch->offered) * KLM_PRIORITIES * sizeof(KlmPlace));
	bool		front = klm_clock_ms() >= whole_at || klm_sender.isolating ||
		klm_sender.recovery_wanted;
	int			n = 0;
	dlist_iter	iter;

	batch->whole = true;
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		for (int i = 0; i < KLM_PRIORITIES; i++)
		{
			places[n].due = front ? DT_NOBEGIN : pool->lines[i].from.due;
			places[n].id = front ? 0 : pool->lines[i].from.id;
			batch->whole &= places[n++].due == DT_NOBEGIN;
		}
	}
	began_at = klm_clock_ms();
	batch->seen = klm_now();
	batch->oldest = GetLatestSnapshot()->xmin;
	return places;
}

void
klm_line_end(KlmBatch *batch)
{
	int64		now = klm_clock_ms();

	/* What had no number yet writes later. */
	batch->next_xid = XidFromFullTransactionId(ReadNextFullTransactionId());
	if (batch->whole)
		whole_at = now + Max(WHOLE_EVERY_MS, WHOLE_SHARE * (now - began_at));
}

void
klm_line_move(const KlmBatch *batch)
{
	KlmPlace	latest = {batch->seen - WRITE_WITHIN_MS * INT64CONST(1000), 0};
	dlist_iter	iter;
	ListCell   *lc;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		for (int i = 0; i < KLM_PRIORITIES; i++)
		{
			KlmLine    *line = &pool->lines[i];

			line->reached = TransactionIdIsValid(line->until) &&
				TransactionIdFollowsOrEquals(batch->oldest, line->until);
			line->taken.due = DT_NOBEGIN;
		}
	}
	foreach(lc, batch->claims)
	{
		KlmClaim   *claim = lfirst(lc);
		KlmLine    *line = &klm_find_pool(claim->account)->lines[claim->priority];

		if (is_before(claim->place, line->from))
			line->from.due = DT_NOBEGIN;
		/* There may be more where it found something in front of the place to come. */
		if (TransactionIdIsValid(line->until) && is_before(claim->place, line->next))
			line->until = InvalidTransactionId;
		if (is_before(line->taken, claim->place))
			line->taken = claim->place;
	}
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		for (int i = 0; i < KLM_PRIORITIES; i++)
		{
			KlmLine    *line = &pool->lines[i];

			if (line->reached && TransactionIdIsValid(line->until))
			{
				line->from = line->next;
				line->until = InvalidTransactionId;
			}
			if (line->taken.due != DT_NOBEGIN && !TransactionIdIsValid(line->until))
			{
				line->next = is_before(latest, line->taken) ? latest : line->taken;
				if (is_before(line->from, line->next))
					line->until = batch->next_xid;
			}
		}
	}
}

void
klm_line_changed(void)
{
	whole_at = 0;
}

int64
klm_line_whole_at(void)
{
	return whole_at;
}
