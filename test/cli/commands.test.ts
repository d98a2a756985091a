/**
 * Commands that succeed: what goes to which stream, and reports.
 * @module
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { runCli } from '../helpers/run-cli.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const folder = temporaryFolder();
const model = writeTinyChatModel(folder);
const isPositive = (value: unknown): boolean => typeof value === 'number' && value > 0;

test('inspect and pull report a local model', async () => {
  const report = join(folder, 'inspect.json');
  const inspect = await runCli(['inspect', model, '--tensors', '--json', report]);
  assert.equal(inspect.code, 0, inspect.stderr);
  assert.match(inspect.stdout, /architecture +llama/);
  const { config, tokenizer, parameters } = JSON.parse(readFileSync(report, 'utf8'));
  assert.equal(config.vocab, tokenizer.vocabulary);
  assert.equal(tokenizer.chatTemplate, true);
  assert.ok(isPositive(parameters));

  const pull = await runCli(['pull', model, '--json']);
  assert.equal(JSON.parse(pull.stdout).path, model);
});

test('generate: completions of prompts over a shared prefix as JSON on stdout alone', async () => {
  const prompts = join(folder, 'q.jsonl');
  const prefix = join(folder, 'doc.txt');
  const messages = [{ role: 'user', content: 'hello' }];
  const lines = [{ prompt: 'hello' }, { messages }].map((line) => JSON.stringify(line));
  writeFileSync(prompts, lines.join('\n'));
  writeFileSync(prefix, 'hello world '.repeat(12));
  const words = ['generate', '--model', model, '--prompts', prompts, '--prefix-file', prefix];
  const sampling = ['-n', '2', '--temperature', '0.8', '--seed', '3', '--max-tokens', '5'];
  const first = await runCli([...words, ...sampling, '--json']);
  assert.equal(first.code, 0, first.stderr);
  const { completions, stats } = JSON.parse(first.stdout);
  assert.deepEqual(
    completions.map((each: { prompt_index: number; index: number }) => [
      each.prompt_index,
      each.index,
    ]),
    [
      [0, 0],
      [0, 1],
      [1, 0],
      [1, 1],
    ],
  );
  for (const { text, token_ids, finish_reason } of completions) {
    assert.equal(typeof text, 'string');
    assert.ok(token_ids.length <= 5 && ['length', 'stop'].includes(finish_reason));
  }
  for (const key of ['ttft_ms', 'kv_bytes', 'kv_bytes_flat']) assert.ok(isPositive(stats[key]));
  assert.ok(stats.kv_bytes <= stats.kv_bytes_flat);
  for (const name of ['ttft_ms', 'tpot_ms', 'host_ms', 'idle_ms']) {
    const { count, p50, p99, max } = stats.times[name];
    assert.ok(count > 0 && p50 >= 0 && p50 <= p99 && p99 <= max, name);
  }

  const again = await runCli([...words, ...sampling, '--flat', '--json', '-']);
  assert.deepEqual(
    JSON.parse(again.stdout).completions.map(
      ({ token_ids }: { token_ids: number[] }) => token_ids.length,
    ),
    completions.map(({ token_ids }: { token_ids: number[] }) => token_ids.length),
  );
});

test('generate: a single completion is the only thing on stdout', async () => {
  const words = ['generate', '--model', model, '--prompt', 'hello', '--max-tokens', '4'];
  const { code, stdout, stderr } = await runCli(words);
  assert.equal(code, 0, stderr);
  assert.match(stderr, /chat-512\.gguf on cpu, /);
  assert.doesNotMatch(stdout, /on cpu/);
});

test('bench decode: fields of the report, tree against flat', async () => {
  const sizes = ['--shared', '130', '--batch', '1,3', '--new', '3'];
  const { code, stdout, stderr } = await runCli([
    ...['bench', 'decode', '--model', model, ...sizes, '--both', '--json'],
  ]);
  assert.equal(code, 0, stderr);
  const { device, provider, cases, token_bytes: tokenBytes } = JSON.parse(stdout);
  assert.equal(device, 'cpu');
  assert.equal(typeof provider, 'string');
  assert.deepEqual(
    cases.map(({ shared, batch }: { shared: number; batch: number }) => [shared, batch]),
    [
      [130, 1],
      [130, 3],
    ],
  );
  // 2 layers, 2 KV heads of 64, K and V in 2 bytes, with a scale of 4 bytes where they are integers.
  assert.ok([2 * 2 * 2 * 64 * 2, 2 * 2 * 2 * (64 * 2 + 4)].includes(tokenBytes), tokenBytes);
  // Suffixes of 6 tokens, steps 3 to 5 of each.
  const own = 6 + 4;
  assert.equal(cases[1].tree.kv_bytes, (130 + 3 * own) * tokenBytes);
  assert.equal(cases[1].flat.kv_bytes, 3 * (130 + own) * tokenBytes);
  for (const { tree, flat, diverged, logit_difference } of cases) {
    for (const key of ['step_ms', 'attention_ms']) {
      assert.ok(isPositive(tree[key]) && isPositive(flat[key]), key);
    }
    assert.equal(diverged, 0);
    assert.equal(logit_difference, 0);
  }
});

test('doctor tells about this machine', async () => {
  const { code, stdout, stderr } = await runCli(['doctor', '--json', '-']);
  assert.equal(code, 0, stderr);
  const { findings } = JSON.parse(stdout);
  const names = findings.map(({ what }: { what: string }) => what);
  for (const name of ['Node.js', 'SIMD', 'memory', 'C compiler', 'CUDA device']) {
    assert.ok(names.includes(name), name);
  }
});
