// pages.js: the few pages that are the gateway's own: where there is no role yet that
// could ask the database for one.
//
// Copyright (c) 2026, the kliv_mail developers
import { createHash } from 'node:crypto';
import fs from 'node:fs';

const style = fs.readFileSync(new URL('style.css', import.meta.url), 'utf8');
const styleHash = createHash('sha256').update(style).digest('base64');

const texts = {
  en: {
    signIn: 'Sign in', product: 'Mail', intro: 'With your own database role.', role: 'Role', password: 'Password', other: '日本語', otherCode: 'ja',
    refused: 'The role or the password is wrong.',
    method: 'The database did not ask for a SCRAM password, so nobody can be told apart. pg_hba.conf is to say scram-sha-256 for connections of the gateway.',
    grant: 'This role may not look at mail. An administrator can allow it: SELECT kliv_mail.grant_read(\'…\');',
    tooMany: 'Too many attempts. Wait a quarter of an hour, then try again.',
    ended: 'Your session has ended. What you sent was not carried out: sign in and do it again.',
    empty: 'Give a role and its password.',
    unavailable: 'The database cannot be reached now. Try again in a minute.',
    crossSite: 'This request came from another site, and nothing was done.',
    host: 'This server is not meant to be reached by that name. Open',
    notFound: 'There is nothing here.', notAllowed: 'This address does not understand that method.', tooLarge: 'The request is too large.',
    badRequest: 'The request could not be understood.', type: 'Only forms are understood here.', failed: 'Something went wrong; the log says what.'
  },
  ja: {
    signIn: 'サインイン', product: 'メール', intro: 'ご自分のデータベースロールでサインインします。', role: 'ロール', password: 'パスワード', other: 'English', otherCode: 'en',
    refused: 'ロールまたはパスワードが違います。',
    method: 'データベースが SCRAM パスワードを求めなかったため、本人を確認できません。pg_hba.conf でゲートウェイからの接続を scram-sha-256 にしてください。',
    grant: 'このロールにはメールを見る権限がありません。管理者が許可できます: SELECT kliv_mail.grant_read(\'…\');',
    tooMany: '試行回数が多すぎます。15 分待ってからやり直してください。',
    ended: 'セッションが終了しました。送信した内容は実行されていません。サインインしてやり直してください。',
    empty: 'ロールとパスワードを入力してください。',
    unavailable: 'データベースに接続できません。1 分後にやり直してください。',
    crossSite: '別のサイトからの要求だったため、何も行いませんでした。',
    host: 'このサーバーはその名前では使えません。次を開いてください:',
    notFound: 'ここには何もありません。', notAllowed: 'このアドレスではその操作はできません。', tooLarge: '要求が大きすぎます。',
    badRequest: '要求を理解できませんでした。', type: 'ここではフォームのみ受け付けます。', failed: '問題が発生しました。詳しくはログをご覧ください。'
  }
};

export const headers = {
  'content-type': 'text/html; charset=utf-8',
  'content-security-policy': `default-src 'none'; style-src 'sha256-${styleHash}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'`,
  'x-content-type-options': 'nosniff',
  'x-frame-options': 'DENY',
  'referrer-policy': 'same-origin',
  'cross-origin-opener-policy': 'same-origin',
  'cache-control': 'no-store'
};

// By the page's switch: said with this request, or kept in the door's cookie, which comes
// with /admin alone.
export function chosenLanguage(request) {
  return /[?&]lang=(en|ja)(?:&|$)/.exec(request.raw.url)?.[1] ?? /^(?:en|ja)$/.exec(request.cookies?.kliv_mail_language)?.[0];
}

export function languageOf(request) {
  const chosen = chosenLanguage(request);
  if (chosen) return chosen;
  const ranges = (request.headers['accept-language'] ?? '').slice(0, 1000).split(',').map((range) => {
    const [name, quality] = range.trim().toLowerCase().split(/;\s*q=/);
    return { name: name.split('-')[0], quality: quality === undefined ? 1 : Number(quality) || 0 };
  });
  return ranges.filter(({ name, quality }) => name in texts && quality > 0).sort((a, b) => b.quality - a.quality)[0]?.name ?? 'en';
}

const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

function page(language, title, content, more = '') {
  return `<!DOCTYPE html>
<html lang="${language}">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>${escaped(title)}</title>${more}<style>${style}</style></head>
<body><main><div class="card">${content}</div></main></body>
</html>
`;
}

// A page that goes on by itself, as a link of ours.
export function onwardPage(request, to) {
  const language = languageOf(request);
  const t = texts[language];
  return page(language, t.product, `<p><a href="${escaped(to)}">${t.signIn}</a></p>`, `<meta http-equiv="refresh" content="0; url=${escaped(to)}">`);
}

// why: a name in texts of what went wrong before; to: the path to go on to.
export function signInPage(request, { why, to, role = '' }) {
  const language = languageOf(request);
  const chosen = chosenLanguage(request);
  const t = texts[language];
  const query = new URLSearchParams({ ...(to ? { to } : {}), lang: t.otherCode });
  return page(language, `${t.signIn} – ${t.product}`, `<h1>${t.signIn}</h1><p>${t.intro}</p>
${why ? `<p class="problem" role="alert">${escaped(t[why])}</p>` : ''}
<form method="post" action="/sign-in${chosen ? `?lang=${chosen}` : ''}"><input type="hidden" name="to" value="${escaped(to ?? '')}">
<label for="role">${t.role}</label><input id="role" name="role" value="${escaped(role)}" autocomplete="username" autocapitalize="none" spellcheck="false" required maxlength="63">
<label for="password">${t.password}</label><input id="password" name="password" type="password" autocomplete="current-password" required maxlength="1000">
<button>${t.signIn}</button></form>
<p class="language"><a href="/sign-in?${escaped(query)}" lang="${t.otherCode}" hreflang="${t.otherCode}">${t.other}</a></p>`);
}

export function problemPage(language, number, what, link = '') {
  const text = texts[language][what];
  return page(language, `${number} ${text}`, `<h1>${number}</h1><p>${escaped(text)}${link && ` <a href="${escaped(link)}">${escaped(link)}</a>`}</p>`);
}
