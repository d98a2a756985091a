/**
 * What pieces cost: their segments by the cost model, and a partial for every row that has
 * tokens in more than one piece.
 * @module
 */
import type { CostModel } from './cost-model.ts';
import { type Layout, roomFor } from './layout.ts';
import type { Pieces } from './task-division.ts';

/** Prices divisions; afterwards `rowPieces` tells which rows need a merge. */
export class PiecePricer {
  readonly #cost: CostModel;
  /** (rows) number of pieces that have tokens for the row. */
  rowPieces = new Int32Array(0);
  /** Rows of the part last looked at by `partRows`. */
  rowBegin = 0;
  rowEnd = 0;
  /** True if each row has all of its tokens in one piece: rowPieces is not filled then. */
  whole = true;
  /** Partial results that the pieces write, of one KV head. */
  partials = 0;
  /** (pieces + 1) first run of each piece; runs are disjoint row intervals, ascending. */
  #pieceRun = new Int32Array(0);
  #runBegin = new Int32Array(0);
  #runEnd = new Int32Array(0);
  /** (rows + 1) rows before each row that are in several pieces. */
  #splitBefore = new Int32Array(0);

  constructor(cost: CostModel) {
    this.#cost = cost;
  }

  /** Counts the partials: fills rowPieces, `whole` and `partials`. */
  count(layout: Layout, pieces: Pieces): void {
    this.whole = layout.disjoint && pieces.count === layout.lists;
    this.partials = 0;
    if (this.whole) return;
    this.#findRuns(layout, pieces);
    this.#countPieces(layout.forest.rows, pieces.count);
  }

  /**
   * After `count` of the same pieces: fills what `pieces` says of times.
   * @param limit ends early, with mostUs set, once a unit takes so long.
   */
  price(layout: Layout, pieces: Pieces, limit = Number.POSITIVE_INFINITY): void {
    const { units, unitPiece, unitUs, firstSegment, lastSegment } = pieces;
    const { segmentUs } = layout;
    const { itemUs } = this.#cost;
    let [most, least, total] = [0, Number.POSITIVE_INFINITY, 0];
    for (let unit = 0; unit < units && most < limit; unit++) {
      let us = 0;
      for (let piece = unitPiece[unit]; piece < unitPiece[unit + 1]; piece++) {
        const whole = itemUs + segmentUs[lastSegment[piece] + 1] - segmentUs[firstSegment[piece]];
        us += this.whole
          ? whole
          : whole + this.#endsUs(layout, pieces, piece) + this.#partialsUs(piece);
      }
      unitUs[unit] = us;
      total += us;
      if (us > most) most = us;
      if (us < least) least = us;
    }
    pieces.mostUs = most;
    pieces.leastUs = least;
    pieces.totalUs = total;
  }

  /**
   * Sets rowBegin and rowEnd to the rows of `segment` that see its tokens from `token` on. Rows
   * in between may still see none: they come after a request with a longer context.
   */
  partRows(layout: Layout, segment: number, token: number): void {
    let begin = layout.segmentRowBegin[segment];
    let end = layout.segmentRowEnd[segment];
    if (token > 0 && layout.segmentFull[segment] === 0) {
      const { rowPosition, start } = layout.forest;
      const position = start[layout.segmentNode[segment]] + token;
      while (begin < end && rowPosition[begin] < position) begin++;
      while (begin < end && rowPosition[end - 1] < position) end--;
    }
    this.rowBegin = begin;
    this.rowEnd = end;
  }

  #partialsUs(piece: number): number {
    const [runBegin, runEnd, before] = [this.#runBegin, this.#runEnd, this.#splitBefore];
    let partials = 0;
    for (let run = this.#pieceRun[piece]; run < this.#pieceRun[piece + 1]; run++) {
      partials += before[runEnd[run]] - before[runBegin[run]];
    }
    return partials * this.#cost.partialUs;
  }

  /** Correction of a piece's running sum where its first and last segments are cut. */
  #endsUs(layout: Layout, pieces: Pieces, piece: number): number {
    const { segmentTokens, segmentUs, segmentRowBegin, segmentRowEnd } = layout;
    const first = pieces.firstSegment[piece];
    const last = pieces.lastSegment[piece];
    const from = pieces.firstToken[piece];
    const to = pieces.lastToken[piece];
    let us = 0;
    if (from > 0) {
      this.partRows(layout, first, from);
      const rows = this.rowEnd - this.rowBegin;
      const end = first === last ? to : segmentTokens[first];
      const partUs = this.#cost.us(rows, end - from) + this.#cost.segmentUs;
      us = partUs - (segmentUs[first + 1] - segmentUs[first]);
      if (first === last) return us;
    }
    if (to === segmentTokens[last]) return us;
    const rows = segmentRowEnd[last] - segmentRowBegin[last];
    const partUs = this.#cost.us(rows, to) + this.#cost.segmentUs;
    return us + (partUs - (segmentUs[last + 1] - segmentUs[last]));
  }

  /**
   * The rows that have segments in each piece. Segments stand depth-first, so that each begins
   * inside or after the ones before it.
   */
  #findRuns(layout: Layout, pieces: Pieces): void {
    const { segmentRowBegin, segmentRowEnd, listRowEnd } = layout;
    const most = layout.segments + pieces.count;
    this.#pieceRun = roomFor(this.#pieceRun, pieces.count + 1);
    this.#runBegin = roomFor(this.#runBegin, most);
    this.#runEnd = roomFor(this.#runEnd, most);
    const [runBegin, runEnd] = [this.#runBegin, this.#runEnd];
    let runs = 0;
    for (let piece = 0; piece < pieces.count; piece++) {
      this.#pieceRun[piece] = runs;
      const first = pieces.firstSegment[piece];
      const last = pieces.lastSegment[piece];
      this.partRows(layout, first, pieces.firstToken[piece]);
      runBegin[runs] = this.rowBegin;
      let done = this.rowEnd;
      // Once the list's last row is reached, the segments below add none.
      const listEnd = listRowEnd[pieces.list[piece]];
      for (let segment = first + 1; segment <= last && done < listEnd; segment++) {
        const end = segmentRowEnd[segment];
        if (end <= done) continue;
        if (segmentRowBegin[segment] > done) {
          runEnd[runs++] = done;
          runBegin[runs] = segmentRowBegin[segment];
        }
        done = end;
      }
      runEnd[runs++] = done;
    }
    this.#pieceRun[pieces.count] = runs;
  }

  /** Fills rowPieces, partials and splitBefore from the runs. */
  #countPieces(rows: number, pieces: number): void {
    this.rowPieces = roomFor(this.rowPieces, rows + 1);
    this.#splitBefore = roomFor(this.#splitBefore, rows + 1);
    const [rowPieces, splitBefore] = [this.rowPieces.fill(0, 0, rows + 1), this.#splitBefore];
    const runs = this.#pieceRun[pieces];
    for (let run = 0; run < runs; run++) {
      rowPieces[this.#runBegin[run]]++;
      rowPieces[this.#runEnd[run]]--;
    }
    let open = 0;
    let split = 0;
    for (let row = 0; row < rows; row++) {
      open += rowPieces[row];
      rowPieces[row] = open;
      splitBefore[row] = split;
      if (open < 2) continue;
      split++;
      this.partials += open;
    }
    splitBefore[rows] = split;
  }
}
