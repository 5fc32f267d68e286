/*-------------------------------------------------------------------------
 *
 * template_render.c
 *		kliv_mail.render(): Mustache with jsonb, and nothing around it.
 *
 * In kliv_mail_template.  Runs no SQL.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fmgr.h"
#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/builtins.h"

#include "base/encoding.h"
#include "base/error.h"
#include "base/text.h"
#include "functions/template_mail.h"
#include "functions/template_values.h"

PG_FUNCTION_INFO_V1(kliv_mail_render);

/* The partials of a call, each compiled at its first use. */
typedef struct Partials
{
	KlmValue	sources;
	List	   *names;
	List	   *compiled;
} Partials;

static const KlmTemplate *
find_partial(void *data, const char *name)
{
	Partials   *partials = data;
	ListCell   *lc;
	KlmValue	source;
	KlmTemplate *compiled = NULL;

	foreach(lc, partials->names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return list_nth(partials->compiled, foreach_current_index(lc));
	}
	if (partials->sources.reader->member(&partials->sources, name, strlen(name), &source))
	{
		if (source.kind != KLM_STRING)
			klm_refuse("partials", ERRCODE_INVALID_PARAMETER_VALUE, false,
					   "Write an object of names and sources: {\"footer\": \"...\"}.",
					   "the source of \"%s\" is not a text", klm_shown(name, strlen(name)));
		compiled = klm_compile_source(psprintf("partials: \"%s\"", klm_shown(name, strlen(name))),
									  pnstrdup(source.text, source.length));
	}
	partials->names = lappend(partials->names, pstrdup(name));
	partials->compiled = lappend(partials->compiled, compiled);
	return compiled;
}

/* render(source, variables, partials) */
Datum
kliv_mail_render(PG_FUNCTION_ARGS)
{
	KlmTemplate *template;
	Partials	partials = {.sources = klm_value_of_jsonb(PG_GETARG_JSONB_P(2))};
	KlmValue	variables = klm_value_of_jsonb(PG_GETARG_JSONB_P(1));
	KlmRendering rendering = {
		.mode = KLM_ESCAPED, .scopes = &variables, .scope_count = 1,
		.partial = find_partial, .partial_data = &partials
	};
	KlmError	error;
	StringInfoData out;

	if (partials.sources.kind != KLM_OBJECT)
		klm_refuse("partials", ERRCODE_INVALID_PARAMETER_VALUE, false,
				   "Write an object of names and sources: {\"footer\": \"...\"}.", "is not an object");
	template = klm_compile_source("source", klm_argument(fcinfo, 0));
	initStringInfo(&out);
	if (!klm_mustache_render(&rendering, template, &out, &error))
		klm_raise(NULL, &error, false);
	PG_RETURN_TEXT_P(cstring_to_text(klm_from_utf8(out.data)));
}
