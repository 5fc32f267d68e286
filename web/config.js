// config.js: what the environment says (README.md has the table), and what is fixed.
//
// Copyright (c) 2026, the kliv_mail developers

// Not for the environment: no installation needs others, but tests do.
export const limits = {
  hookBody: 1024 * 1024, // bytes
  adminBody: 1024 * 1024, // a template's HTML, percent-encoded
  formBody: 64 * 1024,
  headers: 16 * 1024,
  headersTimeout: 10_000, // milliseconds
  requestTimeout: 30_000,
  checkConnections: 2_000,
  keepAliveTimeout: 15_000,
  inactivity: 180_000, // no byte either way; a connection test takes its time
  connections: 16_000,
  connectionsOfAddress: 200,
  connectTimeout: 5_000, // to PostgreSQL
  ingestStatement: 10_000,
  adminStatement: 150_000,
  waiting: 100, // requests that wait for a connection of the pool
  waitingOfSession: 10,
  signIns: 4, // at the same time
  attempts: 10, // of one address in a quarter of an hour
  attemptsOfRole: 20,
  attemptsWindow: 15 * 60_000,
  shutdown: 20_000
};

function integer(env, name, usual, low, high) {
  const text = env[name] || String(usual);
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < low || value > high) throw new Error(`${name}: "${text}" is not a number from ${low} to ${high}`);
  return value;
}

function listenOn(text) {
  const found = /^(\[[0-9a-fA-F:]+\]|[^:[\]]+):(\d{1,5})$/.exec(text);
  if (!found || Number(found[2]) > 65535) throw new Error(`KLIV_MAIL_WEB_LISTEN: "${text}" is not an address and a port, such as 127.0.0.1:8025`);
  return { host: found[1].replace(/^\[|\]$/g, ''), port: Number(found[2]) };
}

const isLoopback = (host) => /^(?:localhost|127\.\d+\.\d+\.\d+|\[?::1\]?)$/.test(host);

// The origin that browsers see; undefined: that of the address that is listened on.
function publicOrigin(text) {
  if (!text) return undefined;
  let url;
  try {
    url = new URL(text);
  } catch {
    // told below
  }
  if (!url || !/^https?:$/.test(url.protocol) || url.origin !== text.replace(/\/$/, ''))
    throw new Error(`KLIV_MAIL_WEB_ORIGIN: "${text}" is not an origin, such as https://mail.example.com`);
  if (url.protocol === 'http:' && !isLoopback(url.hostname))
    throw new Error(`KLIV_MAIL_WEB_ORIGIN: "${text}" would have passwords cross the network in clear: put TLS in front, and give https://`);
  return url.origin;
}

export function configure(env) {
  const listen = listenOn(env.KLIV_MAIL_WEB_LISTEN || '127.0.0.1:8025');
  const origin = publicOrigin(env.KLIV_MAIL_WEB_ORIGIN);
  if (!origin && !isLoopback(listen.host)) throw new Error('KLIV_MAIL_WEB_ORIGIN: is needed where others than this machine are listened to');
  return {
    listen,
    origin,
    trustProxy: env.KLIV_MAIL_WEB_TRUST_PROXY ? env.KLIV_MAIL_WEB_TRUST_PROXY.split(',').map((address) => address.trim()) : false,
    pool: integer(env, 'KLIV_MAIL_WEB_POOL', 5, 1, 100),
    sessions: integer(env, 'KLIV_MAIL_WEB_SESSIONS', 20, 1, 1000),
    sessionIdle: 60_000 * integer(env, 'KLIV_MAIL_WEB_SESSION_IDLE', 30, 1, 1440),
    sessionAge: 60_000 * integer(env, 'KLIV_MAIL_WEB_SESSION_AGE', 720, 1, 10080),
    // PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSWORD, PGSSLMODE are pg's own.
    database: {},
    limits
  };
}
