// sessions.js: who is signed in, in memory only: a random id, and the connection that
// the role's own password opened.
//
// Copyright (c) 2026, the kliv_mail developers
import { randomBytes } from 'node:crypto';

export class Sessions {
  #byId = new Map(); // least recently used first
  #config;
  #log;
  #timer;

  constructor(config, log) {
    this.#config = config;
    this.#log = log;
    this.#timer = setInterval(() => this.#expire(), 10_000).unref();
  }

  // A new id each time: none that a client brings along is ever taken.
  add(role, connection) {
    while (this.#byId.size >= this.#config.sessions) this.end(this.#oneTooMany(), 'too many sessions');
    const id = randomBytes(32).toString('base64url');
    const now = Date.now();
    this.#byId.set(id, { id, role, connection, began: now, used: now });
    return id;
  }

  // Of the role that has most sessions, the one not used for longest: so nobody pushes
  // out others by signing in again and again.
  #oneTooMany() {
    const count = new Map();
    for (const { role } of this.#byId.values()) count.set(role, (count.get(role) ?? 0) + 1);
    const most = Math.max(...count.values());
    return [...this.#byId.values()].find(({ role }) => count.get(role) === most).id;
  }

  get(id) {
    const session = id === undefined ? undefined : this.#byId.get(id);
    if (!session) return undefined;
    if (session.connection.closed || this.#isOver(session)) {
      this.end(id, session.connection.closed ? 'connection lost' : 'expired');
      return undefined;
    }
    session.used = Date.now();
    this.#byId.delete(id);
    this.#byId.set(id, session);
    return session;
  }

  end(id, why) {
    const session = this.#byId.get(id);
    if (!session) return;
    this.#byId.delete(id);
    session.connection.close();
    this.#log.info({ event: 'session ended', role: session.role, why });
  }

  #isOver(session) {
    const now = Date.now();
    return now - session.used > this.#config.sessionIdle || now - session.began > this.#config.sessionAge;
  }

  #expire() {
    for (const session of [...this.#byId.values()]) {
      if (session.connection.closed) this.end(session.id, 'connection lost');
      else if (this.#isOver(session)) this.end(session.id, 'expired');
    }
  }

  endAll() {
    clearInterval(this.#timer);
    for (const id of [...this.#byId.keys()]) this.end(id, 'shutdown');
  }

  get size() {
    return this.#byId.size;
  }
}
