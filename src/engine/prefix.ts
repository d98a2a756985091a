/**
 * A held prefix: the start of many requests, and the branch of a search. Its KV stays in the cache
 * until it is disposed; forks share all of it.
 * @module
 */
import { checkInteger, FlashForgeError } from '../base/errors.ts';
import type { EngineClient } from './engine-client.ts';
import type { Generated, GenerationStream } from './generation-stream.ts';
import {
  type BeamResult,
  type BeamSearchOptions,
  type GenerateOptions,
  type Prompt,
  promptSource,
  startBeamSearch,
  startGeneration,
} from './requests.ts';
import type { Sampled, TokenLogprob } from './sampler.ts';
import type { SamplingOptions } from './sampling-params.ts';

/** What says when to end, or asks about the prompt, has no meaning for a single token. */
type OfGenerations = 'n' | 'maxTokens' | 'minTokens' | 'stop' | 'promptLogprobs';

export class Prefix {
  readonly #client: EngineClient;
  readonly #vocab: number;
  readonly #handle: number;
  #length: number;
  #disposed = false;
  #samples = 0;

  /** Made by `Llm.prefill` and `fork`. */
  constructor(client: EngineClient, vocab: number, handle: number, length: number) {
    this.#client = client;
    this.#vocab = vocab;
    this.#handle = handle;
    this.#length = length;
  }

  /** Number of tokens. */
  get length(): number {
    return this.#length;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /**
   * A branch of its own that shares the first `length` tokens, by default all: nothing is copied
   * and nothing computed again.
   * @throws FlashForgeError 'request' for a length outside of the prefix.
   */
  fork(length: number = this.#length): Prefix {
    const of = this.#use();
    checkInteger('request', 'length', length, 1, this.#length);
    const branch = this.#client.newBranch();
    this.#client.send({ kind: 'fork', branch, of, length });
    return new Prefix(this.#client, this.#vocab, branch, length);
  }

  /**
   * Continues the prefix by a prompt (which may be empty) and new text. The prefix itself does
   * not change.
   */
  generate(prompt: Prompt = '', options: GenerateOptions = {}): GenerationStream<Generated> {
    const sources = () => [promptSource(prompt, this.#use())];
    return startGeneration(this.#client, this.#vocab, sources, options, ([first]) => first);
  }

  /** The likeliest continuations by beam search, best first. */
  async beamSearch(options: BeamSearchOptions = {}): Promise<BeamResult[]> {
    const source = { branch: this.#use(), tokens: [] };
    return startBeamSearch(this.#client, source, options);
  }

  /** Grows this branch by text or tokens and computes them; forks made before do not grow. */
  async append(tokens: Prompt | number): Promise<void> {
    await appendAll(this.#client, [{ branch: this, tokens }]);
  }

  /**
   * The likeliest next tokens with their log-probabilities, likeliest first.
   * @param count 1 to 1000
   */
  async top(count = 20): Promise<TokenLogprob[]> {
    return (await topOf(this.#client, [this], count))[0];
  }

  /** Draws a next token without appending it; each call draws from a stream of its own. */
  async sample(options: Omit<SamplingOptions, OfGenerations> = {}): Promise<Sampled> {
    const call = { kind: 'sample', branch: this.#use(), options, sample: this.#samples++ } as const;
    return (await this.#client.call(call)) as Sampled;
  }

  /** The token ids. */
  async tokens(): Promise<number[]> {
    return (await this.#client.call({ kind: 'branchTokens', branch: this.#use() })) as number[];
  }

  /** The text of all tokens. */
  async text(): Promise<string> {
    return (await this.#client.call({ kind: 'decode', tokens: await this.tokens() })) as string;
  }

  /** Prunes this branch: pages that no other one needs may be used again. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#client.send({ kind: 'release', branch: this.#handle });
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** For the library itself. */
  static handleOf(prefix: Prefix): number {
    return prefix.#use();
  }

  /** For the library itself: the length after growth. */
  static setLength(prefix: Prefix, length: number): void {
    prefix.#length = length;
  }

  #use(): number {
    if (this.#disposed) throw new FlashForgeError('request', 'the prefix was disposed');
    return this.#handle;
  }
}

/** A branch and what it grows by. */
export interface Move {
  readonly branch: Prefix;
  readonly tokens: Prompt | number;
}

/** Grows branches in lockstep: all new tokens are computed in the same steps. */
export async function appendAll(client: EngineClient, moves: readonly Move[]): Promise<void> {
  const lengths = await client.call({
    kind: 'append',
    moves: moves.map(({ branch, tokens }) =>
      typeof tokens === 'string'
        ? { branch: Prefix.handleOf(branch), text: tokens }
        : {
            branch: Prefix.handleOf(branch),
            tokens: typeof tokens === 'number' ? [tokens] : [...tokens],
          },
    ),
  });
  moves.forEach(({ branch }, index) => {
    Prefix.setLength(branch, (lengths as number[])[index]);
  });
}

/** (branches) (count) the likeliest next tokens of each branch. */
export async function topOf(
  client: EngineClient,
  branches: readonly Prefix[],
  count: number,
): Promise<TokenLogprob[][]> {
  checkInteger('request', 'count', count, 1, 1000);
  const handles = branches.map((branch) => Prefix.handleOf(branch));
  return (await client.call({ kind: 'top', branches: handles, count })) as TokenLogprob[][];
}
