/**
 * `flashforge bench tpot` on the processor, with random weights of a tiny shape.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { assetPath } from '../../src/base/package-files.ts';
import { randomCheckpoint, readModelConfig } from '../../src/checkpoint/random-checkpoint.ts';
import { boundMs, modelCosts } from '../../src/cli/tpot-report.ts';
import {
  builtInScenarios,
  kvTokens,
  Prompts,
  scenariosNamed,
} from '../../src/cli/tpot-scenario.ts';
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

const COLUMNS = [
  ...['tpot_ms', 'step_p50_ms', 'step_p99_ms', 'ttft_p50_ms', 'ttft_max_ms', 'attention_ms'],
  ...['plan_ms', 'kv_bytes', 'host_p50_ms', 'host_p99_ms', 'idle_p50_ms', 'idle_p99_ms'],
  ...['bound_ms', 'ratio'],
];

test('every case with all its columns, with and without sharing', async () => {
  const sizes = ['--shared', '200,100', '--batch', '1,3', '--suffix', '6', '--steps', '4'];
  const { code, stdout, stderr } = await runCli([
    ...['bench', 'tpot', '--random-weights', shape, ...sizes, '--kv-pages', '64'],
    ...['--both', '--json'],
  ]);
  assert.equal(code, 0, stderr);
  const report = JSON.parse(stdout);
  assert.equal(report.random_weights, true);
  assert.equal(report.device, 'cpu');
  assert.match(report.no_energy, /CUDA/);
  const prefixes = report.prefills.map(({ name, tokens }: { name: string; tokens: number }) => [
    ...[name, tokens],
  ]);
  // What a scenario before has computed is only asked for its last token's logits.
  assert.deepEqual(prefixes, [
    ['shared-100-B1', 100],
    ['shared-100-B3', 1],
    ['shared-200-B1', 100],
    ['shared-200-B3', 1],
  ]);
  assert.equal(report.cases.length, 8);
  for (const each of report.cases) {
    for (const column of COLUMNS) {
      assert.ok(Number.isFinite(each[column]), `${each.name}: ${column}`);
    }
    assert.ok(each.step_p99_ms >= each.step_p50_ms && each.ttft_max_ms >= each.ttft_p50_ms);
    assert.equal(each.joule_per_token, null);
    assert.equal(each.tpot_all.length, 3);
    const [, shared, batch] = each.name.match(/shared-(\d+)-B(\d+)/).map(Number);
    // Own tokens: a suffix of 6 and those that the 4 steps have added, 2.5 in the mean.
    const own = 6 + 2.5;
    const flat = batch * (shared + own);
    const unique = shared + batch * own;
    assert.equal(each.kv_bytes, (each.mode === 'flat' ? flat : unique) * report.token_bytes);
    assert.ok(Math.abs(each.unique_kv_tokens - unique) <= batch / 2);
    assert.ok(Math.abs(each.flat_kv_tokens - flat) <= batch / 2);
  }
  for (const row of report.rows) assert.ok(row.flat_ms !== null && row.faster === null);
});

test('documents with questions are one batch, and the readings join with those of peers', async () => {
  const dataset = join(folder, 'qa.jsonl');
  const documents = [
    { document: 'The tide comes in twice a day. '.repeat(8), questions: ['When?', 'What?'] },
    { input: 'A lamp stood on the pier. '.repeat(6), qa_pairs: '[{"Q": "Where was it?"}]' },
  ];
  writeFileSync(dataset, documents.map((each) => JSON.stringify(each)).join('\n'));
  const out = join(folder, 'report.json');
  const measured = await runCli([
    ...['bench', 'tpot', '--random-weights', shape, '--dataset', dataset, '--steps', '32'],
    ...['--kv-pages', '64', '--json', out],
  ]);
  assert.equal(measured.code, 0, measured.stderr);
  const report = JSON.parse(readFileSync(out, 'utf8'));
  const [{ name, batch, tpot_ms }] = report.cases;
  assert.equal(name, 'qa.jsonl-B3');
  assert.equal(batch, 3);

  const peers = join(folder, 'peers.jsonl');
  const reading = { shape, name, peer: 'other', tpot_ms: tpot_ms * 4, joule_per_token: 0.5 };
  const lines = [reading, { ...reading, peer: 'failing', tpot_ms: undefined, failed: 'no room' }];
  writeFileSync(peers, lines.map((line) => JSON.stringify(line)).join('\n'));
  const joined = await runCli(['bench', 'tpot', '--join', out, '--peers', peers, '--json']);
  assert.equal(joined.code, 0, joined.stderr);
  const { rows } = JSON.parse(joined.stdout);
  assert.equal(rows.length, 1);
  assert.equal(rows[0].faster, 4);
  assert.deepEqual(rows[0].peers, { other: { tpot_ms: tpot_ms * 4, joule_per_token: 0.5 } });
  assert.match(joined.stderr, /qa\.jsonl-B3.*4\.00x/);
  assert.match(joined.stderr, /fastest peer \/ TPOT 4\.00x/);
});

/** KV tokens of vLLM's readings on the same scenarios: unique, flat. */
const KV_TOKENS: Readonly<Record<string, readonly [number, number]>> = {
  'shared-4096-B1': [4241, 4241],
  'shared-4096-B16': [6416, 67856],
  'shared-4096-B64': [13376, 271424],
  'shared-16384-B1': [16529, 16529],
  'shared-16384-B16': [18704, 264464],
  'shared-16384-B64': [25664, 1057856],
  'shared-65536-B1': [65681, 65681],
  'shared-65536-B8': [66696, 525448],
  'shared-65536-B16': [67856, 1050896],
  'shared-65536-B32': [70176, 2101792],
  'shared-65536-B64': [74816, 4203584],
  'shared-120000-B1': [120145, 120145],
  'shared-120000-B8': [121160, 961160],
  'shared-120000-B16': [122320, 1922320],
  'shared-120000-B32': [124640, 3844640],
  'shared-120000-B64': [129280, 7689280],
  'two-level-32k-4x8k-B32': [70176, 1315360],
  'binary-6x4096-B32': [262688, 791072],
  'flat-4096-B32': [131616, 131616],
  'few-shot-2048-B128': [12416, 272512],
};
/** Their bounds on an H100 in ms: 3.0 TB/s, 600 TFLOP/s. */
const BOUNDS: readonly [shape: string, name: string, ms: number][] = [
  ['qwen3-4b', 'shared-4096-B1', 2.89],
  ['qwen3-4b', 'shared-65536-B64', 6.81],
  ['qwen3-4b', 'shared-120000-B64', 10.24],
  ['qwen3-4b', 'binary-6x4096-B32', 15.59],
  ['llama-3.1-8b', 'shared-16384-B16', 5.82],
  ['llama-3.1-8b', 'shared-120000-B64', 11.72],
  ['llama-3.1-8b', 'flat-4096-B32', 10.75],
];

test('built-in scenarios read as many KV tokens as those that vLLM was measured on', () => {
  const scenarios = builtInScenarios();
  const counted = scenarios.map((scenario) => {
    const { unique, flat } = kvTokens(scenario, 32);
    return [scenario.name, [unique, flat]];
  });
  assert.deepEqual(Object.fromEntries(counted), KV_TOKENS);
  for (const [name, scenario, ms] of BOUNDS) {
    const { config, tensors } = randomCheckpoint(readModelConfig(assetPath(`tpot/${name}.json`)));
    const tokenBytes = config.layers * config.kvHeads * config.headDim * 4;
    const costs = modelCosts({ config, tensors }, { tokenBytes });
    const tokens = kvTokens(scenariosNamed(scenario)[0], 32);
    assert.ok(Math.abs(boundMs(costs, tokens, 3e12) - ms) < 0.011, `${name}, ${scenario}`);
  }
});

test('prompts share what the tree says and nothing else', () => {
  const [scenario] = scenariosNamed('binary-6x4096-B32');
  const small = {
    ...scenario,
    nodes: scenario.nodes.map(({ parent }) => ({ parent, tokens: 8 })),
    suffix: 4,
  };
  const prompts = new Prompts(small, 50_000);
  const batch = prompts.next();
  const distinct = (length: number): number =>
    new Set(batch.map((prompt) => prompt.slice(0, length).join())).size;
  assert.deepEqual([8, 16, 24, 32, 40, 48, 49].map(distinct), [1, 2, 4, 8, 16, 32, 32]);
  assert.equal(prompts.prefixes().length, 32);
  const again = prompts.next();
  for (const [i, prompt] of batch.entries()) {
    assert.deepEqual(prompt.slice(0, 48), again[i].slice(0, 48));
    assert.notEqual(prompt[48], again[i][48]);
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
  await assertFails([...words, shape, '--shared', '600'], 1, /prompts of up to 728 .* is 512/);
  await assertFails([...words, join(folder, 'none.json')], 1, /cannot be read/);
  await assertFails([...words, shape, '--model', 'x'], 2, /--model or --random-weights/);
  await assertFails([...words, shape, '--flat', '--both'], 2, /--flat or --both/);
  await assertFails([...words, shape, '--scenarios', 'best'], 2, /no scenario "best"/);
  await assertFails([...words, shape, '--scenarios', 'all', '--batch', '2'], 2, /not several/);
  await assertFails(['bench', 'tpot', '--shape', 'gpt'], 2, /--shape must be qwen3-4b or/);
  const empty = join(folder, 'empty.jsonl');
  writeFileSync(empty, '{"document": "x"}\n');
  await assertFails([...words, shape, '--dataset', empty], 1, /line 1 needs a list/);
  await assertFails(['bench', 'tpot', '--join', empty, '--peers', empty], 1, /line 1 needs/);
  await assertFails(['bench', 'tpot', '--join', empty], 1, /no report of bench tpot/);
});
