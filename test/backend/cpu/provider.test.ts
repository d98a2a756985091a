/**
 * Providers: native and WebAssembly kernels open in this thread and in another over one memory,
 * the cache survives damage and several processes, and wrong choices are told clearly.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { compileKernels, findCompiler } from '../../../src/backend/cpu/native-compiler.ts';
import { createProvider, openProvider } from '../../../src/backend/cpu/provider.ts';

const compiler = await findCompiler();
const noCompiler = compiler === null ? 'no C compiler on this machine' : false;
const folder = mkdtempSync(join(tmpdir(), 'flashforge-provider-'));

before(() => {
  process.env.FLASHFORGE_CACHE = folder;
});
after(() => {
  delete process.env.FLASHFORGE_CACHE;
  rmSync(folder, { recursive: true, force: true });
});

const openers = [
  ['native', noCompiler],
  ['wasm', false],
] as const;

for (const [kind, skip] of openers) {
  test(`${kind}: kernels and memory work, also in another thread`, { skip }, async () => {
    const provider = await createProvider({ provider: kind, workers: 2 });
    assert.equal(provider.kind, kind);
    assert.ok(Number.isInteger(provider.kernels.ff_cpu_features()));
    const block = provider.memory.alloc(4096, 256);
    assert.equal(block.address % 256, 0);
    assert.ok(block.u8().every((byte) => byte === 0));
    block.i32()[3] = 42;
    const large = provider.memory.alloc(100 << 20);
    large.f32()[(25 << 20) - 1] = 1.5;

    const code = `
      const { workerData, parentPort } = require('node:worker_threads');
      import(workerData.module).then(async ({ openProvider }) => {
        const { memory, kernels } = await openProvider(workerData.source, 1);
        memory.i32(workerData.address, 8)[4] = memory.i32(workerData.address, 8)[3] + 1;
        parentPort.postMessage([
          kernels.ff_cpu_features(), memory.f32(workerData.large, 25 << 20)[(25 << 20) - 1],
        ]);
      });`;
    const module = new URL('../../../src/backend/cpu/provider.js', import.meta.url).href;
    const worker = new Worker(code, {
      eval: true,
      workerData: {
        module,
        source: provider.source,
        address: block.address,
        large: large.address,
      },
    });
    const answer = await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    assert.deepEqual(answer, [provider.kernels.ff_cpu_features(), 1.5]);
    assert.equal(block.i32()[4], 43);
    await worker.terminate();
  });
}

test('wasm memory ends at 4 GiB with a clear error', async () => {
  const { memory } = await createProvider({ provider: 'wasm' });
  assert.throws(() => memory.alloc(5 * 2 ** 30), {
    code: 'device',
    message: /memory is not enough/,
  });
  const again = await openProvider((await createProvider({ provider: 'wasm' })).source, 0);
  assert.equal(again.kind, 'wasm');
});

test('a damaged library in the cache is compiled again', { skip: noCompiler }, async () => {
  const first = await compileKernels(compiler!);
  assert.ok((await compileKernels(compiler!)).cached);
  rmSync(first.path);
  writeFileSync(first.path, 'not a library');
  const second = await compileKernels(compiler!);
  assert.equal(second.cached, false);
  assert.equal(second.path, first.path);
  assert.ok((await compileKernels(compiler!)).cached);
});

test('two compilations at once leave one whole library', { skip: noCompiler }, async () => {
  const here = join(folder, 'twice');
  process.env.FLASHFORGE_CACHE = here;
  try {
    await Promise.all([compileKernels(compiler!), compileKernels(compiler!)]);
    assert.ok((await compileKernels(compiler!)).cached);
    assert.equal(readdirSync(join(here, 'kernels')).length, 2, 'library and key, nothing else');
  } finally {
    process.env.FLASHFORGE_CACHE = folder;
  }
});

test('a compiler that fails: native says so, auto falls back', async () => {
  process.env.FLASHFORGE_CC = 'false';
  process.env.FLASHFORGE_PREBUILT = join(folder, 'none');
  try {
    await assert.rejects(createProvider({ provider: 'native' }), {
      code: 'compile',
      message: /no C compiler was found, and no prebuilt library fits/,
    });
    const fallback = await createProvider({ provider: 'auto' });
    assert.equal(fallback.kind, 'wasm');
    assert.match(fallback.why, /no native kernels/);
  } finally {
    delete process.env.FLASHFORGE_CC;
    delete process.env.FLASHFORGE_PREBUILT;
  }
});
