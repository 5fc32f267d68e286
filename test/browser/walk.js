// walk.js ORIGIN PICTURES PASSWORD PATH...: every page that links lead to, and those of
// the paths, in Chromium: nothing is wider than the window, axe-core finds nothing
// serious, the console says nothing, nothing is asked of elsewhere, and no text has
// become markup.
//
// Copyright (c) 2026, the kliv_mail developers
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';

const [origin, pictures, password, ...paths] = process.argv.slice(2);
const axe = fs.readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const widths = [375, 1200];
const schemes = ['light', 'dark'];
const languages = ['en', 'ja'];

let failures = 0;
function report(name, wrong) {
  if (wrong.length > 0) failures++;
  console.log(`${wrong.length > 0 ? 'not ok' : 'ok'} ${name}`);
  for (const line of wrong) console.log(`  ${line.replace(/\n/g, '\n  ').slice(0, 1500)}`);
}

const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });

// A person with a browser, of one language; heard is what its pages did that they must not.
async function person(language, signedIn) {
  const context = await browser.newContext({ locale: language === 'ja' ? 'ja-JP' : 'en-US', viewport: { width: 1200, height: 800 } });
  const page = await context.newPage();
  const heard = [];
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type()) && !expected.test(message.text())) heard.push(`console: ${message.text()}`); });
  page.on('pageerror', (error) => heard.push(`error: ${error.message}`));
  page.on('dialog', async (dialog) => { heard.push(`dialog: ${dialog.message()}`); await dialog.dismiss(); });
  page.on('request', (request) => { if (!request.url().startsWith(`${origin}/`) && !/^(?:data|about|blob):/.test(request.url())) heard.push(`a request to ${request.url()}`); });
  page.on('requestfailed', (request) => { if (request.failure()?.errorText !== 'net::ERR_ABORTED') heard.push(`no ${request.url()}: ${request.failure()?.errorText}`); });
  if (signedIn) {
    await page.goto(`${origin}/admin`);
    await page.fill('#role', 'boss');
    await page.fill('#password', password);
    await page.click('button');
    await page.waitForURL(`${origin}/admin`);
  }
  return { context, page, heard };
}
// Chromium says this of each page whose status is an error.
const expected = /the server responded with a status of 4\d\d/;

function seen() {
  const width = document.documentElement.clientWidth;
  const wide = [...document.querySelectorAll('body *')].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.width > 0 && (box.right > width + 0.5 || box.left < -0.5) && getComputedStyle(element).position !== 'absolute' && !element.closest('svg, .visually-hidden');
  });
  const small = [...document.querySelectorAll('a.button, button, input:not([type=hidden]):not([type=checkbox]):not([type=radio]), select')].filter((element) => {
    const box = element.getBoundingClientRect();
    return box.height > 0 && box.height < 24;
  });
  return {
    overflow: document.documentElement.scrollWidth - width,
    wide: wide.map((element) => `${element.tagName} ${element.className} "${element.textContent.trim().slice(0, 60)}"`),
    small: small.map((element) => element.outerHTML.slice(0, 80)),
    markup: [...document.querySelectorAll('script, [onerror], [onclick], [onload], img[src="x"], iframe[src^="http"], base, object, embed')].map((element) => element.outerHTML.slice(0, 200)),
    xss: typeof globalThis.xss,
    lang: document.documentElement.lang,
    title: document.title,
    headings: document.querySelectorAll('h1').length,
    source: /\{\{[#^/>{]?\s*[tf]\./.test(document.body.textContent)
  };
}

async function look({ page, heard }, path, language, name) {
  heard.length = 0;
  const response = await page.goto(`${origin}${path}`);
  const wrong = [];
  if (response.status() >= 500) wrong.push(`status ${response.status()}`);
  const links = await page.$$eval('a[href^="/"]', (all) => all.map((link) => link.getAttribute('href')));
  const forms = await page.$$eval('form[method=get]', (all) => all.map((form) => `${form.getAttribute('action')}?${new URLSearchParams(new FormData(form))}`));
  for (const width of widths) for (const scheme of schemes) {
    await page.setViewportSize({ width, height: 800 });
    await page.emulateMedia({ colorScheme: scheme });
    // What is folded away is looked at, too.
    await page.$$eval('details', (all) => all.forEach((detail) => { detail.open = true; }));
    const what = `${width} px, ${scheme}`;
    const is = await page.evaluate(seen);
    if (is.overflow > 0 || is.wide.length > 0) wrong.push(`${what}: ${is.overflow} px too wide: ${is.wide.slice(0, 5).join('; ')}`);
    if (is.small.length > 0) wrong.push(`${what}: too small to touch: ${is.small.slice(0, 3).join('; ')}`);
    if (is.markup.length > 0 || is.xss !== 'undefined') wrong.push(`${what}: markup: ${is.markup.join(' ')}`);
    if (is.lang !== language) wrong.push(`${what}: lang is ${is.lang}`);
    if (is.headings !== 1 || is.title === '') wrong.push(`${what}: ${is.headings} h1, title "${is.title}"`);
    if (is.source) wrong.push(`${what}: a piece of Mustache is shown`);
    // Each width and each scheme with each language once, two of the four there are.
    if ((width === widths[0]) === ((scheme === 'light') === (language === 'en'))) {
      await page.evaluate(axe);
      const { violations } = await page.evaluate(() => globalThis.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
      for (const { id, impact, nodes } of violations)
        if (['serious', 'critical'].includes(impact)) wrong.push(`${what}: axe ${id} (${impact}): ${nodes.map(({ html, failureSummary }) => `${html.slice(0, 150)} ${failureSummary.replace(/\s+/g, ' ').slice(0, 200)}`).slice(0, 3).join('\n')}`);
    }
    await page.$$eval('details', (all) => all.forEach((detail) => { detail.open = false; }));
    if ((width === 1200 && scheme === 'light') || (width === 375 && scheme === 'dark'))
      await page.screenshot({ path: `${pictures}/${name}.${language}.${width}.${scheme}.png`, fullPage: true });
  }
  wrong.push(...heard);
  report(`${language} ${path}`, wrong);
  return [...links, ...forms];
}

const nameOf = (path) => path.slice(1).replace(/[^a-z0-9]+/gi, '_').slice(0, 60).replace(/^u_.*/, 'u') || 'root';
// Pages that differ in a number alone are looked at once or twice.
const kindOf = (path) => path.replace(/([?&](?:lang|done|n)=[^&]*)/g, '').replace(/\?$/, '').replace(/\d+/g, 'N').replace(/(name|address)=[^&]*/g, '$1=').replace(/(subject|status|kind|type|locale|scope)=[^&]*/g, '$1=');

for (const language of languages) {
  const visitor = await person(language, true);
  const waiting = ['/admin', '/admin/settings/new/other', '/admin/settings/sakura', '/admin/messages?address=nobody', '/admin/nothing-of-that-name', ...paths.filter((path) => path.startsWith('/admin'))];
  const times = new Map();
  const given = new Set(waiting);
  const done = new Set();
  while (waiting.length > 0) {
    const path = waiting.shift();
    const kind = kindOf(path);
    if (done.has(path) || (!given.has(path) && (times.get(kind) ?? 0) >= 1) || !path.startsWith('/admin') || /style\.css|\/document\?/.test(path)) continue;
    done.add(path);
    times.set(kind, (times.get(kind) ?? 0) + 1);
    waiting.push(...(await look(visitor, path, language, nameOf(kind))).filter((link) => !done.has(link)));
  }
  report(`${language}: ${done.size} pages were found`, done.size > 25 ? [] : [[...done].join(' ')]);
  await visitor.context.close();
  const stranger = await person(language, false);
  for (const path of ['/sign-in', '/nothing', '/u/no-token', ...paths.filter((path) => path.startsWith('/u'))]) await look(stranger, path, language, paths.includes(path) ? `u_${paths.indexOf(path)}` : nameOf(path));
  // After a wrong password.
  await stranger.page.goto(`${origin}/sign-in`);
  await stranger.page.fill('#role', 'boss');
  await stranger.page.fill('#password', 'wrong');
  await stranger.page.click('button');
  await stranger.page.evaluate(axe);
  const { violations } = await stranger.page.evaluate(() => globalThis.axe.run());
  report(`${language} /sign-in, refused`, violations.filter(({ impact }) => ['serious', 'critical'].includes(impact)).map(({ id }) => id).concat(await stranger.page.$('[role=alert]') ? [] : ['no alert']));
  await stranger.page.screenshot({ path: `${pictures}/sign_in_refused.${language}.png` });
  await stranger.context.close();
}
await browser.close();
process.exit(failures > 0 ? 1 : 0);
