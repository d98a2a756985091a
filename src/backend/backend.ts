/**
 * The contract between the decode engine and a device: a runner holds one model's weights and KV
 * pages and executes steps. Nothing else of a device is visible to the engine.
 * @module
 */
import type { Forest } from '../kvcache/forest.ts';
import type { HostKv } from '../kvcache/host-cache.ts';
import type { Plan, PlanSpec } from '../plan/plan.ts';

/** Most tokens in `LogitChanges`. */
export const CHANGES_MAX = 1024;

/**
 * What is done to a row's logits before its draw, in this order: bias; for tokens that occurred,
 * division (if above 0, else multiplication) by the repetition penalty; for tokens that were
 * generated, minus the presence penalty and minus the frequency penalty for each time.
 */
export interface LogitChanges {
  /** Distinct ids; the other arrays are alike. */
  readonly tokens: Int32Array;
  readonly bias: Float32Array;
  /** Times each was generated. */
  readonly counts: Int32Array;
  /** 1 = it is in the prompt. */
  readonly inPrompt: Uint8Array;
  /** The row's own token, which the device drew in the step before, counts as generated too. */
  readonly pending: boolean;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
}

/** How a device draws the token of a row of logits; see engine/sampling-params.ts for the names. */
export interface RowDraw {
  /** 0 = the largest logit, of changed logits; a row without a draw takes that of its own. */
  readonly temperature: number;
  /** 0 = off. */
  readonly topK: number;
  /** 1 = off. */
  readonly topP: number;
  /** 0 = off. */
  readonly minP: number;
  /** In [0, 1): where in the kept tokens' cumulated probability the drawn one lies. */
  readonly uniform: number;
  readonly changes?: LogitChanges | undefined;
}

/** One forward pass over a batch. */
export interface StepInput {
  /**
   * (rows) token ids, rows in the forest's order. -1 - i stands for the token that the step before
   * drew in its logit row i; only runners of depth 2 take those.
   */
  readonly tokens: Int32Array;
  readonly forest: Forest;
  readonly plan: Plan;
  /** (rows) page * pageSize + slot for the row's K and V; -1 = nowhere (already there). */
  readonly writeSlots: Int32Array;
  /** Rows whose logits are wanted, ascending. */
  readonly logitRows: Int32Array;
  /** (logitRows) how each row's token is drawn, null = its largest logit; absent = all largest. */
  readonly draws?: readonly (RowDraw | null)[] | undefined;
}

/**
 * Results of a step; the arrays are valid until the next step, or, on a runner of depth 2, until
 * the step after the next is handed in.
 */
export interface StepOutput {
  /** (logitRows, vocab). Not there any more once the next step was handed in. */
  readonly logits: Float32Array;
  /** One row of them, where that costs less than all; valid as long, until it is asked again. */
  readonly logitsOf?: ((row: number) => Float32Array) | undefined;
  /** (logitRows) index of the largest logit; the lowest index among equals. */
  readonly argmax: Int32Array;
  /** (logitRows) natural log of the sum of exp(logit). */
  readonly logSumExp: Float32Array;
  /** (logitRows) the drawn token and its unchanged logit; on runners of depth 2 only. */
  readonly drawn?: Int32Array | undefined;
  readonly drawnLogit?: Float32Array | undefined;
  /**
   * Wall time of the step and of its attention part over all layers, in ms; on a runner of depth 2
   * without the time for which it waited behind the step before.
   */
  readonly stepMs: number;
  readonly attentionMs: number;
  /** What the device idled between the step before and this one, in ms, where it is measured. */
  readonly idleMs?: number | undefined;
}

/** What measures a device's energy. */
export interface EnergyMeter {
  /** Energy used since some moment long ago, in J; null where it cannot be measured. Takes ms. */
  joules(): number | null;
  /** The same as of some tenths of a second ago, without waiting for it. */
  recentJoules(): number | null;
  /** Why it cannot be measured; null where it can. */
  readonly absent: string | null;
}

/**
 * A model on a device. One step at a time; a runner of depth 2 takes the next step while one is
 * under way, runs them in order, and may take that step's tokens from the device.
 */
export interface Runner {
  /** Steps that may be under way at once; default 1. */
  readonly depth?: 1 | 2 | undefined;
  readonly device: 'cpu' | 'cuda' | 'reference';
  /** How the kernels reach the device (native, prebuilt, wasm, nvrtc, ...) and why this one. */
  readonly provider: string;
  readonly providerWhy: string;
  /** Tokens of a KV page. */
  readonly pageSize: number;
  /** Number of KV pages; ids are 0 to pages - 1. */
  readonly pages: number;
  /** Bytes of one KV token over all layers and KV heads, K and V. */
  readonly tokenBytes: number;
  /** Most rows in one step. */
  readonly maxRows: number;
  /** What the planner must know, with default options. */
  readonly planSpec: PlanSpec;
  /** Measured once: bytes a second of a kernel that only reads; absent where nobody measures. */
  readonly readBytesPerSecond?: number | undefined;
  readonly energy?: EnergyMeter | undefined;
  /** Host memory for KV that leaves the device; absent = there is none. */
  readonly hostKv?: HostKv | undefined;
  /**
   * A runner of depth 2 has read its input when this returns, as the caller reuses the arrays.
   * Steps settle in the order in which they were handed in; after one that failed, the next fails.
   */
  step(input: StepInput): Promise<StepOutput>;
  dispose(): Promise<void>;
}
