/*-------------------------------------------------------------------------
 *
 * dsn.c
 *		Delivery status notifications (RFC 3464).
 *
 * A message/delivery-status body is groups of header fields between empty
 * lines: one about the report, then one for each recipient.  Some servers leave
 * the first one out, or put empty lines where none belong, so a group is a
 * recipient's if it has a recipient's fields.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feedback/bounce_text.h"
#include "feedback/dsn.h"
#include "feedback/mime_parse.h"

static void read_group(const KlmPart *group, KlmReport *report);
static char *address_field(const KlmPart *group, const char *name);

void
klm_read_dsn(const char *text, Size length, KlmReport *report)
{
	const char *end = text + length;

	while (text < end)
	{
		KlmPart		group;

		klm_split_header(text, end - text, &group);
		if (group.header_length > 0)
			read_group(&group, report);
		text = group.body;
	}
}

static void
read_group(const KlmPart *group, KlmReport *report)
{
	char	   *final = address_field(group, "Final-Recipient");
	char	   *original = address_field(group, "Original-Recipient");
	char	   *action = klm_header(group->header, group->header_length, "Action", 0);
	char	   *status = klm_header(group->header, group->header_length, "Status", 0);
	char	   *mta = klm_header(group->header, group->header_length, "Reporting-MTA", 0);
	char	   *diagnostic;
	KlmReported *reported;

	if (mta != NULL && report->reporting_mta == NULL)
		report->reporting_mta = klm_printable(klm_after_type(mta), strlen(klm_after_type(mta)));
	if (report->message_id == NULL)
		report->message_id = klm_id_of(klm_header(group->header, group->header_length,
												  "X-Original-Message-ID", 0));
	if (final == NULL && original == NULL && (action == NULL || status == NULL))
		return;
	reported = klm_add_reported(report);
	if (reported == NULL)
		return;
	reported->recipient = final ? final : original;
	if (final != NULL && original != NULL && pg_strcasecmp(final, original) != 0)
		reported->original = original;
	reported->action = klm_reported_action(action);
	reported->status = klm_reported_status(status);
	diagnostic = klm_header(group->header, group->header_length, "Diagnostic-Code", 0);
	if (diagnostic == NULL)
		diagnostic = klm_header(group->header, group->header_length, "X-Supplementary-Info", 0);
	if (diagnostic != NULL)
		reported->diagnostic = klm_printable(klm_after_type(diagnostic),
											 strlen(klm_after_type(diagnostic)));
}

static char *
address_field(const KlmPart *group, const char *name)
{
	char	   *value = klm_header(group->header, group->header_length, name, 0);

	if (value == NULL)
		return NULL;
	return klm_reported_address(klm_after_type(value), strlen(klm_after_type(value)));
}

const char *
klm_after_type(const char *value)
{
	const char *semicolon = strchr(value, ';');
	Size		length = semicolon ? semicolon - value : 0;

	/* A type is a word: what stands in an address or a sentence is no type's end. */
	if (length == 0 || strcspn(value, " \t\"<@:") < length)
		return value;
	value = semicolon + 1;
	return value + strspn(value, " \t");
}
