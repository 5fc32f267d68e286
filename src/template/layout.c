/*-------------------------------------------------------------------------
 *
 * layout.c
 *		What stands around a mail's content, and its colours.
 *
 * Pure.
 *
 * The default layout works with images off, without its style block (Gmail drops
 * one in some mail), in Outlook's Word, from 320 px up and in the dark.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "template/layout.h"

#define FONT "font-family:-apple-system,BlinkMacSystemFont,'Segoe UI','Hiragino Sans','Noto Sans JP',Meiryo,Roboto,Helvetica,Arial,sans-serif"
#define TABLE "<table role=\"presentation\" cellpadding=\"0\" cellspacing=\"0\" border=\"0\" width=\"100%\""

const char klm_default_layout[] =
"<!DOCTYPE html>\n"
"<html lang=\"{{lang}}\" dir=\"{{dir}}\">\n"
"<head>\n"
"<meta charset=\"utf-8\">\n"
"<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
"<meta name=\"color-scheme\" content=\"light dark\">\n"
"<meta name=\"supported-color-schemes\" content=\"light dark\">\n"
"<meta name=\"format-detection\" content=\"telephone=no,date=no,address=no,email=no,url=no\">\n"
"<title>{{subject}}</title>\n"
"<!--[if mso]><style>table{border-collapse:collapse}td,th,p,h1,h2,h3,a,li{font-family:Arial,sans-serif!important}</style><![endif]-->\n"
"<style>\n"
":root{color-scheme:light dark}\n"
"@media (max-width:600px){.k-card{padding:24px 16px 8px!important}}\n"
"@media (prefers-color-scheme:dark){\n"
".k-page{background-color:#0f1317!important}\n"
".k-card{background-color:#1a2027!important;color:#e8edf2!important}\n"
".k-quiet{color:#a3adb8!important}\n"
".k-code{background-color:#2a323b!important}\n"
".k-line{border-color:#414b56!important}\n"
".k-link{color:#8ab8ff!important}\n"
"}\n"
"</style>\n"
"</head>\n"
"<body lang=\"{{lang}}\" dir=\"{{dir}}\" class=\"k-page\" style=\"margin:0;padding:0;background-color:#f3f4f6\">\n"
"{{#preheader}}<div style=\"display:none;max-height:0;overflow:hidden;mso-hide:all\">{{preheader}}</div>\n{{/preheader}}"
TABLE " class=\"k-page\" style=\"background-color:#f3f4f6\"><tr><td align=\"center\" style=\"padding:24px 8px\">\n"
"<!--[if mso]><table role=\"presentation\" cellpadding=\"0\" cellspacing=\"0\" border=\"0\" width=\"600\"><tr><td><![endif]-->\n"
TABLE " style=\"max-width:600px\">\n"
"{{#brand.logo_url}}<tr><td class=\"k-quiet\" style=\"padding:0 16px 16px;" FONT ";font-size:18px;line-height:24px;font-weight:bold;color:#4b5563\">"
"<img src=\"{{brand.logo_url}}\" alt=\"{{brand.name}}\" height=\"40\" style=\"display:block;height:40px;width:auto;border:0\"></td></tr>\n{{/brand.logo_url}}"
"{{^brand.logo_url}}{{#brand.name}}<tr><td class=\"k-quiet\" style=\"padding:0 16px 16px;" FONT ";font-size:18px;line-height:24px;font-weight:bold;color:#4b5563\">"
"{{brand.name}}</td></tr>\n{{/brand.name}}{{/brand.logo_url}}"
"<tr><td class=\"k-card\" style=\"padding:32px 32px 16px;background-color:#ffffff;border-radius:8px;border-top:4px solid {{brand.color}};" FONT ";font-size:16px;line-height:24px;color:#1f2933;word-break:break-word\">\n"
"{{{content}}}"
"</td></tr>\n"
"<tr><td class=\"k-quiet\" style=\"padding:16px;" FONT ";font-size:13px;line-height:20px;color:#4b5563\">\n"
"{{#brand.footer}}<p style=\"margin:0 0 8px\">{{brand.footer}}</p>\n{{/brand.footer}}"
"{{#brand.postal_address}}<p style=\"margin:0 0 8px\">{{brand.name}}{{#brand.name}}<br>\n{{/brand.name}}{{brand.postal_address}}</p>\n{{/brand.postal_address}}"
"{{#unsubscribe_url}}<p style=\"margin:0 0 8px\"><a href=\"{{unsubscribe_url}}\" class=\"k-link\" style=\"color:#4b5563;text-decoration:underline\">{{unsubscribe}}</a></p>\n{{/unsubscribe_url}}"
"</td></tr>\n"
"</table>\n"
"<!--[if mso]></td></tr></table><![endif]-->\n"
"</td></tr></table>\n"
"</body>\n"
"</html>\n";

static bool
has_language(const char *locale, const char *language)
{
	int			length = strlen(language);

	return locale != NULL && pg_strncasecmp(locale, language, length) == 0 &&
		(locale[length] == '\0' || locale[length] == '-' || locale[length] == '_');
}

const char *
klm_direction(const char *locale)
{
	static const char *const languages[] = {"ar", "fa", "he", "ur", "yi", "ps", "sd", "ug"};

	for (int i = 0; i < lengthof(languages); i++)
		if (has_language(locale, languages[i]))
			return "rtl";
	return "ltr";
}

const char *
klm_unsubscribe_word(const char *locale)
{
	static const struct
	{
		const char *language;
		const char *word;
	}			words[] = {
		{"ja", "\xE9\x85\x8D\xE4\xBF\xA1\xE5\x81\x9C\xE6\xAD\xA2"}, {"de", "Abmelden"},
		{"fr", "Se d\xC3\xA9sabonner"}, {"es", "Darse de baja"}, {"pt", "Cancelar a inscri\xC3\xA7\xC3\xA3o"},
		{"it", "Annulla l'iscrizione"}, {"nl", "Afmelden"}, {"zh", "\xE9\x80\x80\xE8\xAE\xA2"},
		{"ko", "\xEC\x88\x98\xEC\x8B\xA0 \xEA\xB1\xB0\xEB\xB6\x80"},
		{"ar", "\xD8\xA5\xD9\x84\xD8\xBA\xD8\xA7\xD8\xA1 \xD8\xA7\xD9\x84\xD8\xA7\xD8\xB4\xD8\xAA\xD8\xB1\xD8\xA7\xD9\x83"},
		{"he", "\xD7\x91\xD7\x99\xD7\x98\xD7\x95\xD7\x9C \xD7\x94\xD7\xA8\xD7\xA9\xD7\x9E\xD7\x94"}
	};

	for (int i = 0; i < lengthof(words); i++)
		if (has_language(locale, words[i].language))
			return words[i].word;
	return "Unsubscribe";
}

/* ----------------------------------------------------------------
 * Colours
 * ----------------------------------------------------------------
 */

static int
hex_digit(char ch)
{
	if (ch >= '0' && ch <= '9')
		return ch - '0';
	ch = pg_ascii_tolower((unsigned char) ch);
	return ch >= 'a' && ch <= 'f' ? ch - 'a' + 10 : 0;
}

static double
luminance(const char *color)
{
	static const double weights[] = {0.2126, 0.7152, 0.0722};
	double		sum = 0;

	if (strlen(color) != 7)
		return 0;
	for (int i = 0; i < 3; i++)
	{
		double		part = (16 * hex_digit(color[1 + 2 * i]) + hex_digit(color[2 + 2 * i])) / 255.0;

		sum += weights[i] * (part <= 0.03928 ? part / 12.92 : pow((part + 0.055) / 1.055, 2.4));
	}
	return sum;
}

double
klm_contrast(const char *one, const char *other)
{
	double		a = luminance(one) + 0.05;
	double		b = luminance(other) + 0.05;

	return a > b ? a / b : b / a;
}

const char *
klm_link_color(const char *brand)
{
	if (brand && klm_contrast(brand, "#ffffff") >= KLM_TEXT_CONTRAST)
		return brand;
	return KLM_BRAND_COLOR;
}

const char *
klm_color_on(const char *brand)
{
	if (klm_contrast(brand, "#ffffff") >= KLM_TEXT_CONTRAST)
		return "#ffffff";
	/* One of the two always reaches that. */
	return "#000000";
}
