/**
 * FlashForge: decodes LLM requests that share prefixes as one tree, reading each shared page of KV
 * once.
 *
 * @example
 * import { load } from 'flashforge';
 * const llm = await load('hf:HuggingFaceTB/SmolLM2-135M-Instruct');
 * const doc = await llm.prefill(text);
 * const [a, b] = [doc.fork(), doc.fork()];
 * for await (const piece of a.generate('Who is it about?', { maxTokens: 64 })) {
 *   process.stdout.write(piece.text);
 * }
 * const titles = await b.generate('Write a title.', { n: 8, temperature: 0.8, seed: 1 });
 * console.log(titles.samples.map(({ text }) => text), llm.stats());
 * await llm.dispose();
 * @module
 */
export { type ErrorCode, FlashForgeError } from './base/errors.ts';
export type { DecoderConfig } from './checkpoint/checkpoint.ts';
export type { Progress } from './checkpoint/reference.ts';
export type { EnergyUse } from './engine/energy.ts';
export type { EngineTimes, StepTotals } from './engine/engine-stats.ts';
export type { FinishReason, PromptToken, SampleStats } from './engine/generation.ts';
export type {
  Chunk,
  Completion,
  Generated,
  GenerationStream,
  TokenDetail,
} from './engine/generation-stream.ts';
export type { EngineView, ItemView, NodeView, PlanView } from './engine/inspect.ts';
export type { Percentiles } from './engine/latency.ts';
export { type Llm, type LlmStats, type LoadOptions, load } from './engine/llm.ts';
export type { Move, Prefix } from './engine/prefix.ts';
export type {
  BatchPrompt,
  BeamResult,
  BeamSearchOptions,
  ChatGenerateOptions,
  GenerateOptions,
  Prompt,
  RequestOptions,
} from './engine/requests.ts';
export type { EngineSnapshot, ModelInfo } from './engine/rpc.ts';
export type { Sampled, TokenLogprob } from './engine/sampler.ts';
export type { SamplingOptions } from './engine/sampling-params.ts';
export type { HostStats } from './kvcache/host-cache.ts';
export type { TreeStats } from './kvcache/tree-stats.ts';
export type { ChatMessage, ChatOptions } from './tokenizer/chat-template.ts';
