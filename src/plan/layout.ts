/**
 * What packing makes and division cuts: lists of segments over row tiles, as flat arrays.
 * @module
 */
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
  /** (lists) estimated us of the list's segments, and one past its last row. */
  listUs = new Float64Array(64);
  listRowEnd = new Int32Array(64);
  segments = 0;
  /** Tokens of all segments. */
  tokens = 0;
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
  /** us that cuts of the segments may spare at most, in sum. */
  spareUs = 0;
  /** True if no row has segments in two lists. */
  disjoint = true;
  /** True if some list has a place between two segments where a cut leaves no row in two pieces. */
  severable = false;
  /** What makespans of this layout count times when candidates are compared; set by the planner. */
  weight = 1;
  /** What the whole lists count if they were the best so far, else infinity; set by the planner. */
  wholeScore = 0;
  /** us that merges add to any division of the lists; set by the planner. */
  mergeUs = 0;
  /** One past the last row of the list that is being made. */
  #rowEnd = 0;

  reset(forest: Forest): void {
    this.forest = forest;
    this.lists = 0;
    this.segments = 0;
    this.tokens = 0;
    this.spareUs = 0;
    this.disjoint = true;
    this.severable = false;
    this.#rowEnd = 0;
    this.segmentUs[0] = 0;
    this.listSegment[0] = 0;
  }

  /** Ends the current list; an empty one leaves no trace. */
  endList(): void {
    const first = this.listSegment[this.lists];
    if (this.segments === first) return;
    if (this.lists + 2 > this.listSegment.length) {
      this.listSegment = copied(this.listSegment);
      this.listRowEnd = copied(this.listRowEnd);
      this.listUs = copiedFloats(this.listUs);
    }
    this.listUs[this.lists] = this.segmentUs[this.segments] - this.segmentUs[first];
    this.listRowEnd[this.lists] = this.#rowEnd;
    this.listSegment[++this.lists] = this.segments;
    this.#rowEnd = 0;
  }

  /**
   * Adds the part of `node` that rows begin <= r < end see; nothing if they see none of it.
   * @param leastPosition a position that none of the rows lies before.
   */
  add(cost: CostModel, node: number, begin: number, end: number, leastPosition: number): void {
    const { start, length, rowPosition } = this.forest;
    const first = start[node];
    let tokens = length[node];
    let all = tokens;
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
      all = least;
    }
    // A kernel works on all rows up to the last token that any of them sees.
    const us = cost.us(end - begin, tokens);
    if (this.segments + 1 >= this.segmentNode.length) this.#grow();
    const s = this.segments++;
    if (begin >= this.#rowEnd && s > this.listSegment[this.lists]) this.severable = true;
    if (end > this.#rowEnd) this.#rowEnd = end;
    this.segmentNode[s] = node;
    this.segmentRowBegin[s] = begin;
    this.segmentRowEnd[s] = end;
    this.segmentTokens[s] = tokens;
    this.tokens += tokens;
    this.segmentFull[s] = all === tokens ? 1 : 0;
    this.segmentUs[s + 1] = this.segmentUs[s] + us + cost.segmentUs;
    // After a cut, rows that see none of the tokens behind it take no time there.
    if (all < tokens || !cost.concave) this.spareUs += us - cost.cutUs(end - begin, all);
  }

  #grow(): void {
    this.segmentNode = copied(this.segmentNode);
    this.segmentRowBegin = copied(this.segmentRowBegin);
    this.segmentRowEnd = copied(this.segmentRowEnd);
    this.segmentTokens = copied(this.segmentTokens);
    const full = new Uint8Array(this.segmentNode.length);
    full.set(this.segmentFull);
    this.segmentFull = full;
    this.segmentUs = copiedFloats(this.segmentUs);
  }
}

/** Twice as long, with the old content. */
export function copied(array: Int32Array): Int32Array<ArrayBuffer> {
  const larger = new Int32Array(array.length * 2);
  larger.set(array);
  return larger;
}

/** Twice as long, with the old content. */
function copiedFloats(array: Float64Array): Float64Array<ArrayBuffer> {
  const larger = new Float64Array(array.length * 2);
  larger.set(array);
  return larger;
}
