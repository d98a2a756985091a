/**
 * `flashforge bench tpot` on the processor, with random weights of a tiny shape.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { randomCheckpoint, readModelConfig } from '../../src/checkpoint/random-checkpoint.ts';
import { assertFails, runCli } from '../helpers/run-cli.ts';

const folder = mkdtempSync(join(tmpdir(), 'ff-tpot-'));
after(() => rmSync(folder, { recursive: true, force: true }));
const shape = join(folder, 'config.json');
writeFileSync(
  shape,
  JSON.stringify({
    model_type: 'llama',
    hidden_size: 128,
    intermediate_size: 256,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    head_dim: 32,
    vocab_size: 500,
    max_position_embeddings: 512,
    rms_norm_eps: 1e-5,
    rope_theta: 10_000,
    tie_word_embeddings: false,
  }),
);

test('times and KV bytes of every case, with and without sharing', async () => {
  const sizes = ['--shared', '200,100', '--batch', '1,3', '--steps', '4', '--kv-pages', '64'];
  const { code, stdout, stderr } = await runCli([
    ...['bench', 'tpot', '--random-weights', shape, ...sizes, '--both', '--json'],
  ]);
  assert.equal(code, 0, stderr);
  const report = JSON.parse(stdout);
  assert.equal(report.random_weights, true);
  assert.equal(report.device, 'cpu');
  assert.deepEqual(
    report.prefills.map(({ shared, tokens }: { shared: number; tokens: number }) => [
      ...[shared, tokens],
    ]),
    [
      [100, 100],
      [200, 100],
    ],
  );
  assert.equal(report.cases.length, 8);
  for (const { shared, batch, flat, tpot_ms, worst_ms, kv_bytes } of report.cases) {
    assert.ok(tpot_ms > 0 && worst_ms >= tpot_ms);
    // Own tokens: a suffix of 6 and those decoded before the step, 2 to warm up and 4 measured.
    const own = 6 + 2 + 2.5;
    const tokens = flat ? batch * (shared + own) : shared + batch * own;
    assert.equal(kv_bytes, Math.round(tokens * report.token_bytes));
  }
});

test('random weights are the same each time, small, and of the right sizes', () => {
  const config = readModelConfig(shape);
  const [one, two] = [randomCheckpoint(config), randomCheckpoint(config)];
  for (const [name, info] of one.tensors) {
    const bytes = one.read(name);
    assert.equal(bytes.length, info.bytes);
    assert.deepEqual(bytes, two.read(name));
    if (info.type === 'F32') continue;
    const values = new Float32Array(
      new Uint32Array(new Uint16Array(bytes.buffer)).map((b) => b << 16).buffer,
    );
    const squares = values.reduce((sum, x) => sum + x * x, 0) / values.length;
    assert.ok(Math.abs(Math.sqrt(squares) - 0.02) < 0.001, name);
  }
});

test('what cannot be measured is refused in one sentence', async () => {
  const words = ['bench', 'tpot', '--random-weights'];
  await assertFails([...words, shape, '--shared', '600'], 1, /--shared must be at most .* 512/);
  await assertFails([...words, join(folder, 'none.json')], 1, /cannot be read/);
  await assertFails([...words, shape, '--model', 'x'], 2, /--model or --random-weights/);
  await assertFails([...words, shape, '--flat', '--both'], 2, /--flat or --both/);
});
