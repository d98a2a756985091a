/**
 * An engine in a process of its own, as it is used once this process has lost its device: the same
 * answers as a thread's, and nothing left behind.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EngineClient } from '../../src/engine/engine-client.ts';
import { Llm, load } from '../../src/engine/llm.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const RUNNER = { device: 'cpu', provider: 'wasm', workers: 1, kvPages: 20 } as const;
const REQUEST = { maxTokens: 12, temperature: 0.8, seed: 3 } as const;

test('a process of its own answers as a thread does', { timeout: 60_000 }, async () => {
  const path = writeTinyChatModel(temporaryFolder());
  const thread = await load(path, RUNNER);
  const { text } = await thread.generate('hello there', REQUEST);
  await thread.dispose();
  const start = { path, runner: RUNNER, engine: {} };
  const shares: number[] = [];
  const hooks = { onProgress: (share: number) => shares.push(share) };
  const { client, info } = await EngineClient.start(start, hooks, undefined, true);
  const apart = new Llm(client, { ...info, reference: path });
  assert.equal((await apart.generate('hello there', REQUEST)).text, text);
  assert.equal(shares.at(-1), 1);
  await apart.dispose();
  await assert.rejects(async () => {
    await apart.generate('again');
  }, /disposed/);
});

test('what fails in a process of its own is told', { timeout: 60_000 }, () =>
  assert.rejects(
    EngineClient.start({ path: 'nowhere.gguf', runner: RUNNER, engine: {} }, {}, undefined, true),
    {
      name: 'FlashForgeError',
    },
  ),
);
