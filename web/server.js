// server.js: starts the gateway and ends it.
//
// Copyright (c) 2026, the kliv_mail developers
import { configure } from './config.js';
import { gateway } from './gateway.js';

let app;
let ending = false;

async function end(signal) {
  if (ending) return;
  ending = true;
  app.log.info({ event: 'shutdown', signal });
  setTimeout(() => process.exit(1), app.limits.shutdown).unref();
  await app.close();
  process.exit(0);
}

try {
  const config = configure(process.env);
  app = await gateway(config);
  app.decorate('limits', config.limits);
  for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => end(signal));
  await app.listen(config.listen);
  app.log.info({ event: 'ready', origin: app.origin() });
} catch (error) {
  console.error(`kliv_mail gateway: ${error.message}`);
  process.exit(1);
}
