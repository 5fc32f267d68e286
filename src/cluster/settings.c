/*-------------------------------------------------------------------------
 *
 * settings.c
 *		What sessions have to know of the settings that senders obey.
 *
 * A session that began before ALTER DATABASE ... SET (or RESET) keeps what it
 * read at its start, and the senders do not.  By the number of changes it sees
 * that it has to read them anew (hooks/fresh_settings.c), and what the launcher has
 * published is what holds where the database sets nothing (any more).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "cluster/settings.h"
#include "cluster/shared_state.h"

void
klm_publish_settings(void)
{
	bool		changed = false;

	for (int i = 0; i < KLM_DATABASE_SETTINGS; i++)
	{
		const char *value = GetConfigOption(klm_database_settings[i], false, false);
		char	   *published = klm_shared->settings[i];

		if (klm_shared->settings_published && strcmp(published, value) == 0)
			continue;
		changed |= klm_shared->settings_published;
		LWLockAcquire(klm_shared->lock, LW_EXCLUSIVE);
		strlcpy(published, value, KLM_SETTING_SIZE);
		LWLockRelease(klm_shared->lock);
	}
	klm_shared->settings_published = true;
	if (changed)
		klm_note_changed_settings();
}

bool
klm_published_settings(KlmPublishedSettings values)
{
	if (klm_shared == NULL || !klm_shared->settings_published)
		return false;
	LWLockAcquire(klm_shared->lock, LW_SHARED);
	memcpy(values, klm_shared->settings, sizeof(KlmPublishedSettings));
	LWLockRelease(klm_shared->lock);
	return true;
}

void
klm_note_changed_settings(void)
{
	if (klm_shared != NULL)
		pg_atomic_fetch_add_u32(&klm_shared->settings_changes, 1);
}

uint32
klm_changes_of_settings(void)
{
	return klm_shared == NULL ? 0 : pg_atomic_read_u32(&klm_shared->settings_changes);
}
