/**
 * The cache of compiled kernels: hits, keys, damage, size.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { Cuda } from '../../../src/backend/cuda/driver.ts';
import { type CacheKey, KernelCache } from '../../../src/backend/cuda/kernel-cache.ts';
import { KernelLoader } from '../../../src/backend/cuda/kernel-loader.ts';
import { FakeDriver } from './fake-driver.ts';

const KEY: CacheKey = {
  main: 'kernel.cu',
  sources: new Map([['kernel.cu', 'text']]),
  arch: 'sm_90a',
  defines: { A: 1 },
  compilerVersion: 'nvrtc 13.0',
  driverVersion: 13000,
};

async function withCache(
  bytesMax: number,
  use: (cache: KernelCache, folder: string) => void | Promise<void>,
): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'flashforge-cache-'));
  try {
    await use(new KernelCache(folder, bytesMax), folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** A compiler that counts its calls. */
function compiler(bytes = 100): {
  compile: () => Uint8Array;
  calls: number;
} {
  const counter = {
    calls: 0,
    compile: () => {
      counter.calls++;
      return new Uint8Array(bytes).fill(counter.calls);
    },
  };
  return counter;
}

test('a kernel is compiled once, and again for anything that can change it', () =>
  withCache(1e6, (cache) => {
    const nvrtc = compiler();
    const first = cache.get(KEY, nvrtc.compile);
    assert.deepEqual(cache.get(KEY, nvrtc.compile), first);
    assert.equal(nvrtc.calls, 1);
    const changes: Partial<CacheKey>[] = [
      { sources: new Map([['kernel.cu', 'other']]) },
      { sources: new Map([...KEY.sources, ['header.cuh', '']]) },
      { arch: 'sm_80' },
      { defines: { A: 2 } },
      { compilerVersion: 'nvrtc 13.1' },
      { driverVersion: 13010 },
    ];
    for (const change of changes) cache.get({ ...KEY, ...change }, nvrtc.compile);
    assert.equal(nvrtc.calls, 1 + changes.length);
    process.env.FLASHFORGE_NVRTC_FLAGS = ' -lineinfo  -DB=1';
    try {
      cache.get(KEY, nvrtc.compile);
    } finally {
      delete process.env.FLASHFORGE_NVRTC_FLAGS;
    }
    assert.equal(nvrtc.calls, 2 + changes.length);
  }));

test('a damaged file is compiled again', () =>
  withCache(1e6, (cache, folder) => {
    const nvrtc = compiler();
    cache.get(KEY, nvrtc.compile);
    const [name] = readdirSync(folder);
    for (const damage of [
      Buffer.alloc(0),
      Buffer.alloc(500),
      readFileSync(join(folder, name)).subarray(1),
    ]) {
      writeFileSync(join(folder, name), damage);
      const calls = nvrtc.calls;
      assert.equal(cache.get(KEY, nvrtc.compile).length, 100);
      assert.equal(nvrtc.calls, calls + 1);
    }
  }));

test('the folder stays within its size and holds no drafts', () =>
  withCache(1000, (cache, folder) => {
    const nvrtc = compiler(300);
    for (let i = 0; i < 10; i++) cache.get({ ...KEY, driverVersion: i }, nvrtc.compile);
    const names = readdirSync(folder);
    assert.ok(names.length <= 3, `${names.length} files`);
    assert.ok(names.every((name) => name.endsWith('.cubin')));
  }));

test('a folder that cannot be written to costs only time', () =>
  withCache(1000, (_, folder) => {
    const file = join(folder, 'file');
    writeFileSync(file, '');
    const nvrtc = compiler();
    const cache = new KernelCache(join(file, 'below-a-file'));
    assert.equal(cache.get(KEY, nvrtc.compile).length, 100);
    assert.equal(cache.get(KEY, nvrtc.compile).length, 100);
    assert.equal(nvrtc.calls, 2);
  }));

test('what the driver does not take is compiled anew, once', () =>
  withCache(1e6, async (_, folder) => {
    const nvrtc = compiler();
    const fake = new FakeDriver();
    const cuda = await Cuda.open(0, fake.library);
    const ours = { name: 'ours', version: '1', kept: true, code: nvrtc.compile };
    const loader = new KernelLoader(cuda, ours, new KernelCache(folder), KEY.sources);
    loader.load(KEY.main, KEY.defines);
    loader.load(KEY.main, KEY.defines);
    assert.equal(nvrtc.calls, 1);
    fake.failures.set('cuModuleLoadData', 200);
    assert.throws(() => loader.load(KEY.main, KEY.defines), /cuModuleLoadData failed/);
    assert.equal(nvrtc.calls, 2);
  }));
