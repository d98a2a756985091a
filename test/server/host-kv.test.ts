/**
 * A server whose evicted KV goes to host memory: told on the command line, seen in usage and
 * metrics.
 * @module
 */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { metric, request, startTestServer, type TestServer } from '../helpers/api-server.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const folder = temporaryFolder();
const servers: TestServer[] = [];
after(() => Promise.all(servers.map((server) => server.stop('SIGKILL'))));

test('serve --host-kv-gib: an evicted prompt comes back, and counts as cached', async () => {
  const model = writeTinyChatModel(folder, { contextLength: 2048 });
  const cache = ['--device', 'reference', '--kv-pages', '3', '--host-kv-gib', '0.02'];
  const server = await startTestServer(model, cache);
  servers.push(server);
  const prompts = [1, 5].map((step) =>
    Array.from({ length: 140 }, (_, at) => 40 + ((at * step) % 37)),
  );
  const ask = async (prompt: number[]) => {
    const body = { model: 'test', prompt, max_tokens: 2, temperature: 0 };
    const answer = await request(server, '/v1/completions', body);
    assert.equal(answer.status, 200);
    const { choices, usage } = answer.body;
    return { text: choices[0].text, cached: usage.prompt_tokens_details.cached_tokens };
  };
  const first = [await ask(prompts[0]), await ask(prompts[1])];
  assert.deepEqual(
    first.map(({ cached }) => cached),
    [0, 0],
  );
  const again = [await ask(prompts[0]), await ask(prompts[1])];
  assert.deepEqual(
    again,
    first.map(({ text }) => ({ text, cached: 128 })),
  );
  assert.equal(await metric(server, 'flashforge:host_tokens', 'way="restored"'), 256);
  assert.ok((await metric(server, 'flashforge:host_tokens', 'way="saved"')) >= 256);
  assert.ok((await metric(server, 'flashforge:host_pages', 'state="used"')) >= 4);
});
