/*-------------------------------------------------------------------------
 *
 * filter.c
 *		Filters: date, time, number, currency, default; and what they know of
 *		languages.
 *
 * Pure: palloc and StringInfo.  Numbers stay the digits that they came as.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "base/text.h"
#include "template/filter.h"

#define MOST_DIGITS		100
#define MOST_DECIMALS	20
#define SECS_A_DAY		86400

#define NBSP	"\xC2\xA0"
#define THIN	"\xE2\x80\xAF"	/* a narrow one */

/*
 * In a form of a date %Y is the year, %M the month's name, %m its number, %0m the
 * same in two digits, %D the day, %0D in two digits.
 */
typedef struct Language
{
	const char *code;			/* a longer one stands before the shorter */
	const char *decimal;
	const char *group;
	bool		symbol_behind;	/* 12,00 EUR */
	const char *symbol_space;
	bool		half_day;		/* 2:05 PM */
	const char *date;
	const char *short_date;
	const char *months;			/* separated by spaces, or NULL */
} Language;

static const Language languages[] = {
	{"en-GB", ".", ",", false, "", false, "%D %M %Y", "%0D/%0m/%Y",
	"January February March April May June July August September October November December"},
	{"en", ".", ",", false, "", true, "%M %D, %Y", "%m/%D/%Y",
	"January February March April May June July August September October November December"},
	{"ja", ".", ",", false, "", false, "%Y\xE5\xB9\xB4%m\xE6\x9C\x88%D\xE6\x97\xA5", "%Y/%0m/%0D", NULL},
	{"zh", ".", ",", false, "", false, "%Y\xE5\xB9\xB4%m\xE6\x9C\x88%D\xE6\x97\xA5", "%Y/%0m/%0D", NULL},
	{"ko", ".", ",", false, "", false, "%Y\xEB\x85\x84 %m\xEC\x9B\x94 %D\xEC\x9D\xBC", "%Y. %m. %D.", NULL},
	{"de", ",", ".", true, NBSP, false, "%D. %M %Y", "%0D.%0m.%Y",
	"Januar Februar M\xC3\xA4rz April Mai Juni Juli August September Oktober November Dezember"},
	{"fr", ",", THIN, true, NBSP, false, "%D %M %Y", "%0D/%0m/%Y",
		"janvier f\xC3\xA9vrier mars avril mai juin juillet ao\xC3\xBBt septembre octobre novembre "
	"d\xC3\xA9" "cembre"},
	{"es", ",", ".", true, NBSP, false, "%D de %M de %Y", "%D/%m/%Y",
	"enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"},
	{"pt-BR", ",", ".", false, NBSP, false, "%D de %M de %Y", "%0D/%0m/%Y",
	"janeiro fevereiro mar\xC3\xA7o abril maio junho julho agosto setembro outubro novembro dezembro"},
	{"pt", ",", ".", true, NBSP, false, "%D de %M de %Y", "%0D/%0m/%Y",
	"janeiro fevereiro mar\xC3\xA7o abril maio junho julho agosto setembro outubro novembro dezembro"},
	{"it", ",", ".", true, NBSP, false, "%D %M %Y", "%0D/%0m/%Y",
	"gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre"},
	{"nl", ",", ".", false, NBSP, false, "%D %M %Y", "%0D-%0m-%Y",
	"januari februari maart april mei juni juli augustus september oktober november december"},
};

static const struct
{
	const char *code;
	const char *symbol;			/* NULL: the code, and a space */
	int			decimals;
}			currencies[] = {
	{"USD", "$", 2}, {"EUR", "\xE2\x82\xAC", 2}, {"GBP", "\xC2\xA3", 2}, {"JPY", "\xC2\xA5", 0},
	{"KRW", "\xE2\x82\xA9", 0}, {"INR", "\xE2\x82\xB9", 2}, {"BRL", "R$", 2},
	{"BHD", NULL, 3}, {"CLP", NULL, 0}, {"IQD", NULL, 3}, {"ISK", NULL, 0}, {"JOD", NULL, 3},
	{"KWD", NULL, 3}, {"OMR", NULL, 3}, {"PYG", NULL, 0}, {"TND", NULL, 3}, {"UGX", NULL, 0},
	{"VND", NULL, 0}, {"XAF", NULL, 0}, {"XOF", NULL, 0}
};

static const struct
{
	const char *name;
	KlmFilterKind kind;
}			filter_names[] = {
	{"date", KLM_FILTER_DATE}, {"time", KLM_FILTER_TIME}, {"datetime", KLM_FILTER_DATETIME},
	{"number", KLM_FILTER_NUMBER}, {"currency", KLM_FILTER_CURRENCY}, {"default", KLM_FILTER_DEFAULT}
};

/* What a clock shows. */
typedef struct Moment
{
	int			year;
	int			month;
	int			day;
	bool		has_time;
	int			hour;
	int			minute;
	int			second;
	bool		has_offset;
	int			offset;			/* seconds east */
} Moment;

static const Language *find_language(const KlmFormats *formats);

/* ----------------------------------------------------------------
 * Parsing
 * ----------------------------------------------------------------
 */

/* A word, or a text in quotes; NULL: none is here. */
static char *
next_word(const char **pos, const char *end, bool *quoted)
{
	const char *from;
	char	   *word;

	while (*pos < end && (unsigned char) **pos <= ' ')
		(*pos)++;
	from = *pos;
	*quoted = from < end && (*from == '"' || *from == '\'');
	if (*quoted)
	{
		const char *close = memchr(from + 1, *from, end - from - 1);

		if (close == NULL)
			return NULL;
		word = pnstrdup(from + 1, close - from - 1);
		*pos = close + 1;
		return word;
	}
	while (*pos < end && (unsigned char) **pos > ' ' && **pos != '|')
		(*pos)++;
	return *pos > from ? pnstrdup(from, *pos - from) : NULL;
}

static bool
check_argument(const KlmFilter *filter, KlmError *error)
{
	const char *argument = filter->argument;

	switch (filter->kind)
	{
		case KLM_FILTER_DEFAULT:
			if (argument == NULL)
				return klm_fail(error, ERRCODE_SYNTAX_ERROR, "Write {{name | default \"friend\"}}.",
								"default needs a text");
			return true;
		case KLM_FILTER_CURRENCY:
			if (argument == NULL || strlen(argument) != 3 || strspn(argument, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 3)
				return klm_fail(error, ERRCODE_SYNTAX_ERROR, "Write {{total | currency EUR}}.",
								"currency needs a code of three capital letters");
			return true;
		case KLM_FILTER_NUMBER:
			if (argument != NULL && (strlen(argument) > 2 || strspn(argument, "0123456789") != strlen(argument) ||
									 argument[0] == '\0' || atoi(argument) > MOST_DECIMALS))
				return klm_fail(error, ERRCODE_SYNTAX_ERROR, "Write {{share | number 2}}.",
								"number takes how many decimals, 0 to %d", MOST_DECIMALS);
			return true;
		default:
			if (argument != NULL && (strcmp(argument, "short") != 0 || filter->kind == KLM_FILTER_TIME))
				return klm_fail(error, ERRCODE_SYNTAX_ERROR, "Write {{sent | date}} or {{sent | date short}}.",
								"\"%s\" is no form of a date or time", klm_shown(argument, strlen(argument)));
			return true;
	}
}

const KlmFilter *
klm_filter_parse(const char *text, int length, KlmError *error)
{
	static const char names[] = "The filters are date, time, datetime, number, currency and default.";
	const char *pos = text;
	const char *end = text + length;
	KlmFilter  *first = NULL;
	KlmFilter **last = &first;

	while (pos < end)
	{
		KlmFilter  *filter = palloc0(sizeof(KlmFilter));
		bool		quoted;
		char	   *name;
		int			i;

		pos++;					/* the bar */
		name = next_word(&pos, end, &quoted);
		for (i = 0; i < lengthof(filter_names); i++)
			if (name != NULL && !quoted && strcmp(name, filter_names[i].name) == 0)
				break;
		if (i == lengthof(filter_names))
		{
			(void) klm_fail(error, ERRCODE_SYNTAX_ERROR, names, "there is no filter \"%s\"",
							name ? klm_shown(name, strlen(name)) : "");
			return NULL;
		}
		filter->kind = filter_names[i].kind;
		filter->argument = next_word(&pos, end, &quoted);
		while (pos < end && (unsigned char) *pos <= ' ')
			pos++;
		if (pos < end && *pos != '|')
		{
			(void) klm_fail(error, ERRCODE_SYNTAX_ERROR, "A text with spaces stands in quotes: {{name | default \"dear customer\"}}.",
							"the filter %s takes one word", name);
			return NULL;
		}
		if (!check_argument(filter, error))
			return NULL;
		*last = filter;
		last = &filter->next;
	}
	return first;
}

/* ----------------------------------------------------------------
 * Numbers
 * ----------------------------------------------------------------
 */

static bool
is_digit(char ch)
{
	return ch >= '0' && ch <= '9';
}

/*
 * Digits with as many decimals (-1: as there are), rounded half away from zero,
 * in groups of three.
 */
static bool
put_number(StringInfo out, const Language *language, const char *text, int length, int decimals,
		   const char *before, const char *behind)
{
	char		digits[MOST_DIGITS + MOST_DECIMALS + 2];
	int			count = 0;		/* of digits, of which there are */
	int			whole = -1;		/* before the point */
	const char *pos = text;
	const char *end = text + length;
	bool		negative = pos < end && *pos == '-';
	bool		is_zero = true;
	int			wanted;

	if (negative)
		pos++;
	digits[count++] = '0';		/* for a carry */
	for (; pos < end; pos++)
	{
		if (*pos == '.' && whole < 0 && count > 1)
			whole = count;
		else if (!is_digit(*pos) || count > MOST_DIGITS)
			return false;
		else
			digits[count++] = *pos;
	}
	if (count == 1 || whole == count)
		return false;
	if (whole < 0)
		whole = count;
	wanted = whole + (decimals < 0 ? count - whole : decimals);
	while (count < wanted)
		digits[count++] = '0';
	if (count > wanted && digits[wanted] >= '5')
	{
		int			i = wanted - 1;

		while (digits[i] == '9')
			digits[i--] = '0';
		digits[i]++;
	}
	for (int i = 0; i < wanted; i++)
		is_zero &= digits[i] == '0';

	if (negative && !is_zero)
		appendStringInfoChar(out, '-');
	appendStringInfoString(out, before);
	for (int i = 0, begun = 0; i < whole; i++)
	{
		if (!begun && digits[i] == '0' && i < whole - 1)
			continue;
		if (begun && (whole - i) % 3 == 0)
			appendStringInfoString(out, language->group);
		begun = 1;
		appendStringInfoChar(out, digits[i]);
	}
	if (wanted > whole)
	{
		appendStringInfoString(out, language->decimal);
		appendBinaryStringInfo(out, digits + whole, wanted - whole);
	}
	appendStringInfoString(out, behind);
	return true;
}

static bool
put_currency(StringInfo out, const Language *language, const char *text, int length,
			 const char *code)
{
	const char *symbol = NULL;
	const char *space = language->symbol_space;
	int			decimals = 2;

	for (int i = 0; i < lengthof(currencies); i++)
	{
		if (strcmp(code, currencies[i].code) == 0)
		{
			symbol = currencies[i].symbol;
			decimals = currencies[i].decimals;
		}
	}
	if (symbol == NULL)
	{
		symbol = code;
		space = NBSP;
	}
	return put_number(out, language, text, length, decimals,
					  language->symbol_behind ? "" : psprintf("%s%s", symbol, space),
					  language->symbol_behind ? psprintf("%s%s", space, symbol) : "");
}

/* ----------------------------------------------------------------
 * Dates and times
 * ----------------------------------------------------------------
 */

/* Days since 1970-01-01 of a date, and back (Gregorian, years 1 to 9999). */
static int64
days_of(int year, int month, int day)
{
	int			y = year - (month <= 2);
	int			era = (y >= 0 ? y : y - 399) / 400;
	int			year_of_era = y - era * 400;
	int			day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;

	return (int64) era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 +
		day_of_year - 719468;
}

static void
moment_of(int64 seconds, Moment *moment)
{
	int64		days = seconds / SECS_A_DAY - (seconds % SECS_A_DAY < 0);
	int			left = (int) (seconds - days * SECS_A_DAY);
	int64		shifted = days + 719468;
	int64		era = (shifted >= 0 ? shifted : shifted - 146096) / 146097;
	int			day_of_era = (int) (shifted - era * 146097);
	int			year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 -
							   day_of_era / 146096) / 365;
	int			day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 -
											year_of_era / 100);
	int			month = (5 * day_of_year + 2) / 153;

	moment->day = day_of_year - (153 * month + 2) / 5 + 1;
	moment->month = month < 10 ? month + 3 : month - 9;
	moment->year = (int) (year_of_era + era * 400) + (moment->month <= 2);
	moment->hour = left / 3600;
	moment->minute = left / 60 % 60;
	moment->second = left % 60;
	moment->has_time = true;
}

/* As many digits; -1: they are not there. */
static int
read_digits(const char **pos, const char *end, int count)
{
	int			number = 0;

	if (end - *pos < count)
		return -1;
	for (int i = 0; i < count; i++, (*pos)++)
	{
		if (!is_digit(**pos))
			return -1;
		number = 10 * number + (**pos - '0');
	}
	return number;
}

static bool
read_char(const char **pos, const char *end, const char *chars)
{
	if (*pos == end || strchr(chars, **pos) == NULL || **pos == '\0')
		return false;
	(*pos)++;
	return true;
}

/* 2026-11-29, 2026-11-29T14:05, 2026-11-29 14:05:00.123+09, ... */
static bool
read_moment(const char *text, int length, Moment *moment)
{
	static const int month_days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	const char *pos = text;
	const char *end = text + length;
	bool		leap;

	memset(moment, 0, sizeof(*moment));
	moment->year = read_digits(&pos, end, 4);
	if (!read_char(&pos, end, "-"))
		return false;
	moment->month = read_digits(&pos, end, 2);
	if (!read_char(&pos, end, "-"))
		return false;
	moment->day = read_digits(&pos, end, 2);
	if (moment->year < 1 || moment->month < 1 || moment->month > 12 || moment->day < 1)
		return false;
	leap = moment->month == 2 && moment->year % 4 == 0 && (moment->year % 100 != 0 ||
														   moment->year % 400 == 0);
	if (moment->day > month_days[moment->month - 1] + leap)
		return false;
	if (pos == end)
		return true;

	if (!read_char(&pos, end, "T t"))
		return false;
	moment->has_time = true;
	moment->hour = read_digits(&pos, end, 2);
	if (!read_char(&pos, end, ":"))
		return false;
	moment->minute = read_digits(&pos, end, 2);
	if (read_char(&pos, end, ":"))
	{
		moment->second = read_digits(&pos, end, 2);
		if (read_char(&pos, end, ".,"))
			while (pos < end && is_digit(*pos))
				pos++;
	}
	if (moment->hour < 0 || moment->hour > 24 || moment->minute < 0 || moment->minute > 59 ||
		moment->second < 0 || moment->second > 60)
		return false;
	if (read_char(&pos, end, "Zz"))
		moment->has_offset = true;
	else if (pos < end && (*pos == '+' || *pos == '-'))
	{
		int			sign = *pos++ == '-' ? -1 : 1;
		int			hours = read_digits(&pos, end, 2);
		int			minutes = 0;

		if (pos < end)
		{
			(void) read_char(&pos, end, ":");
			minutes = read_digits(&pos, end, 2);
		}
		if (hours < 0 || hours > 15 || minutes < 0 || minutes > 59)
			return false;
		moment->has_offset = true;
		moment->offset = sign * (hours * 3600 + minutes * 60);
	}
	return pos == end;
}

static void
put_date(StringInfo out, const Language *language, const Moment *moment, bool is_short)
{
	for (const char *pos = is_short ? language->short_date : language->date; *pos; pos++)
	{
		bool		padded;
		const char *month;

		if (*pos != '%')
		{
			appendStringInfoChar(out, *pos);
			continue;
		}
		padded = *++pos == '0';
		if (padded)
			pos++;
		switch (*pos)
		{
			case 'Y':
				appendStringInfo(out, "%d", moment->year);
				break;
			case 'M':
				month = language->months;
				for (int i = 1; i < moment->month; i++)
					month = strchr(month, ' ') + 1;
				appendBinaryStringInfo(out, month, strcspn(month, " "));
				break;
			default:
				appendStringInfo(out, padded ? "%02d" : "%d", *pos == 'm' ? moment->month : moment->day);
				break;
		}
	}
}

static void
put_time(StringInfo out, const Language *language, const Moment *moment)
{
	if (language->half_day)
		appendStringInfo(out, "%d:%02d" NBSP "%s", (moment->hour + 11) % 12 + 1, moment->minute,
						 moment->hour % 24 < 12 ? "AM" : "PM");
	else
		appendStringInfo(out, "%02d:%02d", moment->hour, moment->minute);
}

static void
put_moment(StringInfo out, const KlmFormats *formats, Moment *moment, KlmFilterKind kind,
		   bool is_short)
{
	const Language *language = find_language(formats);

	if (moment->has_offset)
	{
		int64		seconds = days_of(moment->year, moment->month, moment->day) * SECS_A_DAY +
			moment->hour * 3600 + moment->minute * 60 + moment->second - moment->offset;

		moment_of(formats && formats->local ? formats->local(formats->data, seconds) : seconds,
				  moment);
	}
	if (kind != KLM_FILTER_TIME)
		put_date(out, language, moment, is_short);
	if (kind == KLM_FILTER_DATETIME)
		appendStringInfoString(out, language->half_day ? ", " : " ");
	if (kind != KLM_FILTER_DATE)
		put_time(out, language, moment);
}

void
klm_put_datetime(StringInfo out, const KlmFormats *formats, int64 seconds)
{
	Moment		moment;

	moment_of(formats && formats->local ? formats->local(formats->data, seconds) : seconds,
			  &moment);
	moment.has_offset = false;
	put_moment(out, formats, &moment, KLM_FILTER_DATETIME, false);
}

/* ----------------------------------------------------------------
 * Applying
 * ----------------------------------------------------------------
 */

static const Language *
find_language(const KlmFormats *formats)
{
	const char *locale = formats && formats->locale ? formats->locale : "en";

	for (int i = 0; i < lengthof(languages); i++)
	{
		int			length = strlen(languages[i].code);

		if (pg_strncasecmp(locale, languages[i].code, length) == 0 &&
			(locale[length] == '\0' || locale[length] == '-' || locale[length] == '_'))
			return &languages[i];
	}
	return find_language(NULL);
}

bool
klm_filter_apply(const KlmFilter *filter, const KlmFormats *formats, const KlmValue *value,
				 StringInfo out, KlmError *error)
{
	KlmValue	now = value ? *value : klm_value_text(NULL);

	for (; filter; filter = filter->next)
	{
		StringInfoData made;
		Moment		moment;
		bool		is_short = filter->argument && strcmp(filter->argument, "short") == 0;
		bool		ok = now.kind == KLM_STRING || now.kind == KLM_NUMBER;

		if (filter->kind == KLM_FILTER_DEFAULT)
		{
			if (now.kind == KLM_NULL || (now.kind == KLM_STRING && now.length == 0))
				now = klm_value_text(filter->argument);
			continue;
		}
		/* What is not there is nothing in every form. */
		if (now.kind == KLM_NULL || (now.kind == KLM_STRING && now.length == 0))
			continue;
		initStringInfo(&made);
		switch (filter->kind)
		{
			case KLM_FILTER_NUMBER:
				ok = ok && put_number(&made, find_language(formats), now.text, now.length,
									  filter->argument ? atoi(filter->argument) : -1, "", "");
				break;
			case KLM_FILTER_CURRENCY:
				ok = ok && put_currency(&made, find_language(formats), now.text, now.length,
										filter->argument);
				break;
			default:
				ok = now.kind == KLM_STRING && read_moment(now.text, now.length, &moment) &&
					(moment.has_time || filter->kind == KLM_FILTER_DATE);
				if (ok)
					put_moment(&made, formats, &moment, filter->kind, is_short);
				break;
		}
		if (!ok)
			return klm_fail(error, ERRCODE_INVALID_PARAMETER_VALUE,
							filter->kind == KLM_FILTER_NUMBER ||
								filter->kind == KLM_FILTER_CURRENCY ?
							"Give a number, such as 1234.5." :
							"Give it as JSON has it: 2026-11-29, or 2026-11-29T14:05:00+09:00.",
							"%s is no %s",
							now.kind == KLM_STRING || now.kind == KLM_NUMBER ?
							psprintf("\"%s\"", klm_shown(now.text, now.length)) : "the value",
							filter->kind == KLM_FILTER_NUMBER || filter->kind == KLM_FILTER_CURRENCY ? "number" :
							filter->kind == KLM_FILTER_DATE ? "date" : "date with a time");
		now.kind = KLM_STRING;
		now.text = made.data;
		now.length = made.len;
	}
	switch (now.kind)
	{
		case KLM_NULL:
			break;
		case KLM_TRUE:
		case KLM_FALSE:
			appendStringInfoString(out, now.kind == KLM_TRUE ? "true" : "false");
			break;
		case KLM_LIST:
		case KLM_OBJECT:
			appendStringInfoString(out, now.reader->json(&now));
			break;
		default:
			appendBinaryStringInfo(out, now.text, now.length);
			break;
	}
	return true;
}
