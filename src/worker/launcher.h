/*-------------------------------------------------------------------------
 *
 * launcher.h
 *		The process that starts a sender where mail is due.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_LAUNCHER_H
#define KLM_LAUNCHER_H

/* From _PG_init while preloading: register it, and the one that checks keys on a standby. */
extern void klm_launcher_init(void);

#endif							/* KLM_LAUNCHER_H */
