/**
 * Measures decode steps of a batch over one shared prompt, as a prefix tree and flat, on the same
 * engine, weights and KV pages. Passes of both kinds alternate, so that a machine that slows down
 * or speeds up meets both alike.
 * @module
 */
import type { Runner } from '../backend/backend.ts';
import type { FlashForgeError } from '../base/errors.ts';
import { ceilDiv, median } from '../base/math.ts';
import type { Engine } from '../engine/engine.ts';
import type { LogitsRow, Sequence, SequenceOwner } from '../engine/sequence.ts';

export interface DecodeCase {
  readonly shared: number;
  readonly batch: number;
  /** Decode steps, each giving every sequence a token. */
  readonly newTokens: number;
}

export interface Measurement {
  /** Median wall time of a step: scheduling, planning, kernels, results. */
  readonly step_ms: number;
  /** Median of attention's part of it, all layers. */
  readonly attention_ms: number;
  readonly plan_ms: number;
  readonly worst_ms: number;
  /** Mean KV bytes that attention reads in a step, all layers. */
  readonly kv_bytes: number;
}

export interface CaseResult {
  readonly shared: number;
  readonly batch: number;
  readonly new: number;
  /** Wall time of the cold shared prompt up to the logits of its last token. */
  readonly ttft_ms: number;
  readonly tree?: Measurement;
  readonly flat?: Measurement;
  /** flat / tree, where both were measured. */
  readonly step_ratio?: number;
  readonly attention_ratio?: number;
  readonly kv_reduction?: number;
  readonly outputs_equal?: boolean;
  /** Sequences whose greedy tokens differ somewhere. */
  readonly diverged?: number;
  /** Of these, where the two best logits were farther apart than the device's `LOGIT_ERROR`. */
  readonly diverged_beyond_error?: number;
  /** Largest gap of the two best logits where a sequence diverged. */
  readonly largest_gap?: number;
  /** Largest difference of the best logit between tree and flat, after equal tokens. */
  readonly logit_difference?: number;
}

/**
 * The numerical error: how far the logits of a tree plan and a flat plan may be apart; greedy
 * outputs may differ only where the two best logits are nearer than this. Null where no bound is
 * known.
 *
 * On the CPU it is 0. Attention rounds at fixed places of a node and adds what it rounded in
 * float64 (kernels/attention-sum.h), and every other operation works on one row at a time, so that
 * plans of one tree give the same bits. What is left is a float64 sum, good to about 2^-52, beside
 * a border between two float32 numbers: less than one in 10^7 outputs may round to the other one,
 * and with quantised weights nearly all of these vanish where activations become int8.
 *
 * CUDA kernels add in an order that depends on the plan, in precisions that depend on the model.
 */
export const LOGIT_ERROR: Readonly<Record<Runner['device'], number | null>> = {
  cpu: 0,
  cuda: null,
  reference: null,
};

/** The mode whose passes are measured. */
export type Mode = 'tree' | 'flat';

/** Tokens of each sequence after the shared prompt, before it decodes. */
const SUFFIX_TOKENS = 6;
/** Steps at the start of each pass that are not counted; on CUDA, graphs are captured in them. */
const WARM_STEPS: Readonly<Record<Runner['device'], number>> = { cpu: 2, cuda: 6, reference: 0 };
const STEPS_MIN = 24;
const PASSES_MAX = 8;
/** Short passes are repeated for so long: a median of few steps shows the machine's moods. */
const BUDGET_MS = 3000;

/** Tokens that a sequence has at most after the shared prompt. */
export const ownTokens = (device: Runner['device'], newTokens: number): number =>
  SUFFIX_TOKENS + WARM_STEPS[device] + newTokens + 1;

/** KV pages that a case needs at most. */
export function pagesFor({ shared, batch, newTokens }: DecodeCase, pageSize: number): number {
  const own = ownTokens('cpu', newTokens);
  return ceilDiv(shared, pageSize) + 1 + batch * (ceilDiv(own, pageSize) + 1);
}

/**
 * One case from a cold cache: the shared prompt, then decoding in every mode, outputs compared.
 * @throws FlashForgeError 'aborted' between steps when the signal says so.
 */
export async function measureCase(
  bench: DecodeBench,
  wanted: DecodeCase,
  modes: readonly Mode[],
): Promise<CaseResult> {
  const prompt = await bench.hold(wanted.shared);
  try {
    const passes = await bench.measure(wanted, modes, modes.length > 1);
    return summarize(wanted, prompt.ms, passes, LOGIT_ERROR[bench.engine.runner.device]);
  } finally {
    bench.clear();
  }
}

/** One step as measured. */
interface StepSample {
  readonly ms: number;
  readonly attentionMs: number;
  readonly planMs: number;
  readonly kvBytes: number;
}

interface Pass {
  readonly steps: readonly StepSample[];
  readonly branches: readonly Branch[];
}

export type Passes = Readonly<Record<Mode, readonly Pass[]>>;

/** The measuring loop: holds prompts, and decodes batches that share one in lockstep. */
export class DecodeBench {
  readonly engine: Engine;
  readonly #text: readonly number[];
  readonly #checkAborted: () => void;
  readonly #held: Branch[] = [];

  /** @param text tokens to build prompts of, cyclically */
  constructor(engine: Engine, text: readonly number[], checkAborted: () => void) {
    this.engine = engine;
    this.#text = text;
    this.#checkAborted = checkAborted;
  }

  /** Computes the first `shared` tokens and keeps them; a longer prompt continues a shorter one. */
  async hold(shared: number): Promise<{ readonly ms: number }> {
    const started = performance.now();
    const prompt = new Branch(this.engine, this.#tokens(0, shared));
    this.#held.push(prompt);
    while (!prompt.waits) await this.#step();
    return { ms: performance.now() - started };
  }

  /** Lets go of every prompt. */
  clear(): void {
    for (const prompt of this.#held.splice(0)) prompt.end();
    this.engine.tree.evictAll();
  }

  /**
   * Decodes the batch over a prompt that is held, several times in each mode.
   * @param logits also keeps what comparing outputs needs
   */
  async measure(wanted: DecodeCase, modes: readonly Mode[], logits: boolean): Promise<Passes> {
    const least = Math.max(2, Math.ceil(STEPS_MIN / wanted.newTokens));
    const found: Record<Mode, Pass[]> = { tree: [], flat: [] };
    const started = performance.now();
    for (let pass = 0; pass < PASSES_MAX; pass++) {
      const spent = performance.now() - started;
      // As many passes that begin with one mode as with the other.
      if (pass >= least && pass % 2 === 0 && spent > BUDGET_MS) break;
      for (const mode of pass % 2 === 0 ? modes : modes.toReversed()) {
        this.engine.flat = mode === 'flat';
        found[mode].push(await this.#runPass(wanted, logits));
      }
    }
    return found;
  }

  async #runPass({ shared, batch, newTokens }: DecodeCase, logits: boolean): Promise<Pass> {
    const { engine } = this;
    const branches: Branch[] = [];
    try {
      for (let index = 0; index < batch; index++) {
        const tokens = [...this.#tokens(0, shared), ...this.#suffix(index)];
        branches.push(new Branch(engine, tokens, logits));
      }
      while (!branches.every((branch) => branch.waits)) await this.#step();
      const steps: StepSample[] = [];
      const warm = WARM_STEPS[engine.runner.device];
      for (let step = 0; step < warm + newTokens; step++) {
        for (const branch of branches) branch.proceed();
        const sample = await this.#timedStep();
        if (step >= warm) steps.push(sample);
      }
      for (const branch of branches) branch.settle();
      return { steps, branches };
    } finally {
      for (const branch of branches) branch.end();
      // The next pass must compute its own tokens and not find these.
      engine.tree.evictAll();
      engine.flat = false;
    }
  }

  async #timedStep(): Promise<StepSample> {
    const before = this.engine.stats.totals();
    const started = performance.now();
    await this.#step();
    const ms = performance.now() - started;
    const after = this.engine.stats.totals();
    return {
      ms,
      attentionMs: after.attentionMs - before.attentionMs,
      planMs: after.planMs - before.planMs,
      kvBytes: after.kvBytes - before.kvBytes,
    };
  }

  async #step(): Promise<void> {
    this.#checkAborted();
    await this.engine.step();
  }

  #tokens(from: number, count: number): number[] {
    return Array.from({ length: count }, (_, i) => this.#text[(from + i) % this.#text.length]);
  }

  /** A token by the number, and words from a place by the number, so that no two are equal. */
  #suffix(index: number): number[] {
    return [...this.#tokens(index, 1), ...this.#tokens(index * 31, SUFFIX_TOKENS - 1)];
  }
}

/** One sequence; it waits after every token, so that all of a batch go in lockstep. */
class Branch implements SequenceOwner {
  readonly #engine: Engine;
  readonly #sequence: Sequence;
  readonly #keepsLogits: boolean;
  readonly tokens: number[] = [];
  /** The best logit of each token, and how far it was above the second. */
  readonly logits: number[] = [];
  readonly gaps: number[] = [];
  #last: LogitsRow | null = null;
  waits = false;

  constructor(engine: Engine, tokens: readonly number[], keepsLogits = false) {
    this.#engine = engine;
    this.#keepsLogits = keepsLogits;
    this.#sequence = engine.add(Int32Array.from(tokens), this);
  }

  onComputed(sequence: Sequence, row: LogitsRow): void {
    this.tokens.push(row.argmax);
    this.#last = row;
    this.waits = true;
    this.#engine.pause(sequence);
  }

  onError(_sequence: Sequence, error: FlashForgeError): void {
    throw error;
  }

  proceed(): void {
    this.settle();
    this.waits = false;
    this.#engine.append(this.#sequence, this.tokens.at(-1)!);
  }

  /** Looks at the last step's logits, between steps: that is not part of what is measured. */
  settle(): void {
    if (this.#last === null || !this.#keepsLogits) return;
    const { logits, argmax } = this.#last;
    this.logits.push(logits[argmax]);
    this.gaps.push(gapOf(logits, argmax));
    this.#last = null;
  }

  end(): void {
    this.#engine.end(this.#sequence);
  }
}

function gapOf(logits: Float32Array, argmax: number): number {
  let second = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < logits.length; id++) {
    if (id !== argmax && logits[id] > second) second = logits[id];
  }
  return logits[argmax] - second;
}

function summarize(
  wanted: DecodeCase,
  ttftMs: number,
  found: Passes,
  error: number | null,
): CaseResult {
  const { shared, batch, newTokens } = wanted;
  const [tree, flat] = [measurement(found.tree), measurement(found.flat)];
  const both = tree !== undefined && flat !== undefined;
  return {
    shared,
    batch,
    new: newTokens,
    ttft_ms: ttftMs,
    ...(tree === undefined ? {} : { tree }),
    ...(flat === undefined ? {} : { flat }),
    ...(both
      ? {
          step_ratio: flat.step_ms / tree.step_ms,
          attention_ratio: flat.attention_ms / tree.attention_ms,
          kv_reduction: flat.kv_bytes / tree.kv_bytes,
          ...compareOutputs(found.tree[0].branches, found.flat[0].branches, error),
        }
      : {}),
  };
}

/** Undefined without a pass. */
function measurement(passes: readonly Pass[]): Measurement | undefined {
  const steps = passes.flatMap((pass) => pass.steps);
  if (steps.length === 0) return undefined;
  return {
    step_ms: median(steps.map(({ ms }) => ms)),
    attention_ms: median(steps.map(({ attentionMs }) => attentionMs)),
    plan_ms: median(steps.map(({ planMs }) => planMs)),
    worst_ms: Math.max(...steps.map(({ ms }) => ms)),
    kv_bytes: Math.round(steps.reduce((sum, { kvBytes }) => sum + kvBytes, 0) / steps.length),
  };
}

function compareOutputs(
  tree: readonly Branch[],
  flat: readonly Branch[],
  error: number | null,
): Partial<CaseResult> {
  const gaps: number[] = [];
  let difference = 0;
  for (const [index, { tokens, logits, gaps: treeGaps }] of tree.entries()) {
    const other = flat[index];
    const at = tokens.findIndex((token, i) => token !== other.tokens[i]);
    if (at >= 0) gaps.push(Math.max(treeGaps[at], other.gaps[at]));
    for (let i = 0; i < (at < 0 ? tokens.length : at); i++) {
      difference = Math.max(difference, Math.abs(logits[i] - other.logits[i]));
    }
  }
  return {
    outputs_equal: gaps.length === 0,
    diverged: gaps.length,
    ...(error === null ? {} : { diverged_beyond_error: gaps.filter((gap) => gap > error).length }),
    largest_gap: Math.max(0, ...gaps),
    logit_difference: difference,
  };
}
