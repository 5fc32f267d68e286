/*-------------------------------------------------------------------------
 *
 * reply_parse.h
 *		Read an SMTP reply: its code, its enhanced status, its text, the server's id.
 *
 * Pure (palloc only).
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_REPLY_PARSE_H
#define KLM_REPLY_PARSE_H

#include "base/kliv_mail.h"

/*
 * Make a KlmReply of raw reply bytes (one whole reply, "250-a\r\n250 b\r\n",
 * possibly hostile): code, an enhanced status only if its class agrees with
 * the code, text made printable UTF-8 and capped.  Never fails.
 */
extern void klm_read_reply(KlmStage stage, const char *raw, Size length, KlmReply *reply);

/* Code of a reply line, or 0 if it is none. */
extern int	klm_line_code(const char *line, Size length);

/* Has the reply (raw bytes) an enhanced status that begins so, "2.1." say? */
extern bool klm_has_status(const char *raw, Size length, const char *begin);

/* Is it BDAT that the server does not take, not by its status (RFC 3463) the message? */
extern bool klm_refuses_command(const char *raw, Size length, int code);

/* Skip a line's "550-" and its enhanced status; *status is where that stands. */
extern const char *klm_skip_codes(const char *line, const char *end, const char **status,
								  Size *length);

/* The id that the server gave an accepted message in its reply ("queued as X"); palloc'd or NULL. */
extern char *klm_server_message_id(const KlmReply *reply, const char *provider);

#endif							/* KLM_REPLY_PARSE_H */
