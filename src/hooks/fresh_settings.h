/*-------------------------------------------------------------------------
 *
 * fresh_settings.h
 *		A session has the settings that its database's senders have.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_FRESH_SETTINGS_H
#define KLM_FRESH_SETTINGS_H

/* From _PG_init while preloading: the hook. */
extern void klm_fresh_settings_init(void);

/* Before a statement; nearly always it compares two numbers. */
extern void klm_refresh_settings(void);

#endif							/* KLM_FRESH_SETTINGS_H */
