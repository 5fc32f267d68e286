/*-------------------------------------------------------------------------
 *
 * compat.h
 *		Every difference between PostgreSQL 15 and 19, and between the versions
 *		of libcurl, each with the release that made it.
 *
 * May be included by every file; includes nothing of ours.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_COMPAT_H
#define KLM_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "kliv_mail needs PostgreSQL 15 or newer"
#endif

/* PostgreSQL 16 moved the varlena macros out of postgres.h. */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

/*
 * PostgreSQL 16 hides a module's symbols unless they are marked, and marks the
 * functions that SQL calls; PostgreSQL 15 marks their info functions only.
 */
#if PG_VERSION_NUM < 160000
#include "fmgr.h"
#undef PG_FUNCTION_INFO_V1
#define PG_FUNCTION_INFO_V1(name) \
extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
extern PGDLLEXPORT const Pg_finfo_record *CppConcat(pg_finfo_, name)(void); \
const Pg_finfo_record * \
CppConcat(pg_finfo_, name) (void) \
{ \
	static const Pg_finfo_record info = {1}; \
	return &info; \
} \
extern int no_such_variable
#endif

/* PostgreSQL 18: a module tells its name and version. */
#ifdef PG_MODULE_MAGIC_EXT
#define KLM_MODULE_MAGIC(module) PG_MODULE_MAGIC_EXT(.name = module, .version = KLIV_MAIL_VERSION)
#else
#define KLM_MODULE_MAGIC(module) PG_MODULE_MAGIC
#endif

/*
 * PostgreSQL 16 gave the values of check hooks an allocator of their own, and
 * made the ownership checks of all kinds of objects one function.
 */
#if PG_VERSION_NUM >= 160000
#define klm_guc_malloc(size) guc_malloc(LOG, size)
#define klm_owns_database(oid, role) object_ownercheck(DatabaseRelationId, oid, role)
#define klm_owns_extension(oid, role) object_ownercheck(ExtensionRelationId, oid, role)
#else
#define klm_guc_malloc(size) malloc(size)
#define klm_owns_database(oid, role) pg_database_ownercheck(oid, role)
#define klm_owns_extension(oid, role) pg_extension_ownercheck(oid, role)
#endif

/* PostgreSQL 17 put the local transaction id into a struct. */
#if PG_VERSION_NUM >= 170000
#define KLM_MY_LXID (MyProc->vxid.lxid)
#else
#define KLM_MY_LXID (MyProc->lxid)
#endif

/* PostgreSQL 17 gave wait event sets to resource owners, where memory contexts had had them. */
#if PG_VERSION_NUM >= 170000
#define klm_create_wait_event_set(events) CreateWaitEventSet(NULL, events)
#else
#define klm_create_wait_event_set(events) CreateWaitEventSet(TopMemoryContext, events)
#endif

/* PostgreSQL 18 replaced pg_attribute_noreturn(), which stood after the declarator. */
#if PG_VERSION_NUM >= 180000
#define pg_attribute_noreturn() __attribute__((noreturn))
#endif

/*
 * PostgreSQL 18 counts what a scan of an index does, for EXPLAIN; 19 is told what it
 * may do beside it.
 */
#if PG_VERSION_NUM >= 190000
#define klm_index_beginscan(table, index, snapshot, keys) \
	index_beginscan(table, index, snapshot, NULL, keys, 0, SO_NONE)
#elif PG_VERSION_NUM >= 180000
#define klm_index_beginscan(table, index, snapshot, keys) \
	index_beginscan(table, index, snapshot, NULL, keys, 0)
#else
#define klm_index_beginscan(table, index, snapshot, keys) \
	index_beginscan(table, index, snapshot, keys, 0)
#endif

/* PostgreSQL 19 has options of a deletion, where there was one. */
#if PG_VERSION_NUM >= 190000
#define klm_tuple_delete(table, place, command, snapshot, failure) \
	table_tuple_delete(table, place, command, 0, snapshot, InvalidSnapshot, true, failure)
#else
#define klm_tuple_delete(table, place, command, snapshot, failure) \
	table_tuple_delete(table, place, command, snapshot, InvalidSnapshot, true, failure, false)
#endif

/* PostgreSQL 16: a check of new versions knows the tables that are written. */
#if PG_VERSION_NUM >= 160000
#define klm_epq_init(epq, estate) EvalPlanQualInit(epq, estate, NULL, NIL, -1, NIL)
#else
#define klm_epq_init(epq, estate) EvalPlanQualInit(epq, estate, NULL, NIL, -1)
#endif

/*
 * PostgreSQL 19 takes one size of a hash table in shared memory, where the
 * first and the greatest were apart.
 */
#if PG_VERSION_NUM >= 190000
#define klm_shmem_hash(name, size, info, flags) ShmemInitHash(name, size, info, flags)
#else
#define klm_shmem_hash(name, size, info, flags) ShmemInitHash(name, size, size, info, flags)
#endif

/* PostgreSQL 19 shows post_parse_analyze_hook a JumbleState that it may not change. */
#if PG_VERSION_NUM >= 190000
#define KLM_JUMBLE_STATE const JumbleState
#else
#define KLM_JUMBLE_STATE JumbleState
#endif

/*
 * PostgreSQL 19 tells signal handlers who sent it: what one hands on to another,
 * and no handler of that type.
 */
#if PG_VERSION_NUM >= 190000
#define KLM_SIGNAL_ARGS postgres_signal_arg, pg_siginfo
#define KLM_SIG_IGN PG_SIG_IGN
#else
#define KLM_SIGNAL_ARGS postgres_signal_arg
#define KLM_SIG_IGN SIG_IGN
#endif

/* PostgreSQL 19 has no other strings than those of the standard. */
#if PG_VERSION_NUM >= 190000
#define KLM_STANDARD_STRINGS true
#else
#define KLM_STANDARD_STRINGS standard_conforming_strings
#endif

/*
 * libcurl 8.20 looks up names in threads of the multi handle, which says whether it
 * waits.  Who includes libcurl's header after this one does not compile, instead of
 * being taken for an older libcurl.
 */
#ifdef LIBCURL_VERSION_NUM
#if LIBCURL_VERSION_NUM >= 0x081400
#define klm_multi_quick_exit(multi) curl_multi_setopt(multi, CURLMOPT_QUICK_EXIT, 1L)
#else
#define klm_multi_quick_exit(multi) CURLM_OK
#endif
#endif

#endif							/* KLM_COMPAT_H */
