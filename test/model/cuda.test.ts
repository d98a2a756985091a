/**
 * The CUDA runner. On a machine with a device: against the reference, over every option of a
 * decoder, prompts in chunks, forks and graphs. Without one: what it says then.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HEAD_DIMS } from '../../src/backend/cuda/variants.ts';
import { randomStream } from '../../src/base/math.ts';
import type { Checkpoint } from '../../src/checkpoint/checkpoint.ts';
import { loadRunner, pickDevice, type RunnerOptions } from '../../src/model/load-runner.ts';
import { memoryCheckpoint } from '../helpers/memory-checkpoint.ts';
import { Stepper } from '../helpers/stepper.ts';
import { TINY_CONFIGS } from '../helpers/tiny-configs.ts';

const device = await pickDevice('auto');
const skip = device === 'cuda' ? false : 'no CUDA device on this machine';
const TINY = TINY_CONFIGS['two KV heads'];
/** Error of the logits relative to their rms; measured 0.001 and 0.0075. */
const ERROR = { f16: 0.004, bf16: 0.03 };

/** A prompt in chunks, branches, decoding often enough that graphs are captured and replayed. */
async function play(checkpoint: Checkpoint, options: RunnerOptions): Promise<Float32Array[]> {
  const { vocab } = checkpoint.config;
  const random = randomStream(7);
  const tokens = (count: number): number[] =>
    Array.from({ length: count }, () => Math.floor(random() * vocab));
  const runner = await loadRunner(checkpoint, { kvPages: 100, maxRows: 160, ...options });
  const stepper = new Stepper(runner);
  const rows: Float32Array[] = [];
  const shared = stepper.tree.insert(tokens(131));
  while (shared.computed < shared.length) rows.push(...(await stepper.step([shared], 47)).logits);
  const paths = [3, 0, 70, 9].map((length) => {
    const path = stepper.tree.fork(shared, length === 9 ? 60 : 131);
    stepper.tree.extend(path, tokens(length));
    return path;
  });
  for (let turn = 0; turn < 4; turn++) {
    const { logits, output } = await stepper.step(paths);
    rows.push(...logits);
    const best = logits.map((row) => row.indexOf(Math.max(...row)));
    assert.deepEqual([...output.argmax].sort(), best.sort());
    for (const path of paths) stepper.tree.append(path, tokens(1)[0]);
  }
  await runner.dispose();
  return rows;
}

/** Rms of the difference, relative to the rms of the expected around each row's mean. */
function distance(expected: readonly Float32Array[], actual: readonly Float32Array[]): number {
  let [difference, squares] = [0, 0];
  expected.forEach((row, i) => {
    const mean = row.reduce((sum, x) => sum + x, 0) / row.length;
    row.forEach((x, j) => {
      difference += (x - actual[i][j]) ** 2;
      squares += (x - mean) ** 2;
    });
  });
  return Math.sqrt(difference / squares);
}

for (const [name, config] of Object.entries(TINY_CONFIGS)) {
  if (!(HEAD_DIMS as readonly number[]).includes(config.headDim)) continue;
  test(`CUDA, ${name}: as the reference`, { skip }, async () => {
    const checkpoint = memoryCheckpoint(config, 'F32');
    const expected = await play(checkpoint, { device: 'reference' });
    for (const kvType of ['f16', 'bf16'] as const) {
      const error = distance(expected, await play(checkpoint, { device: 'cuda', kvType }));
      assert.ok(error < ERROR[kvType], `${kvType} logits differ by ${error} of their rms`);
    }
  });
}

for (const type of ['BF16', 'Q8_0', 'Q4_K', 'Q6_K'] as const) {
  test(`CUDA, ${type} weights: as the reference`, { skip }, async () => {
    const checkpoint = memoryCheckpoint(TINY, type);
    const expected = await play(checkpoint, { device: 'reference' });
    const error = distance(expected, await play(checkpoint, { device: 'cuda' }));
    assert.ok(error < ERROR[type === 'BF16' ? 'bf16' : 'f16'], `logits differ by ${error}`);
  });
}

test('32-bit floats are no choice on CUDA', () =>
  assert.rejects(
    loadRunner(memoryCheckpoint(TINY, 'F16'), { device: 'cuda', kvType: 'f32' }),
    /kvType must be f16 or bf16 on CUDA, got "f32"/,
  ));

test('without a device, one sentence says what is missing', { skip: skip === false }, () =>
  assert.rejects(loadRunner(memoryCheckpoint(TINY, 'F16'), { device: 'cuda' }), {
    code: 'device',
    message: /needs the NVIDIA driver|driver supports CUDA|this machine has 0/,
  }),
);

test('without a device, auto is the processor', { skip: skip === false }, async () => {
  const runner = await loadRunner(memoryCheckpoint(TINY, 'F16'), {
    ...{ device: 'auto', workers: 1, kvPages: 4, provider: 'wasm' },
  });
  assert.equal(runner.device, 'cpu');
  await runner.dispose();
});
