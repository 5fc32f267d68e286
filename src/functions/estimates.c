/*-------------------------------------------------------------------------
 *
 * estimates.c
 *		When do the deliveries that wait leave?  The SQL function
 *		_leave_times() plays an account's claims forward.
 *
 * The deliveries come as claims would take them: by priority, then by due
 * time.  The clock jumps from one change to the next (a due time, the end of an
 * hour or a day, an hour that falls out of the last 24) and each delivery
 * leaves as soon as it is due, all windows have room for it and nothing that is
 * due goes before it.
 *
 * Owns nothing, runs no SQL.  May call base/.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "pgtime.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/timestamp.h"

#include "base/compat.h"

#define PRIORITIES 3
#define MARKETING 2

/* Arguments 5 and 6 of _leave_times(). */
enum
{
	RULE_HOUR, RULE_DAY, RULE_ROLLING, RULES
};

typedef struct Past
{
	TimestampTz end;			/* of an hour */
	int64		used;
} Past;

typedef struct Windows
{
	pg_tz	   *zone;
	int64		limit[RULES];
	int64		marketing_limit[RULES];
	int64		used[RULES];
	bool		rolls;			/* has the third rule */
	TimestampTz hour_end;
	TimestampTz day_end;
	TimestampTz grid;			/* the end of some hour by the zone's clock */
	Past	   *past;			/* the hours that count for the third rule, oldest first */
	int			first_past;
	int			past_count;
} Windows;

PG_FUNCTION_INFO_V1(kliv_mail__leave_times);

/* The next midnight of the zone after t; the first where it comes twice. */
static TimestampTz
next_midnight(TimestampTz t, pg_tz *zone)
{
	struct pg_tm tm;
	fsec_t		fsec;
	int			offset;
	int			day;
	TimestampTz midnight;

	if (timestamp2tm(t, &offset, &tm, &fsec, NULL, zone) != 0)
		return DT_NOEND;
	day = date2j(tm.tm_year, tm.tm_mon, tm.tm_mday) + 1;
	j2date(day, &tm.tm_year, &tm.tm_mon, &tm.tm_mday);
	tm.tm_hour = tm.tm_min = tm.tm_sec = 0;
	offset = DetermineTimeZoneOffset(&tm, zone);
	if (tm2timestamp(&tm, 0, &offset, &midnight) != 0)
		return DT_NOEND;
	if (timestamp2tm(midnight - USECS_PER_HOUR, &offset, &tm, &fsec, NULL, zone) == 0 &&
		date2j(tm.tm_year, tm.tm_mon, tm.tm_mday) == day && midnight - USECS_PER_HOUR > t)
		midnight -= USECS_PER_HOUR;
	return midnight > t ? midnight : midnight + USECS_PER_HOUR;
}

static void
advance(Windows *windows, TimestampTz t)
{
	while (windows->first_past < windows->past_count &&
		   windows->past[windows->first_past].end + USECS_PER_DAY <= t)
		windows->used[RULE_ROLLING] -= windows->past[windows->first_past++].used;
	if (t >= windows->hour_end)
	{
		windows->used[RULE_HOUR] = 0;
		windows->hour_end = t < windows->grid ? windows->grid :
			windows->grid + ((t - windows->grid) / USECS_PER_HOUR + 1) * USECS_PER_HOUR;
	}
	if (t >= windows->day_end)
	{
		windows->used[RULE_DAY] = 0;
		windows->day_end = next_midnight(t, windows->zone);
	}
}

static bool
has_room(const Windows *windows, int priority)
{
	const int64 *limit = priority == MARKETING ? windows->marketing_limit : windows->limit;

	return windows->used[RULE_HOUR] < limit[RULE_HOUR] &&
		windows->used[RULE_DAY] < limit[RULE_DAY] &&
		(!windows->rolls || windows->used[RULE_ROLLING] < limit[RULE_ROLLING]);
}

static void
count_one(Windows *windows)
{
	Past	   *last = windows->past_count > 0 ? &windows->past[windows->past_count - 1] : NULL;

	for (int i = 0; i < RULES; i++)
		windows->used[i]++;
	if (last && last->end == windows->hour_end)
		last->used++;
	else
	{
		windows->past[windows->past_count].end = windows->hour_end;
		windows->past[windows->past_count++].used = 1;
	}
}

/* When a window that has no room may have some again. */
static TimestampTz
next_change(const Windows *windows)
{
	TimestampTz next = Min(windows->hour_end, windows->day_end);

	if (windows->rolls && windows->first_past < windows->past_count)
		next = Min(next, windows->past[windows->first_past].end + USECS_PER_DAY);
	return next;
}

/* dues: those of priority 0, then 1, then 2, each in order; counts: how many of each. */
static void
leave_times(Windows *windows, TimestampTz t, const TimestampTz *dues, const int *counts,
			TimestampTz *times)
{
	int			next_of[PRIORITIES];
	int			end_of[PRIORITIES];
	int			left = 0;

	for (int p = 0; p < PRIORITIES; p++)
	{
		next_of[p] = p == 0 ? 0 : end_of[p - 1];
		end_of[p] = next_of[p] + counts[p];
		for (int i = 0; i < RULES; i++)
		{
			/* None of them leaves at all. */
			if ((p == MARKETING ? windows->marketing_limit : windows->limit)[i] <= 0 &&
				(i != RULE_ROLLING || windows->rolls))
				next_of[p] = end_of[p];
		}
		left += end_of[p] - next_of[p];
	}
	advance(windows, t);
	while (left > 0)
	{
		int			best = -1;
		TimestampTz next = DT_NOEND;

		CHECK_FOR_INTERRUPTS();
		for (int p = 0; p < PRIORITIES; p++)
		{
			if (next_of[p] == end_of[p])
				continue;
			if (dues[next_of[p]] > t)
				next = Min(next, dues[next_of[p]]);
			else if (!has_room(windows, p))
				next = Min(next, next_change(windows));
			else
			{
				best = p;
				break;
			}
		}
		if (best >= 0)
		{
			times[next_of[best]++] = t;
			count_one(windows);
			left--;
			continue;
		}
		if (TIMESTAMP_IS_NOEND(next))
			break;
		t = next;
		advance(windows, t);
	}
}

/* The elements of a timestamptz[] or integer[] argument without NULLs. */
static Datum *
elements(FunctionCallInfo fcinfo, int number, Oid type, int length, int *count)
{
	Datum	   *values;

	deconstruct_array(PG_GETARG_ARRAYTYPE_P(number), type, length, length == 4 ? true
					  : FLOAT8PASSBYVAL,
					  length == 4 ? TYPALIGN_INT : TYPALIGN_DOUBLE, &values, NULL, count);
	return values;
}

/*
 * _leave_times(dues timestamptz[], counts integer[3], start, zone text,
 * limits integer[3], marketing_limits integer[3], used integer[3],
 * ends timestamptz[3], past_ends timestamptz[], past_used integer[])
 *
 * A third limit of -1 is no rule; ends: of hour, day and the grid of hours.
 * The result has NULL for what never leaves.
 */
Datum
kliv_mail__leave_times(PG_FUNCTION_ARGS)
{
	int			count;
	int			counts_count;
	int			limits_count;
	int			marketing_count;
	int			used_count;
	int			ends_count;
	int			past_count;
	int			past_used_count;
	Datum	   *dues = elements(fcinfo, 0, TIMESTAMPTZOID, 8, &count);
	Datum	   *counts = elements(fcinfo, 1, INT4OID, 4, &counts_count);
	char	   *zone = text_to_cstring(PG_GETARG_TEXT_PP(3));
	Datum	   *limits = elements(fcinfo, 4, INT4OID, 4, &limits_count);
	Datum	   *marketing = elements(fcinfo, 5, INT4OID, 4, &marketing_count);
	Datum	   *used = elements(fcinfo, 6, INT4OID, 4, &used_count);
	Datum	   *ends = elements(fcinfo, 7, TIMESTAMPTZOID, 8, &ends_count);
	Datum	   *past_ends = elements(fcinfo, 8, TIMESTAMPTZOID, 8, &past_count);
	Datum	   *past_used = elements(fcinfo, 9, INT4OID, 4, &past_used_count);
	Windows		windows = {0};
	TimestampTz *due_times;
	TimestampTz *times;
	int			of_priority[PRIORITIES];
	Datum	   *results;
	bool	   *nulls;
	int			lower = 1;

	if (counts_count != PRIORITIES || limits_count != RULES || marketing_count != RULES ||
		used_count != RULES || ends_count != 3 || past_count != past_used_count)
		elog(ERROR, "arrays of other lengths were expected");
	windows.zone = pg_tzset(zone);
	if (windows.zone == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("zone: \"%s\" is not known", zone)));
	for (int i = 0; i < RULES; i++)
	{
		windows.limit[i] = DatumGetInt32(limits[i]);
		windows.marketing_limit[i] = DatumGetInt32(marketing[i]);
		windows.used[i] = DatumGetInt32(used[i]);
	}
	windows.rolls = windows.limit[RULE_ROLLING] >= 0;
	windows.hour_end = DatumGetTimestampTz(ends[0]);
	windows.day_end = DatumGetTimestampTz(ends[1]);
	windows.grid = DatumGetTimestampTz(ends[2]);
	windows.past = palloc((past_count + count + 1) * sizeof(Past));
	for (int i = 0; i < past_count; i++)
	{
		windows.past[i].end = DatumGetTimestampTz(past_ends[i]);
		windows.past[i].used = DatumGetInt32(past_used[i]);
	}
	windows.past_count = past_count;

	due_times = palloc(sizeof(TimestampTz) * (count + 1));
	times = palloc(sizeof(TimestampTz) * (count + 1));
	for (int i = 0; i < count; i++)
	{
		due_times[i] = DatumGetTimestampTz(dues[i]);
		times[i] = DT_NOEND;
	}
	for (int p = 0, all = 0; p < PRIORITIES; p++)
	{
		of_priority[p] = Max(0, Min(DatumGetInt32(counts[p]), count - all));
		all += of_priority[p];
	}
	leave_times(&windows, PG_GETARG_TIMESTAMPTZ(2), due_times, of_priority, times);

	results = palloc(sizeof(Datum) * (count + 1));
	nulls = palloc(sizeof(bool) * (count + 1));
	for (int i = 0; i < count; i++)
	{
		results[i] = TimestampTzGetDatum(times[i]);
		nulls[i] = TIMESTAMP_IS_NOEND(times[i]);
	}
	PG_RETURN_ARRAYTYPE_P(construct_md_array(results, nulls, 1, &count, &lower, TIMESTAMPTZOID, 8,
											 FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}
