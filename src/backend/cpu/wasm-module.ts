/**
 * The kernels as WebAssembly: the same C sources, compiled when the package was built. Every
 * worker instantiates the one compiled module over the one shared memory, with a stack of its own.
 * @module
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { FlashForgeError } from '../../base/errors.ts';
import { KERNELS, type Kernel, type KernelName, type Kernels } from './kernel-table.ts';
import { newWasmMemory } from './memory.ts';

/** A worker's C stack, in bytes. Kernels keep large scratch in memory they are given. */
const WASM_STACK_BYTES: number = 256 * 1024;

/** The smallest module with a relaxed instruction: i32x4.relaxed_dot_i8x16_i7x16_add_s. */
// prettier-ignore
const RELAXED_PROBE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 8, 1, 96, 3, 123, 123, 123, 1, 123, 3, 2, 1, 0, 10, 13, 1, 11, 0,
  32, 0, 32, 1, 32, 2, 253, 147, 2, 11,
]);

/**
 * Switches relaxed SIMD on where the engine has it behind a flag (Node 20), and says if it is on.
 * Needed in every thread before the module is compiled or instantiated there.
 */
function enableRelaxedSimd(): boolean {
  if (!WebAssembly.validate(RELAXED_PROBE)) {
    setFlagsFromString('--experimental-wasm-relaxed-simd');
  }
  return WebAssembly.validate(RELAXED_PROBE);
}

/** A compiled module, its memory and what is free in it. */
export interface WasmKernels {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly relaxed: boolean;
  /** Address of worker 0's stack; each is WASM_STACK_BYTES long. */
  readonly stacks: number;
}

/**
 * Compiles the module that suits this engine and lays out its memory for `workers` stacks.
 * @throws FlashForgeError 'compile' when the package was built without it.
 */
export async function compileWasm(
  workers: number,
): Promise<{ wasm: WasmKernels; heapStart: number }> {
  const relaxed = enableRelaxedSimd();
  const path = join(import.meta.dirname, 'kernels', relaxed ? 'relaxed.wasm' : 'simd128.wasm');
  if (!existsSync(path)) {
    throw new FlashForgeError(
      'compile',
      `WebAssembly kernels ${path} are missing: build the package first`,
    );
  }
  const module = await WebAssembly.compile(readFileSync(path));
  const memory = newWasmMemory(1 << 20);
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  const start = (exports.__heap_base as WebAssembly.Global).value as number;
  const stacks = Math.ceil(start / 64) * 64;
  const heapStart = stacks + workers * WASM_STACK_BYTES;
  const grow = Math.ceil((heapStart - memory.buffer.byteLength) / 65536);
  if (grow > 0) memory.grow(grow);
  return { wasm: { module, memory, relaxed, stacks }, heapStart };
}

/** This thread's instance: its kernels work on the shared memory with the worker's own stack. */
export function instantiateWasm(wasm: WasmKernels, worker: number): Kernels {
  if (wasm.relaxed) enableRelaxedSimd();
  const instance = new WebAssembly.Instance(wasm.module, { env: { memory: wasm.memory } });
  const stack = instance.exports.__stack_pointer as WebAssembly.Global;
  stack.value = wasm.stacks + (worker + 1) * WASM_STACK_BYTES;
  const kernels: Partial<Record<KernelName, Kernel>> = {};
  for (const name of Object.keys(KERNELS) as KernelName[]) {
    kernels[name] =
      (instance.exports[name] as Kernel | undefined) ??
      (() => {
        throw new FlashForgeError('device', `kernel ${name} is not in the WebAssembly module`);
      });
  }
  return kernels as Kernels;
}
