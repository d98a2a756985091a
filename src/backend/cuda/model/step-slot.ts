/**
 * Host memory and events of one step under way. A runner has a few of them in turn, so that the
 * next step is handed in while the device still works on this one.
 * @module
 */
import type { StepInput } from '../../backend.ts';
import type { Cuda, Event, PinnedMemory, Stream } from '../driver.ts';
import { DRAW_WORDS, INPUTS } from './cuda-model.ts';
import { packDraw, RESULT_WORDS } from './sampler.ts';
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
  readonly #results: PinnedMemory;
  readonly #resultWords: Int32Array;
  readonly #resultFloats: Float32Array;

  constructor(cuda: Cuda, stream: Stream, maxRows: number) {
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
    let at = 3 * rows + logitRows;
    for (const draw of draws) {
      packDraw(draw, words, at);
      at += DRAW_WORDS;
    }
    return draws.length;
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
    this.#results.free();
  }
}
