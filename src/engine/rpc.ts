/**
 * What caller and engine thread say to each other: plain data, one message a turn of the loop in
 * either direction.
 * @module
 */
import type { ErrorCode } from '../base/errors.ts';
import type { DecoderConfig } from '../checkpoint/checkpoint.ts';
import type { HostStats } from '../kvcache/host-cache.ts';
import type { TreeStats } from '../kvcache/tree-stats.ts';
import type { RunnerOptions } from '../model/load-runner.ts';
import type { ChatMessage, ChatOptions } from '../tokenizer/chat-template.ts';
import type { BeamOptions } from './beam-search.ts';
import type { EnergyUse } from './energy.ts';
import type { EngineOptions } from './engine.ts';
import type { EngineTimes, StepTotals } from './engine-stats.ts';
import type { PromptEnd, SampleEnd, TokenEvent } from './generation.ts';
import type { GrammarSource } from './grammar-source.ts';
import type { SamplingOptions } from './sampling-params.ts';

/** Where a sequence starts: a held branch, then text, token ids or messages. */
export interface PromptSource {
  /** Handle of the branch whose tokens come first. */
  readonly branch?: number | undefined;
  readonly text?: string | undefined;
  readonly tokens?: readonly number[] | undefined;
  readonly messages?: readonly ChatMessage[] | undefined;
  readonly chat?: ChatOptions | undefined;
}

/** Options of the scheduler and the cache that any request may carry. */
export interface Placement {
  /** Larger goes first; default 0. */
  readonly priority?: number | undefined;
  /** Requests under different salts share no KV; default: the empty one. */
  readonly salt?: string | undefined;
}

/** Calls of the caller. Those with an `id` are answered. Handles of branches are the caller's. */
export type Call =
  | {
      readonly kind: 'generate';
      readonly id: number;
      readonly prompts: readonly PromptSource[];
      readonly options: SamplingOptions;
      readonly placement: Placement;
      /** What every sample's text must conform to. */
      readonly grammar?: GrammarSource | undefined;
    }
  | { readonly kind: 'abort'; readonly id: number }
  | {
      readonly kind: 'prefill';
      readonly id: number;
      readonly branch: number;
      readonly prompt: PromptSource;
      readonly placement: Placement;
      /** Every salt may share it, though nothing below it; its own salt must be absent. */
      readonly public?: boolean | undefined;
    }
  | {
      readonly kind: 'fork';
      readonly branch: number;
      readonly of: number;
      readonly length?: number | undefined;
      /** Of a public branch: what follows the fork is this salt's own. */
      readonly salt?: string | undefined;
    }
  | { readonly kind: 'append'; readonly id: number; readonly moves: readonly BranchMove[] }
  | {
      readonly kind: 'top';
      readonly id: number;
      readonly branches: readonly number[];
      readonly count: number;
    }
  | {
      readonly kind: 'sample';
      readonly id: number;
      readonly branch: number;
      readonly options: SamplingOptions;
      readonly sample: number;
    }
  | { readonly kind: 'branchTokens'; readonly id: number; readonly branch: number }
  | { readonly kind: 'branchView'; readonly id: number; readonly branch: number }
  | { readonly kind: 'release'; readonly branch: number }
  | {
      readonly kind: 'beamSearch';
      readonly id: number;
      readonly prompt: PromptSource;
      readonly options: BeamOptions;
      readonly placement: Placement;
    }
  | { readonly kind: 'encode'; readonly id: number; readonly prompt: PromptSource }
  | { readonly kind: 'decode'; readonly id: number; readonly tokens: readonly number[] }
  | { readonly kind: 'inspect'; readonly id: number; readonly nodes: number }
  | { readonly kind: 'flat'; readonly flat: boolean }
  | { readonly kind: 'resetStats'; readonly id: number }
  | { readonly kind: 'clearCache'; readonly id: number }
  | { readonly kind: 'close'; readonly id: number };

/** Tokens or text by which a branch grows. */
export interface BranchMove {
  readonly branch: number;
  readonly tokens?: readonly number[] | undefined;
  readonly text?: string | undefined;
}

/** Answers and events of the engine thread. */
export type Reply =
  | { readonly kind: 'result'; readonly id: number; readonly value: unknown }
  | {
      readonly kind: 'error';
      readonly id: number;
      readonly code: ErrorCode;
      readonly message: string;
      /** A process of its own would not meet it. */
      readonly elsewhere?: boolean;
    }
  | {
      readonly kind: 'token';
      readonly id: number;
      readonly prompt: number;
      readonly event: TokenEvent;
    }
  | {
      readonly kind: 'prompt';
      readonly id: number;
      readonly prompt: number;
      readonly end: PromptEnd;
    }
  | { readonly kind: 'end'; readonly id: number; readonly prompt: number; readonly end: SampleEnd }
  | { readonly kind: 'stats'; readonly stats: EngineSnapshot }
  /** While loading: share from 0 to 1, a line for the user, done. */
  | { readonly kind: 'progress'; readonly share: number }
  | { readonly kind: 'log'; readonly line: string }
  | { readonly kind: 'ready'; readonly info: ModelInfo };

/** State and counters of the engine at one moment. */
export interface EngineSnapshot {
  readonly tree: TreeStats;
  /** KV that was moved to host memory; null where there is none for it. */
  readonly host: HostStats | null;
  readonly steps: StepTotals;
  readonly times: EngineTimes;
  readonly energy: EnergyUse;
  readonly running: number;
  readonly waiting: number;
  readonly flat: boolean;
}

/** What was loaded, and what it runs on. */
export interface ModelInfo {
  readonly source: string;
  readonly format: string;
  readonly config: DecoderConfig;
  readonly hasChatTemplate: boolean;
  readonly device: string;
  readonly provider: string;
  readonly providerWhy: string;
  readonly workers: number;
  readonly pages: number;
  readonly pageSize: number;
  readonly tokenBytes: number;
}

/** What an engine thread is started with. */
export interface EngineStart {
  /** A .gguf file or a directory. */
  readonly path: string;
  readonly runner: Omit<RunnerOptions, 'onProgress' | 'log'>;
  readonly engine: EngineOptions;
}
