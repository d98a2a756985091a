/**
 * A makespan that no plan can beat under the cost profile, and the KV tokens a plan reads.
 * @module
 */
import type { Forest } from '../kvcache/forest.ts';
import type { CostModel } from './cost-model.ts';
import type { Layout } from './row-tiling.ts';

/** What the work of one KV head is at least, whatever the tasks are. */
export interface Work {
  /** us of one KV head's work at the best rate each segment allows. */
  us: number;
  /** KV tokens that must be read; with `flat` a token counts once a request. */
  tokens: number;
}

/** Least us per token for 1 to taskRows rows, and per row and token for any number of rows. */
export class LeastWork {
  readonly #cost: CostModel;
  readonly #rate: Float64Array;
  readonly #perRow: number;

  constructor(cost: CostModel) {
    this.#cost = cost;
    this.#rate = cost.leastRates();
    let least = Number.POSITIVE_INFINITY;
    for (let rows = 1; rows <= cost.taskRows; rows++) {
      least = Math.min(least, this.#rate[rows] / rows);
    }
    this.#perRow = least;
  }

  /** Every node read once for all of its rows. */
  ofTree(forest: Forest): Work {
    const { nodes, rowBegin, rowEnd, start, length, rowPosition } = forest;
    const work = { us: 0, tokens: 0 };
    let lastRow = 0;
    let coveredRows = 0;
    for (let node = 0; node < nodes; node++) {
      const rows = rowEnd[node] - rowBegin[node];
      if (rows <= 0 || length[node] === 0) continue;
      const end = start[node] + length[node];
      let pairs = 0;
      let seen = 0;
      for (let row = rowBegin[node]; row < rowEnd[node]; row++) {
        const tokens = Math.min(end, rowPosition[row] + 1) - start[node];
        if (tokens <= 0) continue;
        pairs += tokens;
        if (tokens > seen) seen = tokens;
      }
      if (seen === 0) continue;
      work.tokens += seen;
      const full = pairs === seen * rows && rows < this.#rate.length;
      work.us += full ? this.#rate[rows] * seen : this.#perRow * pairs;
      work.us += this.#cost.segmentUs;
      coveredRows += Math.max(0, rowEnd[node] - Math.max(lastRow, rowBegin[node]));
      lastRow = Math.max(lastRow, rowEnd[node]);
    }
    work.us += this.#cost.itemUs * Math.ceil(coveredRows / this.#cost.taskRows);
    return work;
  }

  /** Every list of a flat layout by itself. */
  ofFlat(layout: Layout): Work {
    const work = { us: 0, tokens: 0 };
    const { start } = layout.forest;
    for (let s = 0; s < layout.segments; s++) {
      const rows = layout.segmentRowEnd[s] - layout.segmentRowBegin[s];
      const first = start[layout.segmentNode[s]];
      work.tokens += layout.segmentTokens[s];
      work.us += this.#cost.segmentUs;
      if (layout.segmentFull[s] === 1) {
        work.us += this.#rate[rows] * layout.segmentTokens[s];
        continue;
      }
      for (let row = layout.segmentRowBegin[s]; row < layout.segmentRowEnd[s]; row++) {
        const position = layout.forest.rowPosition[row];
        const tokens = Math.min(layout.segmentTokens[s], Math.max(0, position - first + 1));
        work.us += this.#perRow * tokens;
      }
    }
    work.us += this.#cost.itemUs * layout.lists;
    return work;
  }
}
