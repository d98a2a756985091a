/**
 * Division: lists of segments are cut into pieces, at page borders, so that the largest finish
 * time gets small. A piece becomes a task; pieces of one unit run on the same worker.
 * (Workload balancing after CoDec, "task division", over whole lists instead of single nodes.)
 * @module
 */
import type { CostModel } from './cost-model.ts';
import { type Layout, roomFor, roomForFloats } from './layout.ts';

/** Pieces of a layout's lists; a piece is a range of segments with a token offset at each end. */
export class Pieces {
  count = 0;
  /** First segment of the piece and its first token in it. */
  firstSegment = new Int32Array(64);
  firstToken = new Int32Array(64);
  /** Last segment of the piece (inclusive) and one past its last token in it. */
  lastSegment = new Int32Array(64);
  lastToken = new Int32Array(64);
  /** (pieces) the list that the piece is of, and its number within the list. */
  list = new Int32Array(64);
  order = new Int32Array(64);
  /** (units + 1) first piece of each unit. */
  unitPiece = new Int32Array(65);
  units = 0;
  /** (units) estimated us, fixed parts and partials included; set by `PiecePricer`. */
  unitUs = new Float64Array(64);
  /** The largest and the least of them, and their sum. */
  mostUs = 0;
  leastUs = 0;
  totalUs = 0;

  reset(most: number): void {
    this.count = 0;
    this.units = 0;
    this.firstSegment = roomFor(this.firstSegment, most);
    this.firstToken = roomFor(this.firstToken, most);
    this.lastSegment = roomFor(this.lastSegment, most);
    this.lastToken = roomFor(this.lastToken, most);
    this.list = roomFor(this.list, most);
    this.order = roomFor(this.order, most);
    this.unitPiece = roomFor(this.unitPiece, most + 1);
    this.unitUs = roomForFloats(this.unitUs, most);
    this.unitPiece[0] = 0;
  }

  endUnit(): void {
    if (this.unitPiece[this.units] < this.count) this.unitPiece[++this.units] = this.count;
  }
}

/** Cuts lists; keeps the position up to which the current list is already cut. */
export class ListCutter {
  readonly #cost: CostModel;
  /** Cuts inside of a node lie on multiples of this slot. */
  readonly cutTokens: number;
  #list = 0;
  #segment = 0;
  #token = 0;
  #order = 0;

  constructor(cost: CostModel, cutTokens: number) {
    this.#cost = cost;
    this.cutTokens = cutTokens;
  }

  /** Every list whole. */
  whole(layout: Layout, out: Pieces): void {
    out.reset(layout.lists);
    for (let list = 0; list < layout.lists; list++) {
      this.#start(layout, list);
      this.#finishList(layout, list, out);
      out.endUnit();
    }
  }

  /** Each list in equal parts of at most `partUs`. */
  evenly(layout: Layout, partUs: number, out: Pieces): void {
    const { listSegment, listUs, segmentUs } = layout;
    out.reset(partsOf(layout, partUs));
    for (let list = 0; list < layout.lists; list++) {
      const from = segmentUs[listSegment[list]];
      const us = listUs[list];
      const parts = Math.max(1, Math.ceil(us / partUs));
      this.#start(layout, list);
      for (let part = 1; part < parts; part++) {
        if (this.#cut(layout, list, from + (us * part) / parts, us / parts, out)) out.endUnit();
      }
      this.#finishList(layout, list, out);
      out.endUnit();
    }
  }

  /** All lists as one stream in `chunks` equal parts; a part may end one list and begin another. */
  stream(layout: Layout, chunks: number, out: Pieces): void {
    const { listSegment, segmentUs, lists } = layout;
    const itemUs = this.#cost.itemUs;
    out.reset(lists + chunks);
    let chunkUs = (segmentUs[layout.segments] + lists * itemUs) / chunks + itemUs;
    let room = chunkUs;
    let left = segmentUs[layout.segments] + lists * itemUs;
    let chunk = 0;
    for (let list = 0; list < lists; list++) {
      const end = segmentUs[listSegment[list + 1]];
      let at = segmentUs[listSegment[list]];
      this.#start(layout, list);
      while (end - at + itemUs > room * 1.02 && chunk < chunks - 1) {
        // A crumb at a chunk's end costs more than it balances.
        const piece = room - itemUs;
        if (piece > 2 * itemUs && this.#cut(layout, list, at + piece, chunkUs, out)) {
          left -= piece;
          at += piece;
        }
        out.endUnit();
        chunk++;
        chunkUs = left / (chunks - chunk) + itemUs;
        room = chunkUs;
      }
      this.#finishList(layout, list, out);
      room -= end - at + itemUs;
      left -= end - at + itemUs;
    }
    out.endUnit();
  }

  #start(layout: Layout, list: number): void {
    this.#list = list;
    this.#segment = layout.listSegment[list];
    this.#token = 0;
    this.#order = 0;
  }

  #finishList(layout: Layout, list: number, out: Pieces): void {
    const last = layout.listSegment[list + 1] - 1;
    if (this.#segment <= last) this.#emit(last, layout.segmentTokens[last], out);
  }

  /**
   * Ends a piece near `atUs` of the running sum, at a page border or between two segments.
   * @returns false if there is no border in between.
   */
  #cut(layout: Layout, list: number, atUs: number, pieceUs: number, out: Pieces): boolean {
    const { segmentUs, segmentTokens, segmentNode, segmentRowBegin, segmentRowEnd } = layout;
    const end = layout.listSegment[list + 1];
    let low = this.#segment;
    let high = end - 1;
    // The next cut is near: steps that double find an interval for the bisection.
    let step = 1;
    for (; low + step < high && segmentUs[low + step] < atUs; step *= 2) low += step;
    high = Math.min(high, low + step);
    while (low < high) {
      const middle = (low + high) >> 1;
      if (segmentUs[middle + 1] >= atUs) high = middle;
      else low = middle + 1;
    }
    const us = segmentUs[low + 1] - segmentUs[low];
    const before = atUs - segmentUs[low];
    const rows = segmentRowEnd[low] - segmentRowBegin[low];
    // Between two nodes a cut saves the rows of one of them a partial.
    const slack = Math.max(0.02 * pieceUs, rows * this.#cost.partialUs + this.#cost.segmentUs);
    const tokens = segmentTokens[low];
    const slot = layout.forest.firstSlot[segmentNode[low]];
    let token = (before / us) * tokens;
    if (before <= slack) token = 0;
    else if (us - before <= slack) token = tokens;
    else token = Math.round((slot + token) / this.cutTokens) * this.cutTokens - slot;
    if (token >= tokens) {
      token = 0;
      low++;
    } else if (token < 0) token = 0;
    const progress = low > this.#segment || (low === this.#segment && token > this.#token);
    if (!progress || low >= end) return false;
    if (token === 0) this.#emit(low - 1, segmentTokens[low - 1], out);
    else this.#emit(low, token, out);
    this.#segment = low;
    this.#token = token;
    return true;
  }

  #emit(lastSegment: number, lastToken: number, out: Pieces): void {
    const piece = out.count++;
    out.firstSegment[piece] = this.#segment;
    out.firstToken[piece] = this.#token;
    out.lastSegment[piece] = lastSegment;
    out.lastToken[piece] = lastToken;
    out.list[piece] = this.#list;
    out.order[piece] = this.#order++;
  }
}

/** Number of parts if every list is cut into equal parts of at most `partUs`. */
export function partsOf(layout: Layout, partUs: number): number {
  const { listUs, lists } = layout;
  let parts = 0;
  for (let list = 0; list < lists; list++) {
    parts += Math.max(1, Math.ceil(listUs[list] / partUs));
  }
  return parts;
}

/** The smallest part size, in us, for which all lists together give at most `most` parts. */
export function partSizeFor(layout: Layout, most: number): number {
  const total = layout.segmentUs[layout.segments];
  let low = total / most;
  let high = total;
  if (partsOf(layout, low) <= most) return low;
  // Rounding up adds less than one part a list, so that this is large enough.
  const enough = most > layout.lists ? (total / (most - layout.lists)) * 1.000001 : total;
  for (let step = 0; step < 12; step++) {
    const middle = (low + high) / 2;
    if (middle >= enough || partsOf(layout, middle) <= most) high = middle;
    else low = middle;
  }
  return high;
}
