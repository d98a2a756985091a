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

/** `array` if it holds `count` entries, else a larger one without the old content. */
export const roomFor = (array: Int32Array<ArrayBuffer>, count: number): Int32Array<ArrayBuffer> =>
  array.length >= count ? array : new Int32Array(count + (count >> 1));

/** `array` if it holds `count` entries, else a larger one without the old content. */
export const roomForFloats = (
  array: Float64Array<ArrayBuffer>,
  count: number,
): Float64Array<ArrayBuffer> =>
  array.length >= count ? array : new Float64Array(count + (count >> 1));

/** Lists of segments over row tiles; arrays may be longer than their counts. */
export class Layout {
  forest!: Forest;
  lists = 0;
  /** (lists + 1) first segment of each list. */
  listSegment = new Int32Array(64);
  segments = 0;
  segmentNode = new Int32Array(256);
  /** (segments) rows of the tile under the node that see at least one of its tokens. */
  segmentRowBegin = new Int32Array(256);
  segmentRowEnd = new Int32Array(256);
  /** (segments) tokens of the node that some of these rows see: its first ones. */
  segmentTokens = new Int32Array(256);
  /** (segments) 1 = every row of the segment sees all of segmentTokens. */
  segmentFull = new Uint8Array(256);
  /** (segments + 1) running sum of estimated us, the fixed part of each segment included. */
  segmentUs = new Float64Array(256);
  /** True if no row has segments in two lists. */
  disjoint = true;

  reset(forest: Forest): void {
    this.forest = forest;
    this.lists = 0;
    this.segments = 0;
    this.disjoint = true;
    this.segmentUs[0] = 0;
    this.listSegment[0] = 0;
  }

  /** Ends the current list; an empty one leaves no trace. */
  endList(): void {
    if (this.segments === this.listSegment[this.lists]) return;
    if (this.lists + 2 > this.listSegment.length) this.listSegment = copied(this.listSegment);
    this.listSegment[++this.lists] = this.segments;
  }

  /**
   * Adds the part of `node` that rows begin <= r < end see; nothing if they see none of it.
   * @param leastPosition a position that none of the rows lies before.
   */
  add(cost: CostModel, node: number, begin: number, end: number, leastPosition: number): void {
    const { start, length, rowPosition } = this.forest;
    const first = start[node];
    let tokens = length[node];
    let full = 1;
    if (first + tokens - 1 > leastPosition) {
      while (begin < end && rowPosition[begin] < first) begin++;
      while (begin < end && rowPosition[end - 1] < first) end--;
      if (begin === end) return;
      let [least, most] = [tokens, 0];
      for (let row = begin; row < end; row++) {
        const seen = Math.min(tokens, rowPosition[row] - first + 1);
        if (seen > most) most = seen;
        if (seen < least) least = seen;
      }
      tokens = most;
      full = least === most ? 1 : 0;
    }
    // A kernel works on all rows up to the last token that any of them sees.
    const us = cost.us(end - begin, tokens);
    if (this.segments + 1 >= this.segmentNode.length) this.#grow();
    const s = this.segments++;
    this.segmentNode[s] = node;
    this.segmentRowBegin[s] = begin;
    this.segmentRowEnd[s] = end;
    this.segmentTokens[s] = tokens;
    this.segmentFull[s] = full;
    this.segmentUs[s + 1] = this.segmentUs[s] + us + cost.segmentUs;
  }

  #grow(): void {
    this.segmentNode = copied(this.segmentNode);
    this.segmentRowBegin = copied(this.segmentRowBegin);
    this.segmentRowEnd = copied(this.segmentRowEnd);
    this.segmentTokens = copied(this.segmentTokens);
    const full = new Uint8Array(this.segmentNode.length);
    full.set(this.segmentFull);
    this.segmentFull = full;
    const us = new Float64Array(this.segmentNode.length);
    us.set(this.segmentUs);
    this.segmentUs = us;
  }
}

function copied(array: Int32Array): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(array.length * 2);
  larger.set(array);
  return larger;
}

/** Builds layouts; holds the scratch arrays. */
export class RowTiler {
  readonly #cost: CostModel;
  #active = new Int32Array(0);
  #actives = 0;
  #split = new Int32Array(0);
  #stack = new Int32Array(64);
  #depth = 0;
  #stackUs = new Float64Array(64);
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
  }

  /** Every node in the lists of the tiles it spans. */
  joined(forest: Forest, taskRows: number, out: Layout): void {
    out.reset(forest);
    this.#tileNodes(this.#active, 0, this.#actives, taskRows, out);
  }

  /** Every node alone. */
  apart(forest: Forest, taskRows: number, out: Layout): void {
    out.reset(forest);
    out.disjoint = false;
    for (let i = 0; i < this.#actives; i++) {
      this.#tileNodes(this.#active, i, i + 1, taskRows, out);
    }
  }

  /**
   * After `joined`: nodes near the roots for which the tiles' borders cost more re-reading than
   * partial results would are tiled on their own, the rest of the forest below them likewise.
   * @returns false, with `out` unchanged, if there is no such node.
   */
  trunkApart(forest: Forest, taskRows: number, out: Layout): boolean {
    const { parent, rowBegin, rowEnd, length } = forest;
    const cost = this.#cost;
    const apart = new Uint8Array(forest.nodes);
    let any = false;
    for (let i = this.#actives - 1; i >= 0; i--) {
      const node = this.#active[i];
      const rows = rowEnd[node] - rowBegin[node];
      if (apart[node] === 0 && rows > taskRows) {
        const reads = this.#tilesOver(rowBegin[node], rowEnd[node]);
        const spare = reads - Math.ceil(rows / taskRows);
        const partials = rows * cost.partialUs * 2;
        if (spare > 0 && spare * this.#rereadUs(length[node], taskRows) > partials) apart[node] = 1;
      }
      if (apart[node] === 1) {
        any = true;
        if (parent[node] >= 0) apart[parent[node]] = 1;
      }
    }
    if (!any) return false;
    let trunk = 0;
    for (let i = 0; i < this.#actives; i++) {
      if (apart[this.#active[i]] === 1) this.#split[trunk++] = this.#active[i];
    }
    let end = trunk;
    for (let i = 0; i < this.#actives; i++) {
      if (apart[this.#active[i]] === 0) this.#split[end++] = this.#active[i];
    }
    out.reset(forest);
    out.disjoint = false;
    this.#tileNodes(this.#split, 0, trunk, taskRows, out);
    this.#tileNodes(this.#split, trunk, end, taskRows, out);
    return true;
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
        this.#push(this.#active[next], 0);
      }
      const tiles = Math.ceil((to - from) / taskRows);
      for (let tile = 0; tile < tiles; tile++) {
        const begin = from + Math.floor(((to - from) * tile) / tiles);
        const end = from + Math.floor(((to - from) * (tile + 1)) / tiles);
        const least = leastPosition(forest, begin, end);
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
      tileAfter(this.#tileEnd, this.#tiles, end - 1) -
      tileAfter(this.#tileEnd, this.#tiles, begin) +
      1
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
    if (high - low > taskRows) {
      this.#priceCuts(nodes, from, to, low, high, taskRows, out.forest);
      this.#chooseTiles(low, high, taskRows);
    } else {
      this.#tiles = 1;
      this.#tileEnd[0] = high;
    }
    this.#addLists(nodes, from, to, low, out);
  }

  /** cutUs[r] = cost of a tile border before row r: reading once more what r - 1 and r share. */
  #priceCuts(
    nodes: Int32Array,
    from: number,
    to: number,
    low: number,
    high: number,
    taskRows: number,
    forest: Forest,
  ): void {
    const { rowBegin, rowEnd, length } = forest;
    const cutUs = this.#cutUs;
    this.#depth = 0;
    let next = from;
    for (let row = low; row < high; row++) {
      this.#closeNodes(rowEnd, row);
      cutUs[row] = this.#depth > 0 ? this.#stackUs[this.#depth - 1] : 0;
      for (; next < to && rowBegin[nodes[next]] === row; next++) {
        const above = this.#depth > 0 ? this.#stackUs[this.#depth - 1] : 0;
        // A node over one row is never cut.
        const single = rowEnd[nodes[next]] - row === 1;
        this.#push(
          nodes[next],
          single ? above : above + this.#rereadUs(length[nodes[next]], taskRows),
        );
      }
    }
    assert(next === to, 'nodes must stand in depth-first order');
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
      const least = leastPosition(out.forest, begin, end);
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
        this.#push(node, 0);
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

  #push(node: number, us: number): void {
    if (this.#depth === this.#stack.length) {
      this.#stack = copied(this.#stack);
      const larger = new Float64Array(this.#stack.length);
      larger.set(this.#stackUs);
      this.#stackUs = larger;
    }
    this.#stack[this.#depth] = node;
    this.#stackUs[this.#depth++] = us;
  }
}

/** Index of the tile that holds `row`, by bisection over the tiles' ends. */
function tileAfter(tileEnd: Int32Array, tiles: number, row: number): number {
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
