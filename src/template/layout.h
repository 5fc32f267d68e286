/*-------------------------------------------------------------------------
 *
 * layout.h
 *		What stands around a mail's content, and its colours.
 *
 * Pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_LAYOUT_H
#define KLM_LAYOUT_H

#include "base/kliv_mail.h"

/* The source of the layout that is used where there is no other. */
extern const char klm_default_layout[];

/* "rtl" or "ltr" of a locale. */
extern const char *klm_direction(const char *locale);

/* "Unsubscribe" in the language of a locale, English where it is not known. */
extern const char *klm_unsubscribe_word(const char *locale);

/* The contrast of two colours "#rrggbb" by WCAG, 1 to 21. */
extern double klm_contrast(const char *one, const char *other);

/*
 * A colour for links on white: the brand's, if it can be read there; and for what
 * stands on the brand's colour.
 */
#define KLM_BRAND_COLOR "#1a56db"
#define KLM_TEXT_CONTRAST 4.5

extern const char *klm_link_color(const char *brand);
extern const char *klm_color_on(const char *brand);

#endif							/* KLM_LAYOUT_H */
