/**
 * What the engine has done so far: counters that only grow, and times of steps.
 * @module
 */
import type { StepOutput } from '../backend/backend.ts';
import type { Batch } from './batch.ts';
import { Latency, type Percentiles } from './latency.ts';
import type { HostTimes } from './step-clock.ts';

/** Counters since the engine started, or since `reset`. */
export interface StepTotals {
  readonly steps: number;
  /** Steps of one row a sequence: pure decoding. */
  readonly decodeSteps: number;
  readonly rows: number;
  readonly stepMs: number;
  readonly attentionMs: number;
  readonly planMs: number;
  /** Steps whose plan was taken over from the step before. */
  readonly plansReused: number;
  /** The same of decode steps alone, which is what TPOT consists of. */
  readonly decodeStepMs: number;
  readonly decodeAttentionMs: number;
  readonly decodeRows: number;
  /** KV bytes that attention read over all layers, and what flat decoding would have read. */
  readonly kvBytes: number;
  readonly kvBytesFlat: number;
  readonly preemptions: number;
}

/** How times are spread since the engine started, or since `reset`; all in ms. */
export interface EngineTimes {
  /** Per request: from its arrival to its first token. */
  readonly ttftMs: Percentiles;
  /** Per sample of two tokens or more: mean time between its tokens. */
  readonly tpotMs: Percentiles;
  /** Per step: what the host works for it, and what the device waits for that. */
  readonly hostMs: Percentiles;
  readonly idleMs: Percentiles;
}

type Writable<T> = { -readonly [K in keyof T]: T[K] };

const zero = (): Writable<StepTotals> => ({
  steps: 0,
  decodeSteps: 0,
  rows: 0,
  stepMs: 0,
  attentionMs: 0,
  planMs: 0,
  plansReused: 0,
  decodeStepMs: 0,
  decodeAttentionMs: 0,
  decodeRows: 0,
  kvBytes: 0,
  kvBytesFlat: 0,
  preemptions: 0,
});

export class EngineStats {
  #totals = zero();
  readonly #ttft = new Latency();
  readonly #tpot = new Latency();
  readonly #host = new Latency();
  readonly #idle = new Latency();

  /** @param times null for a step that came after a rest */
  record(batch: Batch, output: StepOutput, tokenBytes: number, times: HostTimes | null): void {
    const totals = this.#totals;
    const { rows, requests } = batch;
    if (times !== null) {
      this.#host.record(times.hostMs);
      this.#idle.record(output.idleMs ?? times.idleMs);
    }
    totals.steps++;
    totals.rows += rows;
    totals.stepMs += output.stepMs;
    totals.attentionMs += output.attentionMs;
    totals.planMs += batch.planMs;
    if (batch.planReused) totals.plansReused++;
    totals.kvBytes += batch.kvTokens * tokenBytes;
    totals.kvBytesFlat += batch.kvTokensFlat * tokenBytes;
    if (rows !== requests) return;
    totals.decodeSteps++;
    totals.decodeRows += rows;
    totals.decodeStepMs += output.stepMs;
    totals.decodeAttentionMs += output.attentionMs;
  }

  countPreemption(): void {
    this.#totals.preemptions++;
  }

  recordFirstToken(ttftMs: number): void {
    this.#ttft.record(ttftMs);
  }

  recordSample(newTokens: number, tpotMs: number): void {
    if (newTokens > 1) this.#tpot.record(tpotMs);
  }

  totals(): StepTotals {
    return { ...this.#totals };
  }

  times(): EngineTimes {
    return {
      ttftMs: this.#ttft.percentiles(),
      tpotMs: this.#tpot.percentiles(),
      hostMs: this.#host.percentiles(),
      idleMs: this.#idle.percentiles(),
    };
  }

  reset(): void {
    this.#totals = zero();
    for (const latency of [this.#ttft, this.#tpot, this.#host, this.#idle]) latency.reset();
  }
}
