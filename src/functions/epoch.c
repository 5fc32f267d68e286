/*-------------------------------------------------------------------------
 *
 * epoch.c
 *		_epoch_lock() and _epoch_dead(): the lock that proves a sender alive;
 *		_key_share() and _key_idle(): who sends with a replace_key now.
 *
 * Owns nothing.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "utils/lsyscache.h"

#include "base/kliv_mail.h"

PG_FUNCTION_INFO_V1(kliv_mail__epoch_lock);
PG_FUNCTION_INFO_V1(kliv_mail__epoch_dead);
PG_FUNCTION_INFO_V1(kliv_mail__key_share);
PG_FUNCTION_INFO_V1(kliv_mail__key_idle);

static void epoch_tag(LOCKTAG *tag, int64 epoch);
static void key_tag(LOCKTAG *tag, int32 bucket);
static Oid	relation_of_ours(const char *name);

/*
 * A session lock, kept over transactions and gone with the process however
 * that ends: so a claim is orphaned exactly when its epoch's lock is free.
 */
Datum
kliv_mail__epoch_lock(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	epoch_tag(&tag, PG_GETARG_INT64(0));
	PG_RETURN_BOOL(LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL);
}

Datum
kliv_mail__epoch_dead(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;
	LockAcquireResult result;

	epoch_tag(&tag, PG_GETARG_INT64(0));
	result = LockAcquire(&tag, ExclusiveLock, false, true);
	if (result == LOCKACQUIRE_NOT_AVAIL)
		PG_RETURN_BOOL(false);
	LockRelease(&tag, ExclusiveLock, false);

	/* A lock that this very process holds is not free. */
	PG_RETURN_BOOL(result == LOCKACQUIRE_OK);
}

/*
 * _key_share(bucket): held until the caller's transaction ends, by as many as send
 * with a key of the bucket, so that nobody waits for it.
 */
Datum
kliv_mail__key_share(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	key_tag(&tag, PG_GETARG_INT32(0));
	(void) LockAcquire(&tag, ShareLock, false, false);
	PG_RETURN_VOID();
}

/* _key_idle(bucket): does no other transaction hold it? */
Datum
kliv_mail__key_idle(PG_FUNCTION_ARGS)
{
	LOCKTAG		tag;

	key_tag(&tag, PG_GETARG_INT32(0));
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		PG_RETURN_BOOL(false);
	LockRelease(&tag, ExclusiveLock, false);
	PG_RETURN_BOOL(true);
}

/*
 * The epoch as an object of the sequence that numbers epochs: a lock that,
 * unlike an advisory lock, no SQL statement can take.  By the method of the
 * advisory locks all the same, since session locks by the other one end with
 * the first transaction that aborts.
 */
static void
epoch_tag(LOCKTAG *tag, int64 epoch)
{
	Oid			sequence = relation_of_ours("_epoch");

	if (epoch <= 0 || epoch >> 48 != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("epoch: " INT64_FORMAT " is out of range", epoch)));

	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, sequence, (uint32) epoch, (uint16) (epoch >> 32));
	tag->locktag_lockmethodid = USER_LOCKMETHOD;
}

/* So is the bucket one of the table that knows what is still to be replaced. */
static void
key_tag(LOCKTAG *tag, int32 bucket)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, relation_of_ours("_replacement"), (uint32) bucket, 0);
	tag->locktag_lockmethodid = USER_LOCKMETHOD;
}

static Oid
relation_of_ours(const char *name)
{
	Oid			relation = get_relname_relid(name, get_namespace_oid(KLM_SCHEMA, false));

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the relation %s.%s does not exist", KLM_SCHEMA, name),
				 errhint("Install the extension anew.")));
	return relation;
}
