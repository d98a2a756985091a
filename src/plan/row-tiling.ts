/**
 * Packing: rows are cut into tiles of at most taskRows rows, and each tile reads the nodes over
 * its rows as one list of segments. A row whose whole path lies in one list needs no merge.
 * Where to cut is chosen by dynamic programming: cutting between two rows costs one more read of
 * the path that both share.
 * @module
 */
import { assert } from '../base/errors.ts';
import type { Forest } from '../kvcache/forest.ts';
import type { CostModel } from './cost-model.ts';
import { copied, type Layout, roomFor, roomForFloats } from './layout.ts';

/** A position that no row lies before: for `Layout.add` where every row sees all of its path. */
const ALL_SEEN = 0x7fffffff;

/** Builds layouts; holds the scratch arrays. */
export class RowTiler {
  readonly #cost: CostModel;
  /** True if every row sees all tokens of the nodes on its path, as in steps that only decode. */
  allSeen = false;
  /** Nodes with tokens and rows, depth-first. */
  #active = new Int32Array(0);
  #actives = 0;
  /** Those of them over several rows, and the place in this list of the nearest one above or -1. */
  #shared = new Int32Array(0);
  #sharedAbove = new Int32Array(0);
  #shareds = 0;
  /** 1 = the shared node is tiled in the trunk, apart from what is below it. */
  #inTrunk = new Uint8Array(0);
  /** 1 + place: us of reading the shared node and those above it once more. */
  #pathUs = new Float64Array(0);
  /** (rows) place of the lowest shared node over the row and the one before it, or -1. */
  #cutShared = new Int32Array(0);
  #split = new Int32Array(0);
  #stack = new Int32Array(64);
  #depth = 0;
  #cutUs = new Float64Array(0);
  #bestUs = new Float64Array(0);
  #bestFrom = new Int32Array(0);
  #queue = new Int32Array(0);
  #tileEnd = new Int32Array(0);
  #tiles = 0;

  constructor(cost: CostModel) {
    this.#cost = cost;
  }

  /** Reads the forest: afterwards the methods below build layouts of it. */
  prepare(forest: Forest): void {
    const { nodes, rows, rowBegin, rowEnd, length } = forest;
    this.#active = roomFor(this.#active, nodes);
    this.#split = roomFor(this.#split, nodes);
    this.#shared = roomFor(this.#shared, nodes);
    this.#sharedAbove = roomFor(this.#sharedAbove, nodes);
    this.#pathUs = roomForFloats(this.#pathUs, nodes + 1);
    if (this.#inTrunk.length < nodes) this.#inTrunk = new Uint8Array(this.#shared.length);
    this.#cutShared = roomFor(this.#cutShared, rows + 1);
    this.#cutUs = roomForFloats(this.#cutUs, rows + 1);
    this.#bestUs = roomForFloats(this.#bestUs, rows + 1);
    this.#bestFrom = roomFor(this.#bestFrom, rows + 1);
    this.#queue = roomFor(this.#queue, rows + 1);
    this.#tileEnd = roomFor(this.#tileEnd, rows + 1);
    let count = 0;
    for (let node = 0; node < nodes; node++) {
      if (length[node] > 0 && rowEnd[node] > rowBegin[node]) this.#active[count++] = node;
    }
    this.#actives = count;
    this.#findShared(forest);
  }

  /** Walks down the rows: which shared nodes a cut before each row would read once more. */
  #findShared(forest: Forest): void {
    const { rows, rowBegin, rowEnd, rowPosition, start, length } = forest;
    const [active, actives, shared] = [this.#active, this.#actives, this.#shared];
    const [above, cutShared] = [this.#sharedAbove, this.#cutShared];
    this.allSeen = true;
    let count = 0;
    let lowest = -1;
    let next = 0;
    for (let row = 0; row < rows; row++) {
      while (lowest >= 0 && rowEnd[shared[lowest]] <= row) lowest = above[lowest];
      cutShared[row] = lowest;
      let last = lowest >= 0 ? shared[lowest] : -1;
      for (; next < actives && rowBegin[active[next]] === row; next++) {
        last = active[next];
        if (rowEnd[last] - row === 1) continue;
        shared[count] = last;
        above[count] = lowest;
        lowest = count++;
      }
      if (last >= 0 && rowPosition[row] < start[last] + length[last] - 1) this.allSeen = false;
    }
    this.#shareds = count;
    assert(next === actives, 'nodes must stand in depth-first order');
  }

  /** Every node in the lists of the tiles it spans. */
  joined(forest: Forest, taskRows: number, out: Layout): void {
    out.reset(forest);
    if (forest.rows > taskRows) this.#priceCuts(forest, taskRows);
    this.#tileNodes(this.#active, 0, this.#actives, taskRows, out);
  }

  /** Every node alone. */
  apart(forest: Forest, taskRows: number, out: Layout): void {
    out.reset(forest);
    out.disjoint = false;
    for (let i = 0; i < this.#actives; i++) {
      const node = this.#active[i];
      const us = this.#rereadUs(forest.length[node], taskRows);
      this.#cutUs.fill(us, forest.rowBegin[node], forest.rowEnd[node]);
      this.#tileNodes(this.#active, i, i + 1, taskRows, out);
    }
  }

  /**
   * After `joined`: nodes near the roots for which the tiles' borders cost more re-reading than
   * partial results would are tiled on their own, the rest of the forest below them likewise.
   * @returns false, with `out` unchanged, if there is no such node.
   */
  trunkApart(forest: Forest, taskRows: number, out: Layout): boolean {
    if (!this.#markTrunk(forest, taskRows)) return false;
    const [active, split] = [this.#active, this.#split];
    let trunk = 0;
    for (let i = 0; i < this.#shareds; i++) {
      if (this.#inTrunk[i] === 1) split[trunk++] = this.#shared[i];
    }
    let end = trunk;
    for (let i = 0, marked = 0; i < this.#actives; i++) {
      if (marked < trunk && active[i] === split[marked]) marked++;
      else split[end++] = active[i];
    }
    out.reset(forest);
    out.disjoint = false;
    this.#priceCuts(forest, taskRows, 1);
    this.#tileNodes(split, 0, trunk, taskRows, out);
    this.#priceCuts(forest, taskRows, 0);
    this.#tileNodes(split, trunk, end, taskRows, out);
    return true;
  }

  /** Fills inTrunk; returns false if no shared node is. */
  #markTrunk(forest: Forest, taskRows: number): boolean {
    const { rowBegin, rowEnd, length } = forest;
    const inTrunk = this.#inTrunk.fill(0, 0, this.#shareds);
    let any = false;
    for (let i = this.#shareds - 1; i >= 0; i--) {
      const node = this.#shared[i];
      const rows = rowEnd[node] - rowBegin[node];
      if (inTrunk[i] === 0 && rows > taskRows) {
        const reads = this.#tilesOver(rowBegin[node], rowEnd[node]);
        const spare = reads - Math.ceil(rows / taskRows);
        const partials = rows * this.#cost.partialUs * 2;
        if (spare > 0 && spare * this.#rereadUs(length[node], taskRows) > partials) inTrunk[i] = 1;
      }
      if (inTrunk[i] === 0) continue;
      any = true;
      if (this.#sharedAbove[i] >= 0) inTrunk[this.#sharedAbove[i]] = 1;
    }
    return any;
  }

  /** Every request alone, its path as one list; nothing is shared. */
  flat(forest: Forest, taskRows: number, out: Layout): void {
    const { requests, requestRow, rowBegin, rowEnd } = forest;
    out.reset(forest);
    this.#depth = 0;
    let next = 0;
    for (let request = 0; request < requests; request++) {
      const from = requestRow[request];
      const to = requestRow[request + 1];
      if (from === to) continue;
      this.#closeNodes(rowEnd, from);
      for (; next < this.#actives && rowBegin[this.#active[next]] === from; next++) {
        this.#push(this.#active[next]);
      }
      const tiles = Math.ceil((to - from) / taskRows);
      for (let tile = 0; tile < tiles; tile++) {
        const begin = from + Math.floor(((to - from) * tile) / tiles);
        const end = from + Math.floor(((to - from) * (tile + 1)) / tiles);
        const least = this.allSeen ? ALL_SEEN : leastPosition(forest, begin, end);
        for (let i = 0; i < this.#depth; i++) {
          out.add(this.#cost, this.#stack[i], begin, end, least);
        }
        out.endList();
      }
    }
    assert(next === this.#actives, 'nodes must stand in depth-first order');
  }

  /** Number of tiles of the last tiling that meet rows begin <= r < end. */
  #tilesOver(begin: number, end: number): number {
    return (
      tileOf(this.#tileEnd, this.#tiles, end - 1) - tileOf(this.#tileEnd, this.#tiles, begin) + 1
    );
  }

  /** What one more tile costs a node of `tokens` tokens. */
  #rereadUs(tokens: number, taskRows: number): number {
    const cost = this.#cost;
    const half = Math.max(1, taskRows >> 1);
    const whole = cost.us(Math.min(2 * half, taskRows), tokens);
    return Math.max(0, 2 * cost.us(half, tokens) - whole) + cost.segmentUs;
  }

  /** Tiles the rows of nodes[from..to), which stand in depth-first order; adds their lists. */
  #tileNodes(nodes: Int32Array, from: number, to: number, taskRows: number, out: Layout): void {
    if (from === to) return;
    const { rowBegin, rowEnd } = out.forest;
    const low = rowBegin[nodes[from]];
    let high = low;
    for (let i = from; i < to; i++) if (rowEnd[nodes[i]] > high) high = rowEnd[nodes[i]];
    if (high - low > taskRows) this.#chooseTiles(low, high, taskRows);
    else {
      this.#tiles = 1;
      this.#tileEnd[0] = high;
    }
    this.#addLists(nodes, from, to, low, out);
  }

  /**
   * cutUs[r] = cost of a tile border before row r: reading once more what r - 1 and r share.
   * @param part counts only nodes of the trunk (1) or only others (0); default: all.
   */
  #priceCuts(forest: Forest, taskRows: number, part?: 0 | 1): void {
    const [pathUs, cutUs, cutShared] = [this.#pathUs, this.#cutUs, this.#cutShared];
    pathUs[0] = 0;
    for (let i = 0; i < this.#shareds; i++) {
      const counts = part === undefined || this.#inTrunk[i] === part;
      const us = counts ? this.#rereadUs(forest.length[this.#shared[i]], taskRows) : 0;
      pathUs[i + 1] = pathUs[this.#sharedAbove[i] + 1] + us;
    }
    for (let row = 0; row < forest.rows; row++) cutUs[row] = pathUs[cutShared[row] + 1];
  }

  /** Shortest path over tile borders; the best start of each tile by a sliding-window minimum. */
  #chooseTiles(low: number, high: number, taskRows: number): void {
    const [best, from, cutUs, queue] = [this.#bestUs, this.#bestFrom, this.#cutUs, this.#queue];
    best[low] = 0;
    cutUs[low] = 0;
    let head = 0;
    let tail = 0;
    for (let row = low + 1; row <= high; row++) {
      // best[row - 1] becomes a possible start; best is stored with the border's cost added.
      const start = row - 1;
      best[start] += cutUs[start];
      while (tail > head && best[queue[tail - 1]] >= best[start]) tail--;
      queue[tail++] = start;
      while (queue[head] < row - taskRows) head++;
      from[row] = queue[head];
      best[row] = best[queue[head]] + this.#cost.itemUs;
    }
    let tiles = 0;
    for (let row = high; row > low; row = from[row]) tiles++;
    this.#tiles = tiles;
    for (let row = high; row > low; row = from[row]) this.#tileEnd[--tiles] = row;
  }

  #addLists(nodes: Int32Array, from: number, to: number, low: number, out: Layout): void {
    const { rowBegin, rowEnd } = out.forest;
    this.#depth = 0;
    let next = from;
    let begin = low;
    for (let tile = 0; tile < this.#tiles; tile++) {
      const end = this.#tileEnd[tile];
      const least = this.allSeen ? ALL_SEEN : leastPosition(out.forest, begin, end);
      this.#closeNodes(rowEnd, begin);
      for (let i = 0; i < this.#depth; i++) {
        const node = this.#stack[i];
        out.add(this.#cost, node, begin, Math.min(end, rowEnd[node]), least);
      }
      for (; next < to && rowBegin[nodes[next]] < end; next++) {
        const node = nodes[next];
        out.add(this.#cost, node, rowBegin[node], Math.min(end, rowEnd[node]), least);
        // Only what reaches into the next tile has to be remembered.
        if (rowEnd[node] <= end) continue;
        this.#closeNodes(rowEnd, rowBegin[node]);
        this.#push(node);
      }
      out.endList();
      begin = end;
    }
    assert(next === to, 'nodes must stand in depth-first order');
  }

  /** Takes nodes off the stack that end at or before `row`. */
  #closeNodes(rowEnd: Int32Array, row: number): void {
    while (this.#depth > 0 && rowEnd[this.#stack[this.#depth - 1]] <= row) this.#depth--;
  }

  #push(node: number): void {
    if (this.#depth === this.#stack.length) this.#stack = copied(this.#stack);
    this.#stack[this.#depth++] = node;
  }
}

/** Index of the tile that holds `row`, by bisection over the tiles' ends. */
function tileOf(tileEnd: Int32Array, tiles: number, row: number): number {
  let low = 0;
  let high = tiles - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (tileEnd[middle] > row) high = middle;
    else low = middle + 1;
  }
  return low;
}

function leastPosition(forest: Forest, begin: number, end: number): number {
  const { rowPosition } = forest;
  let least = rowPosition[begin];
  for (let row = begin + 1; row < end; row++) {
    if (rowPosition[row] < least) least = rowPosition[row];
  }
  return least;
}
