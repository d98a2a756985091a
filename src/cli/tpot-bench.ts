/**
 * Measures time per output token of whole batches through the engine, as users get it: every
 * request is a greedy generation. TPOT is (time for N + 1 tokens - time for one) / N, so that the
 * prompt's part drops out; a longer run beside it gives percentiles, energy and what the engine
 * counts.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import { median } from '../base/math.ts';
import { Branch } from '../engine/branch.ts';
import type { Engine } from '../engine/engine.ts';
import type { EngineTimes, StepTotals } from '../engine/engine-stats.ts';
import { Generation } from '../engine/generation.ts';
import { samplingParams } from '../engine/sampling-params.ts';
import type { Mode } from './decode-bench.ts';
import type { Prompts, Scenario } from './tpot-scenario.ts';

/** A case as measured; times in ms. */
export interface TpotMeasurement {
  /** From the quickest pass of each length. */
  readonly tpot_ms: number;
  /** From each pair of passes. */
  readonly tpot_all: readonly number[];
  /** Between tokens of the batch in the longer run. */
  readonly step_p50_ms: number;
  readonly step_p99_ms: number;
  /** From the batch's arrival to a request's first token: suffixes are computed in it. */
  readonly ttft_p50_ms: number;
  readonly ttft_max_ms: number;
  /** Means of the longer run's steps, by what the engine counts. */
  readonly attention_ms: number;
  readonly plan_ms: number;
  readonly kv_bytes: number;
  /** Of a step: what the host works for it, and what the device waits between two. */
  readonly host_p50_ms: number;
  readonly host_p99_ms: number;
  readonly idle_p50_ms: number;
  readonly idle_p99_ms: number;
  /** Null where the device's energy cannot be measured. */
  readonly joule_per_token: number | null;
}

const NONE: ReadonlySet<number> = new Set();
const PASSES = 3;
/** Passes of this length are made twice, longer ones once or twice. */
const LONG_PASS_MS = 1000;
/** Tokens of the pass that loads, measures and captures what a batch of this size needs. */
const WARM_TOKENS = 8;
/** How long the run for percentiles and energy takes: the counter moves ten times a second. */
const WINDOW_MS = { cpu: 0, cuda: 1000, reference: 0 } as const;
const WINDOW_TOKENS_MAX = 320;

/** Tokens that a request gets at most. */
export const newTokensMax = (device: keyof typeof WINDOW_MS, steps: number): number =>
  Math.max(steps + 1, WARM_TOKENS, WINDOW_MS[device] === 0 ? 0 : WINDOW_TOKENS_MAX);

interface Pass {
  readonly ms: number;
  /** For each request. */
  readonly ttftMs: readonly number[];
  /** Times at which every request had its next token. */
  readonly ticks: readonly number[];
  readonly joules: number | null;
  /** From the first token on. */
  readonly totals: StepTotals;
  readonly times: EngineTimes;
}

export class TpotBench {
  readonly #engine: Engine;
  readonly #vocab: number;
  readonly #contextLength: number;
  readonly #checkAborted: () => void;
  #held: Branch[] = [];

  constructor(
    engine: Engine,
    model: { readonly vocab: number; readonly contextLength: number },
    checkAborted: () => void,
  ) {
    this.#engine = engine;
    this.#vocab = model.vocab;
    this.#contextLength = model.contextLength;
    this.#checkAborted = checkAborted;
  }

  /**
   * Computes a scenario's prefixes and holds them; those of the scenario before serve where they
   * are the same, and are let go.
   * @throws FlashForgeError 'out-of-pages' where they do not fit.
   */
  async hold(prompts: Prompts): Promise<{ readonly tokens: number; readonly ms: number }> {
    const engine = this.#engine;
    const before = engine.stats.totals();
    const started = performance.now();
    const init = { contextLength: this.#contextLength };
    const earlier = this.#held.splice(0);
    try {
      let left = 0;
      for (const tokens of prompts.prefixes()) {
        const branch = Branch.create(engine, tokens, init);
        this.#held.push(branch);
        left++;
        branch.row().then(
          () => left--,
          () => {},
        );
      }
      await this.#stepUntil(() => left === 0);
    } finally {
      for (const branch of earlier) branch.end();
    }
    const ms = performance.now() - started;
    engine.tree.evictAll();
    return { tokens: engine.stats.totals().rows - before.rows, ms };
  }

  /** Lets go of every prefix. */
  clear(): void {
    for (const branch of this.#held.splice(0)) branch.end();
    this.#engine.tree.evictAll();
  }

  /** Measures a scenario whose prefixes are held. */
  async measure(
    scenario: Scenario,
    prompts: Prompts,
    mode: Mode,
    steps: number,
  ): Promise<TpotMeasurement> {
    this.#engine.flat = mode === 'flat';
    try {
      await this.#pass(prompts, WARM_TOKENS);
      const [short, long]: [number[], number[]] = [[], []];
      for (let pass = 0; pass < PASSES; pass++) {
        short.push((await this.#pass(prompts, 1)).ms);
        long.push((await this.#pass(prompts, steps + 1)).ms);
        if (long[pass] * (pass + 1) > 2 * LONG_PASS_MS) break;
      }
      const tpot = (Math.min(...long) - Math.min(...short)) / steps;
      const window = Math.ceil(WINDOW_MS[this.#engine.runner.device] / Math.max(tpot, 0.1));
      const tokens = Math.max(steps, Math.min(window, WINDOW_TOKENS_MAX - 1)) + 1;
      const run = await this.#pass(prompts, tokens, true);
      return {
        tpot_ms: tpot,
        tpot_all: long.map((ms, pass) => (ms - short[pass]) / steps),
        ...runMeasurement(run, scenario.requests.length),
      };
    } finally {
      this.#engine.flat = false;
    }
  }

  /**
   * All requests at once, until each has its tokens.
   * @param metered also reads the energy counter, which takes milliseconds
   */
  async #pass(prompts: Prompts, tokens: number, metered = false): Promise<Pass> {
    const { stats, runner } = this.#engine;
    const joules = (): number | null => (metered ? (runner.energy?.joules() ?? null) : null);
    const params = samplingParams({ maxTokens: tokens, ignoreEos: true }, this.#vocab);
    const wanted = prompts.next();
    const counts = new Array<number>(tokens).fill(0);
    const ttftMs: number[] = [];
    const ticks: number[] = [];
    let failed: FlashForgeError | null = null;
    let left = wanted.length;
    let joulesFrom: number | null = null;
    const generations: Generation[] = [];
    const started = performance.now();
    try {
      for (const prompt of wanted) {
        let own = 0;
        const onToken = (): void => {
          if (own === 0) ttftMs.push(performance.now() - started);
          if (++counts[own++] < wanted.length) return;
          ticks.push(performance.now());
          if (ticks.length > 1) return;
          stats.reset();
          joulesFrom = joules();
        };
        const onError = (error: FlashForgeError): void => {
          failed ??= error;
        };
        const sink = { onToken, onError, onEnd: () => {}, onDone: () => void left-- };
        const init = { prompt, params, contextLength: this.#contextLength, eosIds: NONE };
        generations.push(new Generation(this.#engine, init, sink));
      }
      await this.#stepUntil(() => left === 0 || failed !== null);
      if (failed !== null) throw failed;
      const ms = performance.now() - started;
      const joulesTo = joules();
      const [totals, times] = [stats.totals(), stats.times()];
      // A step that was handed in ahead is not the next pass's matter.
      while (await this.#engine.step());
      return {
        ...{ ms, ttftMs, ticks, totals, times },
        joules: joulesFrom === null || joulesTo === null ? null : joulesTo - joulesFrom,
      };
    } finally {
      for (const generation of generations) generation.abort();
      // What was decoded is not to be found by the next pass.
      this.#engine.tree.evictAll();
    }
  }

  async #stepUntil(done: () => boolean): Promise<void> {
    while (!done()) {
      this.#checkAborted();
      const worked = await this.#engine.step();
      // Answers that await promises come after the step.
      await Promise.resolve();
      if (!worked && !done()) {
        throw new FlashForgeError('out-of-pages', 'the batch does not fit into the KV cache');
      }
    }
  }
}

function runMeasurement(run: Pass, batch: number): Omit<TpotMeasurement, 'tpot_ms' | 'tpot_all'> {
  const { ticks, ttftMs, totals, times, joules } = run;
  const steps = ticks.slice(1).map((time, index) => time - ticks[index]);
  const ttft = ttftMs.toSorted((a, b) => a - b);
  const count = Math.max(1, totals.steps);
  return {
    step_p50_ms: median(steps),
    step_p99_ms: percentile(steps, 0.99),
    ttft_p50_ms: median(ttft),
    ttft_max_ms: ttft[ttft.length - 1],
    attention_ms: totals.attentionMs / count,
    plan_ms: totals.planMs / count,
    kv_bytes: Math.round(totals.kvBytes / count),
    ...{ host_p50_ms: times.hostMs.p50, host_p99_ms: times.hostMs.p99 },
    ...{ idle_p50_ms: times.idleMs.p50, idle_p99_ms: times.idleMs.p99 },
    joule_per_token: joules === null ? null : joules / (batch * steps.length),
  };
}

/** The smallest value that so many of the others do not exceed. */
function percentile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
}
