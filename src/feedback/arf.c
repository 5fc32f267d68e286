/*-------------------------------------------------------------------------
 *
 * arf.c
 *		Complaints of recipients as their providers pass them on (RFC 5965).
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feedback/arf.h"
#include "feedback/dsn.h"
#include "feedback/mime_parse.h"

static bool is_complaint(const char *type);

void
klm_read_arf(const char *text, Size length, KlmReport *report, char **return_path)
{
	char	   *type = klm_header(text, length, "Feedback-Type", 0);
	char	   *mta = klm_header(text, length, "Reporting-MTA", 0);
	int			named = 0;

	*return_path = klm_header(text, length, "Original-Mail-From", 0);
	if (mta != NULL)
		report->reporting_mta = klm_printable(klm_after_type(mta), strlen(klm_after_type(mta)));
	if (type == NULL || !is_complaint(type))
		return;
	for (;;)
	{
		char	   *value = klm_header(text, length, "Original-Rcpt-To", named);
		KlmReported *reported = value || named == 0 ? klm_add_reported(report) : NULL;

		if (reported == NULL)
			break;
		named++;
		if (value != NULL)
			reported->recipient = klm_reported_address(klm_after_type(value),
													   strlen(klm_after_type(value)));
		reported->action = "complained";
		reported->bounce_type = "complaint";
		reported->diagnostic = klm_printable(type, strlen(type));
		reported->reason = "the recipient complained about the message";
		reported->hint = "Send no more marketing mail to the address.";
		if (value == NULL)
			break;
	}
}

/* What a recipient did against the sender; "not-spam" took it back, "auth-failure" is a machine's. */
static bool
is_complaint(const char *type)
{
	static const char *const complaints[] = {"abuse", "fraud", "virus", "other", "opt-out",
	"opt-out-list", "miscategorized"};

	for (int i = 0; i < lengthof(complaints); i++)
		if (pg_strcasecmp(type, complaints[i]) == 0)
			return true;
	return false;
}
