/**
 * Every C kernel's signature, declared once for all providers (native, prebuilt, WebAssembly).
 * Letters: p = address (a JavaScript number), i = int32, f = float32; after '>' the result.
 * @module
 */
export const KERNELS = {
  /* cpu.c */
  ff_cpu_features: '>i',
  ff_use_huge_pages: 'pp',
  /* linear.c, linear-dense.c, repack.c */
  ff_quantize_rows: 'ppiii',
  ff_linear: 'ippppiiiiiiii',
  ff_linear_dense: 'ippppiiiiiiii',
  ff_repack: 'ippiiii',
  /* elementwise.c */
  ff_embed: 'ipppiii',
  ff_rms_norm: 'pppiiif',
  ff_rms_norm_quantize: 'pppiiif',
  ff_swiglu: 'ppipiii',
  ff_swiglu_quantize: 'ppipiii',
  ff_logit_stats: 'pppiii',
  /* attention.c, attention-rotate.c */
  ff_kv_type: '>i',
  ff_attention_scratch: 'ii>i',
  ff_attention_run: 'pii',
  ff_rotate_and_store: 'piiippf',
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
