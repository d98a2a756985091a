/**
 * The contract between the decode engine and a device: a runner holds one model's weights and KV
 * pages and executes steps. Nothing else of a device is visible to the engine.
 * @module
 */
import type { Forest } from '../kvcache/forest.ts';
import type { Plan, PlanSpec } from '../plan/plan.ts';

/** One forward pass over a batch. */
export interface StepInput {
  /** (rows) token ids, rows in the forest's order. */
  readonly tokens: Int32Array;
  readonly forest: Forest;
  readonly plan: Plan;
  /** (rows) page * pageSize + slot for the row's K and V; -1 = nowhere (already there). */
  readonly writeSlots: Int32Array;
  /** Rows whose logits are wanted, ascending. */
  readonly logitRows: Int32Array;
}

/** Results of a step; the arrays are valid until the next step. */
export interface StepOutput {
  /** (logitRows, vocab) */
  readonly logits: Float32Array;
  /** (logitRows) index of the largest logit; the lowest index among equals. */
  readonly argmax: Int32Array;
  /** (logitRows) natural log of the sum of exp(logit). */
  readonly logSumExp: Float32Array;
  /** Wall time of the step and of its attention part over all layers, in ms. */
  readonly stepMs: number;
  readonly attentionMs: number;
}

/** A model on a device. Not safe for concurrent use: one step at a time. */
export interface Runner {
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
  step(input: StepInput): Promise<StepOutput>;
  dispose(): Promise<void>;
}
