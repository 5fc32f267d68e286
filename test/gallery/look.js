// look.js FOLDER: the mails in FOLDER (NAME.LANGUAGE.html) in Chromium, at the widths
// of a phone and a desk, light and dark; without their style block and images; and by
// what is known of mail programs.  Pictures go to FOLDER.
//
// Copyright (c) 2026, the kliv_mail developers
import fs from 'node:fs';
import { createRequire } from 'node:module';
import { caniemail } from 'caniemail';
import { chromium } from 'playwright-core';

const folder = process.argv[2];
const here = new URL('.', import.meta.url).pathname;
const axe = fs.readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const LOGO = 'https://example.com/logo.png';
const widths = [375, 700];
const mails = fs.readdirSync(folder).filter((file) => file.endsWith('.html')).sort()
  .map((file) => ({ name: file.slice(0, -5), language: file.split('.')[1], html: fs.readFileSync(`${folder}/${file}`, 'utf8') }));

let failures = 0;
function check(ok, what, detail = '') {
  if (!ok) {
    failures++;
    console.log(`failed: ${what}${detail && `: ${detail}`}`);
  }
}

// ---- what is known of mail programs ----

// What some program does not support, and why the mail looks right there nevertheless.
const PROGRAMS = ['gmail.*', 'outlook.*', 'apple-mail.*', 'yahoo.*', 'aol.*'];
const unsupported = {
  'color-scheme CSS property': 'other programs choose the colours of the dark by themselves',
  'color-scheme meta tag': 'other programs choose the colours of the dark by themselves',
  '@media': 'the inline styles are for light and for all widths; what is within @media adapts them',
  '<style> element': 'all styles that the mail needs are inline',
  'display:none': 'of the preheader, which has no height there',
  'max-height property': 'of the preheader, which mso-hide hides in Outlook',
  overflow: 'of the preheader, which mso-hide hides in Outlook',
  'height property': 'of the logo, whose attribute says the same',
  'word-break': 'a very long word or URL makes the mail wider',
  'white-space': 'of code, which ends its lines where its author did',
  'border-radius': 'corners are square',
  '<body> element': 'it becomes a div; its colour stands on the table within it, too',
  'role attribute': 'screen readers of these programs hear the table'
};

function checkPrograms(mail) {
  const { issues } = caniemail({ clients: PROGRAMS, html: mail.html });
  const found = new Map();
  for (const [client, list] of issues.errors)
    for (const { title } of list) found.set(title, [...(found.get(title) ?? []), client]);
  for (const [title, clients] of found)
    check(title in unsupported, `${mail.name} uses what is not supported`, `${title} (${clients.join(', ')})`);
  return found;
}

// ---- what is seen ----

// The lines that can be read, top down: those with a size, in a colour that differs
// from what is behind them, within the window; images count by their text.
function visibleLines() {
  const lines = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT | NodeFilter.SHOW_ELEMENT);
  const width = document.documentElement.clientWidth;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const range = document.createRange();
    range.selectNodeContents(node);
    if (node.nodeType === Node.ELEMENT_NODE && node.tagName !== 'IMG') continue;
    const text = node.nodeType === Node.TEXT_NODE ? node.data.replace(/\s+/g, ' ').trim() : `[${node.alt}]`;
    const element = node.nodeType === Node.TEXT_NODE ? node.parentElement : node;
    const box = node.nodeType === Node.TEXT_NODE ? range.getBoundingClientRect() : node.getBoundingClientRect();
    const style = getComputedStyle(element);
    if (text === '' || box.width < 1 || box.height < 1) continue;
    let clipped = false;
    for (let around = element; around; around = around.parentElement) {
      const outer = around.getBoundingClientRect();
      clipped ||= getComputedStyle(around).overflow === 'hidden' && (outer.width < 1 || outer.height < 1);
    }
    if (clipped || style.visibility !== 'visible' || Number(style.opacity) < 0.5) continue;
    if (box.left < 0 || box.right > width + 0.5) lines.push(`OUTSIDE ${text}`);
    else if (parseFloat(style.fontSize) < 13) lines.push(`TOO SMALL ${text}`);
    else lines.push(element.tagName === 'A' && element.style.display === 'inline-block' ? `(${text})` : text);
  }
  return lines;
}

// Sizes and colours.
function measures() {
  const button = document.querySelector('a[style*="inline-block"]');
  const card = getComputedStyle(document.querySelector('.k-card'));
  const light = (color) => color.match(/\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 765;
  return {
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    button: button?.getBoundingClientRect().height,
    card: light(card.backgroundColor),
    text: light(card.color),
    page: light(getComputedStyle(document.body).backgroundColor),
    headings: document.querySelectorAll('h1').length,
    cardWidth: document.querySelector('.k-card').getBoundingClientRect().width
  };
}

async function accessible(page, what) {
  const { violations } = await page.evaluate(() => window.axe.run(document, {
    runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'],
    // A mail is shown within a page that has the landmarks.
    rules: { region: { enabled: false }, 'landmark-one-main': { enabled: false } }
  }));
  for (const { id, nodes } of violations)
    check(false, `${what}: axe ${id}`, nodes.map((node) => `${node.html} ${node.failureSummary}`).join('\n').slice(0, 600));
}

// What the page's server has: the mail, and the logo.
let served = {};
async function serve(route) {
  const url = route.request().url();
  if (url === 'https://example.com/office.png' && !served.bare) return route.fulfill({ contentType: 'image/svg+xml', body: office });
  if (url === LOGO && !served.bare) return route.fulfill({ contentType: 'image/svg+xml', body: logo });
  if (url === 'https://mail.test/') return route.fulfill({ contentType: 'text/html; charset=utf-8', body: served.html });
  return route.abort();
}

const logo = '<svg xmlns="http://www.w3.org/2000/svg" width="150" height="40"><rect y="4" width="32" height="32" rx="8" fill="#0f766e"/>'
  + '<path d="M8 15l8 6 8-6" fill="none" stroke="#fff" stroke-width="3"/><text x="42" y="28" font-family="sans-serif" font-size="22" font-weight="bold" fill="#0f766e">Example</text></svg>';

const office = '<svg xmlns="http://www.w3.org/2000/svg" width="1200" height="300"><rect width="1200" height="300" fill="#94a3b8"/></svg>';

async function look(page, mail, expected) {
  let seen;
  // bare: without its style block, and without images
  for (const bare of [false, true]) {
    served = { bare, html: bare ? mail.html.replace(/<style>[^]*?<\/style>/g, '') : mail.html };
    await page.goto('https://mail.test/');
    await page.evaluate(axe);
    for (const width of widths) for (const scheme of ['light', 'dark']) {
      const what = `${mail.name}, ${width} px, ${scheme}${bare ? ', without styles and images' : ''}`;
      await page.setViewportSize({ width, height: 800 });
      await page.emulateMedia({ colorScheme: scheme });
      const lines = await page.evaluate(visibleLines);
      const sizes = await page.evaluate(measures);
      seen ??= lines;
      check(JSON.stringify(lines) === JSON.stringify(expected ?? seen), `${what}: what is seen`, JSON.stringify(lines, null, 1));
      check(sizes.overflow === 0, `${what}: it is wider than the window`);
      check(sizes.headings === 1, `${what}: one h1`);
      check(sizes.cardWidth <= 600, `${what}: the content is ${sizes.cardWidth} px wide`);
      check(sizes.button === undefined || sizes.button >= 44, `${what}: the button is ${sizes.button} px high`);
      const dark = scheme === 'dark' && !bare;
      check(dark ? sizes.card < 0.2 && sizes.page < 0.15 && sizes.text > 0.8 : sizes.card > 0.95 && sizes.page > 0.9 && sizes.text < 0.25,
        `${what}: colours`, JSON.stringify(sizes));
      if (width === widths[0]) await accessible(page, what);
      if (!bare) await page.screenshot({ path: `${folder}/${mail.name}.${width}.${scheme}.png`, fullPage: true });
    }
  }
  return seen;
}

// ---- a sheet of all ----

async function makeSheet(page) {
  const picture = (mail, scheme) => `<figure><img src="data:image/png;base64,${fs.readFileSync(`${folder}/${mail.name}.375.${scheme}.png`).toString('base64')}">`
    + `<figcaption>${mail.name.split('.')[0]}</figcaption></figure>`;
  const part = (language, scheme) => `<section class="${scheme}">${mails.filter((mail) => mail.language === language && !mail.name.startsWith('markdown')).map((mail) => picture(mail, scheme)).join('')}</section>`;
  await page.setViewportSize({ width: 1280, height: 800 });
  await page.emulateMedia({ colorScheme: 'light' });
  await page.setContent(`<!DOCTYPE html><style>
    body{margin:0;font:15px sans-serif}
    section{display:grid;grid-template-columns:repeat(5,1fr);gap:20px;padding:24px;background:#d9dde2;color:#1f2933}
    section.dark{background:#000;color:#e8edf2}
    figure{margin:0}
    img{display:block;width:100%;height:500px;object-fit:cover;object-position:top;border-radius:6px}
    figcaption{padding-top:8px;text-align:center}</style>${part('en', 'light')}${part('ja', 'dark')}`);
  await page.screenshot({ path: `${folder}/templates.png`, fullPage: true });
}

const visible = `${here}visible.json`;
const expected = process.env.UPDATE ? {} : JSON.parse(fs.readFileSync(visible, 'utf8'));
const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });
const page = await browser.newPage({ deviceScaleFactor: 2 });
await page.route('**/*', serve);
const seen = {};
const found = new Set();
for (const mail of mails) {
  for (const title of checkPrograms(mail).keys()) found.add(title);
  seen[mail.name] = await look(page, mail, expected[mail.name]);
}
for (const title of Object.keys(unsupported)) check(found.has(title), 'the list of what is not supported', `"${title}" is not used`);
if (process.env.UPDATE) fs.writeFileSync(visible, `${JSON.stringify(seen, null, 2)}\n`);
else check(Object.keys(expected).join() === mails.map((mail) => mail.name).join(), 'visible.json has each mail');
await makeSheet(await browser.newPage());
await browser.close();
console.log(`${mails.length} mails, ${widths.length * 4} views of each: ${failures} failures`);
process.exit(failures > 0 ? 1 : 0);
