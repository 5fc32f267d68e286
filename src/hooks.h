/*-------------------------------------------------------------------------
 *
 * hooks.h
 *		What _PG_init sets up, a function a file.
 *
 * Layer: processes.  Only kliv_mail.c calls these.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_HOOKS_H
#define KLM_HOOKS_H

/* launcher.c: register the launcher; only while preloading. */
extern void klm_launcher_init(void);

/* utility.c: chain the ProcessUtility hook; only while preloading. */
extern void klm_utility_init(void);

/* loghook.c: chain the log hook. */
extern void klm_loghook_init(void);

#endif							/* KLM_HOOKS_H */
