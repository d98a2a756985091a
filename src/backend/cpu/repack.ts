/**
 * How weights and quantised activations lie in memory for the product kernels: codes and sizes.
 * The layouts themselves are in kernels/panels.h and kernels/quantize.h; the kernels do the work
 * (ff_repack, ff_quantize_rows, ff_linear, ff_linear_dense).
 * @module
 */
import { assert } from '../../base/errors.ts';
import { alignUp, ceilDiv } from '../../base/math.ts';
import type { TensorType } from '../../checkpoint/checkpoint.ts';
import type { ProviderKind } from './provider.ts';

/** Output columns of a panel, the unit in which workers share a product. */
export const PANEL_COLUMNS = 16;
/** Inputs of a block: weights share one scale or have one for each half, activations the latter. */
const BLOCK_COLUMNS = 32;

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

/** A repacked layout: its number in kernels/panels.h, and what 32 inputs x 16 columns take. */
interface Form {
  readonly code: number;
  /** Bytes of the weights themselves. */
  readonly weightBytes: number;
  /** Scales and minima: float16 if `half` (but float32 in WebAssembly), else float32. */
  readonly scales: number;
  readonly half: boolean;
}

const QUANTIZED_FORMS = {
  B8: { code: 3, weightBytes: 512, scales: 16, half: true },
  N4: { code: 4, weightBytes: 256, scales: 16, half: true },
  N4_MIN: { code: 5, weightBytes: 256, scales: 32, half: true },
  N4_MIN32: { code: 6, weightBytes: 256, scales: 32, half: false },
  B8_MIN32: { code: 7, weightBytes: 512, scales: 32, half: false },
  B8_HALVES: { code: 8, weightBytes: 512, scales: 32, half: false },
} as const satisfies Record<string, Form>;

const FORMS: Readonly<Record<TensorType, Form>> = {
  F32: { code: 0, weightBytes: 2048, scales: 0, half: false },
  F16: { code: 1, weightBytes: 1024, scales: 0, half: false },
  BF16: { code: 2, weightBytes: 1024, scales: 0, half: false },
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
function panelBytes(type: TensorType, columns: number, provider: ProviderKind): number {
  const { weightBytes, scales, half } = FORMS[type];
  const blocks = columns / BLOCK_COLUMNS;
  if (isDense(type)) return blocks * weightBytes;
  assert(Number.isInteger(blocks), `${columns} columns are no multiple of ${BLOCK_COLUMNS}`);
  const scaleBytes = half && provider !== 'wasm' ? 2 : 4;
  return alignUp(blocks * (weightBytes + scales * scaleBytes), 64);
}

/** Bytes of a repacked matrix (outputs, columns). */
export const repackedBytes = (
  type: TensorType,
  outputs: number,
  columns: number,
  provider: ProviderKind,
): number => panelCount(outputs) * panelBytes(type, columns, provider);

/** sizeof(input_block) of the widest build: 4 rows of 32 inputs as int16 and int8, 5 numbers. */
const INPUT_BLOCK_BYTES = 4 * (32 * 3 + 5 * 4);

/** Bytes of `rows` quantised rows in any build. */
export const quantizedBytes = (rows: number, columns: number): number =>
  ceilDiv(rows, 4) * (columns / BLOCK_COLUMNS) * INPUT_BLOCK_BYTES;
