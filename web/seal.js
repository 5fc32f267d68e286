// seal.js: a form's password becomes a box that only this database opens, and only for
// the account and the host it was typed for, before anything of it enters SQL.
//
// Copyright (c) 2026, the kliv_mail developers
import { createRequire } from 'node:module';

// Its module for import needs Node 20.
const sodium = createRequire(import.meta.url)('libsodium-wrappers');

// body: a form's bytes.  sealing(fields): {key, host}.  Gives the bytes to hand on: of
// a field `password` nothing is left, of one that is not empty `password_sealed` is there.
export async function sealed(body, sealing) {
  const fields = new URLSearchParams(body.toString());
  if (!fields.has('password')) return body;
  const passwords = fields.getAll('password').filter((password) => password !== '');
  fields.delete('password');
  if (passwords.length > 0) {
    await sodium.ready;
    const account = fields.get('account') || 'custom';
    const field = (name) => fields.get(name) || null;
    const { key, host } = await sealing({ account, provider: field('provider'), region: field('region'), host: field('host') });
    // Where no host can be told, configure_smtp() says what is missing before it opens the box.
    const box = sodium.crypto_box_seal(`${account}\n${host ?? ''}\n${passwords.at(-1)}`, key);
    fields.set('password_sealed', Buffer.from(box).toString('base64'));
  }
  return Buffer.from(fields.toString());
}
