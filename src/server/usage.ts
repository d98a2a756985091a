/**
 * What a request has cost: tokens as OpenAI counts them, and what sharing saved.
 * @module
 */
import { z } from 'zod';
import type { SampleEnd } from '../engine/generation.ts';

export const usageSchema = z.object({
  prompt_tokens: z.int(),
  completion_tokens: z.int(),
  total_tokens: z.int(),
  prompt_tokens_details: z.object({
    cached_tokens: z.int().describe('Prompt tokens whose KV was in the cache already.'),
  }),
  kv_cache: z
    .object({
      bytes_read: z.number().describe('KV bytes that attention read for this request.'),
      bytes_flat: z.number().describe('What it would have read without sharing.'),
      reduction: z.number().describe('bytes_flat / bytes_read.'),
    })
    .describe('What sharing prefixes saved.'),
});
export type Usage = z.output<typeof usageSchema>;

/** Of a stream's chunk: what attention read is known at the end. */
export const chunkUsageSchema = usageSchema.partial({ kv_cache: true });
export type ChunkUsage = z.output<typeof chunkUsageSchema>;

/** How far a choice is. */
export interface Progress {
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly newTokens: number;
}

/** The usage of one choice so far, for streams that ask for it in every chunk. */
export function runningUsage({ promptTokens, cachedTokens, newTokens }: Progress): ChunkUsage {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: newTokens,
    total_tokens: promptTokens + newTokens,
    prompt_tokens_details: { cached_tokens: cachedTokens },
  };
}

/** Adds up the samples of a request. */
export class UsageCounter {
  #prompt = 0;
  #cached = 0;
  #completion = 0;
  #bytesRead = 0;
  #bytesFlat = 0;

  /** A finished sample; its prompt counts once, with the prompt's first sample. */
  add({ index, stats }: Pick<SampleEnd, 'index' | 'stats'>): void {
    if (index === 0) this.addPrompt(stats.promptTokens, stats.cachedTokens);
    this.#completion += stats.newTokens;
    this.#bytesRead += stats.kvBytes;
    this.#bytesFlat += stats.kvBytesFlat;
  }

  addPrompt(tokens: number, cached: number): void {
    this.#prompt += tokens;
    this.#cached += cached;
  }

  addCompletion(tokens: number): void {
    this.#completion += tokens;
  }

  get usage(): Usage {
    const [read, flat] = [Math.round(this.#bytesRead), Math.round(this.#bytesFlat)];
    return {
      prompt_tokens: this.#prompt,
      completion_tokens: this.#completion,
      total_tokens: this.#prompt + this.#completion,
      prompt_tokens_details: { cached_tokens: this.#cached },
      kv_cache: {
        bytes_read: read,
        bytes_flat: flat,
        reduction: read === 0 ? 1 : flat / read,
      },
    };
  }
}

/** The same figures for whoever reads no body. */
export function usageHeaders({ kv_cache, prompt_tokens_details }: Usage): Record<string, string> {
  return {
    'x-flashforge-kv-bytes-read': String(kv_cache.bytes_read),
    'x-flashforge-kv-bytes-flat': String(kv_cache.bytes_flat),
    'x-flashforge-cached-tokens': String(prompt_tokens_details.cached_tokens),
  };
}
