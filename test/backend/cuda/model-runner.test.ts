/**
 * The CUDA runner's bookkeeping over a driver that does nothing: two steps under way and never
 * three, results in order, and failures that reach every step after them.
 * @module
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import type { StepInput } from '../../../src/backend/backend.ts';
import { TreeAttention } from '../../../src/backend/cuda/attention.ts';
import { Cuda } from '../../../src/backend/cuda/driver.ts';
import { KernelCache } from '../../../src/backend/cuda/kernel-cache.ts';
import { KernelLoader } from '../../../src/backend/cuda/kernel-loader.ts';
import { allocateBuffers } from '../../../src/backend/cuda/model/cuda-model.ts';
import { DecoderKernels } from '../../../src/backend/cuda/model/cuda-ops.ts';
import { CudaRunner, type CudaRunnerOptions } from '../../../src/backend/cuda/model/cuda-runner.ts';
import { Sampler } from '../../../src/backend/cuda/model/sampler.ts';
import { kernelSources } from '../../../src/backend/cuda/variants.ts';
import { isProcessLost } from '../../../src/base/errors.ts';
import { defaultProfile } from '../../../src/plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS, makePlan } from '../../../src/plan/make-plan.ts';
import { workloadForest } from '../../../src/plan/workload.ts';
import { TINY_CONFIGS } from '../../helpers/tiny-configs.ts';
import { FakeDriver } from './fake-driver.ts';

const CONFIG = TINY_CONFIGS['two KV heads'];
const { heads, kvHeads, headDim } = CONFIG;
const SPEC = { headDim, kvHeads, groupSize: heads / kvHeads, pageSize: 16, dtype: 'f16' as const };
/** More than the largest graph's: such a step runs kernel by kernel, here without a product. */
const ROWS = 160;
const NOT_READY = 600;
const ILLEGAL_ADDRESS = 700;

async function fakeRunner(): Promise<{ runner: CudaRunner; fake: FakeDriver; input: StepInput }> {
  const fake = new FakeDriver();
  const cuda = await Cuda.open(0, fake.library);
  const compiler = { name: 'none', version: 'none', kept: true, code: () => new Uint8Array() };
  const cache = new KernelCache(join(import.meta.filename, 'none'));
  const loader = new KernelLoader(cuda, compiler, cache, kernelSources());
  const stream = cuda.stream();
  const attention = new TreeAttention(loader, SPEC, stream);
  const buffers = allocateBuffers(cuda, CONFIG, 256, stream);
  const workload = {
    name: 'one prompt and its branches',
    parent: Int32Array.from({ length: ROWS + 1 }, (_, i) => (i === 0 ? -1 : 0)),
    tokens: Int32Array.from({ length: ROWS + 1 }, (_, i) => (i === 0 ? 40 : 3)),
    requests: Int32Array.from({ length: ROWS }, (_, i) => i + 1),
    ...{ queryHeads: heads, kvHeads, headDim },
  };
  const { forest } = workloadForest(workload, SPEC.pageSize);
  const planSpec = {
    ...SPEC,
    profile: defaultProfile('cuda', headDim),
    workers: cuda.info.multiprocessors,
    taskRows: attention.variant.taskRows,
    options: DEFAULT_PLAN_OPTIONS,
  };
  const options = {
    parts: {
      ...{ cuda, stream, attention, buffers },
      kernels: new DecoderKernels(loader, headDim, SPEC.pageSize, 'f16'),
      cublas: { free: () => {} },
      ways: { chained: new Map(), ownOutput: new Map() },
      model: { config: CONFIG, positions: 1024 },
    },
    sampler: new Sampler(loader, buffers, CONFIG.vocab, stream),
    forward: () => {},
    ...{ planSpec, pages: 1000, tokenBytes: 1, owned: [], providerWhy: 'none' },
    readBytesPerSecond: 1,
    energy: { joules: () => null, absent: 'none', close: () => {} },
  };
  const runner = new CudaRunner(options as unknown as CudaRunnerOptions);
  const input = {
    tokens: new Int32Array(ROWS),
    forest,
    plan: makePlan(forest, planSpec),
    writeSlots: new Int32Array(ROWS).fill(-1),
    logitRows: Int32Array.of(0, 1),
  };
  return { runner, fake, input };
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

test('two steps under way, results in order, never a third', async () => {
  const { runner, fake, input } = await fakeRunner();
  fake.failures.set('cuEventQuery', NOT_READY);
  const ended: number[] = [];
  const steps = [0, 1].map((index) => runner.step(input).then(() => ended.push(index)));
  await turn();
  assert.deepEqual(ended, []);
  await assert.rejects(runner.step(input), /more than 2 steps under way/);
  fake.failures.delete('cuEventQuery');
  await Promise.all(steps);
  assert.deepEqual(ended, [0, 1]);
  const { argmax, drawn, idleMs } = await runner.step(input);
  assert.deepEqual([argmax.length, drawn?.length, idleMs], [2, 2, 0]);
  await runner.dispose();
  assert.equal(fake.leaks, 0);
});

test('tokens of the step before are those of its logit rows', async () => {
  const { runner, input } = await fakeRunner();
  const tokens = new Int32Array(ROWS).fill(-1);
  await assert.rejects(runner.step({ ...input, tokens }), /no token -1/);
  await runner.step(input);
  await runner.step({ ...input, tokens: tokens.fill(-2) });
  await assert.rejects(runner.step({ ...input, tokens: tokens.fill(-3) }), /no token -3/);
  await runner.dispose();
});

test('a fault on the device rejects steps under way and later ones; disposal works', async () => {
  const { runner, fake, input } = await fakeRunner();
  const steps = [runner.step(input), runner.step(input)];
  fake.failures.set('cuEventQuery', ILLEGAL_ADDRESS);
  for (const step of await Promise.allSettled(steps)) {
    assert.equal(step.status, 'rejected');
    assert.match(String(step.reason), /cuEventQuery failed.*load the model again/);
  }
  fake.failures.delete('cuEventQuery');
  await assert.rejects(runner.step(input), (error) => isProcessLost(error));
  await runner.dispose();
  // What the context says when it is opened again: then the process has to be another one.
  fake.failures.set('cuCtxSynchronize', ILLEGAL_ADDRESS);
  await assert.rejects(Cuda.open(0, fake.library), (error) => isProcessLost(error));
});

test('logits are there until the next step is handed in', async () => {
  const { runner, input } = await fakeRunner();
  const first = await runner.step(input);
  assert.equal(first.logitsOf?.(1).length, CONFIG.vocab);
  assert.equal(first.logits.length, 2 * CONFIG.vocab);
  const second = await runner.step(input);
  const third = runner.step(input);
  assert.throws(() => second.logits, /once the next step is handed in/);
  await third;
  await runner.dispose();
});
