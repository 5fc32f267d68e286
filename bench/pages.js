// pages.js ORIGIN ROLE PASSWORD SESSIONS RATE SECONDS: signs in so many times, says
// ready, and looks at the overview at that rate, whether answers come or not; each
// view's time counts from when it was due.  Ends when its output is read to the end.
//
// Copyright (c) 2026, the kliv_mail developers
import http from 'node:http';

const [origin, role, password, sessions, rate, seconds] = process.argv.slice(2);
const agent = new http.Agent({ keepAlive: true, maxSockets: 100 });

function ask(method, path, headers, body) {
  return new Promise((resolve) => {
    const request = http.request(`${origin}${path}`, { method, agent, headers }, (answer) => {
      let size = 0;
      answer.on('data', (bytes) => { size += bytes.length; });
      answer.on('end', () => resolve({ status: answer.statusCode, headers: answer.headers, size }));
    });
    request.on('error', (error) => resolve({ status: 0, error }));
    request.end(body);
  });
}

const cookies = [];
for (let n = 0; n < Number(sessions); n++) {
  const body = new URLSearchParams({ role, password }).toString();
  const answer = await ask('POST', '/sign-in', { origin, 'content-type': 'application/x-www-form-urlencoded', 'content-length': body.length }, body);
  if (!answer.headers?.['set-cookie']) throw new Error(`signing in: ${answer.status} ${answer.error ?? ''}`);
  cookies.push(answer.headers['set-cookie'][0].split(';')[0]);
}
// A session's first views read its catalogue.
for (let n = 0; n < 12; n++) await Promise.all(cookies.map((cookie) => ask('GET', '/admin', { cookie })));
console.log('ready');
await new Promise((resolve) => setTimeout(resolve, 200));

const total = Math.round(rate * seconds);
const times = [];
let failed = 0;
const begin = performance.now();
await new Promise((resolve) => {
  let sent = 0;
  const timer = setInterval(() => {
    for (; sent < total && begin + (1000 * sent) / rate <= performance.now(); sent++) {
      const due = begin + (1000 * sent) / rate;
      ask('GET', '/admin', { cookie: cookies[sent % cookies.length] }).then(({ status, size }) => {
        if (status !== 200 || !size) failed++;
        times.push(performance.now() - due);
        if (times.length === total) {
          clearInterval(timer);
          resolve();
        }
      });
    }
  }, 1);
});
times.sort((a, b) => a - b);
const quantile = (q) => times[Math.round(q * (times.length - 1))].toFixed(2);
console.log(`p50=${quantile(0.5)} p99=${quantile(0.99)} max=${quantile(1)} failed=${failed} views=${total}`);
// Signed in until the figures of its processes are taken.
process.stdout.on('error', () => process.exit(0));
setTimeout(() => process.exit(0), 2000);
