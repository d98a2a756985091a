/**
 * Providers: native and WebAssembly kernels open in this thread and in another over one memory,
 * the cache survives damage and several processes, and wrong choices are told clearly.
 * @module
 */
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { arch, freemem, platform, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import {
  type Compiler,
  compileKernels,
  findCompiler,
  LIBRARY_SUFFIX,
} from '../../../src/backend/cpu/native-compiler.ts';
import { PREBUILT_TARGETS } from '../../../src/backend/cpu/prebuilt.ts';
import { createProvider, openProvider } from '../../../src/backend/cpu/provider.ts';

const folder = mkdtempSync(join(tmpdir(), 'flashforge-provider-'));
const compiler = await quickCompiler();
const noCompiler = compiler === null ? 'no C compiler on this machine' : false;

/** The machine's compiler without optimisation: what is tested here is not the kernels' speed. */
async function quickCompiler(): Promise<Compiler | null> {
  const found = await findCompiler();
  if (found === null || platform() === 'win32') return found;
  const script = join(folder, 'quick-cc');
  writeFileSync(script, `#!/bin/sh\nexec ${found.command.join(' ')} "$@" -O0\n`, { mode: 0o755 });
  process.env.FLASHFORGE_CC = script;
  return findCompiler();
}

function restoreCompiler(): void {
  if (compiler === null) delete process.env.FLASHFORGE_CC;
  else process.env.FLASHFORGE_CC = compiler.command.join(' ');
}

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

const small = freemem() < 8 * 2 ** 30 ? 'too little memory' : false;
test('native memory may be larger than one view can be', {
  skip: noCompiler || small,
}, async () => {
  const { memory } = await createProvider({ provider: 'native' });
  const bytes = 2 ** 32 + 2 ** 20;
  const block = memory.alloc(bytes);
  const last = memory.i32(block.address + bytes - 4, 1);
  assert.equal(last[0], 0);
  last[0] = 7;
  assert.equal(memory.i32(block.address + bytes - 4, 1)[0], 7);
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
    restoreCompiler();
    delete process.env.FLASHFORGE_PREBUILT;
  }
});

/** Runs `body` on a machine without a compiler that finds prebuilt libraries in `prebuilt`. */
async function withPrebuilt(prebuilt: string, body: () => Promise<void>): Promise<void> {
  process.env.FLASHFORGE_CC = 'false';
  process.env.FLASHFORGE_PREBUILT = prebuilt;
  try {
    await body();
  } finally {
    restoreCompiler();
    delete process.env.FLASHFORGE_PREBUILT;
  }
}

/** File names of the libraries that a package could have for this machine, the best first. */
const fileNames = PREBUILT_TARGETS.filter(
  (target) => target.platform === platform() && target.arch === arch(),
).map(({ name }) => name + LIBRARY_SUFFIX);

test('prebuilt: the best library for this processor, bad files are passed over', {
  skip: noCompiler || (fileNames.length === 0 ? 'no prebuilt library for this platform' : false),
}, async () => {
  const prebuilt = join(folder, 'prebuilt');
  mkdirSync(prebuilt);
  const { path } = await compileKernels(compiler!);
  for (const name of fileNames) copyFileSync(path, join(prebuilt, name));
  await withPrebuilt(prebuilt, async () => {
    const provider = await createProvider({ provider: 'native' });
    assert.equal(provider.kind, 'prebuilt');
    assert.match(provider.why, /no C compiler was found/);
    assert.ok(Number.isInteger(provider.kernels.ff_cpu_features()));
  });
  const damaged = join(folder, 'damaged');
  mkdirSync(damaged);
  for (const name of fileNames) writeFileSync(join(damaged, name), 'not a library');
  await withPrebuilt(damaged, async () => {
    assert.equal((await createProvider()).kind, 'wasm');
  });
});
