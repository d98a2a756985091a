/**
 * What pieces cost: their segments by the cost model, and a partial for every row that has
 * tokens in more than one piece.
 * @module
 */
import type { CostModel } from './cost-model.ts';
import { type Layout, roomFor } from './row-tiling.ts';
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

  constructor(cost: CostModel) {
    this.#cost = cost;
  }

  /** Fills pieceUs and unitUs, and rowPieces. */
  price(layout: Layout, pieces: Pieces): void {
    const { segmentUs } = layout;
    this.whole = layout.disjoint && pieces.count === layout.lists;
    this.partials = 0;
    if (!this.whole) this.#countPieces(layout, pieces);
    for (let unit = 0; unit < pieces.units; unit++) {
      let sum = 0;
      for (let piece = pieces.unitPiece[unit]; piece < pieces.unitPiece[unit + 1]; piece++) {
        const first = pieces.firstSegment[piece];
        const last = pieces.lastSegment[piece];
        let us = this.#cost.itemUs + segmentUs[last + 1] - segmentUs[first];
        us += this.#endsUs(layout, pieces, piece, first, last);
        if (!this.whole) {
          const partials = this.#partials(layout, pieces, piece);
          this.partials += partials;
          us += partials * this.#cost.partialUs;
        }
        pieces.pieceUs[piece] = us;
        sum += us;
      }
      pieces.unitUs[unit] = sum;
    }
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

  /** Correction of a piece's running sum where its first and last segments are cut. */
  #endsUs(layout: Layout, pieces: Pieces, piece: number, first: number, last: number): number {
    const { segmentTokens, segmentUs } = layout;
    const from = pieces.firstToken[piece];
    const to = pieces.lastToken[piece];
    let us = 0;
    if (first === last) {
      if (from === 0 && to === segmentTokens[first]) return 0;
      return this.#partUs(layout, first, from, to) - (segmentUs[first + 1] - segmentUs[first]);
    }
    if (from > 0) {
      us += this.#partUs(layout, first, from, segmentTokens[first]);
      us -= segmentUs[first + 1] - segmentUs[first];
    }
    if (to < segmentTokens[last]) {
      us += this.#partUs(layout, last, 0, to) - (segmentUs[last + 1] - segmentUs[last]);
    }
    return us;
  }

  #partUs(layout: Layout, segment: number, from: number, to: number): number {
    this.partRows(layout, segment, from);
    const rows = this.rowEnd - this.rowBegin;
    return this.#cost.us(rows, to - from) + this.#cost.segmentUs;
  }

  #countPieces(layout: Layout, pieces: Pieces): void {
    this.rowPieces = roomFor(this.rowPieces, layout.forest.rows);
    this.rowPieces.fill(0, 0, layout.forest.rows);
    for (let piece = 0; piece < pieces.count; piece++) {
      this.eachRun(layout, pieces, piece, (begin, end) => {
        for (let row = begin; row < end; row++) this.rowPieces[row]++;
      });
    }
  }

  #partials(layout: Layout, pieces: Pieces, piece: number): number {
    let count = 0;
    this.eachRun(layout, pieces, piece, (begin, end) => {
      for (let row = begin; row < end; row++) if (this.rowPieces[row] > 1) count++;
    });
    return count;
  }

  /**
   * Calls `visit` with disjoint row intervals, ascending: the rows that have segments in a piece.
   * Segments stand depth-first, so that each begins inside or after the ones before it.
   */
  eachRun(
    layout: Layout,
    pieces: Pieces,
    piece: number,
    visit: (begin: number, end: number) => void,
  ): void {
    const { segmentRowBegin, segmentRowEnd } = layout;
    const first = pieces.firstSegment[piece];
    const last = pieces.lastSegment[piece];
    this.partRows(layout, first, pieces.firstToken[piece]);
    let done = this.rowEnd;
    if (this.rowBegin < done) visit(this.rowBegin, done);
    for (let segment = first + 1; segment <= last; segment++) {
      const end = segmentRowEnd[segment];
      if (end <= done) continue;
      visit(Math.max(done, segmentRowBegin[segment]), end);
      done = end;
    }
  }
}
