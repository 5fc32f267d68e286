/*
 * node.js HOST PORT USER FILE: the mail in the file by pg and by postgres.js, as one parameter.
 *
 * Copyright (c) 2026, the kliv_mail developers
 */
'use strict';

const fs = require('fs');
const { Client } = require('pg');
const postgres = require('postgres');

async function main() {
  const [host, port, user, file] = process.argv.slice(2);
  const mail = JSON.parse(fs.readFileSync(file));
  const client = new Client({ host, port, user, database: 'postgres' });
  await client.connect();
  await client.query('SELECT kliv_mail.send($1)', [{ ...mail, to: ['pg@example.com'] }]);
  await client.end();
  const sql = postgres({ host, port, user, database: 'postgres' });
  await sql`SELECT kliv_mail.send(${{ ...mail, to: ['postgresjs@example.com'] }})`;
  await sql.end();
}

main().catch(error => {
  console.error(error);
  process.exit(1);
});
