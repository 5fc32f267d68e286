/*-------------------------------------------------------------------------
 *
 * ddl.h
 *		The ProcessUtility hook: senders are never in a statement's way.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_DDL_H
#define KLM_DDL_H

/* From _PG_init while preloading: chain the hook. */
extern void klm_utility_init(void);

#endif							/* KLM_DDL_H */
