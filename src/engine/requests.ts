/**
 * The calls that a model and its prefixes have in common: options checked at the edge, prompts
 * in every form, streams and beam search.
 * @module
 */
import { checkInteger, FlashForgeError, show } from '../base/errors.ts';
import type { ChatMessage, ChatOptions } from '../tokenizer/chat-template.ts';
import { type BeamOptions, beamOptions, type Hypothesis } from './beam-search.ts';
import type { EngineClient } from './engine-client.ts';
import { type Chunk, Collector, type Generated, GenerationStream } from './generation-stream.ts';
import type { Placement, PromptSource } from './rpc.ts';
import { type SamplingOptions, samplingParams } from './sampling-params.ts';

/** Text, or token ids. */
export type Prompt = string | readonly number[];

/** Text, token ids, or messages for the model's chat template. */
export type BatchPrompt = Prompt | { readonly messages: readonly ChatMessage[] };

export interface RequestOptions {
  /** Cancels the request: it throws 'aborted' and frees its pages at once. */
  readonly signal?: AbortSignal | undefined;
  /** Larger goes first; default 0. */
  readonly priority?: number | undefined;
  /** Requests under different salts never share KV, so that nobody can tell what others asked. */
  readonly cacheSalt?: string | undefined;
}

export type GenerateOptions = SamplingOptions & RequestOptions;
export type ChatGenerateOptions = GenerateOptions & { readonly chat?: ChatOptions | undefined };
export type BeamSearchOptions = BeamOptions & RequestOptions;

/** A result of beam search with its text. */
export interface BeamResult extends Hypothesis {
  readonly text: string;
}

/** @throws FlashForgeError 'request' for a value of the wrong type. */
export function promptSource(prompt: BatchPrompt, branch?: number): PromptSource {
  if (typeof prompt === 'string') return { text: prompt, branch };
  if (Array.isArray(prompt) || prompt instanceof Int32Array) {
    return { tokens: [...(prompt as readonly number[])], branch };
  }
  if (typeof prompt === 'object' && prompt !== null && 'messages' in prompt) {
    return { messages: prompt.messages, branch };
  }
  throw new FlashForgeError(
    'request',
    `prompt must be text, token ids or messages, got ${show(prompt)}`,
  );
}

/** @throws FlashForgeError 'request' naming the field and what is allowed. */
export function placementOf(options: RequestOptions): Placement {
  const { priority, cacheSalt, signal } = options;
  if (cacheSalt !== undefined && (typeof cacheSalt !== 'string' || cacheSalt === '')) {
    throw new FlashForgeError(
      'request',
      `cacheSalt must be a non-empty string, got ${show(cacheSalt)}`,
    );
  }
  if (signal !== undefined && !(signal instanceof AbortSignal)) {
    throw new FlashForgeError('request', `signal must be an AbortSignal, got ${show(signal)}`);
  }
  const urgency =
    priority === undefined ? 0 : checkInteger('request', 'priority', priority, -1000, 1000);
  return { priority: urgency, salt: cacheSalt };
}

/** Starts a generation for each prompt; shared beginnings are found by the engine. */
export function startGeneration<T>(
  client: EngineClient,
  vocab: number,
  makeSources: () => PromptSource[],
  options: GenerateOptions,
  pick: (results: Generated[]) => T,
): GenerationStream<T> {
  const run = async (onChunk: (chunk: Chunk) => void, signal: AbortSignal): Promise<T> => {
    const { signal: _, priority, cacheSalt, ...sampling } = options;
    const placement = placementOf(options);
    const { n } = samplingParams(sampling, vocab);
    const prompts = makeSources();
    const collector = new Collector(prompts.length, n);
    await client.call(
      { kind: 'generate', prompts, options: sampling, placement },
      (reply) => {
        const { prompt } = reply;
        if (reply.kind === 'prompt') collector.setPrompt(prompt, reply.end);
        else if (reply.kind === 'token') {
          collector.add(prompt, reply.event);
          onChunk({ prompt, ...reply.event });
        } else {
          const { index, text, finishReason } = reply.end;
          collector.finish(prompt, reply.end);
          onChunk({ prompt, index, text, token: null, finishReason });
        }
      },
      signal,
    );
    return pick(collector.results());
  };
  const { signal } = options;
  return new GenerationStream(run, signal instanceof AbortSignal ? signal : undefined);
}

/** Finds the likeliest continuations. */
export async function startBeamSearch(
  client: EngineClient,
  prompt: PromptSource,
  options: BeamSearchOptions,
): Promise<BeamResult[]> {
  const { signal, priority, cacheSalt, ...beam } = options;
  const placement = placementOf(options);
  beamOptions(beam);
  const call = { kind: 'beamSearch', prompt, options: beam, placement } as const;
  return (await client.call(call, undefined, signal)) as BeamResult[];
}
