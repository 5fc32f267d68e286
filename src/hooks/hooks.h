/*-------------------------------------------------------------------------
 *
 * hooks.h
 *		What _PG_init sets up, a function a file.
 *
 * Layer: processes.  Only kliv_mail.c calls these, but for the last.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_HOOKS_H
#define KLM_HOOKS_H

/* launcher.c: register the launcher; only while preloading. */
extern void klm_launcher_init(void);

/* keycheck.c: register the one look at the keys on a standby; only while preloading. */
extern void klm_keycheck_init(void);

/* utility.c: chain the ProcessUtility hook; only while preloading. */
extern void klm_utility_init(void);

/* loghook.c: chain the log hook. */
extern void klm_loghook_init(void);

/*
 * keycheck.c, for the launcher: warn of keys that databases need and the key
 * file lacks.  Outside of a transaction.
 */
extern void klm_check_keys(void);

#endif							/* KLM_HOOKS_H */
