/**
 * A makespan that no plan can beat under the cost profile, and the KV tokens a plan reads.
 * @module
 */
import type { Forest } from '../kvcache/forest.ts';
import type { CostModel } from './cost-model.ts';
import { type Layout, roomFor } from './layout.ts';

/** What the work of one KV head is at least, whatever the tasks are. */
export interface Work {
  /** us of one KV head's work at the best rate that each token's rows allow. */
  us: number;
  /** KV tokens that must be read; with `flat` a token counts once a request. */
  tokens: number;
}

/** Sums up the least work of forests; holds scratch memory. */
export class LeastWork {
  readonly #cost: CostModel;
  /** (taskRows + 1) least us per token for 1 to taskRows rows. */
  readonly #rate: Float64Array;
  /** (taskRows + 1) least us per token and row where a task has at most so many rows. */
  readonly #perRow: Float64Array;
  /** Most rows of a task in what is being summed up. */
  #taskRows: number;
  #seen = new Int32Array(0);

  constructor(cost: CostModel) {
    this.#cost = cost;
    this.#rate = cost.leastRates();
    this.#taskRows = cost.taskRows;
    this.#perRow = new Float64Array(cost.taskRows + 1).fill(Number.POSITIVE_INFINITY);
    for (let rows = 1; rows <= cost.taskRows; rows++) {
      this.#perRow[rows] = Math.min(this.#perRow[rows - 1], this.#rate[rows] / rows);
    }
  }

  /**
   * Every node read once for all of its rows.
   * @param allSeen every row is known to see all tokens of the nodes on its path.
   * @param taskRows most rows of a task: 1 to the cost model's.
   */
  ofTree(forest: Forest, allSeen: boolean, taskRows = this.#cost.taskRows): Work {
    const { nodes, rowBegin, rowEnd, length } = forest;
    this.#taskRows = taskRows;
    const work = { us: 0, tokens: 0 };
    let lastRow = 0;
    let busyRows = 0;
    for (let node = 0; node < nodes; node++) {
      const [begin, end] = [rowBegin[node], rowEnd[node]];
      if (end <= begin || length[node] === 0) continue;
      const tokens = allSeen ? length[node] : this.#add(work, forest, node, begin, end);
      if (allSeen) work.us += this.#allUs(end - begin, tokens);
      if (tokens === 0) continue;
      work.tokens += tokens;
      busyRows += Math.max(0, end - Math.max(lastRow, begin));
      lastRow = Math.max(lastRow, end);
    }
    work.us += this.#cost.itemUs * Math.ceil(busyRows / taskRows);
    return work;
  }

  /** Every list of a flat layout by itself. */
  ofFlat(layout: Layout): Work {
    const work = { us: 0, tokens: 0 };
    this.#taskRows = this.#cost.taskRows;
    for (let s = 0; s < layout.segments; s++) {
      const [begin, end] = [layout.segmentRowBegin[s], layout.segmentRowEnd[s]];
      work.tokens += this.#add(work, layout.forest, layout.segmentNode[s], begin, end);
    }
    work.us += this.#cost.itemUs * layout.lists;
    return work;
  }

  /** Adds the time of rows begin <= r < end against `node`; returns the tokens they see. */
  #add(work: Work, forest: Forest, node: number, begin: number, end: number): number {
    const { rowPosition } = forest;
    const first = forest.start[node];
    const rows = end - begin;
    this.#seen = roomFor(this.#seen, rows);
    let [least, most] = [forest.length[node], 0];
    for (let row = begin; row < end; row++) {
      const seen = Math.max(0, Math.min(forest.length[node], rowPosition[row] - first + 1));
      this.#seen[row - begin] = seen;
      if (seen < least) least = seen;
      if (seen > most) most = seen;
    }
    if (most === 0) return 0;
    work.us += this.#cost.segmentUs + least * this.#rateOf(rows);
    if (least === most) return most;
    // Ascending: between the i-th and the next count, rows - i - 1 rows see each token.
    const counts = this.#seen.subarray(0, rows).sort();
    for (let i = 0; i + 1 < rows; i++) {
      work.us += (counts[i + 1] - counts[i]) * this.#rateOf(rows - i - 1);
    }
    return most;
  }

  #rateOf(rows: number): number {
    const most = this.#taskRows;
    return rows <= most ? this.#rate[rows] : rows * this.#perRow[most];
  }

  /** us of `rows` rows that all see so many tokens of a node. */
  #allUs(rows: number, tokens: number): number {
    const segments = Math.ceil(rows / this.#taskRows);
    return segments * this.#cost.segmentUs + tokens * this.#rateOf(rows);
  }
}
