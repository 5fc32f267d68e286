/*
 * kliv_mail_nodemailer: nodemailer's mail through kliv_mail, in the transaction that sends it.
 *
 *	const transporter = nodemailer.createTransport(klivMail(pool));
 *	await transporter.sendMail({ to, subject, text, client });
 *
 * pool is one of pg, or anything with its query(text, values).  client is the
 * connection whose transaction the mail belongs to: it is queued when that commits,
 * and never when it rolls back; without one, at once.  What send() knows and
 * nodemailer does not goes into klivMail: { idempotency_key: 'welcome-41' }.
 *
 * Copyright (c) 2026, the kliv_mail developers
 */
'use strict';

const REFUSED = ['raw', 'envelope', 'sender', 'alternatives', 'icalEvent', 'amp', 'watchHtml', 'messageId', 'date', 'dkim', 'dsn'];
const PRIORITY = { high: { Importance: 'high', 'X-Priority': '1' }, low: { Importance: 'low', 'X-Priority': '5' } };

function klivMail(pool) {
  return {
    name: 'kliv_mail',
    version: '1',
    send(mail, callback) {
      queue(pool, mail).then(info => callback(null, info), callback);
    }
  };
}

async function queue(pool, mail) {
  const client = mail.data.client || pool;
  const refused = REFUSED.find(name => mail.data[name]);
  if (refused) throw new Error(`kliv_mail does not send "${refused}"`);
  mail.data.headers = headersOf(mail.data.headers);
  const data = await new Promise((resolve, reject) => mail.normalize((error, value) => (error ? reject(error) : resolve(value))));
  const object = {
    from: data.from || null,
    to: data.to || [],
    cc: data.cc || [],
    bcc: data.bcc || [],
    reply_to: data.replyTo || [],
    subject: data.subject || '',
    text: data.text,
    html: data.html,
    headers: { ...PRIORITY[String(data.priority || '').toLowerCase()], ...data.normalizedHeaders },
    attachments: (data.attachments || []).map(fileOf),
    ...data.klivMail
  };
  // As a text: a driver that knows the type jsonb would make JSON of it once more.
  const result = await client.query('SELECT kliv_mail.send($1::text::jsonb) AS id', [JSON.stringify(object)]);
  const id = String((result.rows || result)[0].id);
  return { id, envelope: data.envelope, response: `queued as message ${id}` };
}

// One value for each name, as an object.
function headersOf(headers) {
  const entries = Array.isArray(headers) ? headers.map(({ key, value }) => [key, value]) : Object.entries(headers || {});
  const object = {};
  for (const [name, given] of entries) {
    const values = [].concat(given).map(value => (value && value.value) || value);
    if (values.length > 1 || name in object) throw new Error(`kliv_mail sends the header "${name}" once`);
    object[name] = String(values[0]);
  }
  return object;
}

function fileOf(file) {
  // Of an empty file nodemailer gives the whole object as content.
  const empty = file.content && typeof file.content === 'object' && file.content.content === '';
  const content = empty ? '' : file.content;
  if (file.raw || typeof content !== 'string') throw new Error(`kliv_mail does not attach "${file.filename}": it has no content`);
  const about = { filename: file.filename, content_type: file.contentType, content_id: file.cid };
  if (file.encoding === 'base64') return { ...about, content };
  if (/^text\//.test(file.contentType) && !file.cid) return { ...about, text: content };
  return { ...about, content: Buffer.from(content).toString('base64') };
}

module.exports = klivMail;
