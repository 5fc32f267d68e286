// drain.js PEER SMTP_PORT MESSAGES CONNECTIONS OCTETS: sends what is queued, and
// prints the seconds from the moment that it may begin to the last reply, with the
// last job done.  PEER: nodemailer (a pool, no database), graphile-worker or pg-boss
// with the same pool, in the database that the PG* variables name.
//
// Each as its documentation advises for speed: prepared payloads, batches, a local
// queue; as many mails at once as there are connections.
//
// Copyright (c) 2026, the kliv_mail developers
import { randomBytes } from 'node:crypto';
import nodemailer from 'nodemailer';

const [peer, port, messages, connections, octets] =
    process.argv.slice(2).map((value, n) => (n === 0 ? value : Number(value)));
const transport = nodemailer.createTransport({
    host: '127.0.0.1', port, secure: false, ignoreTLS: true, pool: true,
    maxConnections: connections, maxMessages: Infinity
});
const line = () => randomBytes(32).toString('hex') + '\n';
const body = line().repeat(Math.round(octets / 65));
const mail = (n) => ({ from: 'app@example.com', to: `r${n}@example.com`, subject: 'Drain', text: body });
const seconds = (start) => Number(process.hrtime.bigint() - start) / 1e9;

async function nodemailerAlone() {
    const start = process.hrtime.bigint();
    let next = 0;
    await Promise.all(Array.from({ length: 4 * connections }, async () => {
        while (next < messages) await transport.sendMail(mail(next++));
    }));
    return seconds(start);
}

async function graphileWorker() {
    const { makeWorkerUtils, run } = await import('graphile-worker');
    const connectionString = process.env.DATABASE_URL;
    const utils = await makeWorkerUtils({ connectionString });
    await utils.migrate();
    for (let from = 0; from < messages; from += 1000)
        await utils.addJobs(Array.from({ length: Math.min(1000, messages - from) },
            (_, n) => ({ identifier: 'mail', payload: mail(from + n) })));
    let left = messages;
    let done;
    const finished = new Promise((resolve) => { done = resolve; });
    const start = process.hrtime.bigint();
    const runner = await run({
        connectionString,
        concurrency: 4 * connections,
        noHandleSignals: true,
        logger: undefined,
        preset: {
            worker: {
                concurrentJobs: 4 * connections,
                localQueue: { size: 500 },
                completeJobBatchDelay: 0,
                failJobBatchDelay: 0,
                maxPoolSize: 10
            }
        },
        taskList: {
            mail: async (payload) => {
                await transport.sendMail(payload);
                if (--left === 0) done();
            }
        }
    });
    await finished;
    await runner.stop();
    const taken = seconds(start);
    await utils.release();
    return taken;
}

async function pgBoss() {
    const { default: PgBoss } = await import('pg-boss');
    const boss = new PgBoss(process.env.DATABASE_URL);
    boss.on('error', (error) => { throw error; });
    await boss.start();
    await boss.createQueue('mail');
    for (let from = 0; from < messages; from += 1000)
        await boss.insert(Array.from({ length: Math.min(1000, messages - from) },
            (_, n) => ({ name: 'mail', data: mail(from + n) })));
    let left = messages;
    const start = process.hrtime.bigint();
    // Its worker waits between two batches; fetching by hand does not.
    while (left > 0) {
        const jobs = await boss.fetch('mail', { batchSize: 500 });
        await Promise.all(jobs.map((job) => transport.sendMail(job.data)));
        await boss.complete('mail', jobs.map((job) => job.id));
        left -= jobs.length;
    }
    const taken = seconds(start);
    await boss.stop({ graceful: false });
    return taken;
}

const taken = await { nodemailer: nodemailerAlone, 'graphile-worker': graphileWorker, 'pg-boss': pgBoss }[peer]();
console.log(taken.toFixed(3));
transport.close();
process.exit(0);
