/**
 * Cost of a work item: bilinear interpolation over the measured grid of a `CostProfile`, with a
 * row table prepared once per planner so that one estimate costs a few nanoseconds. (Workload
 * balancing after CoDec, "cost estimation": time as a function of query rows and KV length.)
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import type { CostProfile } from './plan.ts';

/** Estimates of one profile for a fixed GQA group; `rows` counts rows, not query vectors. */
export class CostModel {
  readonly itemUs: number;
  readonly segmentUs: number;
  readonly partialUs: number;
  /** Added once to a plan with any merge, us. */
  readonly mergeUs: number;
  readonly taskRows: number;
  /** True if two stretches of tokens never take less than both as one, for any number of rows. */
  readonly concave: boolean;
  readonly #tokens: Float64Array;
  /** (taskRows + 1, tokens grid) us; row 0 is unused. */
  readonly #table: Float64Array;
  /**
   * (taskRows + 1, tokens grid, 2): us where the grid's k-th stretch begins, and us per token from
   * there on. The first stretch begins at no tokens, the last one never ends.
   */
  readonly #lines: Float64Array;
  /** (taskRows + 1) least us per token over all lengths. */
  readonly #rate: Float64Array;

  /**
   * @param taskRows most rows of one task: estimates are for 1 to taskRows rows.
   * @throws FlashForgeError 'input' if the profile's grid is not usable.
   */
  constructor(profile: CostProfile, groupSize: number, taskRows: number) {
    checkProfile(profile);
    this.itemUs = profile.itemUs;
    this.segmentUs = profile.segmentUs;
    this.partialUs = profile.partialUs;
    this.mergeUs = profile.mergeUs ?? 0;
    this.taskRows = taskRows;
    this.#tokens = Float64Array.from(profile.tokens);
    const columns = profile.tokens.length;
    this.#table = new Float64Array((taskRows + 1) * columns);
    this.#lines = new Float64Array((taskRows + 1) * columns * 2);
    this.#rate = new Float64Array(taskRows + 1);
    let concave = true;
    for (let rows = 1; rows <= taskRows; rows++) {
      for (let k = 0; k < columns; k++) {
        const at = rows * columns + k;
        this.#table[at] = alongQueries(profile, rows * groupSize, k);
        this.#lines[2 * at] = k === 0 ? 0 : this.#table[at - 1];
        this.#lines[2 * at + 1] =
          k === 0 ? this.#table[at] / this.#tokens[0] : this.#slope(rows, k);
      }
      this.#rate[rows] = this.#leastRate(rows);
      concave &&= this.#isConcave(rows);
    }
    this.concave = concave;
  }

  /** Time of `rows` rows (1 to taskRows) against `tokens` tokens without any fixed part, in us. */
  us(rows: number, tokens: number): number {
    const grid = this.#tokens;
    const last = grid.length - 1;
    let k = 0;
    while (k < last && tokens > grid[k]) k++;
    const at = 2 * (rows * grid.length + k);
    const from = k === 0 ? 0 : grid[k - 1];
    return this.#lines[at] + this.#lines[at + 1] * (tokens - from);
  }

  /** What `us` cannot go below in sum if the tokens are cut into stretches, wherever that is. */
  cutUs(rows: number, tokens: number): number {
    return this.concave ? this.us(rows, tokens) : this.#rate[rows] * tokens;
  }

  /**
   * On each linear piece us / tokens is monotone, so its least value lies on the grid or, beyond
   * the grid, in the last slope.
   */
  #leastRate(rows: number): number {
    const columns = this.#tokens.length;
    let rate = columns > 1 ? this.#slope(rows, columns - 1) : Number.POSITIVE_INFINITY;
    for (let k = 0; k < columns; k++) {
      rate = Math.min(rate, this.#table[rows * columns + k] / this.#tokens[k]);
    }
    return rate;
  }

  /** Slopes that never rise, but for rounding, and times that never fall. */
  #isConcave(rows: number): boolean {
    const columns = this.#tokens.length;
    for (let k = 1; k < columns; k++) {
      const at = rows * columns + k;
      if (this.#table[at] < this.#table[at - 1]) return false;
      if (this.#lines[2 * at + 1] > this.#lines[2 * at - 1] * (1 + 1e-9)) return false;
    }
    return true;
  }

  /** us per token between the grid's lengths k - 1 and k; never negative, whatever was measured. */
  #slope(rows: number, k: number): number {
    const at = rows * this.#tokens.length + k;
    const step = this.#tokens[k] - this.#tokens[k - 1];
    return Math.max(0, (this.#table[at] - this.#table[at - 1]) / step);
  }

  /**
   * Least us per token with which each number of rows 1 to taskRows can be served, over all
   * lengths and all ways to spread the rows over tasks: entry r holds for r rows.
   */
  leastRates(): Float64Array {
    const best = this.#rate.slice();
    for (let rows = 1; rows <= this.taskRows; rows++) {
      let rate = best[rows];
      for (let part = 1; part * 2 <= rows; part++) {
        rate = Math.min(rate, best[part] + best[rows - part]);
      }
      best[rows] = rate;
    }
    return best;
  }
}

/** Column k of the grid at `queries` vectors: linear in between, the last slope beyond. */
function alongQueries(profile: CostProfile, queries: number, k: number): number {
  const grid = profile.queries;
  const last = grid.length - 1;
  // Fewer vectors than the smallest tile measured cost what that tile costs.
  if (queries <= grid[0] || last === 0) return profile.us[0][k];
  let i = 1;
  while (i < last && queries > grid[i]) i++;
  const slope = (profile.us[i][k] - profile.us[i - 1][k]) / (grid[i] - grid[i - 1]);
  return profile.us[i - 1][k] + Math.max(0, slope) * (queries - grid[i - 1]);
}

/** What makes a profile unusable, or undefined: profiles also come from files. */
export function profileProblem(profile: CostProfile): string | undefined {
  const positive = (value: number): boolean => Number.isFinite(value) && value > 0;
  const ascending = (grid: readonly number[]): boolean =>
    grid.length > 0 &&
    grid.every((value, i) => positive(value) && (i === 0 || value > grid[i - 1]));
  if (!ascending(profile.queries)) return 'queries must be ascending positive numbers';
  if (!ascending(profile.tokens)) return 'tokens must be ascending positive numbers';
  const shaped =
    profile.us.length === profile.queries.length &&
    profile.us.every((row) => row.length === profile.tokens.length && row.every(positive));
  if (!shaped) return 'us must hold a positive number for each pair of queries and tokens';
  for (const field of ['itemUs', 'segmentUs', 'partialUs', 'mergeUs'] as const) {
    const value = profile[field] ?? (field === 'mergeUs' ? 0 : Number.NaN);
    if (!Number.isFinite(value) || value < 0) return `${field} must be a number of at least 0`;
  }
  return undefined;
}

function checkProfile(profile: CostProfile): void {
  const problem = profileProblem(profile);
  if (problem === undefined) return;
  throw new FlashForgeError('input', `cost profile of ${profile.device}: ${problem}`);
}
