/**
 * PTX to machine code by the driver's own compiler, as bytes that can be kept in the cache.
 * @module
 */
import { FlashForgeError } from '../../base/errors.ts';
import type { Cuda } from './driver.ts';

/** CU_JIT_INPUT_PTX. */
const INPUT_PTX = 1;

/** @throws FlashForgeError 'compile' if the driver does not know the PTX's version. */
export function assemble(cuda: Cuda, main: string, ptx: string): Uint8Array {
  const text = new TextEncoder().encode(`${ptx}\0`);
  const state = new BigUint64Array(1);
  cuda.check('cuLinkCreate_v2', 0, null, null, state);
  try {
    const input = [INPUT_PTX, text, text.length, `${main}.ptx`] as const;
    cuda.check('cuLinkAddData_v2', state[0], ...input, 0, null, null);
    const [cubin, size] = [new BigUint64Array(1), new BigUint64Array(1)];
    cuda.check('cuLinkComplete', state[0], cubin, size);
    return cuda.view(cubin[0], Number(size[0])).slice();
  } catch (cause) {
    throw new FlashForgeError(
      'compile',
      `the driver does not compile the package's PTX of ${main} (${(cause as Error).message}); ` +
        'update the driver or install NVRTC with "pip install nvidia-cuda-nvrtc"',
      { cause },
    );
  } finally {
    cuda.check('cuLinkDestroy', state[0]);
  }
}
