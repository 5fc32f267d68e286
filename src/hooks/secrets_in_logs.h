/*-------------------------------------------------------------------------
 *
 * secrets_in_logs.h
 *		The log hook: no password of a statement reaches the server's log.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SECRETS_IN_LOGS_H
#define KLM_SECRETS_IN_LOGS_H

/* From _PG_init: chain the hooks. */
extern void klm_loghook_init(void);

#endif							/* KLM_SECRETS_IN_LOGS_H */
