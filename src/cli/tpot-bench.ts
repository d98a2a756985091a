/**
 * Measures time per output token: decode steps of a batch whose sequences share a prompt, through
 * the engine, greedy, all sequences in lockstep.
 * @module
 */
import type { FlashForgeError } from '../base/errors.ts';
import { median, randomStream } from '../base/math.ts';
import type { Engine } from '../engine/engine.ts';
import type { LogitsRow, Sequence, SequenceOwner } from '../engine/sequence.ts';

export interface TpotCase {
  readonly shared: number;
  readonly batch: number;
  readonly flat: boolean;
}

/** Times in ms of one step, which gives every sequence a token; medians where not said. */
export interface TpotResult extends TpotCase {
  readonly tpot_ms: number;
  readonly worst_ms: number;
  readonly plan_ms: number;
  /** Attention of all layers. */
  readonly attention_ms: number;
  /** Mean KV bytes that attention reads in a step. */
  readonly kv_bytes: number;
}

/** Tokens of each sequence's own after the shared prompt. */
export const SUFFIX_TOKENS = 6;
/** Steps that are not counted: algorithms are measured and graphs captured in them. */
export const WARM_STEPS = 6;

/** A sequence that stops after every token. */
class Stream implements SequenceOwner {
  readonly #engine: Engine;
  sequence: Sequence | null = null;
  token = -1;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  onComputed(sequence: Sequence, row: LogitsRow): void {
    this.token = row.argmax;
    this.#engine.pause(sequence);
  }

  onError(_sequence: Sequence, error: FlashForgeError): void {
    throw error;
  }

  get waits(): boolean {
    return this.token >= 0;
  }

  proceed(): void {
    this.#engine.append(this.sequence as Sequence, this.token);
    this.token = -1;
  }
}

export class TpotBench {
  readonly #engine: Engine;
  readonly #vocab: number;
  readonly #checkAborted: () => void;
  readonly #random = randomStream(1);
  readonly #prompt: number[] = [];
  readonly #roots: Stream[] = [];

  constructor(engine: Engine, vocab: number, checkAborted: () => void) {
    this.#engine = engine;
    this.#vocab = vocab;
    this.#checkAborted = checkAborted;
  }

  /** Computes the shared prompt and keeps it; a longer one continues a shorter one. */
  async prefill(shared: number): Promise<{ readonly tokens: number; readonly ms: number }> {
    const from = this.#prompt.length;
    this.#prompt.push(...this.#tokens(Math.max(0, shared - from)));
    const started = performance.now();
    this.#roots.push(await this.#compute(this.#prompt.slice(0, shared)));
    return { tokens: Math.max(0, shared - from), ms: performance.now() - started };
  }

  async measure({ shared, batch, flat }: TpotCase, steps: number): Promise<TpotResult> {
    const engine = this.#engine;
    const streams = Array.from({ length: batch }, () => new Stream(engine));
    try {
      for (const stream of streams) {
        const own = this.#tokens(SUFFIX_TOKENS);
        const tokens = Int32Array.from([...this.#prompt.slice(0, shared), ...own]);
        stream.sequence = engine.add(tokens, stream);
      }
      while (!streams.every((stream) => stream.waits)) await this.#step();
      engine.flat = flat;
      const samples: Awaited<ReturnType<TpotBench['timedStep']>>[] = [];
      for (let step = 0; step < WARM_STEPS + steps; step++) {
        for (const stream of streams) stream.proceed();
        const sample = await this.timedStep();
        if (step >= WARM_STEPS) samples.push(sample);
      }
      const middle = (key: keyof (typeof samples)[number]): number =>
        median(samples.map((sample) => sample[key]));
      return {
        ...{ shared, batch, flat },
        tpot_ms: middle('ms'),
        worst_ms: Math.max(...samples.map(({ ms }) => ms)),
        plan_ms: middle('planMs'),
        attention_ms: middle('attentionMs'),
        kv_bytes: Math.round(samples.reduce((sum, { kvBytes }) => sum + kvBytes, 0) / steps),
      };
    } finally {
      engine.flat = false;
      for (const { sequence } of streams) if (sequence !== null) engine.end(sequence);
      engine.tree.evictAll();
    }
  }

  /** One step of the engine: scheduling, planning, kernels, results. */
  async timedStep(): Promise<{ ms: number; planMs: number; attentionMs: number; kvBytes: number }> {
    const before = this.#engine.stats.totals();
    const started = performance.now();
    await this.#step();
    const ms = performance.now() - started;
    const after = this.#engine.stats.totals();
    return {
      ms,
      planMs: after.planMs - before.planMs,
      attentionMs: after.attentionMs - before.attentionMs,
      kvBytes: after.kvBytes - before.kvBytes,
    };
  }

  async #step(): Promise<void> {
    this.#checkAborted();
    await this.#engine.step();
  }

  async #compute(tokens: readonly number[]): Promise<Stream> {
    const stream = new Stream(this.#engine);
    stream.sequence = this.#engine.add(Int32Array.from(tokens), stream);
    while (!stream.waits) await this.#step();
    return stream;
  }

  #tokens(count: number): number[] {
    return Array.from({ length: count }, () => Math.floor(this.#random() * this.#vocab));
  }
}
