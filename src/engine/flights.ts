/**
 * The steps that were handed in to the runner and whose results the engine has not taken yet: one,
 * or two on a runner of depth 2, so that the device has the next one when the first is over.
 * @module
 */
import type { Runner, StepOutput } from '../backend/backend.ts';
import type { Batch } from './batch.ts';
import type { BatchEntry } from './scheduler.ts';
import { StepClock } from './step-clock.ts';

/** A step that was handed in. */
export interface Flight {
  readonly entries: readonly BatchEntry[];
  readonly batch: Batch;
  /** Never rejects, as it may be looked at long after it is settled. */
  readonly result: Promise<{ readonly output: StepOutput } | { readonly error: unknown }>;
}

/** A step that is over. */
export interface Landing extends Omit<Flight, 'result'> {
  readonly output: StepOutput;
}

export class Flights {
  readonly clock = new StepClock();
  readonly #runner: Runner;
  readonly #depth: number;
  readonly #flights: Flight[] = [];

  constructor(runner: Runner) {
    this.#runner = runner;
    this.#depth = runner.depth ?? 1;
  }

  /** The first one to come back; undefined when none is under way. */
  get first(): Flight | undefined {
    return this.#flights[0];
  }

  /** The runner takes one more. */
  get hasRoom(): boolean {
    return this.#flights.length < this.#depth;
  }

  handIn(entries: readonly BatchEntry[], batch: Batch): void {
    // A runner of depth 1 may compute on this thread: that is the step, and no work of the host's.
    if (this.#depth === 1) {
      this.clock.handedIn();
      this.clock.waits();
    }
    const result = this.#start(batch).then(
      (output) => ({ output }),
      (error: unknown) => ({ error }),
    );
    if (this.#depth > 1) this.clock.handedIn();
    this.#flights.push({ entries, batch, result });
  }

  /** Waits for the first one. Throws what the runner failed with. */
  async land(): Promise<Landing> {
    const { entries, batch, result } = this.#flights[0];
    this.clock.waits();
    const found = await result;
    this.#flights.shift();
    this.clock.landed(this.#flights.length);
    if ('error' in found) throw found.error;
    return { entries, batch, output: found.output };
  }

  /** Waits until nothing is under way any more, whatever comes of it. */
  async drain(): Promise<void> {
    for (const { result } of this.#flights) await result;
    this.#flights.length = 0;
    this.clock.rest();
  }

  /** A runner that throws at once has failed like one that rejects. */
  async #start(batch: Batch): Promise<StepOutput> {
    return await this.#runner.step(batch);
  }
}
