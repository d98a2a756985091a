/**
 * Breaks the CUDA context of this process on purpose, as a wrong kernel would: for tests of what
 * happens then. All threads of a process share the context.
 * @module
 */
import { Cuda } from '../../src/backend/cuda/driver.ts';
import { openNvrtc } from '../../src/backend/cuda/libraries.ts';
import { compile } from '../../src/backend/cuda/nvrtc.ts';

const FAULTS = {
  'illegal address': '*(volatile int *)16 = 1;',
  trap: 'asm volatile("trap;");',
} as const;

export type Fault = keyof typeof FAULTS;
export const FAULT_NAMES = Object.keys(FAULTS) as Fault[];

export interface BrokenContext {
  /** What the driver says of it. */
  readonly message: string;
  /** Gives the context back, when nobody else works with it. */
  close(): void;
}

export async function breakContext(fault: Fault): Promise<BrokenContext> {
  const cuda = await Cuda.open();
  const source = `extern "C" __global__ void fault() { ${FAULTS[fault]} }`;
  const sources = new Map([['fault.cu', source]]);
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
