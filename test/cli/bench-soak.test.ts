/**
 * `flashforge bench soak` for a few seconds on a tiny model, and that it does fail when something
 * is wrong.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { assertFails, runCli } from '../helpers/run-cli.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const model = writeTinyChatModel(temporaryFolder(), { contextLength: 512 });
const words = ['bench', 'soak', '--model', model, '--provider', 'wasm', '--clients', '4'];

test('random requests leave no page behind and have the outputs of replays', async (t) => {
  const { code, stdout, stderr } = await runCli([...words, '--seconds', '4', '--json']);
  assert.equal(code, 0, stderr);
  const { counts, replay, pagesHeld, problems } = JSON.parse(stdout);
  t.diagnostic(stderr.split('\n').find((line) => line.startsWith('soak: ')) ?? stderr);
  assert.deepEqual(problems, []);
  assert.equal(pagesHeld, 0);
  for (const kind of ['requests', 'cancelled', 'forked', 'tokens']) {
    assert.ok(counts[kind] > 0, `${kind}: ${counts[kind]}`);
  }
  assert.ok(replay.replayed > 0);
});

test('its options are checked', () => assertFails([...words, '--seconds', '0'], 2, /--seconds/));
