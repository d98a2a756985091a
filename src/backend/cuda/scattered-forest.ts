/**
 * A workload's forest as a cache that has been in use would hold it: nodes begin anywhere within
 * a page, page ids are in no order, and leaves have free page entries behind them to grow into.
 * For the benchmark's decode loop and for tests.
 * @module
 */
import { ceilDiv } from '../../base/math.ts';
import type { Forest } from '../../kvcache/forest.ts';
import { type Workload, workloadForest } from '../../plan/workload.ts';

export interface ScatteredForest {
  readonly forest: Forest;
  /** Page ids are below this. */
  readonly pages: number;
}

/**
 * @param random numbers in [0, 1), for slots and page ids; undefined keeps nodes aligned and page
 *   ids ascending.
 * @param spareTokens by which every leaf can grow.
 */
export function scatteredForest(
  workload: Workload,
  pageSize: number,
  spareTokens: number,
  random?: () => number,
): ScatteredForest {
  const { forest } = workloadForest(workload, pageSize, false);
  const { nodes, firstSlot, pageBegin, length } = forest;
  for (let node = 0; node < nodes; node++) {
    if (random) firstSlot[node] = Math.floor(random() * pageSize);
    const spare = isLeaf(forest, node) ? spareTokens : 0;
    pageBegin[node + 1] =
      pageBegin[node] + ceilDiv(firstSlot[node] + length[node] + spare, pageSize);
  }
  const pages = Int32Array.from({ length: pageBegin[nodes] }, (_, page) => page);
  if (random) {
    for (let page = pages.length - 1; page > 0; page--) {
      const other = Math.floor(random() * (page + 1));
      [pages[page], pages[other]] = [pages[other], pages[page]];
    }
  }
  return { forest: { ...forest, pages }, pages: pages.length };
}

/** Lets every leaf grow by the tokens that `more` says for it, and moves its rows with it. */
export function growLeaves(forest: Forest, more: (node: number) => number): void {
  for (let node = 0; node < forest.nodes; node++) {
    if (!isLeaf(forest, node) || forest.rowBegin[node] === forest.rowEnd[node]) continue;
    const tokens = more(node);
    forest.length[node] += tokens;
    for (let row = forest.rowBegin[node]; row < forest.rowEnd[node]; row++) {
      forest.rowPosition[row] += tokens;
    }
  }
}

const isLeaf = (forest: Forest, node: number): boolean =>
  node + 1 === forest.nodes || forest.parent[node + 1] !== node;
