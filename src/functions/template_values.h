/*-------------------------------------------------------------------------
 *
 * template_values.h
 *		The values of a template from jsonb.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_TEMPLATE_VALUES_H
#define KLM_TEMPLATE_VALUES_H

#include "utils/jsonb.h"

#include "template/value.h"

/* The value points into the jsonb, which must stay. */
extern KlmValue klm_value_of_jsonb(Jsonb *json);

#endif							/* KLM_TEMPLATE_VALUES_H */
