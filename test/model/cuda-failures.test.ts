/**
 * What goes wrong on a CUDA device ends in one sentence, leaks nothing, and leaves both the
 * processor and the device usable. Skipped where there is no device.
 * @module
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { BenchTools } from '../../src/backend/cuda/bench-tools.ts';
import { Cuda } from '../../src/backend/cuda/driver.ts';
import { defaultCacheFolder, KernelLoader } from '../../src/backend/cuda/kernel-loader.ts';
import { FlashForgeError } from '../../src/base/errors.ts';
import { randomCheckpoint } from '../../src/checkpoint/random-checkpoint.ts';
import { load } from '../../src/engine/llm.ts';
import { loadRunner, pickDevice, type RunnerOptions } from '../../src/model/load-runner.ts';
import { type BrokenContext, breakContext } from '../helpers/cuda-fault.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { memoryCheckpoint } from '../helpers/memory-checkpoint.ts';
import { Stepper } from '../helpers/stepper.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';
import { TINY_CONFIGS } from '../helpers/tiny-configs.ts';
import { distance, walk } from '../helpers/walk.ts';

const device = await pickDevice('auto');
const skip = device === 'cuda' ? false : 'no CUDA device on this machine';
const TINY = TINY_CONFIGS['two KV heads'];
const GIB = 2 ** 30;
const folder = temporaryFolder();
process.env.FLASHFORGE_CACHE = folder;

const tiny = (): ReturnType<typeof memoryCheckpoint> => memoryCheckpoint(TINY, 'BF16');
const small: RunnerOptions = { device: 'cuda', kvPages: 64, maxRows: 64 };

/** One prompt through a runner: its best next token. */
async function answer(options: RunnerOptions): Promise<number> {
  const runner = await loadRunner(tiny(), options);
  try {
    const stepper = new Stepper(runner);
    const path = stepper.tree.insert(Array.from({ length: 40 }, (_, i) => (i * 37) % TINY.vocab));
    const { output } = await stepper.step([path]);
    return output.argmax[0];
  } finally {
    await runner.dispose();
  }
}

/** The device's and the processor's answers while all is well. */
let [expected, expectedOnCpu] = [-1, -1];
const works = async (): Promise<void> => assert.equal(await answer(small), expected);
const CPU: RunnerOptions = { device: 'cpu', provider: 'wasm', workers: 2, kvPages: 64 };

/** After `work` no less device memory is free than before; the context is held meanwhile. */
async function withoutLeak(work: (cuda: Cuda) => Promise<void>): Promise<void> {
  const cuda = await Cuda.open();
  try {
    // What libraries load once and keep is not a leak; a driver may free some of it later.
    await works();
    await works();
    const [before] = cuda.memory();
    await work(cuda);
    assert.ok(cuda.memory()[0] >= before, `${cuda.memory()[0]} bytes free, ${before} before`);
    await works();
    assert.ok(cuda.memory()[0] >= before, `${cuda.memory()[0]} bytes free after another load`);
  } finally {
    cuda.close();
  }
}

const deviceError = (pattern: RegExp) => (error: unknown) => {
  assert.ok(error instanceof FlashForgeError, String(error));
  assert.equal(error.code, 'device');
  assert.match(error.message, pattern);
  assert.doesNotMatch(error.message, /\n/);
  return true;
};

describe('failures on a CUDA device', { skip, concurrency: false }, () => {
  before(async () => {
    expected = await answer(small);
    expectedOnCpu = await answer(CPU);
  });

  test('a damaged kernel cache is made again', async () => {
    const cache = defaultCacheFolder();
    for (const name of readdirSync(cache)) writeFileSync(join(cache, name), 'damaged');
    await works();
    // Sound by its digest, and still no program.
    const digest = createHash('sha256').update('damaged').digest();
    const bytes = Buffer.concat([digest, Buffer.from('damaged')]);
    for (const name of readdirSync(cache)) writeFileSync(join(cache, name), bytes);
    await works();
  });

  test('a model larger than the device is refused before it is read', () =>
    withoutLeak(async () => {
      const config = { ...TINY, hidden: 16_384, intermediate: 65_536, heads: 128, layers: 200 };
      await assert.rejects(
        loadRunner(randomCheckpoint({ ...config, kvHeads: 8, headDim: 128 }), small),
        deviceError(/^the weights of random weights take \d+\.\d GiB .* or --device cpu$/),
      );
    }));

  test('memory that others have taken', () =>
    withoutLeak(async (cuda) => {
      const ballast = cuda.alloc(cuda.memory()[0] - 4 * GIB);
      try {
        await assert.rejects(
          loadRunner(tiny(), { ...small, kvPages: 1_000_000 }),
          deviceError(/^a KV cache of 1000000 pages takes \d+ MiB, and the model leaves \d+ MiB/),
        );
      } finally {
        ballast.free();
      }
    }));

  test('a workload larger than the memory', () =>
    withoutLeak(async (cuda) => {
      const loader = await KernelLoader.open(cuda);
      const tools = new BenchTools(loader, 'f16');
      const huge = {
        name: 'huge',
        parent: Int32Array.of(-1),
        tokens: Int32Array.of(100_000_000),
        requests: Int32Array.of(0),
        ...{ queryHeads: 32, kvHeads: 8, headDim: 128 },
      };
      try {
        assert.throws(() => tools.reserve([huge], 16), deviceError(/MiB of device memory were/));
      } finally {
        tools.free();
      }
    }));

  test('shapes that no kernel covers', () =>
    withoutLeak(async () => {
      const odd = TINY_CONFIGS['no grouping, small heads'];
      await assert.rejects(
        loadRunner(memoryCheckpoint(odd, 'BF16'), small),
        deviceError(/^head_dim must be one of .* on CUDA, got 32$/),
      );
      const wide = { ...TINY, heads: 65, kvHeads: 1 };
      await assert.rejects(
        loadRunner(memoryCheckpoint(wide, 'BF16'), small),
        deviceError(/^query heads per KV head must be between 1 and \d+ on CUDA, got 65$/),
      );
    }));

  test('types mixed in one file are brought to one', async () => {
    const types = ['BF16', 'F16', 'F32', 'Q8_0'] as const;
    const mixed = memoryCheckpoint(TINY, (name) => types[name.length % types.length]);
    const wanted = await walk(mixed, { device: 'reference' });
    for (const kvType of ['f16', 'bf16'] as const) {
      const error = distance(wanted, await walk(mixed, { device: 'cuda', kvType }));
      assert.ok(error < 0.03, `${kvType}: ${error} of the logits' rms`);
    }
  });

  // The last one, as it ends the device's use for this process.
  test('a fault while requests run: they end, the next load works', async (t) => {
    const model = writeTinyChatModel(folder, { contextLength: 65_536 });
    const options = { device: 'cuda', kvPages: 5000 } as const;
    const llm = await load(model, options);
    const { text } = await llm.generate('hello', { maxTokens: 20 });
    let broken: BrokenContext | undefined;
    const lost = /can no longer be used .*load the model again$/;
    const stream = llm.generate('hello', { maxTokens: 60_000, minTokens: 60_000 });
    await assert.rejects(async () => {
      let tokens = 0;
      for await (const _ of stream) {
        if (tokens++ === 5) broken = await breakContext('illegal address');
      }
    }, deviceError(lost));
    t.diagnostic(broken?.message ?? '');
    await assert.rejects(async () => {
      await llm.generate('again', { maxTokens: 4 });
    }, deviceError(lost));
    await llm.dispose();
    broken?.close();
    // In a process of its own: this one's context is gone for good.
    const next = await load(model, { ...options, device: 'auto' });
    assert.equal(next.info.device, 'cuda');
    assert.equal((await next.generate('hello', { maxTokens: 20 })).text, text);
    await next.dispose();
    assert.equal(await answer(CPU), expectedOnCpu);
  });
});
