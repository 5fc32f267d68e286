/*-------------------------------------------------------------------------
 *
 * key_check.h
 *		Warns of keys that databases need and the key file lacks.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_KEY_CHECK_H
#define KLM_KEY_CHECK_H

/* For the launcher: look now.  Outside of a transaction. */
extern void klm_check_keys(void);

#endif							/* KLM_KEY_CHECK_H */
