/*-------------------------------------------------------------------------
 *
 * current_rows.h
 *		What send() reads without locks.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_CURRENT_ROWS_H
#define KLM_CURRENT_ROWS_H

/*
 * A row of a table of ours as it is committed now, or this transaction changed it, whose
 * first column has that value (in the database's encoding); index NULL: any row.  That
 * column is the index's first, too, and a text with collation "C".  values and nulls are those of its columns, palloc'd.
 */
extern bool klm_current_row(const char *table, const char *index, const char *value,
							const char *const *columns, int count, Datum *values, bool *nulls);

/*
 * kliv_mail._any_suppressed(): may anything stand in the way of mail to one of these
 * addresses (text)?  kliv_mail._suppressed() says what.  As the extension's owner.
 */
extern bool klm_any_suppressed(const Datum *recipients, int count);

#endif							/* KLM_CURRENT_ROWS_H */
