/**
 * The driver layer against a fake driver: errors name the call, objects are owned, and a machine
 * without CUDA gets one clear sentence.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Cuda } from '../../../src/backend/cuda/driver.ts';
import { packArguments } from '../../../src/backend/cuda/launch-arguments.ts';
import { libraryFolders, openDriver, openNvrtc } from '../../../src/backend/cuda/libraries.ts';
import { FlashForgeError } from '../../../src/base/errors.ts';
import { FakeDriver } from './fake-driver.ts';

const deviceError = (pattern: RegExp) => (error: unknown) =>
  error instanceof FlashForgeError && error.code === 'device' && pattern.test(error.message);

test('a machine without the driver gets one sentence', async () => {
  const open = openDriver(['libthis-driver-does-not-exist.so']);
  await assert.rejects(open, deviceError(/needs the NVIDIA driver.*--device cpu$/));
});

test('an old driver and a missing device are named', async () => {
  const fake = new FakeDriver();
  fake.driverVersion = 11080;
  await assert.rejects(Cuda.open(0, fake.library), deviceError(/CUDA 11\.8.*12\.4 or later/));
  fake.driverVersion = 13000;
  await assert.rejects(Cuda.open(3, fake.library), deviceError(/device 3 .* has 1$/));
});

test('a missing compiler says what to install', async (t) => {
  try {
    await openNvrtc({ PATH: '' });
    t.skip('this machine has NVRTC in a folder that is always searched');
  } catch (error) {
    assert.match((error as Error).message, /NVRTC.*pip install nvidia-cuda-nvrtc/);
  }
});

test('folders that do not exist are not searched', () => {
  for (const folder of libraryFolders({ CUDA_HOME: '/nowhere', PATH: '' })) {
    assert.doesNotMatch(folder, /nowhere/);
  }
});

test('every object is given back once', async () => {
  const fake = new FakeDriver();
  const cuda = await Cuda.open(0, fake.library);
  const stream = cuda.stream();
  const graph = cuda.capture(stream, () => undefined);
  const objects = [cuda.alloc(100), cuda.pinned(64), cuda.event(), graph, stream];
  assert.equal(cuda.live, objects.length);
  assert.equal(fake.leaks, objects.length);
  for (const object of [...objects, ...objects]) object.free();
  assert.equal(cuda.live, 0);
  assert.equal(fake.leaks, 0);
  cuda.close();
  assert.throws(() => cuda.alloc(1), deviceError(/closed/));
});

test('a device that is closed gives back what is left', async () => {
  const fake = new FakeDriver();
  const cuda = await Cuda.open(0, fake.library);
  cuda.alloc(100);
  cuda.pinned(64);
  cuda.stream();
  cuda.close();
  assert.equal(fake.leaks, 0);
});

test('out of memory says how much was asked for', async () => {
  const fake = new FakeDriver();
  const cuda = await Cuda.open(0, fake.library);
  fake.failures.set('cuMemAlloc_v2', 2);
  assert.throws(() => cuda.alloc(2 ** 30), deviceError(/^1024 MiB of device memory/));
});

test('an error names the call; a sticky one ends the device', async () => {
  const fake = new FakeDriver();
  const cuda = await Cuda.open(0, fake.library);
  const memory = cuda.alloc(16);
  fake.failures.set('cuEventCreate', 1);
  assert.throws(() => cuda.event(), deviceError(/^cuEventCreate failed/));
  fake.failures.set('cuCtxSynchronize', 700);
  assert.throws(() => cuda.synchronize(), deviceError(/can no longer be used/));
  assert.throws(() => cuda.stream(), deviceError(/can no longer be used/));
  memory.free();
  assert.equal(cuda.live, 0);
});

test('a launch passes its shape', async () => {
  const fake = new FakeDriver();
  const cuda = await Cuda.open(0, fake.library);
  const stream = cuda.stream();
  const kernel = cuda.load(new Uint8Array(4)).kernel('f', 100_000);
  cuda.launch(kernel, { blocks: 7, threads: 384, sharedBytes: 100_000 }, new Uint8Array(8), stream);
  assert.deepEqual(fake.launches, [{ blocks: 7, threads: 384, sharedBytes: 100_000 }]);
});

test('arguments have the layout of a C struct', () => {
  const bytes = packArguments('pifp', [1n, 2, 0.5, 3n]);
  const view = new DataView(bytes.buffer);
  assert.equal(bytes.length, 24);
  assert.equal(view.getBigUint64(0, true), 1n);
  assert.equal(view.getInt32(8, true), 2);
  assert.equal(view.getFloat32(12, true), 0.5);
  assert.equal(view.getBigUint64(16, true), 3n);
  assert.equal(packArguments('pi', [1n, 2]).length, 12, 'no padding at the end');
});
