/*-------------------------------------------------------------------------
 *
 * providers.c
 *		The SQL functions that read the presets: _providers(), _provider_host(),
 *		_rolling_limit().
 *
 * Runs no SQL.  In kliv_mail_net.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "smtp/providers.h"

PG_FUNCTION_INFO_V1(kliv_mail__providers);
PG_FUNCTION_INFO_V1(kliv_mail__provider_host);
PG_FUNCTION_INFO_V1(kliv_mail__rolling_limit);

static Datum
text_or_null(const char *utf8, bool *null)
{
	*null = utf8 == NULL;
	return utf8 ? CStringGetTextDatum(klm_from_utf8_lossy(utf8)) : (Datum) 0;
}

/* _providers(): the table of providers.c */
Datum
kliv_mail__providers(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < klm_provider_count; i++)
	{
		const KlmProvider *provider = &klm_providers[i];
		Datum		values[13];
		bool		nulls[13] = {false};
		Datum		required[lengthof(provider->required)];
		const char *notes;
		int			count = 0;

		while (count < lengthof(provider->required) && provider->required[count])
		{
			required[count] = CStringGetTextDatum(provider->required[count]);
			count++;
		}
		values[0] = CStringGetTextDatum(provider->name);
		values[1] = text_or_null(provider->title, &nulls[1]);
		values[2] = text_or_null(provider->host, &nulls[2]);
		values[3] = Int32GetDatum(provider->port);
		values[4] = CStringGetTextDatum(provider->encryption);
		values[5] = PointerGetDatum(construct_array(required, count, TEXTOID, -1, false,
													TYPALIGN_INT));
		values[6] = text_or_null(provider->example, &nulls[6]);
		values[7] = text_or_null(provider->username_hint, &nulls[7]);
		values[8] = text_or_null(provider->password_hint, &nulls[8]);
		notes = provider->notes;
		if (provider->host_hint)
			notes = psprintf("%s %s", provider->host_hint, notes);
		values[9] = text_or_null(notes, &nulls[9]);
		values[10] = text_or_null(provider->docs_url, &nulls[10]);
		values[12] = text_or_null(provider->notes_ja, &nulls[12]);
		values[11] = Int32GetDatum(provider->free_daily);
		nulls[11] = provider->free_daily == 0;
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/* _provider_host(provider, region): NULL where the preset alone cannot tell */
Datum
kliv_mail__provider_host(PG_FUNCTION_ARGS)
{
	const KlmProvider *provider = PG_ARGISNULL(0) ? NULL :
		klm_find_provider(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	char	   *region = PG_ARGISNULL(1) ? NULL : klm_argument(fcinfo, 1);
	char	   *host;
	KlmError	error;

	if (provider == NULL || !klm_provider_host(provider, region, &host, &error) || host == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(host));
}

/* _rolling_limit(provider, username): for _account.rolling_limit */
Datum
kliv_mail__rolling_limit(PG_FUNCTION_ARGS)
{
	const KlmProvider *provider = PG_ARGISNULL(0) ? NULL :
		klm_find_provider(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	char	   *username = PG_ARGISNULL(1) ? NULL : klm_argument(fcinfo, 1);
	int			limit = klm_provider_rolling_limit(provider, username);

	if (limit == 0)
		PG_RETURN_NULL();
	PG_RETURN_INT32(limit == KLM_AS_DAILY_LIMIT ? 0 : limit);
}
