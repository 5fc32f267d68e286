// Who gets in, and for how long.
//
// Copyright (c) 2026, the kliv_mail developers
import assert from 'node:assert/strict';
import net from 'node:net';
import { after, before, test } from 'node:test';
import { configure } from '../config.js';
import { ask, cookieOf, passwords, signIn, sql, start, until } from './helper.js';

let gate;
before(async () => { gate = await start(); });
after(() => gate.close());

const tried = (role, password, more) => ask(gate, '/sign-in', { form: { role, password, ...more } });

test('a role signs in by its own password, and sees its pages', async () => {
  const response = await tried('boss', passwords.boss);
  assert.equal(response.status, 303);
  assert.equal(response.headers.location, '/admin');
  assert.match(response.headers['set-cookie'][0], /^kliv_mail=[\w-]{43}; Path=\/; HttpOnly; SameSite=Strict$/);
  const page = await ask(gate, '/admin', { cookie: cookieOf(response) });
  assert.equal(page.status, 200);
  assert.match(page.text, /boss/);
  assert.match(page.text, /action="\/sign-out"/);
});

test('nobody else does', async () => {
  for (const [role, password, status, says] of [
    ['boss', 'wrong', 403, /role or the password is wrong/], ['boss', `${passwords.boss} `, 403, /wrong/],
    ['nobody-of-that-name', 'x', 403, /wrong/], ['"boss"', passwords.boss, 403, /wrong/], ['boss', '', 422, /Give a role/], ['', 'x', 422, /Give a role/],
    ['x'.repeat(64), 'x', 422, /Give a role/], ['boss\0', passwords.boss, 422, /Give a role/], ['boss', 'x'.repeat(1001), 422, /Give a role/],
    // Whom the server lets in without a password, or asks for it in clear or by MD5.
    ['trusted', 'x', 403, /did not ask for a SCRAM password/], ['clear', 'CANARY-in-clear', 403, /SCRAM/], ['older', 'CANARY-in-md5', 403, /SCRAM/],
    [process.env.KLIV_MAIL_TEST_SUPERUSER, 'x', 403, /SCRAM/],
    ['outsider', passwords.outsider, 403, /may not look at mail/]]) {
    const response = await tried(role, password);
    assert.equal(response.status, status, `${role}: ${response.status}`);
    assert.match(response.text, says, role);
    assert.equal(response.headers['set-cookie'], undefined, role);
    assert.equal(response.text.includes('CANARY'), false, `${role}: the password comes back`);
  }
});

test('what a wrong answer says is the same for a role that there is and one that there is not', async () => {
  const [one, other] = [await tried('boss', 'wrong'), await tried('bosz', 'wrong')];
  assert.equal(one.text.replaceAll('boss', ''), other.text.replaceAll('bosz', ''));
});

test('a password of a role that it does not fit is not kept', async () => {
  assert.equal(gate.log.join('').includes('CANARY'), false);
});

test('an id that a client brings along is not taken', async () => {
  const mine = `kliv_mail=${'A'.repeat(43)}`;
  const response = await ask(gate, '/sign-in', { form: { role: 'boss', password: passwords.boss }, cookie: mine });
  assert.notEqual(cookieOf(response), mine);
  assert.equal((await ask(gate, '/admin', { cookie: mine })).status, 303);
  // Signing in anew ends the session that there was.
  const next = await ask(gate, '/sign-in', { form: { role: 'boss', password: passwords.boss }, cookie: cookieOf(response) });
  assert.equal((await ask(gate, '/admin', { cookie: cookieOf(response) })).status, 303);
  assert.equal((await ask(gate, '/admin', { cookie: cookieOf(next) })).status, 200);
});

test('signing out ends the session and its connection', async () => {
  const cookie = await signIn(gate, 'reader');
  const connected = () => sql("SELECT count(*)::integer FROM pg_stat_activity WHERE usename = 'reader'");
  assert.equal(await connected(), 1);
  const response = await ask(gate, '/sign-out', { form: {}, cookie });
  assert.equal(response.status, 303);
  assert.match(response.headers['set-cookie'][0], /^kliv_mail=; .*Expires=Thu, 01 Jan 1970/);
  assert.equal((await ask(gate, '/admin', { cookie })).headers.location, '/sign-in');
  await until('the connection is gone', async () => await connected() === 0);
});

test('who is not signed in goes to the page for it, and back', async () => {
  const response = await ask(gate, '/admin/messages?q=a%26b');
  assert.equal(response.status, 303);
  assert.equal(response.headers.location, '/sign-in?to=%2Fadmin%2Fmessages%3Fq%3Da%2526b');
  assert.equal((await tried('boss', passwords.boss, { to: '/admin/messages?q=a%26b' })).headers.location, '/admin/messages?q=a%26b');
  for (const to of ['//evil.example', 'https://evil.example/admin', '/\\evil.example', '/admin\\..\\\\evil.example', '/adminevil', '/sign-out', '/admin\r\nset-cookie: x=y', '/u/x', `/admin/${'x'.repeat(3000)}`])
    assert.equal((await tried('boss', passwords.boss, { to })).headers.location, '/admin', to);
});

test('a form without a session is not carried out', async () => {
  const response = await ask(gate, '/admin/pause', { form: { reason: 'x' } });
  assert.equal(response.status, 403);
  assert.match(response.text, /session has ended/);
});

test('a session ends when it is not used, when it is old, and when there are too many', async () => {
  const few = await start({ settings: { sessions: 2 } });
  const first = await signIn(few, 'boss');
  const second = await signIn(few, 'boss');
  assert.equal((await ask(few, '/admin/style.css', { cookie: first })).status, 200);
  const third = await signIn(few, 'boss');
  assert.equal((await ask(few, '/admin/style.css', { cookie: second })).status, 303, 'the one not used for longest');
  for (const cookie of [first, third]) assert.equal((await ask(few, '/admin/style.css', { cookie })).status, 200);
  await few.close();
  for (const settings of [{ sessionAge: 1 }, { sessionIdle: 1 }]) {
    const old = await start({ settings });
    const cookie = await signIn(old, 'boss');
    await until('it is over', async () => (await ask(old, '/admin', { cookie })).status === 303);
    assert.match(old.log.join(''), /"event":"session ended","role":"boss","why":"expired"/);
    await old.close();
  }
});

test('a session ends with its connection', async () => {
  const cookie = await signIn(gate, 'reader');
  await sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'");
  await until('it has ended', async () => (await ask(gate, '/admin', { cookie })).status === 303);
});

test('a connection that goes without a word is asked for soon', async (t) => {
  const delays = [];
  const { setKeepAlive } = net.Socket.prototype;
  t.mock.method(net.Socket.prototype, 'setKeepAlive', function (on, delay) { delays.push(on && delay); return setKeepAlive.call(this, on, delay); });
  const proxy = net.createServer((socket) => {
    const server = net.connect(`${process.env.PGHOST}/.s.PGSQL.${process.env.PGPORT}`);
    for (const [one, other] of [[socket, server], [server, socket]]) one.on('error', () => other.destroy()).pipe(other);
  });
  await new Promise((resolve) => { proxy.listen(0, '127.0.0.1', resolve); });
  const far = await start({ settings: { database: { host: '127.0.0.1', port: proxy.address().port } } });
  assert.equal((await ask(far, '/health')).status, 200);
  await signIn(far, 'boss');
  await far.close();
  proxy.close();
  assert.deepEqual(delays.filter((delay) => delay === 15_000).length, 2, String(delays));
});

test('a session is as long as the gateway says, whatever the role or the server says of idle ones', async () => {
  await sql("ALTER ROLE reader SET idle_session_timeout = '500ms'");
  const cookie = await signIn(gate, 'reader');
  await sql('ALTER ROLE reader RESET idle_session_timeout');
  await sql('SELECT pg_sleep(1)');
  assert.equal((await ask(gate, '/admin', { cookie })).status, 200);
});

test('who follows another site\'s link comes to the page by a link of ours, which brings the cookie along', async () => {
  const cookie = await signIn(gate, 'boss');
  const headers = { 'sec-fetch-site': 'cross-site' };
  const first = await ask(gate, '/admin/messages?q=a&lang=ja', { headers });
  assert.equal(first.status, 303);
  const second = await ask(gate, first.headers.location, { headers });
  assert.equal(second.status, 200);
  const [, on] = /<meta http-equiv="refresh" content="0; url=([^"]*)">/.exec(second.text);
  const third = await ask(gate, on.replaceAll('&#38;', '&'), { cookie });
  assert.equal(third.headers.location, '/admin/messages?q=a&lang=ja');
  // Once, whatever the browser says: who is not signed in is asked.
  assert.match((await ask(gate, on.replaceAll('&#38;', '&'), { headers })).text, /name="password"/);
});

test('what the role loses in the database it has lost at once', async () => {
  const cookie = await signIn(gate, 'reader');
  assert.equal((await ask(gate, '/admin', { cookie })).status, 200);
  await sql("SELECT kliv_mail.revoke_access('reader')");
  const response = await ask(gate, '/admin', { cookie });
  await sql("SELECT kliv_mail.grant_read('reader')");
  assert.equal(response.status, 403);
});

test('behind TLS the cookie is this host\'s alone, and browsers keep to TLS', async () => {
  const safe = await start({ settings: { origin: 'https://mail.example.com' } });
  const response = await ask(safe, '/sign-in', { form: { role: 'boss', password: passwords.boss } });
  assert.match(response.headers['set-cookie'][0], /^__Host-kliv_mail=[\w-]{43}; Path=\/; HttpOnly; Secure; SameSite=Strict$/);
  assert.match(response.headers['strict-transport-security'], /^max-age=\d+$/);
  assert.equal((await ask(safe, '/admin', { cookie: cookieOf(response).replace('__Host-', '') })).status, 303);
  await safe.close();
});

test('settings that cannot be meant are refused', () => {
  for (const [name, value, says] of [
    ['LISTEN', '8025', /is not an address and a port/], ['LISTEN', '0.0.0.0:8025', /ORIGIN: is needed/], ['ORIGIN', 'mail.example.com', /not an origin/],
    ['ORIGIN', 'https://mail.example.com/mail', /not an origin/], ['ORIGIN', 'http://mail.example.com', /in clear/], ['SESSIONS', '0', /from 1 to/], ['POOL', 'x', /not a number/]])
    assert.throws(() => configure({ [`KLIV_MAIL_WEB_${name}`]: value }), says, `${name}=${value}`);
  assert.equal(configure({ KLIV_MAIL_WEB_LISTEN: '0.0.0.0:80', KLIV_MAIL_WEB_ORIGIN: 'https://mail.example.com' }).listen.host, '0.0.0.0');
});

test('the page to sign in speaks English and Japanese', async () => {
  const page = async (language, path = '/sign-in') => (await ask(gate, path, { headers: { 'accept-language': language } })).text;
  assert.match(await page('ja,en;q=0.5'), /<html lang="ja">[^]*サインイン/);
  assert.match(await page('de,en;q=0.2,ja;q=0.1'), /<html lang="en">/);
  assert.match(await page('ja;q=0'), /<html lang="en">/);
  assert.match(await page('en', '/sign-in?lang=ja&to=%2Fadmin%2Fevents'), /<html lang="ja">[^]*value="\/admin\/events"/);
});

test('a language that was chosen goes along with who signs in, and comes back with who has to again', async () => {
  const headers = { 'accept-language': 'en' };
  const chosen = await ask(gate, '/sign-in?lang=ja', { form: { role: 'boss', password: passwords.boss, to: '/admin/messages?subject=x' }, headers });
  assert.equal(chosen.headers.location, '/admin/messages?subject=x&lang=ja');
  const page = await ask(gate, chosen.headers.location, { cookie: cookieOf(chosen), headers });
  assert.match(page.text, /<html lang="ja">/);
  const kept = cookieOf(page);
  assert.equal(kept, 'kliv_mail_language=ja');
  const again = await ask(gate, '/admin', { cookie: kept, headers });
  assert.equal(again.headers.location, '/sign-in?lang=ja');
  assert.match((await ask(gate, again.headers.location, { headers })).text, /<html lang="ja">[^]*action="\/sign-in\?lang=ja"/);
  assert.match((await ask(gate, '/admin/pause', { form: {}, cookie: kept, headers })).text, /<html lang="ja">/);
  // Nobody chose: the browser goes on being asked.
  assert.match((await ask(gate, '/sign-in', { headers })).text, /action="\/sign-in"/);
  assert.equal((await ask(gate, '/sign-in?lang=ja', { form: { role: 'boss', password: passwords.boss, to: '/admin?lang=en' }, headers })).headers.location, '/admin?lang=en');
});

test('a role that signs in again and again pushes out its own sessions, nobody else\'s', async () => {
  const few = await start({ settings: { sessions: 3 } });
  const boss = await signIn(few, 'boss');
  const readers = [];
  for (let n = 0; n < 4; n++) readers.push(await signIn(few, 'reader'));
  const statuses = [];
  for (const cookie of [boss, ...readers]) statuses.push((await ask(few, '/admin/style.css', { cookie })).status);
  await few.close();
  assert.deepEqual(statuses, [200, 303, 303, 200, 200]);
});
