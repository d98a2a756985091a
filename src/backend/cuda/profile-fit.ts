/**
 * From timed trials to the planner's cost profile. Whatever a launch takes in any case (its start,
 * the first tile's way from memory) is the same for all plans and cancels: costs are differences.
 * @module
 */
import type { CostProfile } from '../../plan/plan.ts';
import { PLAIN, TRIAL_TOKENS_MAX, type Trial } from './profile-trials.ts';

/** What the fit needs of a device: a `TrialRunner`, or made-up times in tests. */
export interface TrialClock {
  /** us of a launch in which every multiprocessor does what the trial says. */
  us(trial: Trial): number;
}

/** Rows of the kernel's tiles, as `Variant` has them. */
export interface TileRows {
  /** Query vectors of one row. */
  readonly groupSize: number;
  /** Most rows that one group of warps holds, and most rows of a task. */
  readonly groupRows: number;
  readonly taskRows: number;
}

/** Token counts of the grid: a tile, and where the slope goes on beyond. */
const TOKENS = [64, TRIAL_TOKENS_MAX];
/** Tokens after which the kernel is in its stride: queries have come, the KV ring is full. */
const STRIDE_TOKENS = 256;
/** Query vectors of the smallest product of one warp. */
const WARP_VECTORS = 16;
/** Items that one long item is cut into, and segments. */
const CUTS = 4;
const SEGMENTS = 16;
/** Multiprocessors that share rows where merges are measured. */
const PARTS = 16;
/** Costs below the clock's noise count as this, so that the planner never thinks them free. */
const LEAST_US = 1e-4;

/**
 * Measures and fits: which trial gives which constant is told in docs/planner.md.
 * @returns the profile without the names of device and kernel.
 */
export function fitProfile(
  clock: TrialClock,
  tile: TileRows,
): Omit<CostProfile, 'device' | 'kernel'> {
  const rows = rowGrid(tile);
  const us = rows.map((count) => tileCosts(clock, count));
  const { itemUs, segmentUs } = fixedCosts(clock, tile);
  return {
    queries: rows.map((count) => count * tile.groupSize),
    tokens: TOKENS,
    us: notFalling(us),
    itemUs,
    segmentUs,
    ...mergeCosts(clock, tile),
  };
}

/**
 * Rows at which the kernel's way of working changes: one warp's, one group's, the first that two
 * groups share, and the most. Ascending.
 */
function rowGrid({ groupSize, groupRows, taskRows }: TileRows): number[] {
  const narrow = Math.max(1, Math.floor(WARP_VECTORS / groupSize));
  const all = [narrow, groupRows, Math.min(groupRows + 1, taskRows), taskRows];
  return [...new Set(all)].sort((a, b) => a - b);
}

/** us of items of `rows` rows over the token grid, at the pace of long items. */
function tileCosts(clock: TrialClock, rows: number): number[] {
  const [short, long] = [STRIDE_TOKENS, TRIAL_TOKENS_MAX].map((tokens) =>
    clock.us({ ...PLAIN, rows, tokens }),
  );
  const pace = (long - short) / (TRIAL_TOKENS_MAX - STRIDE_TOKENS);
  return TOKENS.map((tokens) => Math.max(LEAST_US, pace) * tokens);
}

/** One item cut into several, and one segment into several, on every multiprocessor. */
function fixedCosts(
  clock: TrialClock,
  { groupRows }: TileRows,
): Pick<CostProfile, 'itemUs' | 'segmentUs'> {
  const long = { ...PLAIN, rows: groupRows, tokens: TRIAL_TOKENS_MAX };
  const whole = clock.us(long);
  const cut = clock.us({ ...long, items: CUTS, tokens: TRIAL_TOKENS_MAX / CUTS });
  const parts = clock.us({ ...long, segments: SEGMENTS });
  return {
    itemUs: Math.max(LEAST_US, (cut - whole) / (CUTS - 1)),
    segmentUs: Math.max(0, (parts - whole) / (SEGMENTS - 1)),
  };
}

/** The same items with and without a merge: of few rows and of as many as a task may have. */
function mergeCosts(
  clock: TrialClock,
  { taskRows }: TileRows,
): Pick<CostProfile, 'partialUs' | 'mergeUs'> {
  const extra = (rows: number): number => {
    const plain = clock.us({ ...PLAIN, rows, parts: 1 });
    return clock.us({ ...PLAIN, rows, parts: PARTS }) - plain;
  };
  const few = extra(1);
  if (taskRows === 1) return { partialUs: LEAST_US, mergeUs: Math.max(0, few) };
  const partialUs = Math.max(LEAST_US, (extra(taskRows) - few) / (taskRows - 1));
  return { partialUs, mergeUs: Math.max(0, few - partialUs) };
}

/** More rows or more tokens never cost less, whatever noise says. */
function notFalling(us: readonly (readonly number[])[]): number[][] {
  const rising: number[][] = [];
  for (const [i, row] of us.entries()) {
    const out: number[] = [];
    for (const [k, value] of row.entries()) {
      const below = i > 0 ? rising[i - 1][k] : 0;
      out.push(Math.max(value, below, k > 0 ? out[k - 1] : 0));
    }
    rising.push(out);
  }
  return rising;
}
