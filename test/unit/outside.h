/*-------------------------------------------------------------------------
 *
 * outside.h
 *		What the pure modules need of the server and PostgreSQL's frontend
 *		libraries lack; for programs that run them without a server.
 *
 * Included once: by the program's main file, or by test/fuzz/outside.c.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTSIDE_H
#define OUTSIDE_H

#include <time.h>

#include "utils/datetime.h"
#include "utils/memutils.h"

/* The server's calendar, by the C library's: days are counted from 24 November 4714 BC. */
void
j2date(int jd, int *year, int *month, int *day)
{
	time_t		seconds = ((time_t) jd - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
	struct tm	date;

	gmtime_r(&seconds, &date);
	*year = date.tm_year + 1900;
	*month = date.tm_mon + 1;
	*day = date.tm_mday;
}

int
j2day(int jd)
{
	return (int) (((int64) jd + 1) % 7 + 7) % 7;
}

MemoryContext CurrentMemoryContext = NULL;

/* One of them catches what palloc() raises. */
sigjmp_buf *PG_exception_stack = NULL;
ErrorContextCallback *error_context_stack = NULL;

void
pg_re_throw(void)
{
	siglongjmp(*PG_exception_stack, 1);
}

/* The pure modules never raise. */
bool
errstart(int elevel, const char *domain)
{
	fputs("an error was raised\n", stderr);
	abort();
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

int
errmsg_internal(const char *format,...)
{
	return 0;
}

void
errfinish(const char *file, int line, const char *function)
{
	abort();
}

#endif							/* OUTSIDE_H */
