/**
 * How weights and quantised activations lie in memory for the product kernels: codes and sizes.
 * The layouts themselves are in kernels/panels.h and kernels/quantize.h; the kernels do the work
 * (ff_repack, ff_quantize_rows, ff_linear, ff_linear_dense).
 * @module
 */
import { assert } from '../../base/errors.ts';
import { alignUp, ceilDiv } from '../../base/math.ts';
import type { TensorType } from '../../checkpoint/checkpoint.ts';

/** Output columns of a panel, the unit in which workers share a product. */
export const PANEL_COLUMNS = 16;
/** Inputs that share one scale. */
export const BLOCK_COLUMNS = 32;

/** Weight types as the kernels number them (kernels/blocks.h). */
export const TYPE_CODE: Readonly<Record<TensorType, number>> = {
  F32: 0,
  F16: 1,
  BF16: 2,
  Q8_0: 3,
  Q4_0: 4,
  Q4_1: 5,
  Q5_0: 6,
  Q5_1: 7,
  Q4_K: 8,
  Q5_K: 9,
  Q6_K: 10,
};

/** A repacked layout: its number in kernels/panels.h and the bytes of 32 inputs x 16 columns. */
interface Form {
  readonly code: number;
  readonly blockBytes: number;
}

const QUANTIZED_FORMS = {
  B8: { code: 3, blockBytes: 512 + 32 },
  N4: { code: 4, blockBytes: 256 + 32 },
  N4_MIN: { code: 5, blockBytes: 256 + 64 },
  N4_MIN32: { code: 6, blockBytes: 256 + 128 },
  B8_MIN32: { code: 7, blockBytes: 512 + 128 },
  B8_HALVES: { code: 8, blockBytes: 512 + 128 },
} as const satisfies Record<string, Form>;

const FORMS: Readonly<Record<TensorType, Form>> = {
  F32: { code: 0, blockBytes: 2048 },
  F16: { code: 1, blockBytes: 1024 },
  BF16: { code: 2, blockBytes: 1024 },
  Q8_0: QUANTIZED_FORMS.B8,
  Q4_0: QUANTIZED_FORMS.N4,
  Q4_1: QUANTIZED_FORMS.N4_MIN,
  Q5_0: QUANTIZED_FORMS.B8,
  Q5_1: QUANTIZED_FORMS.B8_MIN32,
  Q4_K: QUANTIZED_FORMS.N4_MIN32,
  Q5_K: QUANTIZED_FORMS.B8_MIN32,
  Q6_K: QUANTIZED_FORMS.B8_HALVES,
};

/** Float types: their products take float32 activations (ff_linear_dense). */
export const isDense = (type: TensorType): boolean => FORMS[type].code < 3;

/** The first argument of ff_linear and ff_linear_dense. Tensors of equal form may be joined. */
export const formCode = (type: TensorType): number => FORMS[type].code;

/** Number of panels of a matrix with that many output features. */
export const panelCount = (outputs: number): number => ceilDiv(outputs, PANEL_COLUMNS);

/** Bytes of one panel; panels follow one another, the first aligned to 64. */
export function panelBytes(type: TensorType, columns: number): number {
  const { blockBytes } = FORMS[type];
  if (isDense(type)) return (columns * blockBytes) / BLOCK_COLUMNS;
  assert(columns % BLOCK_COLUMNS === 0, `${columns} columns are no multiple of ${BLOCK_COLUMNS}`);
  return alignUp((columns / BLOCK_COLUMNS) * blockBytes, 64);
}

/** Bytes of a repacked matrix (outputs, columns). */
export const repackedBytes = (type: TensorType, outputs: number, columns: number): number =>
  panelCount(outputs) * panelBytes(type, columns);

/** sizeof(input_block) of the widest build: 32 int16 inputs of 4 rows, and 5 numbers a row. */
const INPUT_BLOCK_BYTES = 4 * (32 * 2 + 5 * 4);

/** Bytes of `rows` quantised rows in any build. */
export const quantizedBytes = (rows: number, columns: number): number =>
  ceilDiv(rows, 4) * (columns / BLOCK_COLUMNS) * INPUT_BLOCK_BYTES;
