/*-------------------------------------------------------------------------
 *
 * probe_rows.h
 *		A connection test's steps as rows of the SQL function that was called.
 *
 * In kliv_mail_net.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_PROBE_ROWS_H
#define KLM_PROBE_ROWS_H

#include "fmgr.h"

#include "net/probe.h"

/*
 * Behind InitMaterializedSRF(); the columns are step text, ok boolean, elapsed_ms
 * numeric, detail text and hint text.
 */
extern void klm_put_step(FunctionCallInfo fcinfo, const KlmProbeStep *step);

#endif							/* KLM_PROBE_ROWS_H */
