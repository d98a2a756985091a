/**
 * The meeting point of the workers inside a step, and where they park between steps: shared
 * counters, a short spin, then a wait in the kernel. Spinning alone would stall for milliseconds
 * when another process takes a core; waiting alone costs several microseconds each time.
 *
 * No wait is endless: a worker that fails raises a flag that wakes the others, for one that ends
 * somebody else does, and one that never comes is given up after a limit.
 * @module
 */
import { FlashForgeError } from '../../base/errors.ts';

/** Where things lie in the shared control words. */
const ARRIVED = 0;
const ROUND = 1;
const SLEEPERS = 2;
const FAILED = 3;
const STEP = 4;
const STOP = 5;
const FINISHED = 6;
const TEXT_LENGTH = 7;
const FAILING = 8;
const LOST = 9;
const WORDS = 16;
/** Whoever waits is woken by a failure anyway. */
const ANY = -1;
const TEXT_BYTES = 1024;

/** About 100 us of looking before sleeping. */
const SPINS = 30_000;
const SLICE_MS = 200;
/** No stretch of work between two barriers comes near this. */
const PATIENCE_MS = 120_000;

/** Size of the shared memory of a Barrier, in bytes. */
export const BARRIER_BYTES: number = WORDS * 4 + TEXT_BYTES;

/** Tells "somebody else failed" from a failure of this worker's own. */
export class StepAbandoned extends Error {}

/** One worker's end of the shared counters. */
export class Barrier {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #text: Uint8Array<SharedArrayBuffer>;
  readonly #workers: number;
  readonly #patienceMs: number;

  /** @param patienceMs after this long a missing worker counts as lost. */
  constructor(shared: SharedArrayBuffer, workers: number, patienceMs: number = PATIENCE_MS) {
    this.#words = new Int32Array(shared, 0, WORDS);
    this.#text = new Uint8Array(shared, WORDS * 4, TEXT_BYTES);
    this.#workers = workers;
    this.#patienceMs = patienceMs;
  }

  /**
   * Returns when every worker of the step has called it.
   * @throws StepAbandoned when another worker failed; FlashForgeError 'device' when one is lost.
   */
  meet(): void {
    if (this.#workers === 1) return;
    const words = this.#words;
    const round = Atomics.load(words, ROUND);
    // Looked at after the round: a later failure changes the round and so ends the wait.
    if (Atomics.load(words, FAILED) !== 0) throw new StepAbandoned();
    if (Atomics.add(words, ARRIVED, 1) === this.#workers - 1) {
      Atomics.store(words, ARRIVED, 0);
      Atomics.add(words, ROUND, 1);
      this.#wake(ROUND);
      return;
    }
    if (!this.#waitChange(ROUND, round, this.#patienceMs)) {
      throw new FlashForgeError('device', 'a worker of the step does not answer');
    }
    if (Atomics.load(words, FAILED) !== 0) throw new StepAbandoned();
  }

  /** Worker 0: lets the parked workers begin a step. */
  begin(): void {
    const words = this.#words;
    Atomics.store(words, ARRIVED, 0);
    Atomics.store(words, FINISHED, 0);
    Atomics.add(words, STEP, 1);
    this.#wake(STEP);
  }

  /** A worker: parks until the step after `last`. @returns its number, or -1 to stop. */
  park(last: number): number {
    while (!this.#waitChange(STEP, last, SLICE_MS)) {
      // Bounded slices let the thread be terminated on every platform.
    }
    if (Atomics.load(this.#words, STOP) !== 0) return -1;
    return Atomics.load(this.#words, STEP);
  }

  /** A worker: its step is over, well or not. */
  finish(): void {
    Atomics.add(this.#words, FINISHED, 1);
    this.#wake(FINISHED);
  }

  /**
   * Worker 0: waits until all others that still live have finished the step.
   * @returns false when one does not answer.
   */
  finished(): boolean {
    const words = this.#words;
    for (;;) {
      const lost = Atomics.load(words, LOST);
      const done = Atomics.load(words, FINISHED);
      if (done + lost >= this.#workers - 1) return true;
      if (!this.#waitChange(FINISHED, done, this.#patienceMs, lost)) return false;
    }
  }

  /** For a worker that has ended: nobody waits for it any more, and the step fails. */
  lose(message: string): void {
    // First the reason: who notices the loss finds it.
    this.fail(message);
    Atomics.add(this.#words, LOST, 1);
    Atomics.notify(this.#words, FINISHED);
  }

  /** `stop` was called. */
  get stopped(): boolean {
    return Atomics.load(this.#words, STOP) !== 0;
  }

  /** Makes the step fail for everybody; the first message is kept. */
  fail(message: string): void {
    const words = this.#words;
    if (Atomics.compareExchange(words, FAILING, 0, 1) === 0) {
      // A shared view cannot be encoded into directly.
      const bytes = new TextEncoder().encode(message).subarray(0, TEXT_BYTES);
      this.#text.set(bytes);
      Atomics.store(words, TEXT_LENGTH, bytes.length);
      // Last: who sees the flag finds the text.
      Atomics.store(words, FAILED, 1);
      Atomics.add(words, ROUND, 1);
    }
    Atomics.notify(words, ROUND);
  }

  /** What the first failing worker said; null when none failed. */
  failure(): string | null {
    if (Atomics.load(this.#words, FAILED) === 0) return null;
    const length = Atomics.load(this.#words, TEXT_LENGTH);
    return new TextDecoder().decode(this.#text.slice(0, length));
  }

  /** Worker 0: sends the parked workers home. */
  stop(): void {
    Atomics.store(this.#words, STOP, 1);
    Atomics.add(this.#words, STEP, 1);
    Atomics.notify(this.#words, STEP);
  }

  #wake(word: number): void {
    if (Atomics.load(this.#words, SLEEPERS) > 0) Atomics.notify(this.#words, word);
  }

  /**
   * Waits while `word` is `value` and no worker is lost beyond `lost`.
   * @returns false when it still is so after `limitMs`.
   */
  #waitChange(word: number, value: number, limitMs: number, lost = ANY): boolean {
    const words = this.#words;
    for (let spin = 0; spin < SPINS; spin++) {
      if (Atomics.load(words, word) !== value) return true;
    }
    Atomics.add(words, SLEEPERS, 1);
    const end = performance.now() + limitMs;
    try {
      // Woken is not changed: a thread preempted between its change and its notify wakes those who
      // wait for the next change already. Only the word itself ends the wait.
      while (Atomics.load(words, word) === value) {
        if (lost !== ANY && Atomics.load(words, LOST) !== lost) return true;
        const left = end - performance.now();
        if (left <= 0) return false;
        Atomics.wait(words, word, value, Math.min(SLICE_MS, left));
      }
      return true;
    } finally {
      Atomics.sub(words, SLEEPERS, 1);
    }
  }
}
