/*
 * nodemailer_mail.js HOST PORT USER: nodemailer's mail through adapters/kliv_mail_nodemailer.js, by pg and by postgres.js.
 *
 * A password reset in a transaction that commits and in one that rolls back, and a mail with everything.
 *
 * Copyright (c) 2026, the kliv_mail developers
 */
'use strict';

const assert = require('assert');
const crypto = require('crypto');
const nodemailer = require('nodemailer');
const { Pool } = require('pg');
const postgres = require('postgres');
const klivMail = require(process.env.KLIV_MAIL_ADAPTER);

const [host, port, user] = process.argv.slice(2);
const pool = new Pool({ host, port, user, database: 'postgres' });
const sql = postgres({ host, port, user, database: 'postgres' });
const transporter = nodemailer.createTransport(klivMail(pool), { from: 'App <app@example.com>' });

async function resetPassword(address, fails) {
  const client = await pool.connect();
  try {
    await client.query('BEGIN');
    const token = crypto.randomBytes(16).toString('hex');
    await client.query('INSERT INTO node_tokens VALUES ($1, $2)', [address, token]);
    await transporter.sendMail({ to: address, subject: 'Your new password', text: `https://app.example/reset?token=${token}`, client });
    if (fails) throw new Error('the request fails');
    await client.query('COMMIT');
  } catch (error) {
    await client.query('ROLLBACK');
  } finally {
    client.release();
  }
}

async function main() {
  await pool.query('CREATE TABLE node_tokens (address text PRIMARY KEY, token text)');
  await resetPassword('node-kept@example.com', false);
  await resetPassword('node-lost@example.com', true);

  const info = await transporter.sendMail({
    from: '"山田, 太郎" <app@example.com>', to: ['node-all@example.com', { name: '花子', address: 'hanako@example.com' }],
    cc: 'cc@example.com', bcc: 'node-bcc@example.com', replyTo: 'help@example.com', subject: '領収書 No. 7',
    text: 'お買い上げ', html: '<p>お買い上げ <img src="cid:logo"></p>', headers: [{ key: 'X-Order', value: 7 }], priority: 'high',
    list: { unsubscribe: 'https://app.example/leave' },
    attachments: [
      { filename: '売上.csv', content: '品名,金額\n煎茶,3\n' },
      { filename: 'bytes.bin', content: Buffer.from(Array.from({ length: 256 }, (_, i) => i)) },
      { content: 'JVBERi0xLjQ=', encoding: 'base64', contentType: 'application/pdf' },
      { filename: 'logo.png', content: Buffer.from('89504e470d0a1a0a', 'hex'), cid: 'logo' }
    ],
    klivMail: { tags: ['receipt'], idempotency_key: 'receipt-node' }
  });
  assert.match(info.id, /^\d+$/);
  await transporter.sendMail({ to: 'node-html@example.com', subject: 'HTML', html: '<p>only <b>HTML</b></p>' ,
    attachments: [{ filename: 'empty.txt', content: '' }, { filename: 'empty.bin', content: Buffer.alloc(0) }] });

  const own = nodemailer.createTransport(klivMail({ query: (text, values) => sql.unsafe(text, values) }));
  await own.sendMail({ to: 'node-plain@example.com', subject: 'Plain', text: 'by postgres.js' });

  await assert.rejects(transporter.sendMail({ to: 'no address', subject: 's', text: 'b' }), /mail address|recipients/);
  await assert.rejects(transporter.sendMail({ to: 'a@example.com', subject: 's', text: 'b', icalEvent: 'BEGIN:VCALENDAR' }), /icalEvent/);
  await assert.rejects(transporter.sendMail({ to: 'a@example.com', subject: 's', text: 'b', attachments: [{ raw: 'Content-Type: text/plain\r\n\r\nx' }] }), /no content/);
  await assert.rejects(transporter.sendMail({ to: 'a@example.com', subject: 's', text: 'b', headers: { 'X-A': ['1', '2'] } }), /once/);
  await pool.end();
  await sql.end();
  console.log('ok');
}

main().catch(error => {
  console.error(error);
  process.exit(1);
});
