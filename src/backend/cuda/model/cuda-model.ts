/**
 * A model and a step's tensors as addresses on the device.
 * @module
 */
import type { DecoderConfig } from '../../../checkpoint/checkpoint.ts';
import type { Cuda, DeviceMemory, Stream } from '../driver.ts';

/** 16-bit element type of weights, inputs of products and KV. */
export type HalfType = 'f16' | 'bf16';

/** (outputs, columns) in 16 bits, row after row. */
export interface DenseMatrix {
  readonly address: bigint;
  readonly outputs: number;
  readonly columns: number;
}

/** One layer's weights; vectors are f32, null addresses stand for what the model lacks. */
export interface CudaLayer {
  readonly attnNorm: bigint;
  /** q, k and v one below the other, so that their results lie side by side. */
  readonly qkv: DenseMatrix;
  readonly qkvBias: bigint;
  readonly qNorm: bigint;
  readonly kNorm: bigint;
  readonly o: DenseMatrix;
  readonly mlpNorm: bigint;
  /** gate and up, likewise. */
  readonly gateUp: DenseMatrix;
  readonly down: DenseMatrix;
}

export interface CudaModel {
  readonly config: DecoderConfig;
  readonly dtype: HalfType;
  /** (vocab, hidden) in 16 bits. */
  readonly embed: bigint;
  readonly layers: readonly CudaLayer[];
  readonly outputNorm: bigint;
  readonly output: DenseMatrix;
  /** (positions, headDim / 2) f32 */
  readonly cosine: bigint;
  readonly sine: bigint;
  /** Rows of the rotary tables: positions from here on cannot be computed. */
  readonly positions: number;
}

/** A step's inputs on the device: arrays of 32-bit words, (maxRows) each, then the draws. */
export const INPUTS = ['tokens', 'positions', 'writeSlots', 'logitRows'] as const;
export type InputName = (typeof INPUTS)[number];
/** Words of `struct Draw` in kernels/sampler-search.cuh: how a logit row is drawn. */
export const DRAW_WORDS = 16;

/** Tensors of steps of up to `maxRows` rows, at addresses that never change. */
export interface CudaBuffers {
  readonly maxRows: number;
  readonly inputs: DeviceMemory;
  /** (maxRows, hidden) f32: the residual stream. */
  readonly x: DeviceMemory;
  /** (maxRows, widest input of a product) in 16 bits. */
  readonly input: DeviceMemory;
  /** (maxRows, (heads + 2 kvHeads) * headDim) f32 */
  readonly qkv: DeviceMemory;
  /** (maxRows, heads * headDim) in 16 bits: rotated queries, attention's output. */
  readonly queries: DeviceMemory;
  readonly attention: DeviceMemory;
  /** (maxRows, 2 * intermediate) in 16 bits */
  readonly gateUp: DeviceMemory;
  /** (maxRows, vocab) f32 */
  readonly logits: DeviceMemory;
}

/** Allocates buffers, all zero, so that what pads a step is always a valid number. */
export function allocateBuffers(
  cuda: Cuda,
  config: DecoderConfig,
  maxRows: number,
  stream: Stream,
): CudaBuffers {
  const { hidden, intermediate, heads, kvHeads, headDim, vocab } = config;
  const tensor = (bytesPerRow: number): DeviceMemory => {
    const memory = cuda.alloc(maxRows * bytesPerRow);
    cuda.fill(memory.address, 0, memory.bytes, stream);
    return memory;
  };
  return {
    maxRows,
    inputs: tensor(4 * (INPUTS.length + DRAW_WORDS)),
    x: tensor(hidden * 4),
    input: tensor(Math.max(hidden, intermediate) * 2),
    qkv: tensor((heads + 2 * kvHeads) * headDim * 4),
    queries: tensor(heads * headDim * 2),
    attention: tensor(heads * headDim * 2),
    gateUp: tensor(2 * intermediate * 2),
    logits: tensor(vocab * 4),
  };
}

export function freeBuffers(buffers: CudaBuffers): void {
  for (const part of Object.values(buffers)) if (typeof part === 'object') part.free();
}
