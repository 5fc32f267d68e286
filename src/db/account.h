/*-------------------------------------------------------------------------
 *
 * account.h
 *		An account as a process needs it.
 *
 * In kliv_mail_net.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#ifndef KLM_ACCOUNT_H
#define KLM_ACCOUNT_H

#include "net/connection.h"
#include "secret/domain.h"
#include "secret/secret_memory.h"

/* What the row has of secrets, unopened. */
typedef struct KlmSealed
{
	const KlmDomain *domain;
	bytea	   *username;		/* or NULL; so the rest */
	bytea	   *password;
	char	   *key_id;
	char	   *password_file;
} KlmSealed;

typedef struct KlmAccount
{
	char	   *name;
	char	   *provider;		/* or NULL */
	char	   *fingerprint;	/* changes whenever a new connection would differ */
	KlmTarget	target;			/* password filled while problem is NULL */
	KlmSecret  *secret;			/* target.password points into it; NULL: no AUTH */
	char	   *from_address;
	char	   *from_name;		/* or NULL */
	char	   *reply_to;		/* or NULL */
	char	  **allowed_senders;
	int			allowed_sender_count;
	bool		key_missing;	/* problem is the key: hold by 'key' */
	KlmSealed  *sealed;
	char	   *problem;		/* why it cannot be used now, or NULL */
	char	   *hint;
} KlmAccount;

/*
 * Read one account ('platform' from the configuration) into the current
 * context, opening its password; in a transaction with SPI connected.  NULL:
 * no such account, or not in use.
 */
extern KlmAccount *klm_load_account(const char *name);

/*
 * The same in two steps: what is stored, and the secrets, which may take as
 * long as kliv_mail.key_command does and needs no transaction.
 */
extern KlmAccount *klm_read_account(const char *name);
extern void klm_open_account(KlmAccount *account);

/*
 * What this database's secrets are bound to, in the current context; in a
 * transaction with SPI connected, as the extension's owner.
 */
extern void klm_load_domain(KlmDomain *domain);

/* klm_token_key() of this database, under the same conditions. */
extern bool klm_load_token_key(bool may_create, KlmSecret **key, KlmError *error);

/* What we call ourselves in EHLO: palloc'd, points into the address, or is static. */
extern const char *klm_ehlo_name(const char *from_address);

#endif							/* KLM_ACCOUNT_H */
