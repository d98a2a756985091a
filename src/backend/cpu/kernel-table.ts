/**
 * Every C kernel's signature, declared once for all providers (native, prebuilt, WebAssembly).
 * Letters: p = address (a JavaScript number), i = int32, f = float32; after '>' the result.
 * @module
 */
export const KERNELS = {
  /* linear.c, elementwise.c */
  /* attention.c */
} as const satisfies Record<string, string>;
