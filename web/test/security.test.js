// What people and programs may try from outside.
//
// Copyright (c) 2026, the kliv_mail developers
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import net from 'node:net';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ask, cookieOf, passwords, raw, serverLog, signIn, sql, start, until } from './helper.js';

let gate;
let boss;
before(async () => {
  gate = await start();
  boss = await signIn(gate, 'boss');
});
after(() => gate.close());

const paused = () => sql("SELECT count(*)::integer FROM kliv_mail.events WHERE kind = 'paused'");

test('a form of another site changes nothing', async () => {
  const before = await paused();
  const { origin } = gate;
  for (const headers of [{}, { origin: 'https://evil.example' }, { origin: 'null' }, { origin: 'null', 'sec-fetch-site': 'same-origin' }, { origin: `${origin}.evil.example` }, { origin: origin.replace('http:', 'https:') },
    { origin, 'sec-fetch-site': 'cross-site' }, { origin, 'sec-fetch-site': 'same-site' }, { origin: 'https://evil.example', 'sec-fetch-site': 'same-origin' },
    { referer: `${origin}/admin` }, { origin: '' }]) {
    const response = await ask(gate, '/admin/pause', { form: { account: 'platform', reason: 'evil' }, cookie: boss, own: false, headers });
    assert.equal(response.status, 403, JSON.stringify(headers));
    const signedIn = await ask(gate, '/sign-in', { form: { role: 'boss', password: passwords.boss }, own: false, headers });
    assert.equal(signedIn.status, 403, `sign-in ${JSON.stringify(headers)}`);
    assert.equal(signedIn.headers['set-cookie'], undefined);
  }
  assert.equal((await ask(gate, '/sign-out', { form: {}, cookie: boss, own: false, headers: { origin: 'https://evil.example' } })).status, 403);
  assert.equal((await ask(gate, '/admin/style.css', { cookie: boss })).status, 200, 'still signed in');
  // Kinds of body that a form can have, and one that it cannot.
  for (const type of ['text/plain', 'multipart/form-data; boundary=x', 'application/json', ''])
    assert.equal((await ask(gate, '/admin/pause', { body: 'account=platform', cookie: boss, headers: type ? { 'content-type': type } : {} })).status, 415, type);
  assert.equal(await paused(), before);
  // The page's own is carried out, in browsers of today and yesterday.
  for (const headers of [{ origin }, { origin, 'sec-fetch-site': 'same-origin' }, { 'sec-fetch-site': 'same-origin' }])
    assert.equal((await ask(gate, '/admin/pause', { form: { account: 'platform', reason: 'own' }, cookie: boss, own: false, headers })).status, 303, JSON.stringify(headers));
  assert.ok(await paused() > before);
  await sql('SELECT kliv_mail.resume()');
});

test('a link changes nothing', async () => {
  const before = await paused();
  await ask(gate, '/admin/pause?account=platform&reason=evil', { cookie: boss });
  await ask(gate, '/admin/pause?account=platform&reason=evil', { cookie: boss, method: 'HEAD' });
  assert.equal(await paused(), before);
});

test('another name for this address is not this site', async () => {
  for (const host of ['evil.example', `127.0.0.1.evil.example:${gate.port}`, `localhost:${gate.port}`, '127.0.0.1', `x@127.0.0.1:${gate.port}`, `127.0.0.1:${gate.port}/`])
    assert.equal((await ask(gate, '/admin', { cookie: boss, headers: { host } })).status, 421, host);
  assert.ok(gate.log.some((line) => line.includes(`"event":"host","host":"evil.example","expected":"127.0.0.1:${gate.port}"`)), 'the log says what came');
  // The same one as proxies may write it, also to the database, which compares it with Origin.
  const safe = await start({ settings: { origin: 'https://mail.example.com' } });
  const headers = { host: 'MAIL.example.com:443' };
  const cookie = cookieOf(await ask(safe, '/sign-in', { form: { role: 'boss', password: passwords.boss }, headers }));
  assert.equal((await ask(safe, '/admin/pause', { form: { account: 'platform', reason: 'own' }, cookie, headers })).status, 303);
  await sql('SELECT kliv_mail.resume()');
  await safe.close();
});

test('guessing passwords is limited by address and by role, and logged', async () => {
  const strict = await start({ limit: { attempts: 5, attemptsOfRole: 8 } });
  const guess = (n, localAddress) => ask(strict, '/sign-in', { form: { role: 'boss', password: `CANARY-guess-${n}` }, localAddress });
  const statuses = [];
  for (let n = 0; n < 6; n++) statuses.push((await guess(n, '127.0.0.1')).status);
  assert.deepEqual(statuses, [403, 403, 403, 403, 403, 429]);
  const limited = await ask(strict, '/sign-in', { form: { role: 'boss', password: passwords.boss } });
  assert.equal(limited.status, 429, 'the right password, too');
  assert.ok(Number(limited.headers['retry-after']) > 800);
  // From elsewhere: another role at once, this one until its own limit.
  const elsewhere = [];
  for (let n = 0; n < 4; n++) elsewhere.push((await guess(n, '127.0.0.2')).status);
  assert.deepEqual(elsewhere, [403, 403, 403, 429]);
  await signIn(strict, 'reader', { localAddress: '127.0.0.2' });
  // Many at once are no way around it.
  const crowd = await start({ limit: { attempts: 5, attemptsOfRole: 8, signIns: 4 } });
  const many = await Promise.all(Array.from({ length: 40 }, (_, n) => ask(crowd, '/sign-in', { form: { role: 'boss', password: `CANARY-${n}` } })));
  assert.ok(many.filter(({ status }) => status === 403).length <= 5);
  assert.equal(many.every(({ status }) => [403, 429, 503].includes(status)), true);
  const log = strict.log.join('');
  assert.match(log, /"event":"sign-in","role":"boss","address":"127\.0\.0\.1","outcome":"the role or its password is wrong"/);
  assert.match(log, /"event":"sign-in","role":"boss","address":"127\.0\.0\.1","outcome":"too many attempts","by":"address"/);
  assert.match(log, /"event":"sign-in","role":"boss","address":"127\.0\.0\.2","outcome":"too many attempts","by":"role"/);
  assert.equal((log + crowd.log.join('')).includes('CANARY'), false);
  await Promise.all([strict.close(), crowd.close()]);
});

test('an address is what the connection has, unless a proxy is trusted', async () => {
  const plain = await start({ limit: { attempts: 2 } });
  const statuses = [];
  for (let n = 0; n < 3; n++)
    statuses.push((await ask(plain, '/sign-in', { form: { role: 'boss', password: 'x' }, headers: { 'x-forwarded-for': `192.0.2.${n}` } })).status);
  assert.deepEqual(statuses, [403, 403, 429]);
  const proxied = await start({ settings: { trustProxy: ['127.0.0.1'] }, limit: { attempts: 2 } });
  statuses.length = 0;
  for (const address of ['192.0.2.1', '192.0.2.1', '192.0.2.1', '192.0.2.2', '2001:db8::1', '2001:db8::2', '2001:db8::ffff', '203.0.113.9, 192.0.2.1'])
    statuses.push((await ask(proxied, '/sign-in', { form: { role: 'boss', password: 'x' }, headers: { 'x-forwarded-for': address } })).status);
  assert.deepEqual(statuses, [403, 403, 429, 403, 403, 403, 429, 429]);
  await Promise.all([plain.close(), proxied.close()]);
});

test('no page can be framed, sniffed or kept', async () => {
  for (const [path, cookie] of [['/sign-in'], ['/admin', boss], ['/admin/settings', boss], ['/admin/pause', boss], ['/u/none'], ['/nothing']]) {
    const { headers } = await ask(gate, path, { cookie });
    assert.match(headers['content-security-policy'], /default-src 'none'.*frame-ancestors 'none'/, path);
    assert.doesNotMatch(headers['content-security-policy'], /unsafe|\*|script-src/, path);
    assert.equal(headers['x-frame-options'], 'DENY', path);
    assert.equal(headers['x-content-type-options'], 'nosniff', path);
    assert.match(headers['cache-control'], /no-store/, path);
    assert.match(headers['referrer-policy'], /same-origin|no-referrer/, path);
  }
});

test('a path has one spelling', async () => {
  for (const path of ['/admin/../hooks/sendgrid', '/admin//events', '//admin', '/admin/%2e%2e/u', '/admin/.', '/admin/..', '/admin/%2Fevents', '/admin%2fevents', '/admin/%5cx', '/admin/a\\b',
    '/Admin', '/ADMIN', '/%61dmin', '/admin/%00', '/admin/%0d%0aset-cookie:%20x=y', '/admin/%7f', '/admin/%zz', '/admin/%', '/hooks/../admin', '/u/../admin', '/u//admin', '/admin;x=y', '/administrator',
    '/hooks', '/.env', '/web/../../etc/passwd', 'http://evil.example/admin', '*', '/admin/\u00e9'.normalize()]) {
    const answer = await raw(gate, `GET ${path} HTTP/1.1\r\nHost: ${new URL(gate.origin).host}\r\nCookie: ${boss}\r\nConnection: close\r\n\r\n`);
    assert.match(answer, /^HTTP\/1\.1 (?:404|400) /, `${path}: ${answer.slice(0, 60)}`);
    assert.equal(/set-cookie: x/i.test(answer), false, path);
  }
});

test('only GET, HEAD and POST are understood', async () => {
  for (const method of ['PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE', 'PROPFIND'])
    assert.equal((await ask(gate, '/admin', { method, cookie: boss })).status, 405, method);
  const answer = await raw(gate, `CONNECT 127.0.0.1:5432 HTTP/1.1\r\nHost: 127.0.0.1:5432\r\n\r\n`);
  assert.doesNotMatch(answer, /^HTTP\/1\.1 200/);
  const upgrade = await raw(gate, `GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n`);
  assert.doesNotMatch(upgrade, /^HTTP\/1\.1 101/);
});

test('two framings of a request are no way to smuggle another', async () => {
  const host = `Host: ${new URL(gate.origin).host}\r\n`;
  const second = `POST /hooks/smuggled HTTP/1.1\r\n${host}Content-Length: 0\r\n\r\n`;
  const chunked = `0\r\n\r\n${second}`;
  const cases = {
    'both a length and chunks': `Content-Length: ${chunked.length}\r\nTransfer-Encoding: chunked\r\n`,
    'chunks, then a length': `Transfer-Encoding: chunked\r\nContent-Length: ${chunked.length}\r\n`,
    'two lengths': `Content-Length: 0\r\nContent-Length: ${chunked.length}\r\n`,
    'a list of lengths': `Content-Length: 0, ${chunked.length}\r\n`,
    'a length with a sign': `Content-Length: +${chunked.length}\r\n`,
    'an encoding that is none': `Content-Length: ${chunked.length}\r\nTransfer-Encoding: xchunked\r\n`,
    'an encoding in another case, before a tab': `Content-Length: ${chunked.length}\r\nTransfer-Encoding:\tChunked\r\n`,
    'an encoding twice': `Content-Length: ${chunked.length}\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n`,
    'chunked not last': 'Transfer-Encoding: chunked, identity\r\n',
    'a space before the colon': `Content-Length: ${chunked.length}\r\nTransfer-Encoding : chunked\r\n`,
    'a folded header': `Content-Length: ${chunked.length}\r\nX: y\r\n Transfer-Encoding: chunked\r\n`,
    'a bare line feed': `Content-Length: ${chunked.length}\r\nX: y\nTransfer-Encoding: chunked\r\n`
  };
  for (const [name, framing] of Object.entries(cases)) {
    const from = gate.log.length;
    const answer = await raw(gate, `POST /hooks/first HTTP/1.1\r\n${host}${framing}\r\n${chunked}`);
    const answers = answer.match(/HTTP\/1\.1 \d+/g) ?? [];
    assert.ok(answers.length <= 1, `${name}: ${answers}`);
    assert.equal(gate.log.slice(from).join('').includes('/hooks/smuggled'), false, name);
  }
  for (const [name, body] of [['a chunk that is shorter than it says', '5\r\nabc\r\n0\r\n\r\n'], ['a size that is none', 'zz\r\nabc\r\n0\r\n\r\n'], ['a size with an underscore', '1_0\r\nx\r\n0\r\n\r\n'],
    ['an extension with a line feed', `1;a=\nb\r\nx\r\n0\r\n\r\n`]]) {
    const from = gate.log.length;
    await raw(gate, `POST /hooks/first HTTP/1.1\r\n${host}Transfer-Encoding: chunked\r\n\r\n${body}${second}`);
    assert.equal(gate.log.slice(from).join('').includes('/hooks/smuggled'), false, name);
  }
  // What is well framed twice is two requests.
  const fine = await raw(gate, `${second}${second.replace('\r\n\r\n', '\r\nConnection: close\r\n\r\n')}`);
  assert.equal((fine.match(/HTTP\/1\.1 \d+/g) ?? []).length, 2);
});

test('25 MB are refused before they are read, on every path', async () => {
  const before = process.memoryUsage().rss;
  const size = 25 * 1024 * 1024;
  const push = (path, extra, chunked) => new Promise((resolve) => {
    let answer = '';
    let sent = 0;
    const piece = Buffer.alloc(64 * 1024, 'a=1&');
    const socket = net.connect(gate.port, '127.0.0.1', () => {
      socket.write(`POST ${path} HTTP/1.1\r\nHost: ${new URL(gate.origin).host}\r\nOrigin: ${gate.origin}\r\nContent-Type: application/x-www-form-urlencoded\r\n${extra}`
        + `${chunked ? 'Transfer-Encoding: chunked' : `Content-Length: ${size}`}\r\n\r\n`);
      const more = () => {
        while (sent < size && !socket.destroyed) {
          sent += piece.length;
          if (chunked) socket.write(`${piece.length.toString(16)}\r\n`);
          const room = socket.write(piece);
          if (chunked) socket.write('\r\n');
          if (!room) return socket.once('drain', more);
        }
        return undefined;
      };
      more();
    });
    socket.on('data', (part) => { answer += part; });
    socket.on('error', () => {});
    socket.on('close', () => resolve({ status: Number(/^HTTP\/1\.1 (\d+)/.exec(answer)?.[1]), sent }));
    setTimeout(() => socket.destroy(), 30_000).unref();
  });
  for (const [path, extra, expected] of [['/hooks/sendgrid', '', 413], ['/u/token', '', 413], ['/sign-in', '', 413], ['/admin/templates/edit', `Cookie: ${boss}\r\n`, 413], ['/admin/pause', '', 403], ['/nothing', '', 404]])
    for (const chunked of [false, true]) {
      const { status, sent } = await push(path, extra, chunked);
      // A connection that is closed on whoever goes on writing may lose the answer.
      assert.ok(status === expected || Number.isNaN(status), `${path}: ${status}`);
      assert.ok(sent < size, `${path}: ${sent} bytes were taken`);
    }
  assert.ok(process.memoryUsage().rss - before < 150 * 1024 * 1024);
  assert.equal((await ask(gate, '/health')).status, 200);
});

test('headers have a limit', async () => {
  const answer = await raw(gate, `GET /health HTTP/1.1\r\nHost: x\r\nX: ${'y'.repeat(20_000)}\r\n\r\n`);
  assert.match(answer, /^HTTP\/1\.1 431 /);
});

test('slow clients are let go', async () => {
  const quick = await start({ limit: { headersTimeout: 500, requestTimeout: 1000, checkConnections: 100 } });
  const slowly = (text, rest) => new Promise((resolve) => {
    const began = Date.now();
    const socket = net.connect(quick.port, '127.0.0.1', () => socket.write(text));
    const timer = setInterval(() => socket.write(rest), 100);
    socket.on('data', () => {});
    socket.on('error', () => {});
    socket.on('close', () => { clearInterval(timer); resolve(Date.now() - began); });
  });
  const times = await Promise.all([slowly('', ''), slowly('GET /health HTTP/1.1\r\n', 'X: y\r\n'), slowly('GET /hea', 'x'),
    slowly('POST /hooks/sendgrid HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n', 'x'),
    slowly('POST /hooks/sendgrid HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n', '1\r\nx\r\n')]);
  for (const time of times) assert.ok(time < 20_000, `${times}`);
  assert.equal((await ask(quick, '/health')).status, 200);
  await quick.close();
});

// 10,000 in make browser, if this process may have so many files.
test('idle connections in their thousands keep nobody out', { timeout: 300_000 }, async (t) => {
  const files = Number(process.env.KLIV_MAIL_TEST_FILES);
  const count = Math.min(Number(process.env.KLIV_MAIL_TEST_CROWD || 1000), files - 500);
  const busy = await start({ limit: { headersTimeout: 120_000 } });
  const crowd = spawn(process.execPath, [fileURLToPath(new URL('crowd.js', import.meta.url)), busy.port, count], { stdio: ['pipe', 'pipe', 'inherit'] });
  assert.equal(String(await new Promise((resolve) => { crowd.stdout.once('data', resolve); })), 'ready\n');
  await until('all are accepted', () => new Promise((resolve) => { busy.app.server.getConnections((error, open) => resolve(open === count)); }));
  const began = Date.now();
  const cookie = await signIn(busy, 'boss');
  assert.equal((await ask(busy, '/admin', { cookie })).status, 200);
  assert.equal((await ask(busy, '/health')).status, 200);
  t.diagnostic(`${count} connections; signing in and two pages meanwhile: ${Date.now() - began} ms`);
  assert.ok(Date.now() - began < 15_000);
  crowd.stdin.end();
  // Of one address they are few.
  const own = Array.from({ length: 300 }, () => net.connect({ port: busy.port, host: '127.0.0.1', localAddress: '127.0.0.9' }));
  let refused = 0;
  for (const socket of own) socket.on('error', () => {}).on('close', () => { refused++; });
  await until('those above the limit are closed', () => refused === 100);
  for (const socket of own) socket.destroy();
  await busy.close();
});

test('idle connections end by themselves', async () => {
  const quick = await start({ limit: { headersTimeout: 300, checkConnections: 100, keepAliveTimeout: 300 } });
  const sockets = Array.from({ length: 50 }, () => net.connect(quick.port, '127.0.0.1'));
  let closed = 0;
  for (const socket of sockets) socket.on('error', () => {}).on('data', () => {}).on('close', () => { closed++; });
  await until('all are closed', () => closed === 50);
  await quick.close();
});

test('a password that is typed into a form is in no response, no log and no URL, and works', async () => {
  const secret = 'CANARY-of-smtp';
  const form = { account: 'custom', host: 'localhost', port: process.env.KLIV_MAIL_TEST_SMTP, encryption: 'tls', username: 'app@shop.example', from_address: 'app@shop.example' };
  const answers = [];
  for (const fields of [{ password: `${secret}-wrong` }, { password: secret, port: 'x' }, { password: secret, host: '' }, { password: secret, from_name: 'a\nb' }, { password: secret }]) {
    const response = await ask(gate, '/admin/settings/new/other', { form: { ...form, ...fields }, cookie: boss });
    answers.push(response.status);
    assert.equal(`${response.text}${JSON.stringify(response.headers)}`.includes('CANARY'), false, JSON.stringify(fields));
  }
  assert.deepEqual(answers, [422, 422, 422, 422, 303], gate.log.filter((line) => line.includes('"failed"')).join('').slice(0, 2000));
  assert.equal(await sql("SELECT status FROM kliv_mail.smtp_settings WHERE account = 'custom'"), 'ok');
  // A name in disguise, and two of a name.
  for (const body of [new URLSearchParams({ ...form, PASSWORD: 'x' }).toString().replace('PASSWORD', 'pass%77ord').replace('=x', `=${secret}`), `${new URLSearchParams(form)}&password=${secret}&password=${secret}`])
    assert.equal((await ask(gate, '/admin/settings/new/other', { body, headers: { 'content-type': 'application/x-www-form-urlencoded' }, cookie: boss })).status, 303);
  await sql("SELECT kliv_mail.reset_smtp()");
  const bytes = `CANARY|${Buffer.from('CANARY').toString('hex')}|${Buffer.from('CANARY').toString('base64').slice(0, 7)}`;
  assert.doesNotMatch(gate.log.join(''), new RegExp(bytes, 'i'));
  assert.doesNotMatch(serverLog(), new RegExp(bytes, 'i'));
});

test('a reader looks and changes nothing; who only hands webhooks in looks at nothing', async () => {
  const reader = await signIn(gate, 'reader');
  const pages = ['/admin', '/admin/settings', '/admin/messages', '/admin/suppressions', '/admin/topics', '/admin/templates', '/admin/events', '/admin/health'];
  for (const path of pages) assert.equal((await ask(gate, path, { cookie: reader })).status, 200, path);
  const changes = { '/admin/pause': { account: 'platform' }, '/admin/resume': {}, '/admin/suppressions': { address: 'x@example.com', scope: 'all' }, '/admin/topics': { name: 'x', title: 'x' },
    '/admin/sender': { account: 'custom', from_address: 'x@example.com' }, '/admin/limits': { account: 'custom', hourly_limit: '1', daily_limit: '1' }, '/admin/settings/reset': { account: 'custom' },
    '/admin/settings/test': { account: 'platform' }, '/admin/settings/new/other': { host: 'localhost', password: 'x' }, '/admin/templates': { locale: '' },
    '/admin/templates/edit': { name: 'x', subject: 'x', body: 'x' }, '/admin/templates/publish': { name: 'x' }, '/admin/templates/delete': { name: 'x' },
    '/admin/messages/1/retry': {}, '/admin/messages/1/cancel': {} };
  const count = () => sql('SELECT count(*)::integer FROM kliv_mail._event');
  const before = await count();
  for (const [path, form] of Object.entries(changes)) assert.equal((await ask(gate, path, { form, cookie: reader })).status, 403, path);
  assert.equal(await count(), before);
  const hooks = await signIn(gate, 'hooks');
  for (const path of pages) assert.equal((await ask(gate, path, { cookie: hooks })).status, 403, path);
  for (const [path, form] of Object.entries(changes)) assert.equal((await ask(gate, path, { form, cookie: hooks })).status, 403, path);
});
