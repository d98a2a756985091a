/**
 * Breaks the CUDA context of this process on purpose, as a wrong kernel would: for tests of what
 * happens then. All threads of a process share the context.
 * @module
 */
import { Cuda } from '../../src/backend/cuda/driver.ts';
import { openNvrtc } from '../../src/backend/cuda/libraries.ts';
import { compile } from '../../src/backend/cuda/nvrtc.ts';

const SOURCE = 'extern "C" __global__ void fault() { *(volatile int *)16 = 1; }';

export interface BrokenContext {
  /** What the driver says of it. */
  readonly message: string;
  /** Gives the context back, when nobody else works with it. */
  close(): void;
}

export async function breakContext(): Promise<BrokenContext> {
  const cuda = await Cuda.open();
  const sources = new Map([['fault.cu', SOURCE]]);
  const { cubin } = compile(await openNvrtc(), sources, 'fault.cu', cuda.info.arch, {});
  const kernel = cuda.load(cubin).kernel('fault');
  const stream = cuda.stream();
  cuda.launch(kernel, { blocks: 1, threads: 1 }, new Uint8Array(), stream);
  let message = 'no fault';
  try {
    stream.synchronize();
  } catch (error) {
    message = (error as Error).message;
  }
  return { message, close: () => cuda.close() };
}
