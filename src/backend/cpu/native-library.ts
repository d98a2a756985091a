/**
 * Opens a shared library of kernels through koffi: the only file of this folder that names it.
 * koffi is an optional dependency, reached by a dynamic import.
 * @module
 */
import { FlashForgeError } from '../../base/errors.ts';
import {
  KERNELS,
  type Kernel,
  type KernelName,
  type Kernels,
  parseSignature,
} from './kernel-table.ts';

type Koffi = typeof import('koffi');

/** koffi's names for the letters of a signature. Addresses are below 2^53: exact as numbers. */
const TYPES: Readonly<Record<string, string>> = {
  p: 'uint64_t',
  i: 'int32_t',
  f: 'float',
  '': 'void',
};

/** @throws FlashForgeError 'compile' when koffi is not installed or has no binary here. */
export async function loadKoffi(): Promise<Koffi> {
  try {
    const module = await import('koffi');
    return (module as unknown as { default?: Koffi }).default ?? module;
  } catch (cause) {
    throw new FlashForgeError('compile', 'native kernels need the npm package koffi', { cause });
  }
}

/** A buffer's address, by a view of one byte: one of all has at most 2^32 entries in Node 20. */
export const addressWith =
  (koffi: Koffi) =>
  (buffer: SharedArrayBuffer): number =>
    Number(koffi.address(new Uint8Array(buffer, 0, 1)));

/**
 * Binds every kernel of the table. A kernel that the library lacks throws when it is called;
 * `missing` names those.
 * @throws FlashForgeError 'compile' when the system cannot load the file.
 */
export function bindLibrary(koffi: Koffi, path: string): { kernels: Kernels; missing: string[] } {
  const missing: string[] = [];
  let library: ReturnType<Koffi['load']>;
  try {
    library = koffi.load(path);
  } catch (cause) {
    throw new FlashForgeError(
      'compile',
      `kernel library ${path} cannot be loaded: ${(cause as Error).message}`,
      { cause },
    );
  }
  const kernels: Partial<Record<KernelName, Kernel>> = {};
  for (const [name, signature] of Object.entries(KERNELS) as [KernelName, string][]) {
    const { args, result } = parseSignature(signature);
    try {
      const types = args.map((letter) => TYPES[letter]);
      kernels[name] = library.func(name, TYPES[result], types) as unknown as Kernel;
    } catch {
      missing.push(name);
      kernels[name] = () => {
        throw new FlashForgeError('device', `kernel ${name} is not in ${path}`);
      };
    }
  }
  return { kernels: kernels as Kernels, missing };
}
