// database.js: the pool of the ingest role, the connection of a role that signs in, and
// the one statement that carries a request.
//
// Copyright (c) 2026, the kliv_mail developers
import pg from 'pg';

const CARRY = 'SELECT status, headers, body FROM kliv_mail.http_request($1, $2, $3, $4::jsonb, $5)';
// NULL: there is no such function.
const MAY_CALL = `SELECT pg_catalog.bool_or(pg_catalog.has_function_privilege(p.oid, 'EXECUTE') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')) AS may
    FROM pg_catalog.pg_proc AS p, pg_catalog.pg_namespace AS n
    WHERE n.oid OPERATOR(pg_catalog.=) p.pronamespace AND n.nspname OPERATOR(pg_catalog.=) 'kliv_mail' AND p.proname OPERATOR(pg_catalog.=) 'http_request'`;

// What stands in the way is not the request: it may be repeated as it is.
export class Unavailable extends Error {}
// The role and the password do not go together, or the role may not look at anything.
export class Refused extends Error {
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

// Connection trouble, too many connections, timeouts, a server that starts or stops, a
// server without the extension's function yet; and whatever has no SQLSTATE is a socket's.
function isTrouble(error) {
  return !/^[0-9A-Z]{5}$/.test(error.code ?? '') || /^(?:08|53|57|3D|3F|42883|40|25006)/.test(error.code);
}

function asTrouble(error) {
  return isTrouble(error) ? new Unavailable(error.message, { cause: error }) : error;
}

function settings(config, statement) {
  return {
    ...config.database,
    application_name: 'kliv_mail gateway',
    connectionTimeoutMillis: config.limits.connectTimeout,
    statement_timeout: statement,
    // A database that does not even say that it gave up.
    query_timeout: statement + 5_000,
    // One that went without a word, as at a failover behind a NAT, is known within half a minute, and not
    // when somebody waits for it.
    keepAlive: true,
    keepAliveInitialDelayMillis: 15_000
  };
}

// GET is read-only whatever the function does: a link can change nothing.
async function carry(client, request) {
  const values = [request.method === 'HEAD' ? 'GET' : request.method, request.path, request.query, JSON.stringify(request.headers), request.body];
  if (request.method === 'POST') return (await client.query(CARRY, values)).rows[0];
  await client.query('BEGIN READ ONLY');
  const { rows } = await client.query(CARRY, values);
  await client.query('COMMIT');
  return rows[0];
}

export class Ingest {
  #pool;
  #limit;

  constructor(config, log) {
    this.#pool = new pg.Pool({ ...settings(config, config.limits.ingestStatement), max: config.pool, idleTimeoutMillis: 60_000 });
    this.#pool.on('error', (error) => log.warn({ event: 'database', problem: error.message }, 'an idle connection was lost'));
    this.#limit = config.limits.waiting;
  }

  async #with(work) {
    if (this.#pool.waitingCount >= this.#limit) throw new Unavailable('all connections are in use');
    let client;
    try {
      client = await this.#pool.connect();
    } catch (error) {
      throw new Unavailable(error.message, { cause: error });
    }
    try {
      const result = await work(client);
      client.release();
      return result;
    } catch (error) {
      // What the connection is in the middle of is not worth knowing.
      client.release(true);
      throw asTrouble(error);
    }
  }

  carry(request) {
    return this.#with((client) => carry(client, request));
  }

  async healthy() {
    const { rows } = await this.#with((client) => client.query(MAY_CALL));
    if (!rows[0].may) throw new Unavailable('the role may not call kliv_mail.http_request(): SELECT kliv_mail.grant_ingest(...)');
  }

  end() {
    return this.#pool.end();
  }
}

// The connection that a role and its password opened.  The password is in no other
// place, and forgotten when the connection is there.
export class RoleConnection {
  #client;
  #turn = Promise.resolve();
  #waiting = 0;
  #limit;
  closed = false;

  // Refused or Unavailable.
  static async open(config, role, password) {
    const client = new pg.Client({ ...settings(config, config.limits.adminStatement), user: role, password });
    const connection = new RoleConnection();
    connection.#client = client;
    connection.#limit = config.limits.waitingOfSession;
    // A server that lets everybody in (trust, peer) has asked for no password; and one that
    // wants it in clear or in MD5 must not have it.
    let proved = false;
    let weak = false;
    client.connection.once('authenticationSASLFinal', () => { proved = true; });
    for (const request of ['authenticationCleartextPassword', 'authenticationMD5Password'])
      client.connection.once(request, () => {
        weak = true;
        client.password = client.connectionParameters.password = '';
      });
    client.on('error', () => connection.close());
    client.on('end', () => { connection.closed = true; });
    try {
      await client.connect();
    } catch (error) {
      connection.close();
      // SCRAM's own end at pg: the server's proof, or none of its mechanisms.
      if (weak || /^SASL: /.test(error.message)) throw new Refused('the server did not ask for a SCRAM password', 'method');
      if (/^28/.test(error.code ?? '')) throw new Refused('the role or its password is wrong', 'password');
      throw new Unavailable(error.message, { cause: error });
    } finally {
      client.password = client.connectionParameters.password = '';
    }
    try {
      if (!proved) throw new Refused('the server did not ask for a SCRAM password', 'method');
      const { rows: [{ may }] } = await client.query(MAY_CALL);
      if (may === null) throw new Unavailable('the database has no kliv_mail.http_request()');
      if (!may) throw new Refused('the role may not call kliv_mail.http_request()', 'grant');
      // How long a session may be idle is the gateway's setting, not the role's or the server's.
      await client.query('SET idle_session_timeout = 0');
      return connection;
    } catch (error) {
      connection.close();
      throw error instanceof Refused ? error : asTrouble(error);
    }
  }

  // One after the other, as a connection works.
  async #run(work) {
    if (this.closed) throw new Unavailable('the connection was lost');
    if (this.#waiting >= this.#limit) throw new Unavailable('the session has too many requests under way');
    this.#waiting++;
    const result = this.#turn.then(() => this.#attempt(work));
    this.#turn = result.catch(() => {});
    return result.finally(() => { this.#waiting--; });
  }

  async #attempt(work) {
    try {
      return await work();
    } catch (error) {
      // A statement that failed leaves a transaction to end; anything else, a connection
      // of which nothing is known.
      if (/^[0-9A-Z]{5}$/.test(error.code ?? '')) await this.#client.query('ROLLBACK').catch(() => this.close());
      else this.close();
      throw asTrouble(error);
    }
  }

  carry(request) {
    return this.#run(() => carry(this.#client, request));
  }

  // For what, and with what, a password is to be sealed.
  sealing(fields) {
    return this.#run(async () => (await this.#client.query('SELECT kliv_mail.public_key() AS key, kliv_mail._sealing_host($1, $2, $3, $4) AS host',
      [fields.account, fields.provider, fields.region, fields.host])).rows[0]);
  }

  close() {
    this.closed = true;
    this.#client.end().catch(() => {});
  }
}
