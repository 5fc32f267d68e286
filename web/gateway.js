// gateway.js: what goes from HTTP to http_request() and back, and who may.
//
// Three families of paths reach the database: /u and /hooks as the ingest role of the
// pool, /admin as the role that signed in.  All else is the gateway's own: /sign-in,
// /sign-out, /health.
//
// Copyright (c) 2026, the kliv_mail developers
import cookie from '@fastify/cookie';
import rateLimit from '@fastify/rate-limit';
import fastify, { LogController } from 'fastify';
import { Ingest, Refused, RoleConnection, Unavailable } from './database.js';
import { chosenLanguage, headers as ownHeaders, languageOf, onwardPage, problemPage, signInPage } from './pages.js';
import { sealed } from './seal.js';
import { Sessions } from './sessions.js';

const FORM = /^application\/x-www-form-urlencoded(?:$|[ ;])/i;
// No encoded slash, no dot segment, nothing empty: one path has one spelling.
const PATH = /^\/(?:admin|u|hooks)(?:\/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*\/?$/;
const DISGUISED = /%(?:2f|5c|2e|0|1|7f)|%(?![0-9a-f]{2})|\/\.{1,2}(?:\/|$)/i;
const SIGN_OUT = 'x-kliv-mail-sign-out';
// Of one connection, or of a connection of ours (RFC 9110, 7.6.1), or nobody's business there.
const NOT_CARRIED = new Set(['connection', 'keep-alive', 'proxy-authenticate', 'proxy-authorization', 'proxy-connection', 'te', 'trailer',
  'transfer-encoding', 'upgrade', 'expect', 'content-length', 'cookie', 'authorization', SIGN_OUT]);
const NOT_RETURNED = new Set(['connection', 'keep-alive', 'transfer-encoding', 'content-length', 'upgrade', 'trailer']);

// What the log may show of a path: a token of /u is a recipient's key.
function shown(url) {
  const path = url.split('?', 1)[0].slice(0, 200);
  return path.startsWith('/u/') ? '/u/…' : path;
}

export async function gateway(config, { logger = true } = {}) {
  const { limits } = config;
  const app = fastify({
    logger: logger && { level: 'info', base: undefined, ...(logger === true ? {} : logger) },
    logController: new LogController({ disableRequestLogging: true }),
    trustProxy: config.trustProxy,
    bodyLimit: limits.formBody,
    requestTimeout: limits.requestTimeout,
    keepAliveTimeout: limits.keepAliveTimeout,
    connectionTimeout: limits.inactivity,
    forceCloseConnections: 'idle',
    return503OnClosing: true,
    routerOptions: { maxParamLength: 4096, caseSensitive: true },
    frameworkErrors: (error, request, reply) => problem(request, reply, error.statusCode ?? 400, 'badRequest'),
    http: {
      maxHeaderSize: limits.headers,
      headersTimeout: limits.headersTimeout,
      connectionsCheckingInterval: limits.checkConnections,
      insecureHTTPParser: false,
      requireHostHeader: true
    }
  });
  const ingest = new Ingest(config, app.log);
  const sessions = new Sessions(config, app.log);
  const origin = () => config.origin ?? `http://${config.listen.host.includes(':') ? `[${config.listen.host}]` : config.listen.host}:${app.server.address().port}`;
  const secure = config.origin?.startsWith('https:') ?? false;
  // A name that only a page of this very host can have set.
  const cookieName = secure ? '__Host-kliv_mail' : 'kliv_mail';
  const cookieOptions = { httpOnly: true, sameSite: 'strict', secure, path: '/' };
  let signingIn = 0;

  await app.register(cookie);
  await app.register(rateLimit, { global: false });
  const addressLimit = app.createRateLimit({ max: limits.attempts, timeWindow: limits.attemptsWindow });
  const roleLimit = app.createRateLimit({ max: limits.attemptsOfRole, timeWindow: limits.attemptsWindow, keyGenerator: ({ role }) => role });

  app.removeAllContentTypeParsers();
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body));

  // ---- connections ----

  app.server.maxConnections = limits.connections;
  app.server.maxRequestsPerSocket = 1000;
  const connectionsOf = new Map();
  app.server.on('connection', (socket) => {
    // Behind a proxy all have the proxy's address, and it counts.
    if (config.trustProxy) return;
    const address = socket.remoteAddress;
    const count = (connectionsOf.get(address) ?? 0) + 1;
    connectionsOf.set(address, count);
    socket.once('close', () => {
      const left = connectionsOf.get(address) - 1;
      if (left > 0) connectionsOf.set(address, left);
      else connectionsOf.delete(address);
    });
    if (count > limits.connectionsOfAddress) socket.destroy();
  });

  // ---- answers of our own ----

  // What is refused is not read to its end either.
  function own(reply, status, html, headers = ownHeaders) {
    if (reply.request.method === 'POST' && status >= 400) reply.header('connection', 'close');
    return reply.code(status).headers(headers).send(html);
  }

  function problem(request, reply, status, what, link) {
    // Providers are programs.
    if (request.raw.url.startsWith('/hooks/')) return own(reply, status, `${status}\n`, { 'content-type': 'text/plain; charset=utf-8' });
    return own(reply, status, problemPage(languageOf(request), status, what, link));
  }

  function unavailable(request, reply) {
    reply.header('retry-after', '30');
    return problem(request, reply, 503, 'unavailable');
  }

  app.addHook('onSend', async (request, reply, payload) => {
    if (secure) reply.header('strict-transport-security', 'max-age=31536000');
    return payload;
  });

  app.addHook('onResponse', async (request, reply) => {
    request.log.info({ method: request.method, path: shown(request.raw.url), status: reply.statusCode, address: request.ip, ms: Math.round(reply.elapsedTime) }, 'answered');
  });

  app.setNotFoundHandler((request, reply) => problem(request, reply, 404, 'notFound'));

  app.setErrorHandler((error, request, reply) => {
    if (error instanceof Unavailable) {
      request.log.warn({ event: 'unavailable', problem: error.message, path: shown(request.raw.url) });
      return unavailable(request, reply);
    }
    const status = error.statusCode >= 400 && error.statusCode < 500 ? error.statusCode : 500;
    // Of an error of the database its code alone: its words may quote what was sent.
    if (status === 500) request.log.error({ event: 'failed', code: error.code, problem: error.severity ? undefined : error.stack, path: shown(request.raw.url) });
    return problem(request, reply, status, status === 413 ? 'tooLarge' : status === 500 ? 'failed' : 'badRequest');
  });

  // ---- what every request must be; before its body is read ----

  app.addHook('onRequest', async (request, reply) => {
    const { method, raw: { url } } = request;
    if (!['GET', 'HEAD', 'POST'].includes(method)) {
      reply.header('allow', 'GET, HEAD, POST');
      return problem(request, reply, 405, 'notAllowed');
    }
    const [path] = url.split('?', 1);
    if (/^\/(?:admin|u|hooks)(?:\/|$)/.test(path) ? !PATH.test(path) || DISGUISED.test(path) : !/^\/(?:sign-in|sign-out|health)?$/.test(path))
      return problem(request, reply, 404, 'notFound');
    if (/^\/(?:admin|sign-)/.test(path)) {
      // Another name for this address is another site's: DNS can be pointed here by anybody.
      const { host } = new URL(origin());
      if (hostOf(request) !== host) {
        // Most often a proxy that does not hand on the Host it was asked for.
        request.log.warn({ event: 'host', host: request.headers.host.slice(0, 200), expected: host, address: request.ip });
        return problem(request, reply, 421, 'host', `${origin()}/admin`);
      }
      request.headers.host = host;
      if (method === 'POST' && !isOwnPage(request)) {
        request.log.warn({ event: 'cross-site', path: shown(url), address: request.ip });
        return problem(request, reply, 403, 'crossSite');
      }
      if (method === 'POST' && !FORM.test(request.headers['content-type'] ?? '')) return problem(request, reply, 415, 'type');
    }
  });

  // As origins have it: proxies may add the usual port, or keep capitals.
  function hostOf({ headers: { host } }) {
    const { protocol } = new URL(origin());
    return /^[a-z0-9.:[\]-]+$/i.test(host) && URL.canParse(`${protocol}//${host}`) ? new URL(`${protocol}//${host}`).host : undefined;
  }

  // Did a page of ours send this form?  Browsers say where a POST comes from in Origin,
  // newer ones in Sec-Fetch-Site, too; who says neither is not believed.
  function isOwnPage({ headers }) {
    const site = headers['sec-fetch-site'];
    if (site !== undefined && site !== 'same-origin') return false;
    return headers.origin === origin() || (site === 'same-origin' && headers.origin === undefined);
  }

  // ---- signing in and out ----

  function sessionOf(request) {
    return sessions.get(request.cookies[cookieName]);
  }

  function wanted(path) {
    return path && path.length <= 2000 && /^\/admin(?:[/?][!-~]*)?$/.test(path) && !path.includes('\\') ? path : undefined;
  }

  // The door keeps what it is asked for in a cookie of its own.
  function inLanguage(path, language) {
    return !language || /[?&]lang=/.test(path) ? path : `${path}${path.includes('?') ? '&' : '?'}lang=${language}`;
  }

  app.get('/', (request, reply) => reply.redirect('/admin', 303));

  app.get('/sign-in', (request, reply) => {
    const query = new URLSearchParams(request.raw.url.split('?')[1] ?? '');
    const to = wanted(query.get('to'));
    if (sessionOf(request)) return reply.redirect(to ?? '/admin', 303);
    // Who followed another site's link may be signed in: our cookie comes with our own links alone.
    if (request.headers['sec-fetch-site'] === 'cross-site' && !query.has('again')) {
      query.set('again', '1');
      return own(reply, 200, onwardPage(request, `/sign-in?${query}`));
    }
    return own(reply, 200, signInPage(request, { to }));
  });

  app.decorateRequest('role', '');
  app.post('/sign-in', { bodyLimit: 8 * 1024 }, async (request, reply) => {
    const form = new URLSearchParams((request.body ?? '').toString());
    const role = form.get('role') ?? '';
    const password = form.get('password') ?? '';
    const to = wanted(form.get('to'));
    const again = (status, why) => own(reply, status, signInPage(request, { why, to, role: role.slice(0, 63) }));
    if (role === '' || password === '' || Buffer.byteLength(role) > 63 || password.length > 1000 || `${role}${password}`.includes('\0')) return again(422, 'empty');
    request.role = role;
    const attempt = { event: 'sign-in', role, address: request.ip };
    for (const limit of [addressLimit, roleLimit]) {
      const { isExceeded, ttlInSeconds } = await limit(request);
      if (isExceeded) {
        request.log.warn({ ...attempt, outcome: 'too many attempts', by: limit === roleLimit ? 'role' : 'address' });
        reply.header('retry-after', String(ttlInSeconds));
        return again(429, 'tooMany');
      }
    }
    if (signingIn >= limits.signIns) throw new Unavailable('too many sign-ins at the same time');
    signingIn++;
    let connection;
    try {
      connection = await RoleConnection.open(config, role, password);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      request.log.warn({ ...attempt, outcome: error.message });
      return again(403, error.code === 'password' ? 'refused' : error.code);
    } finally {
      signingIn--;
    }
    request.log.info({ ...attempt, outcome: 'signed in' });
    sessions.end(request.cookies[cookieName], 'signed in anew');
    reply.setCookie(cookieName, sessions.add(role, connection), cookieOptions);
    return reply.redirect(inLanguage(to ?? '/admin', chosenLanguage(request)), 303);
  });

  app.post('/sign-out', (request, reply) => {
    sessions.end(request.cookies[cookieName], 'signed out');
    reply.clearCookie(cookieName, cookieOptions);
    return reply.redirect('/sign-in', 303);
  });

  // ---- carrying ----

  function asAsked(request, more = {}) {
    const [path, query] = request.raw.url.split(/\?(.*)/s);
    const headers = { ...more };
    for (const [name, value] of Object.entries(request.headers)) if (!NOT_CARRIED.has(name)) headers[name] = String(value);
    return { method: request.method, path, query: query ?? null, headers, body: request.body ?? null };
  }

  function answer(reply, { status, headers, body }) {
    for (const [name, value] of Object.entries(headers ?? {})) if (!NOT_RETURNED.has(name.toLowerCase())) reply.header(name, value);
    return reply.code(status).send(body ?? '');
  }

  for (const url of ['/u', '/u/*', '/hooks/*'])
    app.route({
      method: ['GET', 'POST'],
      url,
      bodyLimit: url.startsWith('/u') ? limits.formBody : limits.hookBody,
      handler: async (request, reply) => {
        // Of a webhook its basic authentication, which is its signature.
        const { authorization } = request.headers;
        return answer(reply, await ingest.carry(asAsked(request, url.startsWith('/hooks') && authorization ? { authorization } : {})));
      }
    });

  app.decorateRequest('session', null);
  for (const url of ['/admin', '/admin/*'])
    app.route({
      method: ['GET', 'POST'],
      url,
      bodyLimit: limits.adminBody,
      // Before the body is read: who is not signed in sends none.
      onRequest: async (request, reply) => {
        request.session = sessionOf(request);
        if (request.session) return undefined;
        if (request.method === 'POST') return own(reply, 403, signInPage(request, { why: 'ended' }));
        const lang = chosenLanguage(request);
        const query = new URLSearchParams({ ...(request.raw.url === '/admin' ? {} : { to: request.raw.url }), ...(lang ? { lang } : {}) }).toString();
        return reply.redirect(`/sign-in${query && `?${query}`}`, 303);
      },
      handler: async (request, reply) => {
        const { connection } = request.session;
        const more = { [SIGN_OUT]: '/sign-out' };
        // The other cookies: the door keeps the language in one.
        const others = Object.entries(request.cookies).filter(([name]) => name !== cookieName && /^[\w-]{1,64}$/.test(name));
        if (others.length > 0) more.cookie = others.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join('; ');
        try {
          if (request.method === 'POST') request.body = await sealed(request.body ?? Buffer.alloc(0), (fields) => connection.sealing(fields));
          return answer(reply, await connection.carry(asAsked(request, more)));
        } catch (error) {
          if (error.code === '42501') return problem(request, reply, 403, 'grant');
          throw error;
        }
      }
    });

  // One question to the database for all who ask within a second.
  let health = { at: 0, result: Promise.resolve() };
  app.get('/health', async (request, reply) => {
    if (Date.now() - health.at > 1000) health = { at: Date.now(), result: ingest.healthy() };
    await health.result;
    return reply.header('cache-control', 'no-store').type('text/plain').send('ok\n');
  });

  app.addHook('onClose', async () => {
    sessions.endAll();
    await ingest.end();
  });
  app.decorate('origin', origin);
  return app;
}
