/*-------------------------------------------------------------------------
 *
 * sender_claim.c
 *		What a sender claims: its batch, the accounts' settings, each row made a
 *		delivery or an outcome.
 *
 * A claim's deliveries and their messages live in one batch, freed when the
 * last of them is finished.  Nothing here touches the network.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "lib/ilist.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "base/error.h"
#include "base/guc.h"
#include "cluster/wake.h"
#include "secret/key_ring.h"
#include "worker/sender.h"

/* A claim that met another sender's is tried again after 20 ms, doubling to 1 s. */
#define VAIN_CLAIM_MS		20
#define MAX_VAIN_CLAIM_MS	1000

/* Where a sender before us learnt it, most of its ten minutes may be over. */
#define CEILING_MS			60000

/* What is claimed ahead: for so long, as measured over a while, and no more than so many. */
#define AHEAD_MS			100
#define MEASURE_MS			50
#define MAX_AHEAD			1024

/* What can wait does so for so long at most, where mail is to leave. */
#define CHORES_EVERY_MS		1000

/* So often it looks whether the clock has been set back. */
#define CLOCK_EVERY_MS	1000

/* So often who has not planned the next claim looks for what has fallen due. */
#define CLAIM_EVERY_MS		1000

static int	vain_claims;		/* in a row, though something was due */
static int64 chores_at = 0;
static int64 clock_at = 0;
static int64 settled = 0;		/* what came up to this id was looked at, */
static int64 settling = 0;		/* and up to that once: a commit may come late */
static bool look_wanted = false;	/* at the accounts */

static void offer_room(KlmBatch *batch);
static List *claim_stretches(KlmBatch *batch, char **names, int64 *held,
							 const KlmStretch *stretches);
static int	compare_claims(const ListCell *a, const ListCell *b);
static void load_accounts(List *claims);
static List *read_messages(List *claims);
static int	compare_ids(const void *a, const void *b);
static int	compare_messages(const ListCell *a, const ListCell *b);
static KlmStoredMessage *message_of(const KlmClaim *claimed, List *messages);
static void name_messages(List *claims, List *messages);
static void open_accounts(void);
static bool wants_links(List *messages);
static void plan_next_claim(void);
static void return_stale(void);
static void note_who_has_more(const KlmBatch *batch);
static void hold_troubled(void);
static void do_chores(const KlmBatch *batch);
static bool depends_on_accounts(void);
static void look_at_accounts(void);
static void prepare(KlmBatch *batch, KlmGrant *grant, KlmClaim *claimed, KlmStoredMessage *message,
					KlmPool *pool);
static int	ahead(KlmPool *pool);
static void measure(KlmPool *pool);
static void load_settings(KlmPool *pool, const char *version);

KlmBatch *
klm_claim(void)
{
	MemoryContext context = klm_sender.claim_context;
	KlmBatch   *batch = MemoryContextAllocZero(context, sizeof(KlmBatch));

	batch->context = context;
	if (klm_sender.recovery_wanted)
		batch->recovered = klm_outbox_recover();
	if (klm_clock_ms() >= clock_at)
		batch->newest = klm_outbox_settle_clock(settled);
	offer_room(batch);
	do_chores(batch);
	if (batch->claims != NIL)
	{
		vain_claims = 0;
		load_accounts(batch->claims);
		batch->messages = read_messages(batch->claims);
		name_messages(batch->claims, batch->messages);
		if (wants_links(batch->messages))
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			batch->url = klm_outbox_unsubscribe_url();
			klm_load_domain(&batch->domain);
			MemoryContextSwitchTo(old);
		}
		if (klm_bounce_domain[0])
			klm_sign_return_paths(batch->claims, context);
	}
	else if (batch->whole)
		plan_next_claim();
	else
		klm_sender.next_claim = Min(klm_line_whole_at(), klm_clock_ms() + CLAIM_EVERY_MS);

	/* Behind the claim, so that this sees all that the claim saw. */
	look_wanted |= klm_sender.claim_wanted;
	if (look_wanted && (batch->claims == NIL || depends_on_accounts()))
	{
		look_at_accounts();
		look_wanted = false;
	}
	return batch;
}

/*
 * End what is too old to leave, play what the simulator's servers report: behind a
 * claim that found something only now and then, since that is to leave at once.  The
 * claim itself takes nothing that is too old.
 */
static void
do_chores(const KlmBatch *batch)
{
	int			tried = klm_sender.tried_count;
	int64		count;

	if (batch->claims != NIL && klm_clock_ms() < chores_at)
		return;
	/* What fails here is no claimed row's fault. */
	klm_sender.tried_count = 0;
	count = klm_outbox_expire();
	count += klm_outbox_play_reports();
	klm_sender.tried_count = tried;
	/* Where there was something there may be more, however busy we are. */
	chores_at = count > 0 ? 0 : klm_clock_ms() + CHORES_EVERY_MS;
}

/*
 * Is there anything that what was changed of an account counts for, besides what was
 * claimed just now with what the account is now?
 */
static bool
depends_on_accounts(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (!pool->looked_at || pool->paused || pool->queued > 0 || pool->open > 0)
			return true;
	}
	return false;
}

void
klm_queue_claimed(KlmBatch *batch, KlmGrant *grant)
{
	MemoryContext context = batch->context;
	bool		key_trouble = false;
	ListCell   *lc;

	klm_sender.recovery_wanted = false;
	if (batch->newest > 0)
	{
		settled = settling;
		settling = batch->newest;
		clock_at = klm_clock_ms() + CLOCK_EVERY_MS;
	}
	/* (Who looked back has not looked at what called for the claim.) */
	klm_sender.claim_wanted = batch->back;
	klm_line_move(batch);
	open_accounts();
	if (batch->claims != NIL)
		key_trouble = !klm_make_unsubscribe_links(batch->claims, batch->messages, batch->url,
												  &batch->domain, context);
	return_stale();
	if (batch->recovered > 0)
	{
		ereport(LOG,
				(errmsg("kliv_mail: %lld deliveries of a sender that ended are in doubt",
						(long long) batch->recovered)));
		klm_sender_recorded();
	}
	note_who_has_more(batch);
	/* Else all that needs the key would be claimed in vain before anything else is sent. */
	if (key_trouble)
		klm_sender.claim_again = false;
	if (batch->claims == NIL)
	{
		klm_sender.isolating = false;
		MemoryContextDelete(context);
		return;
	}
	batch->number = grant->number - 1;
	if (klm_sender.isolating && ++klm_sender.isolated > batch->room)
		klm_sender.isolating = false;
	/* What falls due meanwhile at an account without room here, or without a pool yet. */
	klm_sender.next_claim = klm_clock_ms() + CLAIM_EVERY_MS;
	foreach(lc, batch->claims)
	{
		KlmClaim   *claimed = lfirst(lc);

		prepare(batch, grant, claimed, message_of(claimed, batch->messages),
				klm_find_pool(claimed->account));
	}
	if (batch->open == 0)
		klm_batch_free(batch);
	hold_troubled();
}

/*
 * What the pool's connections use up in a tenth of a second: a claim costs as
 * much as many mails, and what is claimed cannot be cancelled or overtaken by
 * what is more urgent.
 */
static int
ahead(KlmPool *pool)
{
	return Min(Max(pool->ahead, 4 * klm_sender.connections), MAX_AHEAD);
}

static void
measure(KlmPool *pool)
{
	int64		now = klm_clock_ms();

	if (now - pool->measured_at < MEASURE_MS)
		return;
	pool->ahead = (int) Min(pool->begun * AHEAD_MS / (now - pool->measured_at), MAX_AHEAD);
	pool->begun = 0;
	pool->measured_at = now;
}

bool
klm_has_room(void)
{
	int64		memory = (int64) klm_sender_memory * 1024;
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		/* Half of its queue, and of its share of the memory. */
		if (pool->more && pool->queued + pool->open <= ahead(pool) / 2 &&
			pool->bytes <= (memory - (klm_sender.claimed_bytes - pool->bytes)) / 4)
			return true;
	}
	return false;
}

/* Claim for every pool what it has room for. */
static void
offer_room(KlmBatch *batch)
{
	int			count = 0;
	char	  **names;
	int64	   *held;
	int64		began = klm_clock_ms();
	KlmStretch *stretches;
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
		count++;
	names = palloc(Max(1, count) * sizeof(char *));
	batch->busy = MemoryContextAlloc(batch->context, Max(1, count) * sizeof(int));
	batch->rooms = MemoryContextAlloc(batch->context, Max(1, count) * sizeof(int));
	/* Of an account without a pool yet; also what reading rows one at a time is done for. */
	batch->room = 4 * klm_sender.connections;
	held = palloc(Max(1, count) * sizeof(int64));
	count = 0;
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		names[count] = pool->name;
		measure(pool);
		held[count] = pool->bytes;
		batch->rooms[count] = ahead(pool);
		batch->busy[count++] = pool->queued + pool->open;
	}
	batch->offered = count;
	while (batch->claims == NIL && (stretches = klm_line_back(began)) != NULL)
	{
		batch->claims = claim_stretches(batch, names, held, stretches);
		klm_line_looked(batch->claims != NIL);
	}
	if (batch->claims != NIL)
	{
		batch->back = true;
		return;
	}
	batch->claims = claim_stretches(batch, names, held, klm_line_begin(batch));
	klm_line_end(batch);
}

static List *
claim_stretches(KlmBatch *batch, char **names, int64 *held, const KlmStretch *stretches)
{
	int64		memory = (int64) klm_sender_memory * 1024;
	List	   *claims;

	claims = klm_outbox_claim(klm_sender.epoch, batch->room,
							  klm_sender.isolating ? -1 : Max(0, memory - klm_sender.claimed_bytes),
							  names, batch->busy, held, batch->rooms, stretches, batch->offered,
							  &klm_sender.tried_ids, &klm_sender.tried_count);
	list_sort(claims, compare_claims);
	return claims;
}

/* As they leave. */
static int
compare_claims(const ListCell *a, const ListCell *b)
{
	const KlmClaim *left = lfirst(a);
	const KlmClaim *right = lfirst(b);

	if (left->priority != right->priority)
		return left->priority - right->priority;
	return klm_place_before(left->place, right->place) ? -1 : 1;
}

static void
load_accounts(List *claims)
{
	int			tried = klm_sender.tried_count;
	ListCell   *lc;

	/* An account that cannot be read is no row's fault. */
	klm_sender.tried_count = 0;
	foreach(lc, claims)
	{
		KlmClaim   *claimed = lfirst(lc);
		KlmPool	   *pool = klm_find_pool(claimed->account);

		if (pool->version == NULL || strcmp(pool->version, claimed->settings) != 0)
			load_settings(pool, claimed->settings);
	}
	klm_sender.tried_count = tried;
}

/* In the order of their ids. */
static List *
read_messages(List *claims)
{
	int64	   *ids = palloc(list_length(claims) * sizeof(int64));
	int			count = 0;
	int			distinct = 0;
	List	   *messages;
	ListCell   *lc;

	foreach(lc, claims)
		ids[count++] = ((KlmClaim *) lfirst(lc))->message_id;
	qsort(ids, count, sizeof(int64), compare_ids);
	for (int i = 0; i < count; i++)
	{
		if (i == 0 || ids[i] != ids[distinct - 1])
			ids[distinct++] = ids[i];
	}
	messages = klm_outbox_messages(ids, distinct, klm_sender.claim_context);
	list_sort(messages, compare_messages);
	return messages;
}

static int
compare_ids(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return (left > right) - (left < right);
}

static int
compare_messages(const ListCell *a, const ListCell *b)
{
	return compare_ids(&((KlmStoredMessage *) lfirst(a))->id,
					   &((KlmStoredMessage *) lfirst(b))->id);
}

static KlmStoredMessage *
message_of(const KlmClaim *claimed, List *messages)
{
	int			low = 0;
	int			high = list_length(messages);

	while (low < high)
	{
		int			middle = (low + high) / 2;
		KlmStoredMessage *message = list_nth(messages, middle);

		if (message->id == claimed->message_id)
			/* (forget() empties one) */
			return message->entity && message->entity_length > 0 ? message : NULL;
		if (message->id < claimed->message_id)
			low = middle + 1;
		else
			high = middle;
	}
	return NULL;
}

/* Messages that were queued while there was no account get the rest of their Message-ID. */
static void
name_messages(List *claims, List *messages)
{
	ListCell   *lc;

	foreach(lc, claims)
	{
		KlmClaim   *claimed = lfirst(lc);
		KlmSettings *settings = klm_find_pool(claimed->account)->settings;
		KlmStoredMessage *message = message_of(claimed, messages);
		const char *domain = settings && settings->account && message ?
			klm_new_message_domain(settings->account, message) : NULL;

		if (domain)
			message->header_id = klm_outbox_name_message(message->id, domain);
	}
}

/*
 * The secrets of the accounts whose settings were read, outside of the
 * transaction: kliv_mail.key_command may take its time.
 */
static void
open_accounts(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmSettings *settings = dlist_container(KlmPool, node, iter.cur)->settings;
		MemoryContext old;

		if (settings == NULL || settings->opened)
			continue;
		settings->opened = true;
		old = MemoryContextSwitchTo(settings->context);
		PG_TRY();
		{
			klm_open_account(settings->account);
		}
		PG_CATCH();
		{
			ErrorData  *edata;

			MemoryContextSwitchTo(settings->context);
			edata = CopyErrorData();
			EmitErrorReport();
			FlushErrorState();
			settings->account->problem = psprintf("its password cannot be opened: %s",
												  edata->message ? edata->message : "unknown error");
		}
		PG_END_TRY();
		MemoryContextSwitchTo(old);
	}
}

static bool
wants_links(List *messages)
{
	ListCell   *lc;

	foreach(lc, messages)
		if (((KlmStoredMessage *) lfirst(lc))->unsubscribe)
			return true;
	return false;
}

/* Nothing was claimed: when is it worth another look? */
static void
plan_next_claim(void)
{
	TimestampTz due = klm_outbox_next_due();
	int64		soonest = klm_clock_ms() + Min(VAIN_CLAIM_MS << Min(vain_claims, 8),
											   MAX_VAIN_CLAIM_MS);

	klm_sender.next_claim = KLM_NEVER;
	if (due == DT_NOBEGIN)
		klm_sender.next_claim = soonest;
	else if (due != DT_NOEND)
		klm_sender.next_claim = klm_clock_ms() + (due - klm_now() + 999) / 1000;
	/* What is due and yet was not claimed is another sender's, or held meanwhile. */
	vain_claims = klm_sender.next_claim < soonest ? vain_claims + 1 : 0;
	klm_sender.next_claim = Max(klm_sender.next_claim, soonest);
}

/* What was composed for an account that has changed goes back and is composed anew. */
static void
return_stale(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (pool->stale)
			klm_return_queue(pool);
		pool->stale = false;
	}
}

/* Whoever was offered room and took none has nothing that is due. */
static void
note_who_has_more(const KlmBatch *batch)
{
	ListCell   *lc;
	dlist_iter	iter;
	int			n = 0;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (n < batch->offered && batch->busy[n] < batch->rooms[n])
			pool->more = false;
		n++;
	}
	foreach(lc, batch->claims)
		klm_find_pool(((KlmClaim *) lfirst(lc))->account)->more = true;
	klm_sender.claim_again = false;
	dlist_foreach(iter, &klm_sender.pools)
		klm_sender.claim_again |= dlist_container(KlmPool, node, iter.cur)->more;
}

/* Accounts that cannot be used give everything back at once. */
static void
hold_troubled(void)
{
	dlist_iter	iter;

	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		if (pool->settings == NULL)
			klm_return_queue(pool);
		else if (pool->settings->account->problem && klm_key_wait_ends && klm_key_wait_ends())
		{
			/* We have to go: what was not waited for is no trouble of the account. */
			pool->version[0] = '\0';
			klm_return_queue(pool);
		}
		else if (pool->settings->account->problem)
		{
			const KlmAccount *account = pool->settings->account;

			klm_note_hold(pool, pool->settings,
						  account->key_missing ? "key" : klm_verdict_name(KLM_ACCOUNT_TROUBLE), 0,
						  KLM_STAGE_CONNECT, account->problem, account->hint);
			klm_return_queue(pool);
		}
	}
}

/*
 * What was changed or stopped, which wakes us, counts for what is claimed too:
 * reload the settings that differ, note which accounts stand still.
 */
static void
look_at_accounts(void)
{
	List	   *accounts = klm_outbox_accounts();
	ListCell   *lc;
	dlist_iter	iter;

	/* One without a pool has no place in its lines, and each claim would pass over all of them. */
	foreach(lc, accounts)
	{
		KlmAccountState *state = lfirst(lc);

		if (!state->stopped)
			(void) klm_find_pool(state->name);
	}
	dlist_foreach(iter, &klm_sender.pools)
	{
		KlmPool	   *pool = dlist_container(KlmPool, node, iter.cur);

		pool->looked_at = true;
		pool->paused = true;
		foreach(lc, accounts)
		{
			KlmAccountState *state = lfirst(lc);

			if (strcmp(state->name, pool->name) != 0 || state->stopped)
				continue;
			pool->paused = false;
			/* Another sender, or one before us, may have learnt it. */
			if (state->connections > 0 && pool->ceiling == 0)
			{
				pool->ceiling = state->connections;
				pool->ceiling_until = klm_clock_ms() + CEILING_MS;
			}
			/* One that is held is read anew when mail is claimed for it, and no sooner. */
			if (pool->version != NULL && strcmp(pool->version, state->settings) != 0 &&
				(pool->version[0] != '\0' || pool->queued > 0))
				load_settings(pool, state->settings);
		}
	}
}

/* Make a delivery of a claimed row, or its outcome if it cannot be one. */
static void
prepare(KlmBatch *batch, KlmGrant *grant, KlmClaim *claimed, KlmStoredMessage *message,
		KlmPool *pool)
{
	KlmDelivery   *delivery;
	const char *problem = NULL;
	const char *from = NULL;
	MemoryContext old;

	if (pool->settings == NULL)
	{
		klm_give_back(claimed->id, pool, claimed->priority, claimed->place);
		return;
	}
	if (claimed->suppressed)
	{
		klm_add_local_outcome(claimed->id, pool, "suppressed", claimed->suppressed);
		return;
	}
	if (message == NULL)
	{
		klm_add_local_outcome(claimed->id, pool, "message_fault", "its message is not there any more");
		return;
	}
	if (claimed->problem && claimed->key_trouble)
	{
		/* Only marketing mail needs the key for its links: the account's other mail goes on. */
		klm_add_local_outcome(claimed->id, pool, "postponed", claimed->problem);
		return;
	}
	if (claimed->problem)
	{
		klm_add_local_outcome(claimed->id, pool, klm_verdict_name(KLM_TEMPORARY),
						  claimed->problem);
		return;
	}
	old = MemoryContextSwitchTo(batch->context);
	delivery = palloc0(sizeof(KlmDelivery));
	delivery->id = claimed->id;
	delivery->batch = batch;
	delivery->pool = pool;
	delivery->message = message;
	delivery->priority = claimed->priority;
	delivery->place = claimed->place;
	delivery->size = message->entity_length;
	delivery->recipient = claimed->recipient;
	delivery->expires_at = claimed->expires_at;
	if (pool->own_path)
		claimed->return_path = NULL;
	if (pool->settings->account->problem == NULL)
		delivery->identity =
			klm_compose_identity(pool->settings->account, message, claimed, &from,
								 &delivery->account_smtputf8, &problem);
	MemoryContextSwitchTo(old);
	if (problem)
	{
		klm_add_local_outcome(claimed->id, pool, "message_fault", problem);
		return;
	}
	delivery->smtp.tag = delivery;
	delivery->smtp.mail_from = from;
	delivery->signed_path = claimed->return_path && pool->settings->account->provider == NULL;
	delivery->smtp.rcpt_to =
		klm_redirect_to && klm_redirect_to[0] ? klm_redirect_to : claimed->recipient;
	delivery->smtp.smtputf8 = message->smtputf8 || delivery->account_smtputf8;
	delivery->foreign_sender = from && message->from_address &&
		strcmp(from, pool->settings->account->from_address) != 0;
	if (delivery->identity)
	{
		delivery->smtp.parts[0].data = delivery->identity;
		delivery->smtp.parts[0].length = strlen(delivery->identity);
	}
	delivery->smtp.parts[1].data = message->entity;
	delivery->smtp.parts[1].length = message->entity_length;
	delivery->smtp.part_count = 2;
	batch->open++;
	if (claimed->granted)
		klm_may_begin(delivery, grant);
	message->users++;
	pool->bytes += delivery->size;
	klm_sender.claimed_bytes += delivery->size;
	dlist_push_tail(&pool->queue, &delivery->node);
	pool->queued++;
}

/*
 * Read the account's settings, in the transaction.  Links keep those that they
 * were opened with; where a new connection would differ, they finish what they
 * have begun and are then closed (feed()).
 */
static void
load_settings(KlmPool *pool, const char *version)
{
	MemoryContext context = AllocSetContextCreate(klm_sender.context, "kliv_mail account", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ResourceOwner owner = CurrentResourceOwner;
	KlmSettings   *settings = palloc0(sizeof(KlmSettings));
	KlmSettings   *before = pool->settings;

	settings->context = context;

	/* In a subtransaction: one account that cannot be read must not stop the others. */
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		settings->account = klm_read_account(pool->name);
		if (settings->account && settings->account->problem == NULL &&
			(settings->account->target.host == NULL || settings->account->target.port <= 0 ||
			 settings->account->from_address == NULL || settings->account->fingerprint == NULL))
			settings->account->problem = "its row lacks a host, a port or a sender's address";
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		EmitErrorReport();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		settings->account = palloc0(sizeof(KlmAccount));
		settings->account->name = pstrdup(pool->name);
		settings->account->fingerprint = pstrdup("");
		settings->account->problem = psprintf("its settings cannot be read: %s",
											  edata->message ? edata->message : "unknown error");
	}
	PG_END_TRY();
	CurrentResourceOwner = owner;
	MemoryContextSwitchTo(old);
	if (settings->account == NULL)
	{
		MemoryContextDelete(context);
		settings = NULL;
	}
	else
		settings->users = 1;
	pool->settings = settings;
	if (settings && before &&
		strcmp(settings->account->fingerprint, before->account->fingerprint) != 0)
	{
		pool->stale = true;
		pool->own_path = false;
	}
	if (pool->version)
		pfree(pool->version);
	pool->version = MemoryContextStrdup(klm_sender.context, version);
	klm_release_settings(before);
}
