/*-------------------------------------------------------------------------
 *
 * mail.h
 *		A mail from a template: subject, HTML and text.
 *
 * Pure.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_MAIL_H
#define KLM_MAIL_H

#include "template/markdown.h"
#include "template/mustache.h"

typedef enum KlmBodyFormat
{
	KLM_BODY_MARKDOWN,
	KLM_BODY_HTML
} KlmBodyFormat;

/* What an application puts around its mail (set_brand()); each NULL: none. */
typedef struct KlmBrand
{
	const char *name;
	const char *logo_url;
	const char *color;
	const char *postal_address;
	const char *footer;
} KlmBrand;

/* A template, compiled. */
typedef struct KlmMailSource
{
	KlmBodyFormat format;
	const KlmTemplate *subject;
	const KlmTemplate *body;
	const KlmTemplate *plain_text;	/* NULL: made from the body */
	const KlmTemplate *layout;	/* a HTML page with {{{content}}} */
	bool		notes_of_layout;	/* not of the body */
} KlmMailSource;

/* What a mail says, and to whom. */
typedef struct KlmMailInput
{
	KlmValue	variables;		/* an object */
	KlmValue	defaults;		/* an object: of what is missing or null */
	const char *email;			/* the recipient's, or NULL */
	const char *timestamp;		/* as text */
	const char *unsubscribe_url;	/* NULL: the mail is not marketing */
	const char *locale;			/* NULL: none */
	const KlmBrand *brand;
	const KlmTemplate *(*partial) (void *data, const char *name);
	void	   *partial_data;
	const KlmFormats *formats;
} KlmMailInput;

typedef struct KlmMail
{
	char	   *subject;
	char	   *html;
	char	   *text;
	char	   *preheader;		/* NULL: the body is a whole page, which has its own */
} KlmMail;

/*
 * False with *error: what klm_mustache_render(), klm_markdown_render() and
 * klm_mime_check_subject() refuse.  notes is NULL, or empty and gets what an
 * author would want to know.
 */
extern bool klm_mail_render(const KlmMailSource *source, const KlmMailInput *input, KlmMail *mail,
							KlmNotes *notes, KlmError *error);

#endif							/* KLM_MAIL_H */
