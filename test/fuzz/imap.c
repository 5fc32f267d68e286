/*-------------------------------------------------------------------------
 *
 * imap.c
 *		Fuzz target: what an IMAP server sends, in two pieces.
 *
 * Input: a byte for the command, a byte for the length of the first piece, the bytes.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "feedback/imap.h"
#include "fuzz.h"

int
LLVMFuzzerTestOneInput(const uint8 *data, Size size)
{
	KlmImap		imap;
	char	   *raw;
	Size		first;

	if (size < 2)
		return 0;
	klm_imap_init(&imap);
	if (data[0] % 3 == 0)
		klm_imap_command(&imap, "CAPABILITY");
	else if (data[0] % 3 == 1)
		klm_imap_search(&imap, data[0]);
	else
		klm_imap_fetch(&imap, data[0]);

	/* With a red zone behind it. */
	raw = palloc(size - 2);
	memcpy(raw, data + 2, size - 2);
	first = Min(data[1], size - 2);
	klm_imap_received(&imap, raw, first);
	klm_imap_received(&imap, raw + first, size - 2 - first);

	HOLDS(imap.uid_count >= 0 && imap.uid_count <= KLM_IMAP_UIDS_MAX);
	for (int i = 0; i < imap.uid_count; i++)
		HOLDS(imap.uids[i] > imap.search_after && (i == 0 || imap.uids[i] > imap.uids[i - 1]));
	HOLDS(imap.body.len <= (int) size);
	HOLDS(imap.has_body || imap.body.len == 0);
	HOLDS(strlen(imap.text) < sizeof(imap.text));
	HOLDS(data[0] % 3 == 2 || !imap.has_body);
	fuzz_free_all();
	return 0;
}
