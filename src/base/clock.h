/*-------------------------------------------------------------------------
 *
 * clock.h
 *		The clock that nobody sets, by which processes wait: milliseconds that
 *		mean the same in every process of the machine.
 *
 * The wall's clock says when a mail is due; how long that is from now is
 * waited by this one, so that no step of the other lengthens a wait.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CLOCK_H
#define KLM_CLOCK_H

#include "portability/instr_time.h"
#include "utils/timestamp.h"

#define KLM_NEVER PG_INT64_MAX

static inline int64
klm_clock_ms(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MILLISEC(now);
}

/* The same clock, for what takes less than that. */
static inline int64
klm_clock_us(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return (int64) INSTR_TIME_GET_MICROSEC(now);
}

/* When it will be that real time, as it looks now; DT_NOEND: never. */
static inline int64
klm_clock_at(TimestampTz time)
{
	return TIMESTAMP_IS_NOEND(time) ? KLM_NEVER
		: klm_clock_ms() + (time - GetCurrentTimestamp() + 999) / 1000;
}

/* ... and the real time that it will be then. */
static inline TimestampTz
klm_wall_time(int64 ms)
{
	return ms == KLM_NEVER ? DT_NOEND : GetCurrentTimestamp() + (ms - klm_clock_ms()) * 1000;
}

#endif							/* KLM_CLOCK_H */
