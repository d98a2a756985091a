/**
 * A CUDA device for tests, or why there is none, and a kernel loader with a cache of its own.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before } from 'node:test';
import { Cuda } from '../../src/backend/cuda/driver.ts';
import { KernelLoader } from '../../src/backend/cuda/kernel-loader.ts';

/** The device, to be used only where `skip` is false. */
export async function cudaForTests(): Promise<{ device: Cuda; skip: string | false }> {
  try {
    return { device: await Cuda.open(), skip: false };
  } catch (error) {
    return { device: undefined as unknown as Cuda, skip: (error as Error).message };
  }
}

/** For a suite: opens a loader before it; after it checks that everything was given back. */
export function loaderForSuite(device: Cuda): { readonly loader: KernelLoader } {
  const suite = { loader: undefined as unknown as KernelLoader };
  const folder = mkdtempSync(join(tmpdir(), 'flashforge-device-'));
  before(async () => {
    suite.loader = await KernelLoader.open(device, folder);
  });
  after(() => {
    assert.equal(device.live, 0, 'everything is given back');
    device.close();
    rmSync(folder, { recursive: true });
  });
  return suite;
}
