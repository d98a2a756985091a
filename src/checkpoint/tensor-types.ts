/**
 * Sizes of the storage types: weights come in blocks of a fixed number of values and bytes, as
 * ggml defines them; plain floats are blocks of one.
 * @module
 */
import type { TensorType } from './checkpoint.ts';

/** One storage block: `values` weights in `bytes` bytes. */
export interface Block {
  readonly values: number;
  readonly bytes: number;
}

export const BLOCKS: Readonly<Record<TensorType, Block>> = {
  F32: { values: 1, bytes: 4 },
  F16: { values: 1, bytes: 2 },
  BF16: { values: 1, bytes: 2 },
  Q8_0: { values: 32, bytes: 34 },
  Q4_0: { values: 32, bytes: 18 },
  Q4_1: { values: 32, bytes: 20 },
  Q5_0: { values: 32, bytes: 22 },
  Q5_1: { values: 32, bytes: 24 },
  Q4_K: { values: 256, bytes: 144 },
  Q5_K: { values: 256, bytes: 176 },
  Q6_K: { values: 256, bytes: 210 },
};

export const TENSOR_TYPES: readonly TensorType[] = Object.keys(BLOCKS) as TensorType[];

/** Plain floats: what norms and biases must be stored as. */
export const FLOAT_TYPES: readonly TensorType[] = ['F32', 'F16', 'BF16'];

/** Whether a name from a file is a type that can be read. */
export const isTensorType = (name: string): name is TensorType => Object.hasOwn(BLOCKS, name);

/** Bytes of `values` weights, a multiple of the type's block. */
export const bytesOf = (type: TensorType, values: number): number =>
  (values / BLOCKS[type].values) * BLOCKS[type].bytes;

/** ggml's numbers for tensor types, the unsupported ones too so that errors can name them. */
export const GGML_TYPES: Readonly<Record<number, string>> = {
  0: 'F32',
  1: 'F16',
  2: 'Q4_0',
  3: 'Q4_1',
  6: 'Q5_0',
  7: 'Q5_1',
  8: 'Q8_0',
  9: 'Q8_1',
  10: 'Q2_K',
  11: 'Q3_K',
  12: 'Q4_K',
  13: 'Q5_K',
  14: 'Q6_K',
  15: 'Q8_K',
  16: 'IQ2_XXS',
  17: 'IQ2_XS',
  18: 'IQ3_XXS',
  19: 'IQ1_S',
  20: 'IQ4_NL',
  21: 'IQ3_S',
  22: 'IQ2_S',
  23: 'IQ4_XS',
  24: 'I8',
  25: 'I16',
  26: 'I32',
  27: 'I64',
  28: 'F64',
  29: 'IQ1_M',
  30: 'BF16',
  34: 'TQ1_0',
  35: 'TQ2_0',
  39: 'MXFP4',
};
