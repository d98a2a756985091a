/**
 * The CPU runner against the reference: every option of a decoder and every storage type, prompts
 * in chunks, forks, merges and several workers, on native and WebAssembly kernels.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findCompiler } from '../../src/backend/cpu/native-compiler.ts';
import { isDense } from '../../src/backend/cpu/repack.ts';
import { randomStream } from '../../src/base/math.ts';
import type { Checkpoint, DecoderConfig, TensorType } from '../../src/checkpoint/checkpoint.ts';
import { loadRunner, type RunnerOptions } from '../../src/model/load-runner.ts';
import type { PlanOptions } from '../../src/plan/plan.ts';
import { memoryCheckpoint } from '../helpers/memory-checkpoint.ts';
import { Stepper } from '../helpers/stepper.ts';
import { TINY_CONFIGS } from '../helpers/tiny-configs.ts';
import { distance, walk } from '../helpers/walk.ts';

const noCompiler = (await findCompiler()) === null ? 'no C compiler on this machine' : false;
const PROVIDERS = [
  { provider: 'native', skip: noCompiler },
  { provider: 'wasm', skip: false },
] as const;

/** Error of the logits relative to their rms: float sums, or inputs rounded to 8 bits. */
const DENSE_ERROR = 2e-5;
const QUANTIZED_ERROR = 0.03;
/** Half-precision K and V. */
const F16_ERROR = 2e-3;

/** What the reference says, once for all providers. */
const expectations = new Map<string, ReturnType<typeof walk>>();
function expectedOf(config: DecoderConfig, type: TensorType): ReturnType<typeof walk> {
  const key = JSON.stringify([config, type]);
  const known =
    expectations.get(key) ??
    walk(memoryCheckpoint(config, type), { device: 'reference', planning: { packing: false } });
  expectations.set(key, known);
  return known;
}

async function compare(
  config: DecoderConfig,
  type: TensorType,
  options: RunnerOptions,
  tolerance: number,
): Promise<void> {
  const expected = await expectedOf(config, type);
  const planning = { packing: false };
  const error = distance(
    expected,
    await walk(memoryCheckpoint(config, type), { ...options, planning }),
  );
  assert.ok(error < tolerance, `logits differ by ${error} of their rms, at most ${tolerance}`);
}

for (const { provider, skip } of PROVIDERS) {
  for (const [name, config] of Object.entries(TINY_CONFIGS)) {
    test(`${provider}, ${name}: F32 as the reference`, { skip }, () =>
      compare(config, 'F32', { provider, workers: 2, kvType: 'f32' }, DENSE_ERROR),
    );
  }
  for (const type of ['F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K'] as const) {
    test(`${provider}, ${type} weights, f16 KV`, { skip }, () =>
      compare(
        TINY_CONFIGS['two KV heads'],
        type,
        { provider, workers: 1 },
        isDense(type) ? F16_ERROR : QUANTIZED_ERROR,
      ),
    );
  }
  test(`${provider}: tree or flat, any workers: the same bits`, { skip }, async () => {
    const checkpoint = memoryCheckpoint(TINY_CONFIGS['qkv bias, group of 7'], 'Q8_0');
    const runs = [
      await decodeWithForks(checkpoint, { provider, workers: 2 }, {}),
      await decodeWithForks(checkpoint, { provider, workers: 2 }, { flat: true }),
      await decodeWithForks(checkpoint, { provider, workers: 1 }, { packing: false }),
      await decodeWithForks(checkpoint, { provider, workers: 3 }, { division: false }),
    ];
    for (const rows of runs) assert.deepEqual(rows, runs[0]);
  });
}

/** Greedy decoding of four branches of one prompt, two of them forked again: all the logits. */
async function decodeWithForks(
  checkpoint: Checkpoint,
  options: RunnerOptions,
  planning: Partial<PlanOptions>,
): Promise<Float32Array[]> {
  const { vocab } = checkpoint.config;
  const random = randomStream(23);
  const tokens = (count: number): number[] =>
    Array.from({ length: count }, () => Math.floor(random() * vocab));
  const runner = await loadRunner(checkpoint, { kvPages: 64, maxRows: 160, ...options });
  const stepper = new Stepper(runner, planning);
  const { tree } = stepper;
  const rows: Float32Array[] = [];
  const shared = tree.insert(tokens(700));
  while (shared.computed < shared.length) rows.push(...(await stepper.step([shared], 150)).logits);
  const paths = [1, 5, 70, 2].map((length) => {
    const path = tree.fork(shared, length === 70 ? 333 : 700);
    tree.extend(path, tokens(length));
    return path;
  });
  for (let step = 0; step < 32; step++) {
    const { logits } = await stepper.step(paths);
    rows.push(...logits);
    paths.forEach((path, i) => {
      tree.append(path, logits[i].indexOf(Math.max(...logits[i])));
    });
    if (step % 12 !== 5) continue;
    const twin = tree.fork(paths[step % 3], paths[step % 3].length - 1);
    tree.append(twin, tokens(1)[0]);
    paths.push(twin);
  }
  await runner.dispose();
  return rows;
}

test('tensors of one model may have different types', async () => {
  const config = TINY_CONFIGS['two KV heads'];
  const types: TensorType[] = ['Q4_K', 'F16', 'Q6_K', 'F32', 'Q8_0'];
  let at = 0;
  const checkpoint = memoryCheckpoint(config, () => types[at++ % types.length]);
  const expected = await walk(checkpoint, { device: 'reference' });
  const actual = await walk(checkpoint, { workers: 2 });
  assert.ok(distance(expected, actual) < QUANTIZED_ERROR);
});

test('a step that is too large or has an unknown token is refused', async () => {
  const checkpoint = memoryCheckpoint(TINY_CONFIGS['two KV heads'], 'Q8_0');
  const runner = await loadRunner(checkpoint, { workers: 1, maxRows: 4, kvPages: 4 });
  const stepper = new Stepper(runner);
  await assert.rejects(stepper.step([stepper.tree.insert([1, 2, 3, 4, 5])]), /at most maxRows/);
  await assert.rejects(stepper.step([stepper.tree.insert([100_000])]), /no token/);
  await runner.dispose();
  await runner.dispose();
});
