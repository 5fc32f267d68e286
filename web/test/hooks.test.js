// Webhooks of the five providers, and what happens to one while the database is down.
//
// Copyright (c) 2026, the kliv_mail developers
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { ask, server, serverLog, signIn, sql, start, until } from './helper.js';

let gate;
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'kliv_mail_hooks_'));
const ec = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
const svix = crypto.randomBytes(24);
const topic = 'arn:aws:sns:eu-west-1:123456789012:mail';

before(async () => {
  gate = await start();
  execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', `${folder}/key.pem`, '-out', `${folder}/cert.pem`, '-subj', '/CN=sns.amazonaws.com', '-days', '2'], { stdio: 'ignore' });
  await sql('SELECT kliv_mail.configure_webhook($1, public_key => $2)', ['sendgrid', ec.publicKey.export({ type: 'spki', format: 'der' }).toString('base64')]);
  await sql('SELECT kliv_mail.configure_webhook($1, topic_arn => $2, certificate => $3)', ['ses', topic, fs.readFileSync(`${folder}/cert.pem`, 'utf8')]);
  await sql('SELECT kliv_mail.configure_webhook($1, secret => $2)', ['mailgun', 'mailgun-signing-key']);
  await sql('SELECT kliv_mail.configure_webhook($1, secret => $2)', ['resend', `whsec_${svix.toString('base64')}`]);
  await sql('SELECT kliv_mail.configure_webhook($1, secret => $2)', ['postmark', 'hook:CANARY-hook']);
});
after(async () => {
  await gate.close();
  fs.rmSync(folder, { recursive: true });
});

// A mail that the server took: {recipient, id (of the delivery), header (its Message-ID)}.
async function sent(recipient) {
  const message = await sql('SELECT kliv_mail.send($1, $2, $3)', [recipient, 'Receipt', 'x']);
  await until('it is sent', async () => await sql("SELECT status = 'sent' FROM kliv_mail.deliveries WHERE message_id = $1", [message]));
  return {
    recipient,
    message,
    id: await sql('SELECT id::text FROM kliv_mail._delivery WHERE message_id = $1', [message]),
    header: await sql('SELECT header_id FROM kliv_mail._message WHERE id = $1', [message])
  };
}
const state = (mail) => sql("SELECT concat_ws(' ', status, bounce_type) FROM kliv_mail.deliveries WHERE message_id = $1", [mail.message]);

// How each provider says that a mail bounced: {headers, body}.
const bounce = {
  sendgrid({ recipient, id, header }) {
    const body = `${JSON.stringify([{ email: recipient, event: 'bounce', type: 'bounce', status: '5.1.1', reason: '550 5.1.1 unknown', sg_event_id: `b-${recipient}`, kliv_mail: id, 'smtp-id': header }])}\r\n`;
    const time = String(Math.floor(Date.now() / 1000));
    return { body, headers: { 'content-type': 'application/json', 'X-Twilio-Email-Event-Webhook-Timestamp': time,
      'X-Twilio-Email-Event-Webhook-Signature': crypto.sign('sha256', Buffer.from(time + body), ec.privateKey).toString('base64') } };
  },
  mailgun({ recipient, header }) {
    const timestamp = String(Math.floor(Date.now() / 1000));
    const token = crypto.randomBytes(25).toString('hex');
    return { headers: { 'content-type': 'application/json' }, body: JSON.stringify({
      signature: { timestamp, token, signature: crypto.createHmac('sha256', 'mailgun-signing-key').update(timestamp + token).digest('hex') },
      'event-data': { event: 'failed', severity: 'permanent', recipient, message: { headers: { 'message-id': header.replace(/[<>]/g, '') } }, 'delivery-status': { code: 550, 'enhanced-code': '5.1.1', message: '5.1.1 unknown' } }
    }) };
  },
  ses({ recipient, header }) {
    const message = { Type: 'Notification', MessageId: crypto.randomUUID(), TopicArn: topic, Timestamp: new Date().toISOString(), SignatureVersion: '2',
      Message: JSON.stringify({ eventType: 'Bounce', mail: { messageId: 'x', destination: [recipient], headers: [{ name: 'Message-ID', value: header }] },
        bounce: { bounceType: 'Permanent', bounceSubType: 'General', bouncedRecipients: [{ emailAddress: recipient, status: '5.1.1', diagnosticCode: 'smtp; 550 5.1.1 user unknown' }] } }) };
    const text = ['Message', 'MessageId', 'Timestamp', 'TopicArn', 'Type'].map((name) => `${name}\n${message[name]}\n`).join('');
    message.Signature = crypto.sign('sha256', Buffer.from(text), fs.readFileSync(`${folder}/key.pem`)).toString('base64');
    message.SigningCertURL = 'https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-abc.pem';
    return { headers: { 'content-type': 'text/plain; charset=UTF-8', 'x-amz-sns-message-type': 'Notification' }, body: JSON.stringify(message) };
  },
  postmark({ recipient, id }) {
    return { headers: { 'content-type': 'application/json', authorization: `Basic ${Buffer.from('hook:CANARY-hook').toString('base64')}` },
      body: JSON.stringify({ RecordType: 'Bounce', ID: Number(id), Type: 'HardBounce', Email: recipient, Metadata: { 'kliv-mail': id }, Details: 'smtp;550 5.1.1 unknown' }) };
  },
  resend({ recipient, header }) {
    const id = `msg_${crypto.randomBytes(8).toString('hex')}`;
    const time = String(Math.floor(Date.now() / 1000));
    const body = JSON.stringify({ type: 'email.bounced', data: { to: [recipient], headers: [{ name: 'Message-ID', value: header }], bounce: { type: 'Permanent', subType: 'General', message: '550 5.1.1 unknown' } } });
    return { body, headers: { 'content-type': 'application/json', 'svix-id': id, 'svix-timestamp': time, 'svix-signature': `v1,${crypto.createHmac('sha256', svix).update(`${id}.${time}.${body}`).digest('base64')}` } };
  }
};
const post = (provider, { headers, body }) => ask(gate, `/hooks/${provider}`, { headers, body, own: false });

for (const provider of Object.keys(bounce))
  test(`${provider}: a bounce that it reports suppresses the address`, async () => {
    const mail = await sent(`ana@${provider}.example`);
    const hook = bounce[provider](mail);
    for (const wrong of [{ ...hook, headers: { 'content-type': 'application/json' }, body: hook.body.replace(/"signature":"./, '"signature":"!').replace(/"Signature":"./, '"Signature":"!') }, { headers: {}, body: '{' }, { headers: hook.headers, body: '' }]) {
      const refused = await post(provider, wrong);
      assert.ok(refused.status === 401 || refused.status === 400, `${refused.status} ${refused.text}`);
    }
    assert.equal(await state(mail), 'sent');
    const response = await post(provider, hook);
    assert.equal(response.status, 200, response.text);
    assert.equal(await state(mail), 'bounced hard');
    assert.equal((await post(provider, hook)).status, 200, 'repeated');
    assert.equal(await sql('SELECT scope FROM kliv_mail.suppressions WHERE address = $1', [mail.recipient]), 'all');
  });

test('who posts to a provider that is not there, too much, or in another way', async () => {
  assert.equal((await ask(gate, '/hooks/nobody', { body: '{}' })).status, 404);
  assert.equal((await ask(gate, '/hooks/sendgrid')).status, 405);
  assert.equal((await ask(gate, '/hooks/sendgrid', { body: Buffer.alloc(1024 * 1024 + 1, ' ') })).status, 413);
  assert.equal((await ask(gate, '/hooks/sendgrid', { body: Buffer.alloc(900 * 1024, ' ') })).status, 401);
});

test('one that arrives while the database is down gets 503 and comes through at the repeat', async () => {
  const mail = await sent('down@sendgrid.example');
  const cookie = await signIn(gate, 'boss');
  const hook = bounce.sendgrid(mail);
  server('stop');
  try {
    const refused = await post('sendgrid', hook);
    assert.equal(refused.status, 503);
    assert.ok(Number(refused.headers['retry-after']) > 0);
    assert.equal((await ask(gate, '/health')).status, 503);
    const person = await ask(gate, '/sign-in', { form: { role: 'boss', password: 'x' }, headers: { 'accept-language': 'ja' } });
    assert.equal(person.status, 503);
    assert.match(person.text, /データベースに接続できません/);
    assert.equal((await ask(gate, '/u/token')).status, 503);
    assert.equal((await ask(gate, '/admin', { cookie })).status, 303, 'the session has ended with its connection');
  } finally {
    server('start');
  }
  assert.equal((await post('sendgrid', hook)).status, 200);
  assert.equal(await state(mail), 'bounced hard');
  await until('it is healthy again', async () => (await ask(gate, '/health')).status === 200);
});

test('one whose connection breaks while it is worked on gets 503, too', async () => {
  const mail = await sent('broken@sendgrid.example');
  const holder = sql("DO $$ BEGIN LOCK TABLE kliv_mail._report; PERFORM pg_sleep(3); END $$");
  await until('it is held', () => sql("SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'kliv_mail._report'::regclass AND mode = 'AccessExclusiveLock' AND granted)"));
  const pending = post('sendgrid', bounce.sendgrid(mail));
  await until('it waits', () => sql("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE usename = 'hooks' AND wait_event_type = 'Lock')"));
  await sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'hooks' AND wait_event_type = 'Lock'");
  assert.equal((await pending).status, 503);
  await holder;
  assert.equal((await post('sendgrid', bounce.sendgrid(mail))).status, 200);
  assert.equal(await state(mail), 'bounced hard');
});

test('neither log has a webhook\'s secret', () => {
  assert.doesNotMatch(gate.log.join(''), /CANARY|aG9vazpDQU5BUlkt/);
  // (configure_webhook() stands there, masked)
  assert.doesNotMatch(serverLog(), new RegExp(`CANARY-hook|aG9vazpDQU5BUlkt|${Buffer.from('CANARY-hook').toString('hex')}`, 'i'));
});
