/**
 * NVRTC for tests on machines without CUDA: its wheel is brought by pip.
 * @module
 */
import { openNvrtc } from '../../src/backend/cuda/libraries.ts';
import type { NvrtcLibrary } from '../../src/backend/cuda/signatures.ts';
import { pythonPackage } from './python-package.ts';

/** The compiler, or why there is none. */
export async function findCompiler(): Promise<NvrtcLibrary | string> {
  // A compiler that finds the result in its own cache says nothing of registers and spills.
  process.env.CUDA_CACHE_DISABLE = '1';
  try {
    return await openNvrtc();
  } catch {
    const wheel = pythonPackage('nvidia-cuda-nvrtc==13.0.88');
    if ('missing' in wheel) return wheel.missing;
    return openNvrtc({ ...process.env, PYTHONPATH: wheel.folder });
  }
}
