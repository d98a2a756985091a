/**
 * Attention on the CPU as the runner calls it: the sizes of KV pages, and one call a worker and
 * layer for each of the two kernels. What they read lies in a PlanImage in shared memory.
 * @module
 */
import { checkInteger, FlashForgeError, show } from '../../base/errors.ts';
import type { Kernels } from './kernel-table.ts';

/** Tokens of a KV page; the kernels are written for this number. */
export const PAGE_TOKENS = 64;

/**
 * Kernels round outputs to float32 at multiples of this many slots of a node, so a plan that cuts
 * nodes nowhere else gets the same bits as any other such plan.
 */
export const CUT_TOKENS: number = 4 * PAGE_TOKENS;

/**
 * Element types of KV pages; the order is the kernels' numbering. i16: integers with a scale (f32)
 * a key and a value, behind the integers of K and of V (kernels/attention-pairs.h).
 */
export const KV_TYPES = ['f32', 'f16', 'bf16', 'i16'] as const;
export type KvType = (typeof KV_TYPES)[number];

/** What the attention kernels must know of a model. */
export interface AttentionShape {
  readonly kvHeads: number;
  /** Query heads that share one KV head. */
  readonly groupSize: number;
  /** A multiple of 16, at most 512. */
  readonly headDim: number;
  readonly kvType: KvType;
  /** What q . k is multiplied by; default 1 / sqrt(headDim). */
  readonly scale?: number | undefined;
  /** A row at position p sees positions above p - window; 0 or absent = all before it. */
  readonly window?: number | undefined;
}

/**
 * Bytes of KV pages. Page p of layer l and KV head h begins at
 * l * layerBytes + p * pageBytes + h * headBytes: K transposed (headDim, 64), then at
 * `valueOffset` V (64, headDim); of i16 in pairs, (headDim / 2, 64, 2) and (32, headDim, 2).
 */
export interface KvLayout {
  readonly layerBytes: number;
  readonly pageBytes: number;
  readonly headBytes: number;
  readonly valueOffset: number;
  readonly totalBytes: number;
}

/** Bytes of one key or value of one head. */
function vectorBytes({ headDim, kvType }: AttentionShape): number {
  if (kvType === 'i16') return headDim * 2 + 4;
  return headDim * (kvType === 'f32' ? 4 : 2);
}

/** The type that `kernels` are fastest with. */
export const fastestKvType = (kernels: Kernels): KvType => KV_TYPES[kernels.ff_kv_type()];

/**
 * The layout of `pages` pages in each of `layers` layers.
 * @throws FlashForgeError 'model' when a head size is not supported.
 */
export function kvLayout(shape: AttentionShape, layers: number, pages: number): KvLayout {
  checkShape(shape);
  const valueOffset = PAGE_TOKENS * vectorBytes(shape);
  const headBytes = 2 * valueOffset;
  const pageBytes = shape.kvHeads * headBytes;
  const layerBytes = pages * pageBytes;
  return { layerBytes, pageBytes, headBytes, valueOffset, totalBytes: layers * layerBytes };
}

/** Throws when the kernels cannot serve the shape. */
export function checkShape(shape: AttentionShape): void {
  checkInteger('model', 'number of KV heads', shape.kvHeads, 1);
  checkInteger('model', 'GQA group size', shape.groupSize, 1);
  checkInteger('model', 'head_dim', shape.headDim, 16, 512);
  if (shape.headDim % 16 !== 0) {
    throw new FlashForgeError(
      'model',
      `head_dim must be a multiple of 16 on the CPU, got ${show(shape.headDim)}`,
    );
  }
}

/**
 * Attention and merges: the worker's share of one layer. `image` is a PlanImage's address. Outputs
 * are complete when every worker has returned.
 */
export function runAttention(kernels: Kernels, image: number, layer: number, worker: number): void {
  kernels.ff_attention_run(image, layer, worker);
}

/** Addresses of a layer's q and k norm weights (headDim) f32; 0 = the model has none. */
export interface HeadNorms {
  readonly query: number;
  readonly key: number;
  readonly epsilon: number;
}

/**
 * Norms, rotates and stores K and V of the worker's share of `rows` rows, before attention.
 * Queries are changed in place.
 */
export function runRotate(
  kernels: Kernels,
  image: number,
  layer: number,
  rows: number,
  shape: AttentionShape,
  norms: HeadNorms,
  worker: number,
  workers: number,
): void {
  const units = rows * shape.kvHeads;
  const begin = Math.floor((units * worker) / workers);
  const end = Math.floor((units * (worker + 1)) / workers);
  kernels.ff_rotate_and_store(image, layer, begin, end, norms.query, norms.key, norms.epsilon);
}
