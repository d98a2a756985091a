/**
 * Measures decode steps of a batch over one shared prompt, as a prefix tree and flat, on the same
 * engine, weights and KV pages. Passes of both kinds alternate, so that a machine that slows down
 * or speeds up meets both alike.
 * @module
 */
import type { Runner } from '../backend/backend.ts';
import type { FlashForgeError } from '../base/errors.ts';
import { median } from '../base/math.ts';
import type { Engine } from '../engine/engine.ts';
import type { LogitsRow, Sequence, SequenceOwner } from '../engine/sequence.ts';

export interface DecodeCase {
  readonly shared: number;
  readonly batch: number;
  /** Decode steps, each giving every sequence a token. */
  readonly newTokens: number;
}

export interface Measurement {
  /** Median wall time of a step: scheduling, planning, kernels, logits. */
  readonly step_ms: number;
  /** Median of attention's part of it, all layers. */
  readonly attention_ms: number;
  readonly plan_ms: number;
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
/** Steps that are not counted at the start of each pass. */
const WARM_STEPS = 2;
const STEPS_MIN = 24;
const PASSES_MAX = 8;

/** KV pages that a case needs at most. */
export function pagesFor({ shared, batch, newTokens }: DecodeCase, pageSize: number): number {
  const own = SUFFIX_TOKENS + WARM_STEPS + newTokens + 2;
  return Math.ceil(shared / pageSize) + 1 + batch * (Math.ceil(own / pageSize) + 1);
}

/**
 * @param text tokens to build prompts of, cyclically
 * @throws FlashForgeError 'aborted' between steps when the signal says so.
 */
export async function measureCase(
  engine: Engine,
  text: readonly number[],
  wanted: DecodeCase,
  modes: readonly Mode[],
  checkAborted: () => void,
): Promise<CaseResult> {
  const shared = Array.from({ length: wanted.shared }, (_, i) => text[i % text.length]);
  const held = new Held(engine);
  const started = performance.now();
  const root = engine.add(Int32Array.from(shared), held);
  try {
    await runUntil(engine, () => held.computed, checkAborted);
    const ttftMs = performance.now() - started;
    const passes = Math.min(PASSES_MAX, Math.max(2, Math.ceil(STEPS_MIN / wanted.newTokens)));
    const found: Record<Mode, Pass[]> = { tree: [], flat: [] };
    for (let pass = 0; pass < passes; pass++) {
      for (const mode of pass % 2 === 0 ? modes : modes.toReversed()) {
        found[mode].push(await runPass(engine, text, shared, wanted, mode, checkAborted));
      }
    }
    return summarize(wanted, ttftMs, found, LOGIT_ERROR[engine.runner.device]);
  } finally {
    engine.end(root);
    engine.tree.evictAll();
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

/** Decodes the whole batch once, in lockstep. */
async function runPass(
  engine: Engine,
  text: readonly number[],
  shared: readonly number[],
  wanted: DecodeCase,
  mode: Mode,
  checkAborted: () => void,
): Promise<Pass> {
  engine.flat = mode === 'flat';
  const branches = Array.from({ length: wanted.batch }, () => new Branch(engine));
  try {
    for (const [index, branch] of branches.entries()) {
      const tokens = Int32Array.from([...shared, ...suffix(text, index)]);
      branch.sequence = engine.add(tokens, branch);
    }
    await runUntil(engine, () => branches.every((branch) => branch.waits), checkAborted);
    const steps: StepSample[] = [];
    for (let step = 0; step < WARM_STEPS + wanted.newTokens; step++) {
      checkAborted();
      for (const branch of branches) branch.proceed();
      const sample = await measureStep(engine);
      if (step >= WARM_STEPS) steps.push(sample);
    }
    return { steps, branches };
  } finally {
    for (const { sequence } of branches) if (sequence !== null) engine.end(sequence);
    // The next pass must compute its own tokens and not find these.
    engine.tree.evictAll();
    engine.flat = false;
  }
}

async function measureStep(engine: Engine): Promise<StepSample> {
  const before = engine.stats.totals();
  const started = performance.now();
  await engine.step();
  const ms = performance.now() - started;
  const after = engine.stats.totals();
  return {
    ms,
    attentionMs: after.attentionMs - before.attentionMs,
    planMs: after.planMs - before.planMs,
    kvBytes: after.kvBytes - before.kvBytes,
  };
}

async function runUntil(engine: Engine, done: () => boolean, check: () => void): Promise<void> {
  while (!done()) {
    check();
    await engine.step();
  }
}

/** Words of the text from a place of its own, and a number, so that no two suffixes are equal. */
function suffix(text: readonly number[], index: number): number[] {
  const start = (index * 31) % text.length;
  const words = Array.from(
    { length: SUFFIX_TOKENS - 1 },
    (_, i) => text[(start + i) % text.length],
  );
  return [text[index % text.length], ...words];
}

/** The shared prompt, kept for all passes. */
class Held implements SequenceOwner {
  readonly #engine: Engine;
  computed = false;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  onComputed(sequence: Sequence): void {
    this.computed = true;
    this.#engine.pause(sequence);
  }

  onError(_sequence: Sequence, error: FlashForgeError): void {
    throw error;
  }
}

/** One sequence of the batch; it waits after every token, so that all go in lockstep. */
class Branch implements SequenceOwner {
  readonly #engine: Engine;
  sequence: Sequence | null = null;
  readonly tokens: number[] = [];
  /** The best logit of each token, and how far it was above the second. */
  readonly logits: number[] = [];
  readonly gaps: number[] = [];
  waits = false;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  onComputed(sequence: Sequence, row: LogitsRow): void {
    this.tokens.push(row.argmax);
    this.logits.push(row.logits[row.argmax]);
    this.gaps.push(gapOf(row));
    this.waits = true;
    this.#engine.pause(sequence);
  }

  onError(_sequence: Sequence, error: FlashForgeError): void {
    throw error;
  }

  proceed(): void {
    this.waits = false;
    this.#engine.append(this.sequence!, this.tokens.at(-1)!);
  }
}

function gapOf({ logits, argmax }: LogitsRow): number {
  let second = Number.NEGATIVE_INFINITY;
  for (let id = 0; id < logits.length; id++) {
    if (id !== argmax && logits[id] > second) second = logits[id];
  }
  return logits[argmax] - second;
}

function summarize(
  wanted: DecodeCase,
  ttftMs: number,
  found: Record<Mode, Pass[]>,
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

function measurement(passes: readonly Pass[]): Measurement | undefined {
  const steps = passes.flatMap((pass) => pass.steps);
  if (steps.length === 0) return undefined;
  return {
    step_ms: median(steps.map(({ ms }) => ms)),
    attention_ms: median(steps.map(({ attentionMs }) => attentionMs)),
    plan_ms: median(steps.map(({ planMs }) => planMs)),
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
