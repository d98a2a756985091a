/**
 * Host memory and events of one step under way. A runner has a few of them in turn, so that the
 * next step is handed in while the device still works on this one.
 * @module
 */
import type { RowDraw, StepInput } from '../../backend.ts';
import type { Cuda, Event, PinnedMemory, Stream } from '../driver.ts';
import { DRAW_WORDS, INPUTS } from './cuda-model.ts';
import { CHANGE_WORDS, changesOf, packChanges, packDraw } from './pack-draws.ts';
import { RESULT_WORDS } from './sampler.ts';
import { StepTimer } from './step-timer.ts';

/** Copies `from` to `to` at word `at` and pads it to `length` words. */
function put(to: Int32Array, at: number, from: Int32Array, length: number, pad: number): void {
  to.set(from, at);
  to.fill(pad, at + from.length, at + length);
}

export class StepSlot {
  /** Around the step's work on the device. */
  readonly start: Event;
  readonly end: Event;
  /** Attention's marks of a step that runs without a graph. */
  readonly timer: StepTimer;
  readonly argmax: Int32Array;
  readonly logSumExp: Float32Array;
  readonly drawn: Int32Array;
  readonly drawnLogit: Float32Array;
  readonly #inputs: PinnedMemory;
  readonly #words: Int32Array;
  /** Made when a step first has changed logits. */
  #changes: PinnedMemory | undefined;
  readonly #cuda: Cuda;
  readonly #results: PinnedMemory;
  readonly #resultWords: Int32Array;
  readonly #resultFloats: Float32Array;

  constructor(cuda: Cuda, stream: Stream, maxRows: number) {
    this.#cuda = cuda;
    this.start = cuda.event();
    this.end = cuda.event();
    this.timer = new StepTimer(cuda, stream);
    this.argmax = new Int32Array(maxRows);
    this.logSumExp = new Float32Array(maxRows);
    this.drawn = new Int32Array(maxRows);
    this.drawnLogit = new Float32Array(maxRows);
    const words = maxRows * (INPUTS.length + DRAW_WORDS);
    this.#inputs = cuda.pinned(words * 4);
    this.#words = new Int32Array(this.#inputs.buffer, 0, words);
    const results = RESULT_WORDS * (maxRows + 1);
    this.#results = cuda.pinned(results * 4);
    this.#resultWords = new Int32Array(this.#results.buffer, 0, results);
    this.#resultFloats = new Float32Array(this.#results.buffer, 0, results);
  }

  get inputsAddress(): bigint {
    return this.#inputs.address;
  }

  /** Changed logits of the draws. */
  get changesAddress(): bigint {
    return this.#changes?.address ?? 0n;
  }

  get resultsAddress(): bigint {
    return this.#results.address;
  }

  /** Attention's abort code, once the step has ended. */
  get abortCode(): number {
    return this.#resultWords[0];
  }

  /**
   * Writes the inputs, as Sampler.readInputs wants them; padding rows are token 0 at position 0,
   * stored nowhere. Returns the draws: 0 if no row has one, else as many as logit rows.
   */
  fill(input: StepInput, rows: number, logitRows: number): number {
    const words = this.#words;
    const { forest, tokens, writeSlots, draws } = input;
    const count = forest.rows;
    put(words, 0, tokens.subarray(0, count), rows, 0);
    put(words, rows, forest.rowPosition.subarray(0, count), rows, 0);
    put(words, 2 * rows, writeSlots.subarray(0, count), rows, -1);
    put(words, 3 * rows, input.logitRows, logitRows, 0);
    if (!draws?.some((draw) => draw !== null)) return 0;
    this.#fillDraws(draws, 3 * rows + logitRows);
    return draws.length;
  }

  #fillDraws(draws: readonly (RowDraw | null)[], begin: number): void {
    const bytes = changesOf(draws) * CHANGE_WORDS * 4;
    if (bytes > (this.#changes?.bytes ?? 0)) {
      this.#changes?.free();
      this.#changes = this.#cuda.pinned(bytes * 2);
    }
    const words = new Int32Array(this.#changes?.buffer ?? new ArrayBuffer(0));
    const floats = new Float32Array(words.buffer);
    let [at, first] = [begin, 0];
    for (const draw of draws) {
      packDraw(draw, first, this.#words, at);
      at += DRAW_WORDS;
      if (!draw?.changes) continue;
      packChanges(draw.changes, words, floats, first * CHANGE_WORDS);
      first += draw.changes.tokens.length;
    }
  }

  /** Takes the results of `count` logit rows out of pinned memory. */
  takeResults(count: number): void {
    for (let row = 0, at = RESULT_WORDS; row < count; row++, at += RESULT_WORDS) {
      this.argmax[row] = this.#resultWords[at];
      this.logSumExp[row] = this.#resultFloats[at + 1];
      this.drawn[row] = this.#resultWords[at + 2];
      this.drawnLogit[row] = this.#resultFloats[at + 3];
    }
  }

  free(): void {
    this.start.free();
    this.end.free();
    this.timer.free();
    this.#inputs.free();
    this.#changes?.free();
    this.#results.free();
  }
}
