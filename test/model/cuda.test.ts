/**
 * The CUDA runner. On a machine with a device: against the reference, over every option of a
 * decoder, prompts in chunks, forks and graphs. Without one: what it says then.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { HEAD_DIMS } from '../../src/backend/cuda/variants.ts';
import type { Checkpoint } from '../../src/checkpoint/checkpoint.ts';
import { loadRunner, pickDevice, type RunnerOptions } from '../../src/model/load-runner.ts';
import { memoryCheckpoint } from '../helpers/memory-checkpoint.ts';
import { TINY_CONFIGS } from '../helpers/tiny-configs.ts';
import { distance, walk } from '../helpers/walk.ts';

const device = await pickDevice('auto');
const skip = device === 'cuda' ? false : 'no CUDA device on this machine';
const TINY = TINY_CONFIGS['two KV heads'];
/** Error of the logits relative to their rms; measured 0.001 and 0.0075. */
const ERROR = { f16: 0.004, bf16: 0.03 };

/** Often enough that graphs are captured and replayed. */
const TURNS = 4;
const play = (checkpoint: Checkpoint, options: RunnerOptions): Promise<Float32Array[]> =>
  walk(checkpoint, { ...options, turns: TURNS });

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
