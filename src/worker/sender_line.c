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
 * only once every transaction that had begun by the end of that earlier claim is over
 * (or a second later: who writes for hours would keep all in front of the claims), and
 * another claim has looked behind it; and it is never later than some time
 * before that claim, for who had read the clock and not yet begun to write.
 *
 * What else comes to stand there (who commits later still, retry(), a lock that was
 * passed over and is free again, a clock set back) is found by who looks back, each
 * second, at what lies in front of these places, stretch by stretch, for some
 * milliseconds: so long that a round takes a twentieth of the time at most, and nobody
 * waits for it.  Once there has been nothing to claim for a second a claim begins at the
 * front, and a sender rests only after such a one.  What was claimed and goes back moves
 * its place.
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

/* So long one look back takes, as far as its stretches allow, */
#define BACK_MS			10

/* which are as wide, in microseconds of due times. */
#define BACK_WIDTH_MIN	INT64CONST(10000)
#define BACK_WIDTH_MAX	USECS_PER_DAY

/* So long a place waits for transactions. */
#define LATE_MS			1000

/* From reading the clock to the first write. */
#define WRITE_WITHIN_MS 500

static int64 whole_at = 0;
static bool whole_wanted = true;
static int64 began_at;

/* The round of looking back. */
static struct
{
	int64		at;				/* when it goes on */
	TimestampTz done;			/* as far as it has come */
	TimestampTz end;			/* of the stretch that is looked at */
	TimestampTz first;			/* what this sender has claimed was due then or later */
	int64		width;
	int64		stretch_at;
	bool		found;			/* something: the next claim is one of what has come since */
	int64		least_ms;		/* that any stretch has taken: a claim that finds nothing does */
}			back = {
	.done = DT_NOBEGIN, .first = DT_NOEND, .width = BACK_WIDTH_MAX, .least_ms = BACK_MS
};

static bool
is_whole_due(void)
{
	return whole_wanted || klm_clock_ms() >= whole_at || klm_sender.isolating ||
		klm_sender.recovery_wanted;
}

KlmStretch *
klm_line_back(int64 began)
{
	KlmStretch *stretches;
	TimestampTz latest = DT_NOBEGIN;
	int			count = 0;
	dlist_iter	iter;

	back.stretch_at = klm_clock_ms();
	if (back.found || back.stretch_at < back.at || is_whole_due())
	{
		back.found = false;
		return NULL;
	}
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		for (int i = 0; i < KLM_PRIORITIES; i++)
			latest = Max(latest, pool->lines[i].from.due);
		count += KLM_PRIORITIES;
	}
	if (back.done >= latest || back.stretch_at >= began + BACK_MS)
	{
		if (back.done >= latest)
			back.done = DT_NOBEGIN;
		back.at = back.stretch_at + Max(WHOLE_EVERY_MS, WHOLE_SHARE * (back.stretch_at - began));
		return NULL;
	}
	/* What others have left within a day is as much as what this sender has. */
	if (back.done != DT_NOBEGIN)
		back.end = back.done + back.width;
	else
		back.end = back.first == DT_NOEND ? DT_NOEND : back.first - USECS_PER_DAY;
	stretches = palloc(count * sizeof(KlmStretch));
	count = 0;
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		for (int i = 0; i < KLM_PRIORITIES; i++)
		{
			stretches[count].from.due = back.done;
			stretches[count].from.id = 0;
			stretches[count++].until = Min(back.end, pool->lines[i].from.due);
		}
	}
	return stretches;
}

void
klm_line_looked(bool found)
{
	int64		took = klm_clock_ms() - back.stretch_at;

	/* There may be more of it, but what is more urgent may have come meanwhile. */
	back.found = found;
	if (found)
		return;
	back.least_ms = Min(back.least_ms, took);
	if (back.done != DT_NOBEGIN)
		back.width = Min(2 * back.width, back.width * BACK_MS / Max(1, took - back.least_ms));
	back.width = Max(BACK_WIDTH_MIN, Min(back.width, BACK_WIDTH_MAX));
	back.done = back.end;
}

KlmStretch *
klm_line_begin(KlmBatch *batch)
{
	KlmStretch *stretches = palloc(Max(1, batch->offered) * KLM_PRIORITIES * sizeof(KlmStretch));
	bool		front = is_whole_due();
	int			n = 0;
	dlist_iter	iter;

	batch->whole = true;
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		for (int i = 0; i < KLM_PRIORITIES; i++)
		{
			stretches[n].from.due = front ? DT_NOBEGIN : pool->lines[i].from.due;
			stretches[n].from.id = front ? 0 : pool->lines[i].from.id;
			stretches[n].until = DT_NOEND;
			batch->whole &= stretches[n++].from.due == DT_NOBEGIN;
		}
	}
	began_at = klm_clock_ms();
	batch->seen = klm_now();
	batch->oldest = GetLatestSnapshot()->xmin;
	return stretches;
}

void
klm_line_end(KlmBatch *batch)
{
	int64		now = klm_clock_ms();

	/* What had no number yet writes later. */
	batch->next_xid = XidFromFullTransactionId(ReadNextFullTransactionId());
	if (batch->whole)
	{
		whole_at = now + Max(WHOLE_EVERY_MS, WHOLE_SHARE * (now - began_at));
		ereport(DEBUG1, (errmsg_internal("kliv_mail: a claim began at the front of each line")));
	}
}

void
klm_line_move(const KlmBatch *batch)
{
	KlmPlace	latest = {batch->seen - WRITE_WITHIN_MS * INT64CONST(1000), 0};
	dlist_iter	iter;
	ListCell   *lc;

	/* Not while there is mail that would wait for it. */
	if (batch->claims != NIL)
		whole_at = Max(whole_at, klm_clock_ms() + WHOLE_EVERY_MS);
	foreach(lc, batch->claims)
		back.first = Min(back.first, ((KlmClaim *) lfirst(lc))->place.due);
	/* What lies behind the places was not looked at. */
	if (batch->back)
		return;
	if (batch->whole)
	{
		whole_wanted = false;
		back.done = DT_NOBEGIN;
		back.at = klm_clock_ms() + WHOLE_EVERY_MS;
	}
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		for (int i = 0; i < KLM_PRIORITIES; i++)
		{
			KlmLine    *line = &pool->lines[i];

			line->reached = TransactionIdIsValid(line->until) &&
				(TransactionIdFollowsOrEquals(batch->oldest, line->until) ||
				 began_at >= line->next_at + LATE_MS);
			line->taken.due = DT_NOBEGIN;
		}
	}
	foreach(lc, batch->claims)
	{
		KlmClaim   *claim = lfirst(lc);
		KlmLine    *line = &klm_find_pool(claim->account)->lines[claim->priority];

		if (klm_place_before(claim->place, line->from))
			line->from = claim->place;
		/* There may be more where it found something in front of the place to come. */
		if (TransactionIdIsValid(line->until) && klm_place_before(claim->place, line->next))
			line->until = InvalidTransactionId;
		if (klm_place_before(line->taken, claim->place))
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
				line->next = klm_place_before(latest, line->taken) ? latest : line->taken;
				if (klm_place_before(line->from, line->next))
				{
					line->until = batch->next_xid;
					line->next_at = klm_clock_ms();
				}
			}
		}
	}
}

void
klm_line_changed(void)
{
	whole_wanted = true;
}

int64
klm_line_whole_at(void)
{
	return whole_wanted ? 0 : whole_at;
}
