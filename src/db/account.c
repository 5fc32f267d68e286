/*-------------------------------------------------------------------------
 *
 * account.c
 *		An account as a process needs it: connection, password, sender.
 *
 * In kliv_mail_net.  Reads the accounts through kliv_mail._load_account() (SPI)
 * and opens their passwords with secret/.  What is wrong with an account is
 * written into it, not raised: the mail waits, and the views say why.
 *
 * Copyright (c) 2026, the kliv_mail developers
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "utils/array.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/encoding.h"
#include "base/error.h"
#include "base/guc.h"
#include "db/account.h"
#include "db/owner_call.h"
#include "secret/seal.h"
#include "secret/unsubscribe_token.h"

/* RFC 4616 sets no limit; a token of OAuth2 has some 2 kB. */
#define PASSWORD_FILE_MAX 8192

static char password_file_hint[] = "The administrator of the server writes the password into the file that "
	"kliv_mail.platform_password_file names, which only the server's user may read.";

static char *text_column(HeapTuple row, TupleDesc desc, const char *name);
static Datum column(HeapTuple row, TupleDesc desc, const char *name, bool *isnull);
static void load_senders(KlmAccount *account, HeapTuple row, TupleDesc desc);
static bytea *bytea_column(HeapTuple row, TupleDesc desc, const char *name);
static bool open_username(KlmAccount *account, KlmError *error);
static bool open_password(KlmAccount *account, KlmError *error);

KlmAccount *
klm_load_account(const char *name)
{
	KlmAccount *account = klm_read_account(name);

	if (account)
		klm_open_account(account);
	return account;
}

void
klm_open_account(KlmAccount *account)
{
	KlmError	error = {0};

	if (account->problem || (open_username(account, &error) && open_password(account, &error)))
		return;
	account->problem = error.message;
	account->hint = error.hint;
}

KlmAccount *
klm_read_account(const char *name)
{
	MemoryContext outer = CurrentMemoryContext;
	Oid			types[1] = {TEXTOID};
	Datum		values[1];
	KlmAccount *account;
	HeapTuple	row;
	TupleDesc	desc;
	char	   *encryption;
	bool		isnull;
	bool		own;
	KlmDomain  *domain = palloc(sizeof(KlmDomain));

	klm_load_domain(domain);

	values[0] = CStringGetTextDatum(name);
	if (SPI_execute_with_args("SELECT * FROM kliv_mail._load_account($1)", 1, types, values, NULL,
							  false, 1) != SPI_OK_SELECT)
		elog(ERROR, "could not read the account");
	if (SPI_processed == 0)
		return NULL;
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;

	/* SPI may have switched to a context of its own; the caller's counts. */
	MemoryContextSwitchTo(outer);
	account = palloc0(sizeof(KlmAccount));
	account->name = pstrdup(name);
	account->provider = text_column(row, desc, "provider");
	account->fingerprint = text_column(row, desc, "fingerprint");
	account->from_address = text_column(row, desc, "from_address");
	account->from_name = text_column(row, desc, "from_name");
	account->reply_to = text_column(row, desc, "reply_to");
	load_senders(account, row, desc);
	own = DatumGetBool(column(row, desc, "own", &isnull));

	account->target.host = text_column(row, desc, "host");
	account->target.port = DatumGetInt32(column(row, desc, "port", &isnull));
	encryption = text_column(row, desc, "encryption");
	account->target.encryption = encryption && strcmp(encryption, "tls") == 0 ? KLM_TLS :
		encryption && strcmp(encryption, "none") == 0 ? KLM_CLEAR : KLM_STARTTLS;
	account->target.oauth2 = DatumGetBool(column(row, desc, "oauth2", &isnull));
	account->target.guarded = own;
	account->target.ehlo_name = klm_ehlo_name(account->from_address);

	account->problem = text_column(row, desc, "problem");
	account->hint = text_column(row, desc, "hint");
	account->sealed = palloc0(sizeof(KlmSealed));
	account->sealed->domain = domain;
	account->sealed->username = bytea_column(row, desc, "username_cipher");
	account->sealed->password = bytea_column(row, desc, "password_cipher");
	account->sealed->key_id = text_column(row, desc, "key_id");
	account->sealed->password_file = text_column(row, desc, "password_file");
	account->target.username = text_column(row, desc, "username");
	SPI_freetuptable(SPI_tuptable);
	return account;
}

/* The user name, sealed where it is a secret. */
static bool
open_username(KlmAccount *account, KlmError *error)
{
	const KlmSealed *sealed = account->sealed;
	KlmBinding	binding = {account->name, account->target.host, account->target.port, NULL,
	sealed->domain};
	KlmSecret  *secret;

	if (sealed->username == NULL)
		return true;
	if (!klm_open(sealed->username, sealed->key_id, &binding, &secret,
				  &account->key_missing, error))
		return false;
	account->target.username = secret->data;
	return true;
}

static bool
open_password(KlmAccount *account, KlmError *error)
{
	const KlmSealed *sealed = account->sealed;
	KlmBinding	binding = {account->name, account->target.host, account->target.port,
	account->target.username, sealed->domain};
	const char *file = sealed->password_file;

	if (sealed->password != NULL)
	{
		if (!klm_open(sealed->password, sealed->key_id, &binding, &account->secret,
					  &account->key_missing, error))
			return false;
	}
	else if (file != NULL && account->target.username != NULL)
	{
		KlmSecret  *whole;

		if (!klm_secret_read_file(file, "the platform's password file", KLM_OWNER_SERVER_OR_ROOT,
								  PASSWORD_FILE_MAX, &whole, NULL, error))
		{
			if (error->hint == NULL)
				error->hint = password_file_hint;
			return false;
		}
		account->secret = klm_secret_create(whole->data, strcspn(whole->data, "\r\n"));
		klm_secret_wipe(whole);
		if (account->secret->length == 0)
		{
			error->message = psprintf("the platform's password file \"%s\" has an empty first line",
									  file);
			error->hint = password_file_hint;
			return false;
		}
	}
	else if (account->target.username != NULL)
	{
		/* configure_smtp() saves no such account. */
		error->message = psprintf("the account \"%s\" has a user name and no password",
								  account->name);
		error->hint = "Save the password: SELECT * FROM kliv_mail.configure_smtp(password => ...).";
		return false;
	}
	if (account->secret)
		account->target.password = account->secret->data;

	/* Whatever the row says: no credentials without TLS. */
	if (account->secret && account->target.encryption == KLM_CLEAR)
	{
		error->message = psprintf("the account \"%s\" has a password and no TLS", account->name);
		error->hint = "SELECT * FROM kliv_mail.configure_smtp(encryption => 'starttls', "
			"password => ...) mends it.";
		return false;
	}
	return true;
}

static void
load_senders(KlmAccount *account, HeapTuple row, TupleDesc desc)
{
	bool		isnull;
	Datum		array = column(row, desc, "allowed_senders", &isnull);
	Datum	   *elements;
	bool	   *nulls;
	int			count;

	if (isnull)
		return;
	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &count);
	account->allowed_senders = palloc(sizeof(char *) * Max(count, 1));
	for (int i = 0; i < count; i++)
		if (!nulls[i])
			account->allowed_senders[account->allowed_sender_count++] =
				klm_to_utf8(TextDatumGetCString(elements[i]));
}

void
klm_load_domain(KlmDomain *domain)
{
	KlmCall		call = {0};
	bool		isnull;
	Datum		salts;
	MemoryContext context = CurrentMemoryContext;

	klm_run_one(&call, "salts", false);
	salts = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	MemoryContextSwitchTo(context);
	klm_domain_set(domain, isnull ? NULL : DatumGetByteaPCopy(salts));
	SPI_freetuptable(SPI_tuptable);
}

bool
klm_load_token_key(bool may_create, KlmSecret **key, KlmError *error)
{
	KlmDomain	domain;

	klm_load_domain(&domain);
	return klm_token_key(&domain, may_create, key, error);
}

/*
 * Where no name is set: a fully qualified one that says nothing about this
 * machine, the sender's domain.
 */
const char *
klm_ehlo_name(const char *from_address)
{
	const char *at = from_address ? strrchr(from_address, '@') : NULL;

	/* A reload may free the setting's own text while a connection is open. */
	if (klm_ehlo_setting && klm_ehlo_setting[0])
		return pstrdup(klm_ehlo_setting);
	return at && at[1] && at[1] != '[' ? at + 1 : "localhost";
}

/* UTF-8, or NULL. */
static char *
text_column(HeapTuple row, TupleDesc desc, const char *name)
{
	bool		isnull;
	Datum		value = column(row, desc, name, &isnull);

	return isnull ? NULL : klm_to_utf8(TextDatumGetCString(value));
}

static bytea *
bytea_column(HeapTuple row, TupleDesc desc, const char *name)
{
	bool		isnull;
	Datum		value = column(row, desc, name, &isnull);

	return isnull ? NULL : DatumGetByteaPCopy(value);
}

static Datum
column(HeapTuple row, TupleDesc desc, const char *name, bool *isnull)
{
	int			number = SPI_fnumber(desc, name);

	if (number <= 0)
		elog(ERROR, "_load_account() has no column \"%s\"", name);
	return SPI_getbinval(row, desc, number, isnull);
}
