/*-------------------------------------------------------------------------
 *
 * settings.h
 *		What sessions have to know of the settings that senders obey.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_SETTINGS_H
#define KLM_SETTINGS_H

#include "base/guc.h"
#include "base/kliv_mail.h"

/* A name of 1,000 bytes before an address, each quoted, is the longest. */
#define KLM_SETTING_SIZE 4096

typedef char KlmPublishedSettings[KLM_DATABASE_SETTINGS][KLM_SETTING_SIZE];

/* As the launcher, which has no database: what a database has that sets nothing. */
extern void klm_publish_settings(void);

/* What it published; false: nothing yet. */
extern bool klm_published_settings(KlmPublishedSettings values);

/* One of them may have changed, for whatever database. */
extern void klm_note_changed_settings(void);

/* Rises with each such change; 0: none since the server began, or not preloaded. */
extern uint32 klm_changes_of_settings(void);

#endif							/* KLM_SETTINGS_H */
