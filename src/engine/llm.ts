/**
 * The library's entry: loads a model into a thread of its own and gives requests to it, so that
 * the caller's event loop never waits for the model.
 * @module
 */
import { checkInteger, type ErrorCode, FlashForgeError, show } from '../base/errors.ts';
import type { DecoderConfig } from '../checkpoint/checkpoint.ts';
import {
  type Progress,
  type ResolveOptions,
  resolveDefaultModel,
  resolveModel,
} from '../checkpoint/reference.ts';
import type { DeviceChoice, KvType, RunnerOptions } from '../model/load-runner.ts';
import type { ChatMessage } from '../tokenizer/chat-template.ts';
import type { EngineOptions } from './engine.ts';
import { EngineClient } from './engine-client.ts';
import type { Generated, GenerationStream } from './generation-stream.ts';
import type { EngineView } from './inspect.ts';
import { appendAll, type Move, Prefix, topOf } from './prefix.ts';
import {
  type BatchPrompt,
  type BeamResult,
  type BeamSearchOptions,
  type ChatGenerateOptions,
  type GenerateOptions,
  type Prompt,
  placementOf,
  promptSource,
  type RequestOptions,
  startBeamSearch,
  startGeneration,
} from './requests.ts';
import type { EngineSnapshot, ModelInfo } from './rpc.ts';
import type { TokenLogprob } from './sampler.ts';

/** How a model is loaded. Nothing but the model itself has to be given. */
export interface LoadOptions extends EngineOptions {
  readonly device?: DeviceChoice | undefined;
  /** How CPU kernels reach the processor: native, wasm, or auto (the default). */
  readonly provider?: RunnerOptions['provider'];
  /** Threads, the engine's own included; default one for each core. */
  readonly workers?: number | undefined;
  /** Size of the KV cache in pages, or in bytes where pages are not given. */
  readonly kvPages?: number | undefined;
  readonly kvBytes?: number | undefined;
  /**
   * Pinned host memory on CUDA that keeps KV which the device's cache has no room for, until it is
   * asked for again; default 0. It counts in whole pages.
   */
  readonly hostKvBytes?: number | undefined;
  readonly kvType?: KvType | undefined;
  /** Attention without sharing, for comparisons; see `Llm.setFlat`. */
  readonly flat?: boolean | undefined;
  /** Use only model files that are on this machine. */
  readonly offline?: boolean | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Told while files are brought. */
  readonly onDownload?: ((progress: Progress) => void) | undefined;
  /** Told while weights are loaded: a share from 0 to 1. */
  readonly onProgress?: ((share: number) => void) | undefined;
  /** Told what is being done, one sentence a call. */
  readonly log?: ((line: string) => void) | undefined;
}

const LOAD_FIELDS = [
  'device',
  'provider',
  'workers',
  'kvPages',
  'kvBytes',
  'hostKvBytes',
  'kvType',
  'maxRows',
  'mixedPrefillRows',
  'maxSequences',
  'flat',
  'offline',
  'signal',
  'onDownload',
  'onProgress',
  'log',
] as const satisfies readonly (keyof LoadOptions)[];

/** Statistics of a model's engine, with the figures that they give. */
export interface LlmStats extends EngineSnapshot {
  /** Mean time of a decode step, and of its attention over all layers, in ms. */
  readonly decodeStepMs: number;
  readonly decodeAttentionMs: number;
  /** KV bytes that flat decoding would have read over those that were read. */
  readonly reduction: number;
  /** The device's energy for a decoded token, prefill included; null where it is not measured. */
  readonly joulesPerToken: number | null;
}

/** A loaded model. Made by `load`. */
export class Llm {
  /** What was loaded and what it runs on. */
  readonly info: ModelInfo & { readonly reference: string };
  readonly #client: EngineClient;

  constructor(client: EngineClient, info: Llm['info']) {
    this.#client = client;
    this.info = info;
  }

  get config(): DecoderConfig {
    return this.info.config;
  }

  /**
   * Computes a text once and holds its KV until the prefix is disposed.
   * @throws FlashForgeError 'request' for an empty text or one longer than the context,
   * 'out-of-pages' when the cache cannot hold it, 'aborted'.
   */
  async prefill(prompt: BatchPrompt, options: RequestOptions = {}): Promise<Prefix> {
    onlyFields('request', options, ['signal', 'priority', 'cacheSalt']);
    const placement = placementOf(options);
    const branch = this.#client.newBranch();
    const call = { kind: 'prefill', branch, prompt: promptSource(prompt), placement } as const;
    const made = await this.#client.call(call, undefined, options.signal);
    return new Prefix(this.#client, this.config.vocab, branch, (made as { length: number }).length);
  }

  /** New text after a prompt. Await the result for the whole, or iterate it for the pieces. */
  generate(prompt: Prompt, options: GenerateOptions = {}): GenerationStream<Generated> {
    const sources = () => [promptSource(prompt)];
    return startGeneration(this.#client, this.config.vocab, sources, options, ([first]) => first);
  }

  /** The assistant's answer to messages, by the model's own chat template. */
  chat(
    messages: readonly ChatMessage[],
    options: ChatGenerateOptions = {},
  ): GenerationStream<Generated> {
    const { chat, ...rest } = options;
    const sources = () => [{ ...promptSource({ messages }), chat }];
    return startGeneration(this.#client, this.config.vocab, sources, rest, ([first]) => first);
  }

  /** Many prompts at once: beginnings that they share are found, computed and read once. */
  batch(
    prompts: readonly BatchPrompt[],
    options: GenerateOptions = {},
  ): GenerationStream<readonly Generated[]> {
    const sources = () => {
      if (Array.isArray(prompts) && prompts.length > 0) {
        return prompts.map((prompt) => promptSource(prompt));
      }
      throw new FlashForgeError(
        'request',
        `prompts must be a list with at least one prompt, got ${show(prompts)}`,
      );
    };
    return startGeneration(this.#client, this.config.vocab, sources, options, (all) => all);
  }

  /** The likeliest continuations of a prompt by beam search, best first. */
  async beamSearch(prompt: Prompt, options: BeamSearchOptions = {}): Promise<BeamResult[]> {
    return startBeamSearch(this.#client, promptSource(prompt), options);
  }

  /** Grows several branches in lockstep: their new tokens are computed in the same steps. */
  async step(moves: readonly Move[]): Promise<void> {
    await appendAll(this.#client, moves);
  }

  /** (branches) (count) the likeliest next tokens of several branches. */
  async top(branches: readonly Prefix[], count = 20): Promise<TokenLogprob[][]> {
    return topOf(this.#client, branches, count);
  }

  /** Token ids of a text as a prompt has them, or of messages. */
  async tokenize(prompt: BatchPrompt): Promise<number[]> {
    const source = promptSource(prompt);
    return (await this.#client.call({ kind: 'encode', prompt: source })) as number[];
  }

  /** The text of token ids, without special tokens. */
  async detokenize(tokens: readonly number[]): Promise<string> {
    return (await this.#client.call({ kind: 'decode', tokens: [...tokens] })) as string;
  }

  /** Statistics up to the last answer: tree, pages, bytes read against flat, times of steps. */
  stats(): LlmStats {
    const stats = this.#client.stats;
    if (stats === null) throw new Error('internal error: statistics before the model was loaded');
    const { steps, energy } = stats;
    const { joules } = energy;
    const mean = (ms: number): number => (steps.decodeSteps === 0 ? 0 : ms / steps.decodeSteps);
    return {
      ...stats,
      decodeStepMs: mean(steps.decodeStepMs),
      decodeAttentionMs: mean(steps.decodeAttentionMs),
      reduction: steps.kvBytes === 0 ? 1 : steps.kvBytesFlat / steps.kvBytes,
      joulesPerToken: joules === null || steps.decodeRows === 0 ? null : joules / steps.decodeRows,
    };
  }

  /**
   * The prefix tree and the last step's schedule, for displays.
   * @param nodes most nodes of the tree that are listed; default 1000
   */
  async inspect(nodes = 1000): Promise<EngineView> {
    checkInteger('request', 'nodes', nodes, 0);
    return (await this.#client.call({ kind: 'inspect', nodes })) as EngineView;
  }

  /** Sets the counters of steps and bytes to zero. */
  async resetStats(): Promise<void> {
    await this.#client.call({ kind: 'resetStats' });
  }

  /** Forgets all KV that no prefix or running request holds. */
  async clearCache(): Promise<void> {
    await this.#client.call({ kind: 'clearCache' });
  }

  /** With true, attention reads every request's path alone, as engines without a tree do. */
  setFlat(flat: boolean): void {
    this.#client.send({ kind: 'flat', flat });
  }

  /** Ends all requests with 'aborted' and frees the model. A second call does nothing. */
  async dispose(): Promise<void> {
    await this.#client.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.dispose();
  }
}

/**
 * Loads a model: a directory, a .gguf file, `hf:owner/repo[@revision][:file]` or
 * `pip:package==version`; without one, the default model.
 * @throws FlashForgeError 'model' for what is no model, 'io' when it cannot be brought,
 * 'compile' or 'device' when it cannot run here, 'usage' for a bad option, 'aborted'.
 */
export async function load(model?: string, options: LoadOptions = {}): Promise<Llm> {
  checkLoadOptions(options);
  const { signal, onDownload, onProgress, log, offline, flat } = options;
  const resolve: ResolveOptions = {
    ...(offline === undefined ? {} : { offline }),
    ...(signal === undefined ? {} : { signal }),
    ...(onDownload === undefined ? {} : { onProgress: onDownload }),
    ...(log === undefined ? {} : { log }),
  };
  const found = await (model === undefined
    ? resolveDefaultModel(resolve)
    : resolveModel(model, resolve));
  const { device, provider, workers, kvPages, kvBytes, hostKvBytes, kvType, maxRows } = options;
  const { mixedPrefillRows, maxSequences } = options;
  const start = {
    path: found.path,
    runner: { device, provider, workers, kvPages, kvBytes, hostKvBytes, kvType, maxRows },
    engine: { maxRows, mixedPrefillRows, maxSequences },
  };
  const { client, info } = await EngineClient.start(start, { onProgress, log }, signal);
  const llm = new Llm(client, { ...info, reference: found.reference });
  if (flat === true) llm.setFlat(true);
  // The first statistics come with the first answer.
  await llm.resetStats();
  return llm;
}

function checkLoadOptions(options: LoadOptions): void {
  onlyFields('usage', options, LOAD_FIELDS);
  for (const field of ['workers', 'maxRows', 'mixedPrefillRows', 'maxSequences'] as const) {
    if (options[field] !== undefined) checkInteger('usage', field, options[field], 1, 65536);
  }
  for (const field of ['kvPages', 'kvBytes'] as const) {
    if (options[field] !== undefined) checkInteger('usage', field, options[field], 1);
  }
  if (options.hostKvBytes !== undefined) {
    checkInteger('usage', 'hostKvBytes', options.hostKvBytes, 0);
  }
  oneOf('provider', options.provider, ['auto', 'native', 'wasm']);
  oneOf('kvType', options.kvType, ['f16', 'f32', 'bf16', 'i16']);
}

function oneOf(field: string, value: unknown, allowed: readonly string[]): void {
  if (value === undefined || allowed.includes(value as string)) return;
  throw new FlashForgeError(
    'usage',
    `${field} must be one of ${allowed.join(', ')}, got ${show(value)}`,
  );
}

function onlyFields(code: ErrorCode, options: object, allowed: readonly string[]): void {
  for (const field of Object.keys(options)) {
    if (allowed.includes(field)) continue;
    const list = allowed.join(', ');
    throw new FlashForgeError(code, `unknown option ${field}; allowed are ${list}`);
  }
}
