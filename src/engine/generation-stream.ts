/**
 * What `generate` returns: an async iterable of text as it arrives and a promise of the whole.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import type {
  FinishReason,
  PromptEnd,
  PromptToken,
  SampleEnd,
  SampleStats,
  TokenEvent,
} from './generation.ts';
import type { TokenLogprob } from './sampler.ts';

/** A piece of a completion. */
export interface Chunk {
  /** The prompt, counted from 0; always 0 but for `batch`. */
  readonly prompt: number;
  /** The sample, from 0 to n - 1. */
  readonly index: number;
  /** Text that became certain; may be empty. */
  readonly text: string;
  /** The token, or null in a sample's last chunk, which brings what was held back. */
  readonly token: number | null;
  readonly logprob?: number;
  readonly top?: readonly TokenLogprob[];
  /** In a sample's last chunk. */
  readonly finishReason?: FinishReason;
}

/** A token with its log-probability and those of the best tokens in its place. */
export interface TokenDetail extends TokenLogprob {
  readonly top: readonly TokenLogprob[];
}

/** A finished sample. */
export interface Completion {
  readonly prompt: number;
  readonly index: number;
  readonly text: string;
  /** Token ids, without a stop token. */
  readonly tokens: readonly number[];
  readonly finishReason: FinishReason;
  /** One entry a token, where logprobs were asked for; else null. */
  readonly logprobs: readonly TokenDetail[] | null;
  readonly stats: SampleStats;
}

/** What awaiting a generation gives: the first sample, and all of them. */
export interface Generated extends Completion {
  /** (n) */
  readonly samples: readonly Completion[];
  /**
   * One entry for each token of the prompt (of what follows the prefix, for one that continues a
   * prefix), where promptLogprobs were asked for; else null.
   */
  readonly promptLogprobs: readonly PromptToken[] | null;
}

/** Collects one sample. */
class SampleCollector {
  readonly tokens: number[] = [];
  readonly details: TokenDetail[] = [];
  #text = '';
  #end: SampleEnd | null = null;

  add({ token, text, logprob, top }: TokenEvent): void {
    this.tokens.push(token);
    this.#text += text;
    if (logprob !== undefined && top !== undefined) this.details.push({ token, logprob, top });
  }

  finish(end: SampleEnd): void {
    this.#text += end.text;
    this.#end = end;
  }

  completion(prompt: number, index: number): Completion {
    const end = this.#end;
    if (end === null) throw new Error('internal error: a sample has no end');
    return {
      prompt,
      index,
      text: this.#text,
      tokens: this.tokens,
      finishReason: end.finishReason,
      logprobs: this.details.length > 0 ? this.details : null,
      stats: end.stats,
    };
  }
}

/** Collects the samples of all prompts of a call. */
export class Collector {
  readonly #prompts: SampleCollector[][];
  readonly #promptTokens: (readonly PromptToken[] | null)[];

  constructor(prompts: number, n: number) {
    this.#prompts = Array.from({ length: prompts }, () =>
      Array.from({ length: n }, () => new SampleCollector()),
    );
    this.#promptTokens = this.#prompts.map(() => null);
  }

  setPrompt(prompt: number, { tokens }: PromptEnd): void {
    this.#promptTokens[prompt] = tokens;
  }

  add(prompt: number, event: TokenEvent): void {
    this.#prompts[prompt][event.index].add(event);
  }

  finish(prompt: number, end: SampleEnd): void {
    this.#prompts[prompt][end.index].finish(end);
  }

  /** (prompts) */
  results(): Generated[] {
    return this.#prompts.map((samples, prompt) => {
      const all = samples.map((sample, index) => sample.completion(prompt, index));
      return { ...all[0], samples: all, promptLogprobs: this.#promptTokens[prompt] };
    });
  }
}

interface Reader {
  resolve(result: IteratorResult<Chunk, undefined>): void;
  reject(error: unknown): void;
}

/**
 * A running generation. Await it for the result, or iterate it for the pieces (once), or both.
 * Leaving the loop early aborts the request.
 */
export class GenerationStream<T> implements PromiseLike<T>, AsyncIterable<Chunk> {
  readonly #result: Promise<T>;
  readonly #controller = new AbortController();
  #chunks: Chunk[] = [];
  #reader: Reader | null = null;
  #iterated = false;
  #done = false;
  #error: unknown = null;

  /** @param run makes the request: reports chunks and returns the result */
  constructor(
    run: (onChunk: (chunk: Chunk) => void, signal: AbortSignal) => Promise<T>,
    signal?: AbortSignal,
  ) {
    const abort = (): void => this.abort();
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort, { once: true });
    this.#result = run((chunk) => this.#push(chunk), this.#controller.signal).finally(() =>
      signal?.removeEventListener('abort', abort),
    );
    // Also marks a rejection as seen, for those who only iterate.
    this.#result.then(
      () => this.#finish(),
      (error: unknown) => {
        this.#error = error;
        this.#finish();
      },
    );
  }

  /** Stops the request: awaiting or iterating it throws 'aborted' then. */
  abort(): void {
    this.#controller.abort();
  }

  // biome-ignore lint/suspicious/noThenProperty: a generation is meant to be awaited.
  then<A = T, B = never>(
    onResult?: ((value: T) => A | PromiseLike<A>) | null,
    onError?: ((error: unknown) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    return this.#result.then(onResult, onError);
  }

  [Symbol.asyncIterator](): AsyncIterator<Chunk, undefined> {
    if (this.#iterated) throw new FlashForgeError('request', 'a generation is iterated only once');
    this.#iterated = true;
    return {
      next: () => this.#next(),
      return: async () => {
        if (!this.#done) this.abort();
        return { done: true, value: undefined };
      },
    };
  }

  #next(): Promise<IteratorResult<Chunk, undefined>> {
    const chunk = this.#chunks.shift();
    if (chunk !== undefined) return Promise.resolve({ done: false, value: chunk });
    if (this.#error !== null) return Promise.reject(this.#error);
    if (this.#done) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve, reject) => {
      this.#reader = { resolve, reject };
    });
  }

  #push(chunk: Chunk): void {
    const reader = this.#reader;
    this.#reader = null;
    if (reader === null) this.#chunks.push(chunk);
    else reader.resolve({ done: false, value: chunk });
  }

  #finish(): void {
    this.#done = true;
    const reader = this.#reader;
    this.#reader = null;
    if (this.#error !== null) reader?.reject(this.#error);
    else reader?.resolve({ done: true, value: undefined });
  }
}
