/*-------------------------------------------------------------------------
 *
 * sender_simulator.c
 *		Mail that goes the whole way but the socket.
 *
 * Mail to simulator.invalid, and with kliv_mail.delivery = sandbox all mail, gets
 * its reply here in the place of a link's; the rules that judge a server's reply
 * judge it.  What a report would say later, kliv_mail._play_reports() says.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/ilist.h"
#include "utils/memutils.h"

#include "base/guc.h"
#include "worker/sender.h"

#define SIMULATOR		"@simulator.invalid"

/* What a server answers; the other addresses there get the first one. */
static const struct
{
	const char *name;			/* the local part, before a "+" */
	KlmStage	stage;
	const char *reply;			/* NULL: the address is suppressed */
}			parts[] = {
	{"delivered", KLM_STAGE_DOT, "250 2.0.0 Ok: played by the simulator"},
	{"bounced", KLM_STAGE_DOT, "250 2.0.0 Ok: played by the simulator"},
	{"complained", KLM_STAGE_DOT, "250 2.0.0 Ok: played by the simulator"},
	{"soft", KLM_STAGE_RCPT, "550 5.2.0 not now, played by the simulator"},
	{"deferred", KLM_STAGE_RCPT, "451 4.3.0 later, played by the simulator"},
	{"suppressed", KLM_STAGE_RCPT, NULL}
};

static bool
is_simulator(const char *recipient)
{
	const char *domain = strrchr(recipient, '@');

	return domain && pg_strcasecmp(domain, SIMULATOR) == 0;
}

/* Which part of the above an address has. */
static int
part_of(const char *recipient)
{
	Size		length = strcspn(recipient, "+@");

	if (is_simulator(recipient))
		for (int i = 0; i < lengthof(parts); i++)
			if (strlen(parts[i].name) == length &&
				pg_strncasecmp(recipient, parts[i].name, length) == 0)
				return i;
	return 0;
}

static void
play(KlmDelivery *delivery)
{
	KlmPool	   *pool = delivery->pool;
	int			part = part_of(delivery->recipient);
	MemoryContext old = MemoryContextSwitchTo(klm_sender.outcome_context);
	KlmReply	reply;
	KlmDecision decision = {0};
	KlmOutcome *outcome;

	if (parts[part].reply == NULL)
	{
		klm_add_local_outcome(delivery->id, pool, "suppressed", "the address is suppressed");
		decision.verdict = KLM_PERMANENT;
	}
	else
	{
		klm_read_reply(parts[part].stage, parts[part].reply, strlen(parts[part].reply), &reply);
		klm_classify_reply(&reply, NULL, delivery->recipient, false, klm_now(), &decision);
		klm_add_outcome(delivery, pool->settings->account, &reply, &decision);
	}
	outcome = &klm_sender.outcomes[klm_sender.outcome_count - 1];
	outcome->reason = psprintf("%s (played: no server was asked)",
							   decision.verdict == KLM_ACCEPTED ? "it is accepted" : outcome->reason);
	outcome->server_id = NULL;
	outcome->simulated = true;
	MemoryContextSwitchTo(old);
	klm_finish_delivery(delivery);
}

void
klm_play(KlmPool *pool)
{
	int			granted = pool->granted;
	dlist_mutable_iter iter;

	if (pool->settings == NULL)
		return;
	/* What may begin stands first. */
	dlist_foreach_modify(iter, &pool->queue)
	{
		KlmDelivery *delivery = dlist_container(KlmDelivery, node, iter.cur);

		if (granted-- == 0)
			break;
		if (!klm_in_sandbox() && !is_simulator(delivery->recipient))
			continue;
		dlist_delete(&delivery->node);
		pool->queued--;
		pool->granted--;
		pool->begun++;
		if (delivery->expires_at != 0 && delivery->expires_at <= klm_now())
		{
			klm_give_back(delivery->id, pool, delivery->priority, delivery->place);
			klm_finish_delivery(delivery);
		}
		else
			play(delivery);
		klm_sender_progress();
	}
}
