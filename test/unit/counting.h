/*-------------------------------------------------------------------------
 *
 * counting.h
 *		What passed and what failed of a unit test whose inputs are texts, and
 *		numbers that look random and are the same at each run.
 *
 * Included once, by the program's main file.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef COUNTING_H
#define COUNTING_H

static int	passed;
static int	failed;

static bool
check(bool ok, const char *what, const char *input)
{
	if (ok)
		passed++;
	else
	{
		failed++;
		printf("failed: %s: %.2000s\n", what, input);
	}
	return ok;
}

static uint64 state = 88172645463325252;

static uint32
any(uint32 below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return (uint32) (state >> 33) % below;
}

#endif							/* COUNTING_H */
