// crowd.js PORT COUNT: so many connections to the port, of 200 from an address, that say
// nothing; 'ready' when they are there, and an end of all when standard input ends.
//
// Copyright (c) 2026, the kliv_mail developers
import net from 'node:net';

const [port, count] = process.argv.slice(2).map(Number);
let lost = 0;
for (let n = 0; n < count; n += 200)
  await Promise.all(Array.from({ length: Math.min(200, count - n) }, () => new Promise((resolve) => {
    const socket = net.connect({ port, host: '127.0.0.1', localAddress: `127.0.1.${1 + n / 200}` }, resolve);
    socket.on('error', () => {}).on('close', () => { lost++; resolve(); });
  })));
console.log(lost === 0 ? 'ready' : `${lost} were lost`);
process.stdin.resume().on('end', () => process.exit());
