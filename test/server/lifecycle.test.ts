/**
 * A server's life: loading, full queues, clients that vanish or do not read, crashes, and its end.
 * @module
 */
import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { after, test } from 'node:test';
import {
  eventsOf,
  metric,
  request,
  startTestServer,
  type TestServer,
  until,
} from '../helpers/api-server.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { CRASH_FILE } from '../helpers/fragile-worker.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const folder = temporaryFolder();
const model = writeTinyChatModel(folder, { contextLength: 2048 });
const SMALL = ['--kv-pages', '4096'];
const servers: TestServer[] = [];
after(() => Promise.all(servers.map((server) => server.stop('SIGKILL'))));

async function start(words: string[] = [], init = {}): Promise<TestServer> {
  const workers = words.includes('--workers') ? [] : ['--workers', '1'];
  const server = await startTestServer(model, [...SMALL, ...workers, ...words], init);
  servers.push(server);
  return server;
}

/** A request that takes seconds unless somebody ends it. */
const endless = {
  model: 'test',
  prompt: 'hello',
  max_tokens: 2000,
  n: 64,
  ignore_eos: true,
  temperature: 1,
};
const short = { model: 'test', prompt: 'hello', max_tokens: 4 };

const held = (server: TestServer) => metric(server, 'flashforge:pages', 'state="held"');
const running = (server: TestServer) => metric(server, 'vllm:num_requests_running');

/** Sends a POST over a bare socket. */
function post({ url }: TestServer, path: string, body: object): Socket {
  const text = JSON.stringify(body);
  const socket = connect(Number(new URL(url).port), '127.0.0.1');
  socket.on('error', () => undefined);
  socket.write(
    `POST ${path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`,
  );
  return socket;
}

test('it answers while it loads, and /health tells when it is ready', async () => {
  const server = await start([], { loaded: false });
  const early = await request(server, '/v1/completions', short);
  if (early.status !== 200) {
    assert.equal(early.status, 503);
    assert.equal(early.body.error.code, 'model_loading');
    assert.ok(Number(early.headers.get('retry-after')) > 0);
  }
  await until('loading', async () => (await request(server, '/health')).status === 200);
  assert.equal((await request(server, '/v1/completions', short)).status, 200);
  assert.equal((await request(server, '/v1/models')).body.data[0].id, 'test');
  assert.equal(await server.stop('SIGINT'), 0);
});

test('a full queue, a timeout, and clients that vanish', async () => {
  const log = join(folder, 'log', 'server.log');
  const server = await start(['--queue-limit', '3', '--timeout', '2', '--log-file', log]);
  const sockets = [1, 2, 3].map(() => post(server, '/v1/completions', endless));
  await until(
    'three requests',
    async () => (await metric(server, 'flashforge:requests_open')) === 3,
  );
  const full = await request(server, '/v1/completions', short);
  assert.equal(full.status, 429);
  assert.equal(full.body.error.type, 'rate_limit_error');
  assert.ok(Number(full.headers.get('retry-after')) >= 1);

  // Gone without a word: everything of theirs is freed at once.
  for (const socket of sockets) socket.destroy();
  await until(
    'an empty queue',
    async () => (await metric(server, 'flashforge:requests_open')) === 0,
  );
  await until('no page held', async () => (await held(server)) === 0);
  assert.equal(await running(server), 0);

  for (const name of ['step_host_seconds', 'step_idle_seconds']) {
    assert.ok((await metric(server, `flashforge:${name}`, 'quantile="0.99"')) > 0);
  }

  const late = await request(server, '/v1/completions', endless);
  assert.equal(late.status, 408);
  assert.equal(late.body.error.code, 'request_timeout');
  await until('no page held', async () => (await held(server)) === 0);
  const stream = await request(server, '/v1/completions', { ...endless, stream: true });
  const last = eventsOf(stream.body).at(-1) as { error: { code: string } };
  assert.equal(last.error.code, 'request_timeout');
  assert.match(stream.body, /data: \[DONE\]\n\n$/);
  assert.equal(await metric(server, 'flashforge:requests_failed_total', 'reason="gone"'), 3);
  assert.equal(await server.stop(), 0);
  const lines = readFileSync(log, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const requests = lines.filter(({ msg }) => msg === 'request');
  assert.ok(requests.every(({ request: id, status }) => id.length > 8 && status >= 200));
});

test('a reader that is too slow is cut off; others are not disturbed', async () => {
  const server = await start();
  const body = { ...endless, n: 128, stream: true };
  const slow = post(server, '/v1/completions', body);
  slow.pause();
  await until('it runs', async () => (await running(server)) > 0);
  const quick = await request(server, '/v1/completions', short);
  assert.equal(quick.status, 200);
  const cut = () => metric(server, 'flashforge:requests_failed_total', 'reason="slow"');
  await until('it is cut off', async () => (await cut()) === 1, 60_000);
  await until('no page held', async () => (await held(server)) === 0);
  slow.destroy();

  // Hundreds of silent connections cost nobody a turn.
  const { port } = new URL(server.url);
  const idle = Array.from({ length: 400 }, () => connect(Number(port), '127.0.0.1'));
  for (const [index, socket] of idle.entries()) {
    socket.on('error', () => undefined);
    if (index % 2 === 0) socket.write('POST /v1/completions HTTP/1.1\r\nHost: local');
  }
  const answers = await Promise.all(
    Array.from({ length: 20 }, () => request(server, '/v1/completions', short)),
  );
  assert.ok(answers.every(({ status }) => status === 200));
  for (const socket of idle) socket.destroy();
});

/** Two requests run, something breaks, both fail, and the server goes on with a new engine. */
async function surviveFailure(server: TestServer, breakIt: () => void): Promise<void> {
  const made = await request(server, '/v1/prefixes', { text: 'hello', id: 'kept' });
  assert.equal(made.status, 201);
  const stream = fetch(`${server.url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ ...endless, stream: true }),
  });
  const whole = request(server, '/v1/completions', endless);
  const response = await stream;
  assert.equal(response.status, 200);
  await until('both run', async () => (await running(server)) === 128);
  breakIt();
  const last = eventsOf(await response.text()).at(-1) as { error: { code: string } };
  assert.equal(last.error.code, 'engine_failed');
  const { status, body } = await whole;
  assert.equal(status, 500);
  assert.equal(body.error.code, 'engine_failed');

  await until('a new engine', async () => (await request(server, '/health')).status === 200);
  assert.equal((await request(server, '/v1/completions', short)).status, 200);
  assert.equal((await request(server, '/v1/prefixes/kept')).status, 404);
  assert.equal(await metric(server, 'flashforge:engine_restarts'), 1);
  assert.equal(await held(server), 0);
}

test('a crashed engine: requests fail with an error, the next ones work', async () => {
  const script = join(import.meta.dirname, '../helpers/faulty-server.js');
  const server = await start([], { script });
  await surviveFailure(server, () => server.process.kill('SIGUSR2'));
});

test('a compute thread that dies in the midst of a step: the same', async () => {
  const preload = join(import.meta.dirname, '../helpers/fragile-worker.js');
  const file = join(folder, 'crash');
  process.env[CRASH_FILE] = file;
  const server = await start(['--workers', '3'], { preload });
  delete process.env[CRASH_FILE];
  await surviveFailure(server, () => writeFileSync(file, ''));
  assert.match(server.stderr(), /worker thread [12] ended by itself/);
});

test('a log that cannot be written stops no request', async (context) => {
  if (!existsSync('/dev/full')) {
    context.skip('there is no /dev/full here');
    return;
  }
  const server = await start(['--log-file', '/dev/full']);
  for (let turn = 0; turn < 5; turn++) {
    assert.equal((await request(server, '/v1/completions', short)).status, 200);
  }
  await until('the reason is told once', () => server.stderr().includes('the log fails'));
  assert.equal(await server.stop(), 0);
});

test('SIGTERM lets requests end, refuses new ones, and a second one stops at once', async () => {
  const server = await start(['--drain', '120']);
  const calm = request(server, '/v1/completions', { ...endless, max_tokens: 1000 });
  await until('it runs', async () => (await running(server)) > 0);
  const exit = server.stop();
  const { status, body } = await calm;
  assert.equal(status, 200);
  assert.ok(body.choices.every((each: { finish_reason: string }) => each.finish_reason));
  assert.equal(await exit, 0);

  const hasty = await start(['--drain', '60']);
  const lost = request(hasty, '/v1/completions', endless).catch((error: Error) => error);
  await until('it runs', async () => (await running(hasty)) > 0);
  hasty.process.kill('SIGTERM');
  await until('it drains', () => hasty.stderr().includes('shutting down'));
  await assert.rejects(request(hasty, '/v1/completions', short));
  assert.equal(await hasty.stop(), 143);
  assert.ok((await lost) instanceof Error);
});
