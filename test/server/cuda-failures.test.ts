/**
 * The command line and the server on a CUDA device: Ctrl-C in the midst of replayed graphs, and a
 * context that is lost under running requests. Skipped where there is no device.
 * @module
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { pickDevice } from '../../src/model/load-runner.ts';
import { eventsOf, request, startTestServer, until } from '../helpers/api-server.ts';
import { FAULT_FILE } from '../helpers/cuda-fault-preload.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { runCli } from '../helpers/run-cli.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const device = await pickDevice('auto');
const skip = device === 'cuda' ? false : 'no CUDA device on this machine';
const folder = temporaryFolder();
const model = writeTinyChatModel(folder, { contextLength: 65_536 });
const onCuda = ['--device', 'cuda', '--kv-pages', '5000'];
const generate = ['generate', '--model', model, '--prompt', 'hello', '--device', 'cuda'];

test('Ctrl-C while decoding on CUDA: exit code 130, nothing written', { skip }, async (t) => {
  let began = 0;
  const words = [...generate, '--max-tokens', '60000'];
  const { code, stderr } = await runCli(words, {}, (child) =>
    child.stdout?.once('data', () => {
      began = performance.now();
      child.kill('SIGINT');
    }),
  );
  t.diagnostic(`ended ${(performance.now() - began).toFixed(0)} ms after the signal`);
  assert.equal(code, 130, stderr);
  assert.match(stderr, /^flashforge: interrupted$/m);
});

test('the server outlives its device', { skip }, async (t) => {
  const file = join(folder, 'fault');
  process.env[FAULT_FILE] = file;
  const preload = join(import.meta.dirname, '../helpers/cuda-fault-preload.js');
  const server = await startTestServer(model, onCuda, { preload });
  try {
    const ask = { model: 'test', prompt: 'hello', max_tokens: 60_000, min_tokens: 60_000 };
    const response = await fetch(`${server.url}/v1/completions`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ ...ask, stream: true }),
    });
    assert.equal(response.status, 200);
    let text = '';
    const decoder = new TextDecoder();
    for await (const chunk of response.body as ReadableStream<Uint8Array>) {
      if (text === '') writeFileSync(file, '');
      text += decoder.decode(chunk, { stream: true });
    }
    const last = eventsOf(text).at(-1) as { error?: { message: string } };
    t.diagnostic(JSON.stringify(last));
    assert.match(last.error?.message ?? '', /can no longer be used|stopped|failed/);
    const short = { ...ask, max_tokens: 2, min_tokens: 0 };
    await until(
      'the next request is answered by a new engine',
      async () => (await request(server, '/v1/completions', short)).status === 200,
      60_000,
    );
    assert.match(server.stderr(), /the engine was restarted/);
    assert.equal((await request(server, '/v1/models')).status, 200);
    assert.equal(server.process.exitCode, null, 'the process is alive');
  } finally {
    delete process.env[FAULT_FILE];
    assert.equal(await server.stop(), 0, server.stderr());
  }
});
