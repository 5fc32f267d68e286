// helper.js: what the tests share.  test/t/090_gateway.pl has a server, its roles and a
// mail server ready, and says where in the environment.
//
// Copyright (c) 2026, the kliv_mail developers
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { Writable } from 'node:stream';
import pg from 'pg';
import { configure, limits } from '../config.js';
import { gateway } from '../gateway.js';

const env = process.env;
export const passwords = { boss: 'CANARY-of-boss', reader: 'CANARY-of-reader', hooks: env.PGPASSWORD, outsider: 'CANARY-of-outsider' };

// A gateway on a port of its own; its log in .log, a line an entry.
export async function start({ settings = {}, limit = {} } = {}) {
  const log = [];
  const config = { ...configure({ ...env, KLIV_MAIL_WEB_LISTEN: '127.0.0.1:0' }), ...settings };
  config.limits = { ...limits, attempts: 1000, attemptsOfRole: 1000, signIns: 100, ...limit };
  const stream = new Writable({ write(line, encoding, done) { log.push(line.toString()); done(); } });
  const app = await gateway(config, { logger: { stream } });
  await app.listen({ host: '127.0.0.1', port: 0 });
  const { port } = app.server.address();
  return { app, log, port, origin: app.origin(), close: () => app.close() };
}

// One request on a connection of its own: {status, headers, text}.  form: its fields.
export function ask(gate, path, { method, headers = {}, form, body, cookie, own = true, localAddress } = {}) {
  const bytes = form ? new URLSearchParams(form).toString() : body;
  const all = { host: new URL(gate.origin).host, ...(form ? { 'content-type': 'application/x-www-form-urlencoded' } : {}), ...(cookie ? { cookie } : {}),
    ...(bytes !== undefined && own ? { origin: gate.origin } : {}), ...(bytes !== undefined ? { 'content-length': Buffer.byteLength(bytes) } : {}), ...headers };
  return new Promise((resolve, reject) => {
    const request = http.request({ host: '127.0.0.1', port: gate.port, path, method: method ?? (bytes === undefined ? 'GET' : 'POST'), headers: all, agent: false, localAddress }, (response) => {
      const parts = [];
      response.on('data', (part) => parts.push(part));
      response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, text: Buffer.concat(parts).toString() }));
      response.on('error', reject);
    });
    request.on('error', reject);
    request.end(bytes);
  });
}

export const cookieOf = (response) => response.headers['set-cookie']?.[0].split(';')[0];

export async function signIn(gate, role, more = {}) {
  const response = await ask(gate, '/sign-in', { form: { role, password: passwords[role] ?? 'none' }, ...more });
  if (response.status !== 303) throw new Error(`${role} could not sign in: ${response.status} ${response.text} ${gate.log.join('')}`);
  return cookieOf(response);
}

// Bytes to the gateway, and all that comes back until it closes, or for as long as that.
export function raw(gate, text, milliseconds = 1500) {
  return new Promise((resolve) => {
    let answer = '';
    const socket = net.connect(gate.port, '127.0.0.1', () => socket.write(text));
    const timer = setTimeout(() => socket.destroy(), milliseconds);
    socket.on('data', (part) => { answer += part; });
    socket.on('error', () => {});
    socket.on('close', () => { clearTimeout(timer); resolve(answer); });
  });
}

// As the superuser, whom the server trusts.
export async function sql(text, values) {
  const client = new pg.Client({ user: env.KLIV_MAIL_TEST_SUPERUSER });
  await client.connect();
  try {
    const { rows } = await client.query({ text, values, rowMode: 'array' });
    return rows[0]?.[0];
  } finally {
    await client.end();
  }
}

export async function until(what, condition) {
  const end = Date.now() + 120_000;
  for (;;) {
    if (await condition()) return;
    if (Date.now() > end) throw new Error(`timed out waiting until ${what}`);
    await new Promise((resolve) => { setTimeout(resolve, 50); });
  }
}

export function server(action) {
  execFileSync('pg_ctl', ['-D', env.KLIV_MAIL_TEST_DATA, '-l', env.KLIV_MAIL_TEST_LOG, '-m', 'fast', '-w', action], { stdio: 'ignore' });
}

// What the server has logged since its roles were made.
export const serverLog = () => fs.readFileSync(env.KLIV_MAIL_TEST_LOG).subarray(Number(env.KLIV_MAIL_TEST_LOG_BEGINS ?? 0)).toString();
