/**
 * Every C kernel's signature, declared once for all providers (native, prebuilt, WebAssembly).
 * Letters: p = address (a JavaScript number), i = int32, f = float32; after '>' the result.
 * @module
 */
export const KERNELS = {
  /* cpu.c */
  ff_cpu_features: '>i',
  /* linear.c, elementwise.c */
  /* attention.c */
} as const satisfies Record<string, string>;

export type KernelName = keyof typeof KERNELS;
/** A kernel as JavaScript calls it: addresses and numbers in, a number (or nothing) out. */
export type Kernel = (...args: number[]) => number;
export type Kernels = Readonly<Record<KernelName, Kernel>>;

/** Splits a signature into argument letters and the result letter ('' = none). */
export function parseSignature(signature: string): { args: string[]; result: string } {
  const [args, result = ''] = signature.split('>');
  return { args: [...args], result };
}
