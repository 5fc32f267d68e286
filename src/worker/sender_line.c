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
 * second, at what lies in front of these places, stretch by stretch: some milliseconds
 * at once, and a twentieth of the time at most, so that nobody waits for it.  How much a
 * stretch holds shows only when it is looked at, and changes while mail is sent, vacuum
 * passes and snapshots end: one that took long is cut in two for the next round, and
 * short ones become one.
 *
 * Once there has been nothing to claim for a second a claim begins at the front, and a
 * sender rests only after such a one.  What was claimed and goes back moves its place.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/guc.h"
#include "worker/sender.h"

/* So often, or as seldom as lets it take a twentieth of the time. */
#define WHOLE_EVERY_MS	1000
#define WHOLE_SHARE		20

/* So long one look back takes, as far as its stretches allow, */
#define BACK_MS			10

/* of which none is cut below so many microseconds of due times. */
#define NARROW			INT64CONST(10000)

/* Before this nothing is due: what a look there takes is what any takes that finds nothing. */
#define BACK_ORIGIN		0

/* So long a place waits for transactions. */
#define LATE_MS			1000

/* From reading the clock to the first write. */
#define WRITE_WITHIN_MS 500

static int64 whole_at = 0;
static bool whole_wanted = true;
static int64 began_at;

/* From the end of the one before, the first from the origin. */
typedef struct Stretch
{
	TimestampTz end;
	int64		ms;				/* beyond what one that holds nothing takes */
} Stretch;

/* The round of looking back. */
static struct
{
	Stretch    *stretches;		/* as the rounds before have cut them */
	int			count;
	int			size;
	int			next;			/* to be looked at; -1: the one before the origin */
	TimestampTz end;			/* of it */
	bool		found;			/* something: the next claim is one of what has come since */
	int64		round_at;
	int64		stretch_at;
	int64		again_at;
	int64		empty_ms;
}			back = {
	.next = -1
};

static bool
is_whole_due(void)
{
	return whole_wanted || klm_clock_ms() >= whole_at || klm_sender.isolating ||
		klm_sender.recovery_wanted;
}

static TimestampTz
back_start(void)
{
	if (back.next < 0)
		return DT_NOBEGIN;
	return back.next == 0 ? BACK_ORIGIN : back.stretches[back.next - 1].end;
}

/* Where to cut one.  The first begins with decades that hold nothing. */
static TimestampTz
middle_of(TimestampTz start, TimestampTz end)
{
	if (start == BACK_ORIGIN)
		return Max(start, end - 8 * Max(klm_now() - end, USECS_PER_SEC));
	return start + (end - start) / 2;
}

static Stretch *
new_stretch(int at)
{
	if (back.stretches == NULL)
	{
		back.size = 64;
		back.stretches = MemoryContextAlloc(TopMemoryContext, back.size * sizeof(Stretch));
	}
	else if (back.count == back.size)
	{
		back.stretches = repalloc_huge(back.stretches, 2 * (Size) back.size * sizeof(Stretch));
		back.size *= 2;
	}
	memmove(back.stretches + at + 1, back.stretches + at, (back.count - at) * sizeof(Stretch));
	back.count++;
	return back.stretches + at;
}

KlmStretch *
klm_line_back(int64 began)
{
	KlmStretch *stretches;
	TimestampTz start = back_start();
	TimestampTz latest = DT_NOBEGIN;
	int			count = 0;
	dlist_iter	iter;

	back.stretch_at = klm_clock_ms();
	if (back.found || back.stretch_at < back.again_at || is_whole_due())
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
	if (back.next < 0)
		back.round_at = back.stretch_at;
	if (start >= latest || back.stretch_at >= began + BACK_MS)
	{
		back.again_at = back.stretch_at + WHOLE_SHARE * (back.stretch_at - began);
		if (start >= latest)
		{
			back.next = -1;
			back.again_at = Max(back.again_at, back.round_at + WHOLE_EVERY_MS);
		}
		return NULL;
	}
	back.end = back.next < 0 ? BACK_ORIGIN :
		back.next < back.count ? back.stretches[back.next].end : latest;
	stretches = palloc(count * sizeof(KlmStretch));
	count = 0;
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		for (int i = 0; i < KLM_PRIORITIES; i++)
		{
			stretches[count].from.due = start;
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
	TimestampTz start = back_start();
	TimestampTz middle;
	Stretch    *stretch;

	/* There may be more of it, but what is more urgent may have come meanwhile. */
	back.found = found;
	if (found)
		return;
	ereport(DEBUG1,
			(errmsg_internal("kliv_mail: a look back at stretch %d of %d: %lld ms", back.next + 1,
							 back.count, (long long) took)));
	if (back.next < 0)
	{
		back.empty_ms = took;
		back.next = 0;
		return;
	}
	if (back.next == back.count)
		new_stretch(back.count)->end = back.end;
	stretch = &back.stretches[back.next];
	stretch->ms = Max(0, took - back.empty_ms);
	middle = middle_of(start, stretch->end);
	if (stretch->ms > BACK_MS && middle - start >= NARROW && stretch->end - middle >= NARROW)
	{
		stretch->ms /= 2;
		new_stretch(back.next)->end = middle;
		back.stretches[back.next].ms = back.stretches[back.next + 1].ms;
		back.next += 2;
	}
	else if (back.next > 0 && stretch->ms + stretch[-1].ms <= BACK_MS / 2)
	{
		stretch[-1].end = stretch->end;
		stretch[-1].ms += stretch->ms;
		memmove(stretch, stretch + 1, (--back.count - back.next) * sizeof(Stretch));
	}
	else
		back.next++;
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

/* Was there room for all that waits of the n-th pool?  (What memory kept out shows nowhere.) */
static bool
had_room(const KlmBatch *batch, const KlmPool *pool, int n)
{
	return n < batch->offered && batch->busy[n] + pool->claimed < batch->rooms[n] &&
		!klm_sender.isolating &&
		klm_sender.claimed_bytes <= (int64) klm_sender_memory * 1024 / 8;
}

void
klm_line_move(const KlmBatch *batch)
{
	KlmPlace	latest = {batch->seen - WRITE_WITHIN_MS * INT64CONST(1000), 0};
	int			n = 0;
	dlist_iter	iter;
	ListCell   *lc;

	/* Not while there is mail that would wait for it. */
	if (batch->claims != NIL)
		whole_at = Max(whole_at, klm_clock_ms() + WHOLE_EVERY_MS);
	/* What lies behind the places was not looked at. */
	if (batch->back)
		return;
	if (batch->whole)
	{
		whole_wanted = false;
		back.next = -1;
		back.again_at = klm_clock_ms() + WHOLE_EVERY_MS;
	}
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		pool->claimed = 0;
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
		KlmPool	   *pool = klm_find_pool(claim->account);
		KlmLine    *line = &pool->lines[claim->priority];

		pool->claimed++;
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
			/* What it holds was sent by others, or is found by looking back. */
			if (line->taken.due == DT_NOBEGIN && had_room(batch, pool, n))
				line->taken = latest;
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
		n++;
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
