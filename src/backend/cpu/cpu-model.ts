/**
 * A model and a step's tensors as addresses in shared memory: plain data that is posted once to
 * every worker.
 * @module
 */
import { alignUp } from '../../base/math.ts';
import type { DecoderConfig, TensorType } from '../../checkpoint/checkpoint.ts';
import type { AttentionShape, HeadNorms } from './attention.ts';
import type { Memory } from './memory.ts';
import { isDense, quantizedBytes } from './repack.ts';

/** A repacked weight matrix (outputs, columns). */
export interface PackedMatrix {
  readonly type: TensorType;
  /** First panel. */
  readonly address: number;
  readonly outputs: number;
  readonly columns: number;
  /** (outputs) f32, or 0. */
  readonly bias: number;
}

/** One layer's weights; norms are addresses of (columns) f32. */
export interface CpuLayer {
  readonly attnNorm: number;
  /** q, k and v, whose results lie side by side. */
  readonly qkv: readonly PackedMatrix[];
  readonly headNorms: HeadNorms;
  readonly o: PackedMatrix;
  readonly mlpNorm: number;
  /** gate and up, whose results lie side by side. */
  readonly gateUp: readonly PackedMatrix[];
  readonly down: PackedMatrix;
}

export interface CpuModel {
  readonly config: DecoderConfig;
  readonly shape: AttentionShape;
  /** (vocab, hidden) as in the file. */
  readonly embed: { readonly type: TensorType; readonly address: number };
  readonly layers: readonly CpuLayer[];
  readonly outputNorm: number;
  readonly output: PackedMatrix;
  /** (positions, headDim / 2) f32 */
  readonly cosine: number;
  readonly sine: number;
}

/** Input rows of a product in both forms; quantised matrices take one, dense ones the other. */
export interface ProductInput {
  readonly quantized: number;
  readonly dense: number;
}

/** Tensors of a step. f32 (rows, ...) where nothing else is said. */
export interface CpuBuffers {
  readonly maxRows: number;
  /** i32: rows, number of logit rows, their first row or -1 if scattered, merges (0 or 1). */
  readonly header: number;
  /** (maxRows) i32 each */
  readonly tokens: number;
  readonly writeSlots: number;
  readonly logitRows: number;
  /** (hidden): the residual stream, and its rows whose logits are wanted. */
  readonly x: number;
  readonly wanted: number;
  /** ((heads + 2 kvHeads) * headDim) */
  readonly qkv: number;
  /** (heads * headDim) */
  readonly attention: number;
  /** (2 * intermediate) */
  readonly gateUp: number;
  /** Inputs of the product in hand, made by all workers together. */
  readonly shared: ProductInput;
  /** (workers) the same for up to PRIVATE_ROWS rows, made by each worker alone. */
  readonly own: readonly ProductInput[];
  /** (vocab), (1) i32, (1) of the wanted rows. */
  readonly logits: number;
  readonly argmax: number;
  readonly logSumExp: number;
}

/**
 * Up to so many rows every worker prepares all inputs for itself: norms and quantisation of a few
 * rows take less time than a meeting of the workers.
 */
export const PRIVATE_ROWS = 4;

/** Words of the header. */
export const HEADER = { rows: 0, logitRows: 1, firstLogitRow: 2 } as const;

/** Allocates the tensors of steps of up to `maxRows` rows. */
export function allocateBuffers(
  memory: Memory,
  model: CpuModel,
  maxRows: number,
  workers: number,
): CpuBuffers {
  const { hidden, intermediate, heads, kvHeads, headDim, vocab } = model.config;
  const floats = (count: number): number => memory.alloc(alignUp(count * 4, 64)).address;
  const columns = Math.max(hidden, intermediate, heads * headDim);
  const quantized = !allMatrices(model).every(({ type }) => isDense(type));
  const dense = allMatrices(model).some(({ type }) => isDense(type));
  const input = (rows: number): ProductInput => ({
    quantized: quantized
      ? memory.alloc(alignUp(quantizedBytes(alignUp(rows, 16), alignUp(columns, 32)), 64)).address
      : 0,
    dense: dense ? floats(rows * columns) : 0,
  });
  return {
    maxRows,
    header: floats(16),
    tokens: floats(maxRows),
    writeSlots: floats(maxRows),
    logitRows: floats(maxRows),
    x: floats(maxRows * hidden),
    wanted: floats(maxRows * hidden),
    qkv: floats(maxRows * (heads + 2 * kvHeads) * headDim),
    attention: floats(maxRows * heads * headDim),
    gateUp: floats(maxRows * 2 * intermediate),
    shared: input(maxRows),
    own: Array.from({ length: workers }, () => input(PRIVATE_ROWS)),
    logits: floats(maxRows * vocab),
    argmax: floats(maxRows),
    logSumExp: floats(maxRows),
  };
}

/** Every matrix that takes part in products. */
const allMatrices = ({ layers, output }: CpuModel): PackedMatrix[] => [
  output,
  ...layers.flatMap(({ qkv, o, gateUp, down }) => [...qkv, o, ...gateUp, down]),
];
