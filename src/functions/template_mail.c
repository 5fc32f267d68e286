/*-------------------------------------------------------------------------
 *
 * template_mail.c
 *		What the SQL behind templates asks of C: the names in a source, and a mail
 *		made from sources.
 *
 * In kliv_mail_template.  Runs no SQL; 56_template_rules.sql and 57_templates.sql decide.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "datatype/timestamp.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"
#include "utils/json.h"
#include "utils/jsonb.h"

#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "base/text.h"
#include "functions/template_mail.h"
#include "functions/template_values.h"
#include "template/layout.h"

PG_FUNCTION_INFO_V1(kliv_mail__template_names);
PG_FUNCTION_INFO_V1(kliv_mail__template_mail);
PG_FUNCTION_INFO_V1(kliv_mail__template_contrast);

KlmTemplate *
klm_compile_source(const char *argument, const char *utf8)
{
	KlmSourceError failed;
	KlmTemplate *template = klm_mustache_compile(utf8, &failed);

	if (template == NULL)
	{
		if (failed.line > 0)
			failed.error.message = psprintf("line %d, column %d: %s", failed.line, failed.column,
											failed.error.message);
		klm_raise(argument, &failed.error, false);
	}
	return template;
}

KlmBodyFormat
klm_body_format(const char *name)
{
	return strcmp(name, "html") == 0 ? KLM_BODY_HTML : KLM_BODY_MARKDOWN;
}

/* ----------------------------------------------------------------
 * Time
 * ----------------------------------------------------------------
 */

static int64
local_seconds(void *data, int64 seconds)
{
	pg_time_t	moment = seconds;
	struct pg_tm *tm = pg_localtime(&moment, data);

	return tm ? seconds + tm->tm_gmtoff : seconds;
}

KlmFormats
klm_formats_of(const char *locale, const char *time_zone)
{
	KlmFormats	formats = {.locale = locale};
	pg_tz	   *zone = time_zone ? pg_tzset(time_zone) : NULL;

	if (zone != NULL)
	{
		formats.local = local_seconds;
		formats.data = zone;
	}
	return formats;
}

char *
klm_timestamp_text(const KlmFormats *formats)
{
	StringInfoData out;

	initStringInfo(&out);
	klm_put_datetime(&out, formats, klm_now() / USECS_PER_SEC +
					 (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY);
	return out.data;
}

/* ----------------------------------------------------------------
 * Names
 * ----------------------------------------------------------------
 */

/* The sections around a node, the outermost first: of the open ones, those that end behind it. */
static Datum
sections_around(List **open, int number)
{
	ArrayBuildState *names = NULL;
	ListCell   *lc;

	while (*open != NIL && ((const KlmNode *) llast(*open))->end <= number)
		*open = list_delete_last(*open);
	foreach(lc, *open)
		names = accumArrayResult(names,
								 CStringGetTextDatum(klm_from_utf8(((KlmNode *) lfirst(lc))->text)),
								 false, TEXTOID, CurrentMemoryContext);
	return names ? makeArrayResult(names, CurrentMemoryContext) :
		PointerGetDatum(construct_empty_array(TEXTOID));
}

/*
 * _template_names(argument, source): each tag: kind, name, line, column, the
 * sections around it, whether it is raw.
 */
Datum
kliv_mail__template_names(PG_FUNCTION_ARGS)
{
	static const char *const kinds[] = {NULL, "value", "section", "inverted", "partial"};
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	const KlmTemplate *template = klm_compile_source(klm_argument(fcinfo, 0), klm_argument(fcinfo,
																						   1));
	int			line = 1;
	int			column = 1;
	int			at = 0;
	List	   *open = NIL;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < template->count; i++)
	{
		KlmNode    *node = &template->nodes[i];
		Datum		values[6];
		bool		nulls[6] = {0};
		int			more_lines;
		int			columns;

		if (node->kind == KLM_NODE_TEXT)
			continue;
		/* (from the last one on, since there can be many) */
		klm_source_place(template->source + at, node->offset - at, &more_lines, &columns);
		column = more_lines > 1 ? columns : column + columns - 1;
		line += more_lines - 1;
		at = node->offset;
		values[0] = CStringGetTextDatum(kinds[node->kind]);
		values[1] = CStringGetTextDatum(klm_from_utf8(node->text));
		values[2] = Int32GetDatum(line);
		values[3] = Int32GetDatum(column);
		values[4] = sections_around(&open, i);
		values[5] = BoolGetDatum(node->raw);
		tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
		if (node->kind == KLM_NODE_SECTION)
			open = lappend(open, node);
	}
	return (Datum) 0;
}

/* ----------------------------------------------------------------
 * A mail
 * ----------------------------------------------------------------
 */

/* Sources of partials from jsonb, {"name": "source"}, compiled at each use. */
static const KlmTemplate *
find_partial(void *data, const char *name)
{
	const KlmValue *sources = data;
	KlmValue	source;

	if (!sources->reader->member(sources, name, strlen(name), &source) || source.kind != KLM_STRING)
		return NULL;
	return klm_compile_source(name, pnstrdup(source.text, source.length));
}

static const char *
brand_text(const KlmValue *brand, const char *name)
{
	KlmValue	value;

	if (!brand->reader->member(brand, name, strlen(name), &value) || value.kind != KLM_STRING)
		return NULL;
	return pnstrdup(value.text, value.length);
}

/* The notes as JSON: [{"kind", "line", "column", "detail"}], in the order of the source. */
static Datum
notes_json(const KlmNotes *notes, const char *source)
{
	static const char *const kinds[] = {"no_alt", "refused_url", "not_https", "other_address",
	"raw_value", "misplaced", "script", "open_tag"};
	List	   *list = NIL;
	ListCell   *lc;
	StringInfoData out;

	for (KlmNote *note = notes->last; note; note = note->next)
		list = lcons(note, list);
	initStringInfo(&out);
	appendStringInfoChar(&out, '[');
	foreach(lc, list)
	{
		const KlmNote *note = lfirst(lc);

		appendStringInfo(&out, "%s{\"kind\": \"%s\"", out.len > 1 ? ", " : "", kinds[note->kind]);
		if (note->offset >= 0)
		{
			int			line;
			int			column;

			klm_source_place(source, note->offset, &line, &column);
			appendStringInfo(&out, ", \"line\": %d, \"column\": %d", line, column);
		}
		if (note->detail)
		{
			appendStringInfoString(&out, ", \"detail\": ");
			escape_json(&out, klm_from_utf8_lossy(klm_shown(note->detail, strlen(note->detail))));
		}
		appendStringInfoChar(&out, '}');
	}
	appendStringInfoChar(&out, ']');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(out.data));
}

/*
 * _template_mail(subject, body, format, plain_text, layout, partials, variables,
 * defaults, brand, locale, email, unsubscribe_url, OUT subject, OUT plain_text,
 * OUT html, OUT notes, OUT preheader)
 */
Datum
kliv_mail__template_mail(PG_FUNCTION_ARGS)
{
	char	   *plain_text = klm_argument(fcinfo, 3);
	char	   *layout = klm_argument(fcinfo, 4);
	KlmValue	partials = klm_value_of_jsonb(PG_GETARG_JSONB_P(5));
	KlmValue	brand_values = klm_value_of_jsonb(PG_GETARG_JSONB_P(8));
	KlmBrand	brand = {
		.name = brand_text(&brand_values, "name"),
		.logo_url = brand_text(&brand_values, "logo_url"),
		.color = brand_text(&brand_values, "color"),
		.postal_address = brand_text(&brand_values, "postal_address"),
		.footer = brand_text(&brand_values, "footer")
	};
	KlmMailSource source = {
		.format = klm_body_format(klm_argument(fcinfo, 2)),
		.subject = klm_compile_source("subject", klm_argument(fcinfo, 0)),
		.body = klm_compile_source("body", klm_argument(fcinfo, 1)),
		.plain_text = plain_text ? klm_compile_source("plain_text", plain_text) : NULL,
		.layout = klm_compile_source("layout", layout ? layout : klm_default_layout)
	};
	char	   *locale = klm_argument(fcinfo, 9);
	KlmFormats	formats = klm_formats_of(locale, brand_text(&brand_values, "time_zone"));
	KlmMailInput input = {
		.variables = klm_value_of_jsonb(PG_GETARG_JSONB_P(6)),
		.defaults = klm_value_of_jsonb(PG_GETARG_JSONB_P(7)),
		.email = klm_argument(fcinfo, 10),
		.timestamp = klm_timestamp_text(&formats),
		.unsubscribe_url = klm_argument(fcinfo, 11),
		.locale = locale, .brand = &brand,
		.partial = find_partial, .partial_data = &partials, .formats = &formats
	};
	KlmMail		mail;
	KlmNotes	notes = {0};
	KlmError	error;
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	/* Without a body it is a layout that is looked at. */
	source.notes_of_layout = source.body->length == 0;
	if (!klm_mail_render(&source, &input, &mail, &notes, &error))
		klm_raise(NULL, &error, false);
	/* It is to be looked at: what the database's encoding lacks is no error here. */
	values[0] = CStringGetTextDatum(klm_from_utf8_lossy(mail.subject));
	values[1] = CStringGetTextDatum(klm_from_utf8_lossy(mail.text));
	values[2] = CStringGetTextDatum(klm_from_utf8_lossy(mail.html));
	values[3] = notes_json(&notes, (source.notes_of_layout ? source.layout : source.body)->source);
	nulls[4] = mail.preheader == NULL;
	if (!nulls[4])
		values[4] = CStringGetTextDatum(klm_from_utf8_lossy(mail.preheader));
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* _template_contrast(color): of the brand's colour on white, 1 to 21. */
Datum
kliv_mail__template_contrast(PG_FUNCTION_ARGS)
{
	PG_RETURN_FLOAT8(klm_contrast(klm_argument(fcinfo, 0), "#ffffff"));
}
