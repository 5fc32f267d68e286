/*-------------------------------------------------------------------------
 *
 * clock.h
 *		Where this database is.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CLOCK_H
#define KLM_CLOCK_H

/* What kliv_mail._origin() returns; valid until the next call. */
extern const char *klm_origin(void);

#endif							/* KLM_CLOCK_H */
