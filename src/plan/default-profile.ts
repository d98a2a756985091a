/**
 * Cost profiles to plan with until the device has been measured: right to within a factor of two
 * on common machines, which is enough to balance work of one kind.
 * @module
 */
import type { CostProfile } from './plan.ts';

/** Kinds of device that a default profile is known for. */
export type ProfileKind = 'cpu' | 'cuda' | 'reference';

/** us of one KV token of one head at headDim 64: reading it, and working on one query vector. */
interface Rates {
  readonly readUs: number;
  readonly queryUs: number;
  /** Query vectors are padded to a multiple of this. */
  readonly tile: number;
  /** Reading and computing overlap (GPU) or add up (CPU). */
  readonly overlap: boolean;
  readonly itemUs: number;
  readonly segmentUs: number;
  readonly partialUs: number;
}

const RATES: Record<ProfileKind, Rates> = {
  // One AVX-512 core: 2,048 tokens take 23 us for 3 vectors and 490 us for 96.
  cpu: {
    readUs: 0.004,
    queryUs: 0.0024,
    tile: 1,
    overlap: false,
    itemUs: 2,
    segmentUs: 0.3,
    partialUs: 0.15,
  },
  // One of 132 SMs: 3.0 TB/s of HBM and 600 TFLOP/s shared evenly.
  cuda: {
    readUs: 0.0113,
    queryUs: 0.000057,
    tile: 64,
    overlap: true,
    itemUs: 1.2,
    segmentUs: 0.03,
    partialUs: 0.03,
  },
  // Plain loops: every multiplication costs about a nanosecond.
  reference: {
    readUs: 0.01,
    queryUs: 0.15,
    tile: 1,
    overlap: false,
    itemUs: 1,
    segmentUs: 0.2,
    partialUs: 0.2,
  },
};

const QUERIES = [1, 16, 64, 128, 256];
const TOKENS = [16, 1024, 16384];

/** A profile for `kind` at the given head_dim. */
export function defaultProfile(kind: ProfileKind, headDim: number): CostProfile {
  const rates = RATES[kind];
  const scale = headDim / 64;
  const perToken = (queries: number): number => {
    const padded = Math.ceil(queries / rates.tile) * rates.tile;
    const compute = rates.queryUs * padded;
    return scale * (rates.overlap ? Math.max(rates.readUs, compute) : rates.readUs + compute);
  };
  return {
    device: kind,
    kernel: 'default',
    queries: QUERIES,
    tokens: TOKENS,
    us: QUERIES.map((queries) => TOKENS.map((tokens) => perToken(queries) * tokens)),
    itemUs: rates.itemUs,
    segmentUs: rates.segmentUs,
    partialUs: rates.partialUs * scale,
  };
}

/** Workers and shapes that plans for a device have when nothing else is known. */
export interface PlanShape {
  readonly pageSize: number;
  readonly workers: number;
  /** Query vectors (rows x GQA group) of the largest tile. */
  readonly taskQueries: number;
}

/** Page size, workers and tile height of each kind of device. */
export const PLAN_SHAPES: Record<ProfileKind, PlanShape> = {
  cpu: { pageSize: 64, workers: 2, taskQueries: 96 },
  cuda: { pageSize: 16, workers: 132, taskQueries: 64 },
  reference: { pageSize: 16, workers: 1, taskQueries: 64 },
};
