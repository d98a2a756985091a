/**
 * Pinned memory for evicted KV, over a driver that does nothing: the bound, what happens where
 * memory ends early, and what the copy kernel is told.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cuda } from '../../../src/backend/cuda/driver.ts';
import type { CudaParts } from '../../../src/backend/cuda/model/cuda-ops.ts';
import {
  CudaHostKv,
  moveChunks,
  pinHostMemory,
} from '../../../src/backend/cuda/model/kv-offload.ts';
import { FakeDriver } from './fake-driver.ts';

const MIB = 2 ** 20;

test('whole pages in blocks, no more than was asked for', async () => {
  const driver = new FakeDriver();
  const lines: string[] = [];
  const cuda = await Cuda.open(0, driver.library);
  // Pages of 2.1 MB, 1.2 GB: 256 pages a block.
  const host = pinHostMemory(cuda, 1200 * MIB, 2 * MIB, (line) => lines.push(line), 2 ** 40);
  assert.equal(host.pages, 600);
  assert.deepEqual(
    host.blocks.map(({ bytes }) => bytes / MIB),
    [512, 512, 176],
  );
  assert.deepEqual(lines, ['1.17 GiB of host memory are pinned for evicted KV']);
  assert.equal(driver.living.get('pinned'), 3);
  for (const block of host.blocks) block.free();
  assert.equal(driver.living.get('pinned'), 0);
});

test('a page may be larger than a block', async () => {
  const cuda = await Cuda.open(0, new FakeDriver().library);
  const host = pinHostMemory(cuda, 2500 * MIB, 800 * MIB, () => {}, 2 ** 40);
  assert.equal(host.pages, 3);
  assert.equal(host.blocks.length, 3);
});

test('no more is pinned than most of what the machine has', async () => {
  const cuda = await Cuda.open(0, new FakeDriver().library);
  const lines: string[] = [];
  const host = pinHostMemory(cuda, 1000 * MIB, MIB, (line) => lines.push(line), 100 * MIB);
  assert.equal(host.pages, 80);
  assert.match(lines[0], /^warning: 0\.08 of 0\.98 GiB .* 0\.10 GiB are available$/);
});

test('where memory cannot be pinned, there is less or none, and a warning', async () => {
  const driver = new FakeDriver();
  const cuda = await Cuda.open(0, driver.library);
  const lines: string[] = [];
  driver.failures.set('cuMemHostAlloc', 2);
  const host = pinHostMemory(cuda, 1000 * MIB, MIB, (line) => lines.push(line), 2 ** 40);
  assert.equal(host.pages, 0);
  assert.match(lines[0], /^warning: host memory for KV ends early: cuMemHostAlloc/);
  assert.match(lines[1], /^warning: 0\.00 of 0\.98 GiB/);
});

test('copies of many chunks are cut into launches; a chunk’s page has its address', async () => {
  const driver = new FakeDriver();
  const cuda = await Cuda.open(0, driver.library);
  const launches: { blocksY: number | undefined; bytes: Uint8Array }[] = [];
  const [layers, kvHeads, pageTokens] = [3, 2, 16];
  const pageBytes = pageTokens * kvHeads * 64 * 4;
  const parts = {
    cuda: {
      launch: (_kernel: unknown, shape: { blocksY?: number }, bytes: Uint8Array) =>
        launches.push({ blocksY: shape.blocksY, bytes: bytes.slice() }),
    },
    kernels: { get: (name: string) => ({ name }) },
    attention: { spec: { pageSize: pageTokens, kvHeads }, pageBytes },
    model: { config: { layers } },
    ...{ kv: 4096n, kvLayerBytes: 10 * pageBytes, stream: {} },
  } as unknown as CudaParts;
  const host = pinHostMemory(cuda, 200 * layers * pageBytes, layers * pageBytes, () => {}, 2 ** 40);
  const memory = new CudaHostKv(parts, host);
  assert.equal(memory.pages, 200);
  const most = moveChunks(pageTokens);
  assert.equal(most, 48);
  const pages = Int32Array.from({ length: 100 }, (_, index) => 199 - index);
  const slots = Int32Array.from({ length: 100 * pageTokens }, (_, index) => index - 1);
  memory.load(pages, slots);
  assert.deepEqual(
    launches.map(({ blocksY }) => blocksY),
    [48, 48, 4],
  );
  const view = new DataView(launches[2].bytes.buffer);
  assert.equal(launches[2].bytes.length, 32 + 48 * (8 + 64));
  assert.equal(view.getBigUint64(0, true), 4096n);
  assert.equal(view.getBigUint64(8, true), BigInt(10 * pageBytes));
  assert.deepEqual(
    [16, 20, 24].map((at) => view.getInt32(at, true)),
    [4, 128, 0],
    'groups of 8 tokens in a page, pieces of one, load',
  );
  const first = host.blocks[0].address + BigInt((199 - 96) * layers * pageBytes);
  assert.equal(view.getBigUint64(32, true), first);
  assert.equal(view.getInt32(32 + 48 * 8, true), 96 * pageTokens - 1);
  assert.throws(() => memory.save(slots.subarray(0, 16), Int32Array.of(200)), /no host page 200/);
});
