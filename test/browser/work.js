// work.js ORIGIN PICTURES PASSWORD PROVIDERS: what an administrator does, in Chromium
// without script.  PROVIDERS: by name, what its form is to ask for, and what is typed.
//
// Copyright (c) 2026, the kliv_mail developers
import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const [origin, pictures, password, given] = process.argv.slice(2);
const providers = JSON.parse(given);

const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });
const context = await browser.newContext({ javaScriptEnabled: false, locale: 'en-US', viewport: { width: 1200, height: 800 } });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
const urls = [];
page.on('request', (request) => urls.push(request.url()));

let failures = 0;
async function task(name, work) {
  try {
    await work();
    console.log(`ok ${name}`);
  } catch (error) {
    failures++;
    console.log(`not ok ${name}`);
    console.log(`  ${page.url()} ${error.stack.slice(0, 1500)}`.replace(/\n/g, '\n  '));
    console.log(`  ${(await page.textContent('main').catch(() => '')).replace(/\s+/g, ' ').slice(0, 600)}`);
    await page.screenshot({ path: `${pictures}/failed_${name.replace(/\W+/g, '_').slice(0, 40)}.png`, fullPage: true }).catch(() => {});
  }
}
const text = () => page.textContent('main');
const go = (path) => page.goto(`${origin}${path}`);
// Presses a button and waits for the page behind it.
async function press(selector) {
  await Promise.all([page.waitForEvent('domcontentloaded'), page.click(selector)]);
}

await task('signing in', async () => {
  await go('/admin');
  await page.fill('#role', 'boss');
  await page.fill('#password', password);
  await press('button');
  assert.equal(page.url(), `${origin}/admin`);
});

await task('a link of another site, as in a chat, leads to its page without another sign-in', async () => {
  await page.goto(`data:text/html,<a href="${origin}/admin/messages?q=ana">the mail</a>`);
  await page.click('a');
  await page.waitForURL(`${origin}/admin/messages?q=ana`);
});

// Tab until the element has the focus, as who has no mouse does.
async function tabTo(selector) {
  for (let n = 0; n < 100; n++) {
    if (await page.locator(`${selector}:focus`).count() > 0) return;
    await page.keyboard.press('Tab');
  }
  throw new Error(`${selector} is not reached by the keyboard`);
}

let first = true;
for (const [name, fields] of Object.entries(providers)) {
  await task(`${name}: is set up${first ? ', by keyboard alone' : ''}`, async () => {
    await go('/admin/settings');
    const card = `a[href="/admin/settings/new/${name}"]`;
    if (await page.locator(card).count() === 0) await press('a[href="/admin/settings/new"]');
    if (first) {
      await tabTo(card);
      await Promise.all([page.waitForEvent('domcontentloaded'), page.keyboard.press('Enter')]);
    } else await press(card);
    const asked = await page.$$eval('main form input[required]', (all) => all.map((input) => input.name));
    assert.deepEqual(asked.sort(), Object.keys(fields).sort(), 'what the form asks for');
    for (const [field, value] of Object.entries(fields)) {
      if (first) {
        await tabTo(`#${field}`);
        await page.keyboard.type(value);
      } else await page.fill(`#${field}`, value);
    }
    if (first) await Promise.all([page.waitForEvent('domcontentloaded'), page.keyboard.press('Enter')]);
    else await press('main button.main');
    assert.equal(page.url(), `${origin}/admin/settings?done=saved`);
    const shown = await page.content();
    assert.ok(shown.includes('****'), 'the password is masked');
    assert.equal(shown.includes(fields.password), false, 'and not shown');
  });
  await task(`${name}: a mail is sent by it`, async () => {
    await press('a[href^="/admin/settings/test"] >> nth=0');
    await page.fill('#send_to', `ana@${name}.example`);
    await press('main button.main');
    assert.equal(await page.locator('.failed').count(), 0, await text());
    assert.equal(await page.locator('li.ok').count(), 7);
  });
  await task(`${name}: back to the platform`, async () => {
    await go('/admin/settings/reset?account=custom');
    await press('main button.danger');
    assert.equal(page.url().startsWith(`${origin}/admin/settings`), true);
  });
  first = false;
}

await task('a wrong password says which step failed, and what to do', async () => {
  await go('/admin/settings/new/sakura');
  for (const [field, value] of Object.entries({ ...providers.sakura, password: 'of-the-panel' })) await page.fill(`#${field}`, value);
  await press('main button.main');
  const shown = await text();
  assert.match(shown, /mailbox's own password/);
  assert.equal(await page.inputValue('#host'), providers.sakura.host, 'what was typed is still there');
  assert.equal(await page.inputValue('#password'), '', 'but for the password');
  await page.screenshot({ path: `${pictures}/wrong_password.png`, fullPage: true });
  await page.fill('#password', providers.sakura.password);
  await press('main button.main');
  assert.equal(page.url(), `${origin}/admin/settings?done=saved`);
});

await task('sender and limits are changed', async () => {
  await press('a[href^="/admin/sender?account=custom"]');
  await page.fill('#from_name', 'The Shop');
  await page.fill('#reply_to', 'help@shop.example');
  await press('main button.main');
  assert.match(await text(), /The Shop[^]*help@shop\.example/);
  await press('a[href^="/admin/limits?account=custom"]');
  await page.fill('#hourly_limit', '120');
  await page.fill('#daily_limit', '20000');
  await press('main button.main');
  assert.equal(await page.locator('[role=alert]').count(), 1, 'too many are refused');
  await page.fill('#daily_limit', '1200');
  await press('main button.main');
  assert.match(await text(), /120[^]*1200/);
});

await task('why a mail did not arrive is found in a search and a click', async () => {
  await press('nav.side a[href="/admin/messages"]');
  await page.fill('#address', 'lost@example.com');
  await press('main form.search button');
  await press('main a:has-text("Your order 1234")');
  assert.match(await text(), /no such user here/);
  assert.match(await text(), /Correct the address|check the address|address/i);
});

await task('and it is retried', async () => {
  // The address is known there now, and no longer suppressed here.
  await go('/admin/suppressions?address=lost%40example.com');
  if (await page.locator('form[action="/admin/suppressions/remove"] button').count() > 0) {
    await press('form[action="/admin/suppressions/remove"] button');
    await press('main form[method=post] button');
  }
  await go('/admin/messages?address=lost%40example.com');
  await press('main a:has-text("Your order 1234")');
  await press('form[action$="/retry"] button');
  for (let n = 0; n < 100 && !/^sent/i.test(await page.textContent('.chip >> nth=0')); n++) await page.reload();
  assert.match(await page.textContent('.chip >> nth=0'), /^sent/i);
});

await task('an address is suppressed', async () => {
  await press('nav.side a[href="/admin/suppressions"]');
  await page.fill('#new', 'never@example.com');
  await page.fill('#reason', 'asked by telephone');
  await press('form[action="/admin/suppressions"][method=post] button.main');
  assert.match(await text(), /never@example\.com[^]*asked by telephone/);
});

await task('a template is drafted, looked at and published', async () => {
  await press('nav.side a[href="/admin/templates"]');
  await press('a[href="/admin/templates/edit"]');
  await page.fill('#name', 'order-note');
  await page.fill('#subject', 'About your order');
  await page.fill('#body', '# Your order\n\nHello $firstName, it is on its way.');
  await press('button[name=publish][value=no]');
  await go('/admin/templates');
  assert.match(await text(), /order-note[^]*Draft/i);
  await press('a[href^="/admin/templates/preview?name=order-note"]');
  await page.screenshot({ path: `${pictures}/template_preview.png`, fullPage: true });
  await press('form[action="/admin/templates/publish"] button');
  await go('/admin/templates');
  assert.match(await text(), /order-note/);
});

await task('reset to the platform, asked once', async () => {
  await press('nav.side a[href="/admin/settings"]');
  await press('a[href^="/admin/settings/reset"]');
  await press('main button.danger');
  assert.equal(await page.locator('[role=status]').count() > 0, true);
});

await task('signing out', async () => {
  await press('form.sign-out button');
  assert.equal(page.url(), `${origin}/sign-in`);
  await go('/admin');
  assert.match(page.url(), /\/sign-in$/);
});

await task('no password was in a URL', async () => {
  for (const url of urls) for (const { password: secret } of Object.values(providers)) assert.equal(decodeURIComponent(url).includes(secret), false, url);
});

await browser.close();
process.exit(failures > 0 ? 1 : 0);
