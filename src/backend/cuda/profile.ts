/**
 * The cost profile of the attention kernel that planning starts from: a multiprocessor's share of
 * the measured read bandwidth, and what its tensor cores take for tiles of 64 or 128 vectors.
 * @module
 */
import type { CostProfile } from '../../plan/plan.ts';
import { type AttentionSpec, GROUP_VECTORS, type Variant } from './variants.ts';

/** us for 64 vectors x 64 tokens x head_dim 128 by one group of warps, and by two at once. */
const TILE_US = { alone: 0.9, both: 1.1 };
/** One item: its records, its queries, its rows' output. */
const ITEM_US = 1.2;
const SEGMENT_US = 0.01;
/** Writing and reading a partial, bytes per us of one multiprocessor; waiting for the last one. */
const PARTIAL_BYTES_PER_US = 40_000;
const MERGE_US = 5;

/** A profile from the device's read bandwidth (bytes per us over all multiprocessors). */
export function defaultCudaProfile(
  { headDim, groupSize }: Pick<AttentionSpec, 'headDim' | 'groupSize'>,
  multiprocessors: number,
  readBytesPerUs: number,
  variant: Variant,
): CostProfile {
  const readUs = (headDim * 4 * multiprocessors) / readBytesPerUs;
  const scale = headDim / 128 / 64;
  /* Few vectors: the groups take turns at the tiles. Many: each has its own rows. */
  const few = Math.max(readUs, (TILE_US.alone * scale) / (variant.taskRows / variant.groupRows));
  const many = Math.max(readUs, TILE_US.both * scale);
  const tokens = [16, 1024, 16384];
  return {
    device: 'cuda',
    kernel: `tree-attention ${variant.arch}`,
    queries: [GROUP_VECTORS, GROUP_VECTORS + 1, GROUP_VECTORS * 2],
    tokens,
    us: [few, many, many].map((us) => tokens.map((count) => us * count)),
    itemUs: ITEM_US,
    segmentUs: SEGMENT_US,
    partialUs: (groupSize * headDim * 4 * 2) / PARTIAL_BYTES_PER_US,
    mergeUs: MERGE_US,
  };
}
