/**
 * Attention in float64 straight from the KV pages, for a sample of query vectors: what the
 * benchmark compares its kernels with.
 * @module
 */
import type { Forest } from '../../kvcache/forest.ts';
import { type AttentionShape, type KvLayout, PAGE_TOKENS } from './attention.ts';
import { readKvPage } from './kv-pages.ts';
import type { Memory } from './memory.ts';

/** Multiply-adds that one check may cost: about a second. */
const WORK_MAX = 2e8;

/** Float64 results of evenly spread (row, query head) pairs of one problem. */
export class AttentionCheck {
  /** Number of pairs that are compared. */
  readonly vectors: number;
  readonly #memory: Memory;
  readonly #shape: AttentionShape;
  readonly #layout: KvLayout;
  readonly #pages: number;
  readonly #forest: Forest;
  readonly #stride: number;
  readonly #answers = new Map<number, Float64Array>();

  constructor(
    memory: Memory,
    shape: AttentionShape,
    layout: KvLayout,
    pages: number,
    forest: Forest,
  ) {
    this.#memory = memory;
    this.#shape = shape;
    this.#layout = layout;
    this.#pages = pages;
    this.#forest = forest;
    const pairs = forest.rows * shape.kvHeads * shape.groupSize;
    let tokens = 0;
    for (const position of forest.rowPosition) tokens += position + 1;
    const workOfPair = (tokens / forest.rows) * shape.headDim * 2;
    const wanted = Math.max(2, Math.floor(WORK_MAX / workOfPair));
    // An odd stride meets every row and every head before long.
    this.#stride = pairs <= wanted ? 1 : Math.floor(pairs / wanted) | 1;
    this.vectors = Math.ceil(pairs / this.#stride);
  }

  /** The largest difference of the outputs at `output` from float64; NaN if one is no number. */
  largestError(query: number, output: number): number {
    const { headDim } = this.#shape;
    const heads = this.#shape.kvHeads * this.#shape.groupSize;
    let worst = 0;
    for (let pair = 0; pair < this.#forest.rows * heads; pair += this.#stride) {
      let wanted = this.#answers.get(pair);
      if (wanted === undefined) {
        wanted = this.#answer(query + pair * headDim * 4, Math.floor(pair / heads), pair % heads);
        this.#answers.set(pair, wanted);
      }
      const got = this.#memory.f32(output + pair * headDim * 4, headDim);
      for (let d = 0; d < headDim; d++) {
        const difference = Math.abs(got[d] - wanted[d]);
        if (!(difference <= worst)) worst = difference;
      }
      if (Number.isNaN(worst)) return worst;
    }
    return worst;
  }

  /** One query vector against its whole path: page by page, with an online softmax. */
  #answer(queryAt: number, row: number, head: number): Float64Array {
    const { headDim, groupSize } = this.#shape;
    const { headBytes, pageBytes } = this.#layout;
    const query = Float64Array.from(this.#memory.f32(queryAt, headDim));
    const headAt = this.#pages + Math.floor(head / groupSize) * headBytes;
    const out = new Float64Array(headDim);
    const scores = new Float64Array(PAGE_TOKENS);
    let most = Number.NEGATIVE_INFINITY;
    let total = 0;
    this.#eachPage(row, (page, begin, end) => {
      const { keys, values } = readKvPage(this.#memory, this.#shape, headAt + page * pageBytes);
      scores.fill(0);
      for (let d = 0; d < headDim; d++)
        for (let slot = begin; slot < end; slot++)
          scores[slot] += query[d] * keys[d * PAGE_TOKENS + slot];
      let latest = most;
      for (let slot = begin; slot < end; slot++) {
        scores[slot] /= Math.sqrt(headDim);
        latest = Math.max(latest, scores[slot]);
      }
      const scale = total === 0 ? 0 : Math.exp(most - latest);
      for (let d = 0; d < headDim; d++) out[d] *= scale;
      total *= scale;
      most = latest;
      for (let slot = begin; slot < end; slot++) {
        const weight = Math.exp(scores[slot] - most);
        total += weight;
        for (let d = 0; d < headDim; d++) out[d] += weight * values[slot * headDim + d];
      }
    });
    return out.map((value) => value / total);
  }

  /** Every page on the row's path with the slots that the row sees. */
  #eachPage(row: number, use: (page: number, begin: number, end: number) => void): void {
    const forest = this.#forest;
    for (let node = 0; node < forest.nodes; node++) {
      if (row < forest.rowBegin[node] || row >= forest.rowEnd[node]) continue;
      const seen = forest.rowPosition[row] - forest.start[node] + 1;
      const first = forest.firstSlot[node];
      const end = first + Math.min(forest.length[node], seen);
      for (let slot = first; slot < end; ) {
        const index = Math.floor(slot / PAGE_TOKENS);
        const stop = Math.min(end, (index + 1) * PAGE_TOKENS);
        const page = forest.pages[forest.pageBegin[node] + index];
        use(page, slot % PAGE_TOKENS, stop - index * PAGE_TOKENS);
        slot = stop;
      }
    }
  }
}
