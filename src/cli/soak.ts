/**
 * Random load on one model for a time: requests that share beginnings arrive, fork, compete by
 * priority and are cancelled. Afterwards greedy outputs are computed again, each alone on an
 * empty cache, which must give the same.
 * @module
 */
import { setMaxListeners } from 'node:events';
import { FlashForgeError } from '../base/errors.ts';
import { randomStream } from '../base/math.ts';
import type { Generated, GenerateOptions, GenerationStream, Llm, Prefix } from '../index.ts';

export interface SoakOptions {
  readonly seconds: number;
  readonly seed: number;
  /** Clients that each have one request, or one tree of requests, under way. */
  readonly clients: number;
}

export interface SoakCounts {
  requests: number;
  cancelled: number;
  /** Requests under a prefix that the client held and forked. */
  forked: number;
  beamSearches: number;
  /** Refused because held prefixes had taken the KV cache. */
  refused: number;
  tokens: number;
}

/** A greedy output to compute again. */
interface Kept {
  readonly prompt: readonly number[];
  readonly tokens: readonly number[];
}

export interface ReplayResult {
  readonly replayed: number;
  readonly equal: number;
  /** Where outputs part: how far the token of the replay leads that of the soak there, in nats. */
  readonly leads: readonly number[];
}

/** Texts whose beginnings requests share. */
const DOCUMENTS = 6;
const PROMPT_TOKENS_MAX = 1500;
const NEW_TOKENS_MAX = 48;
const KEPT_MAX = 32;
/** The most that an API answer tells of the likeliest tokens. */
const TOP_MAX = 20;
const PAUSE_MS_MAX = 40;
const FAILURES_MAX = 5;

type Random = () => number;

export class Soak {
  readonly counts: SoakCounts = {
    requests: 0,
    cancelled: 0,
    forked: 0,
    beamSearches: 0,
    refused: 0,
    tokens: 0,
  };
  /** What nobody had reason to expect, the first few of them. */
  readonly failures: string[] = [];
  readonly #llm: Llm;
  readonly #options: SoakOptions;
  readonly #signal: AbortSignal;
  readonly #documents: readonly number[][];
  readonly #kept: Kept[] = [];
  readonly #keep: Random;
  #finished = 0;

  constructor(llm: Llm, options: SoakOptions, signal: AbortSignal) {
    this.#llm = llm;
    this.#options = options;
    this.#signal = signal;
    // Every request under way listens to it.
    setMaxListeners(0, signal);
    const random = randomStream(options.seed);
    this.#keep = randomStream(options.seed + 1);
    const longest = Math.min(PROMPT_TOKENS_MAX, Math.floor(llm.config.contextLength / 2));
    this.#documents = Array.from({ length: DOCUMENTS }, () =>
      this.#tokens(random, longest, longest),
    );
  }

  /** Runs until the time is over and the last request has ended. */
  async run(): Promise<void> {
    const until = performance.now() + this.#options.seconds * 1000;
    const client = async (index: number): Promise<void> => {
      for (let turn = 0; performance.now() < until && !this.#signal.aborted; turn++) {
        const seed = this.#options.seed * 7919 + index * 1_000_003 + turn;
        const random = randomStream(seed);
        await this.#tolerate(() => this.#visit(random));
        if (random() < 0.3) await pause(random() * PAUSE_MS_MAX);
        if (this.failures.length >= FAILURES_MAX) return;
      }
    };
    await Promise.all(Array.from({ length: this.#options.clients }, (_, i) => client(i)));
    if (this.#signal.aborted) throw new FlashForgeError('aborted', 'interrupted');
  }

  /** One thing that a client does. */
  #visit(random: Random): Promise<void> {
    const kind = random();
    if (kind < 0.2) return this.#tree(random);
    if (kind < 0.25) return this.#beams(random);
    return this.#request(random, this.#prompt(random));
  }

  /** Holds a prefix, forks it, asks under the forks, and lets go in any order. */
  async #tree(random: Random): Promise<void> {
    const tokens = this.#prompt(random);
    const priority = below(random, 5) - 2;
    const root = await this.#llm.prefill(tokens, { priority, signal: this.#signal });
    const held: Prefix[] = [root];
    try {
      const asked: Promise<void>[] = [];
      for (let fork = below(random, 4); fork >= 0; fork--) {
        const length = 1 + below(random, tokens.length);
        const branch = root.fork(length);
        held.push(branch);
        const path = tokens.slice(0, length);
        if (random() < 0.5) {
          const more = this.#tokens(random, 1, 20);
          await branch.append(more);
          path.push(...more);
        }
        this.counts.forked++;
        asked.push(this.#tolerate(() => this.#request(random, path, branch)));
      }
      if (random() < 0.5) root.dispose();
      await Promise.all(asked);
    } finally {
      for (const prefix of held) prefix.dispose();
    }
  }

  async #beams(random: Random): Promise<void> {
    const [beams, maxTokens] = [2 + below(random, 3), 2 + below(random, 6)];
    this.counts.beamSearches++;
    const options = { beams, maxTokens, signal: this.#signal };
    const found = await this.#llm.beamSearch(this.#prompt(random), options);
    if (found.length === 0) this.#fail('a beam search found nothing');
  }

  /** One generation, maybe cancelled after some of its tokens. */
  async #request(random: Random, path: readonly number[], branch?: Prefix): Promise<void> {
    this.counts.requests++;
    const options = this.#sampling(random);
    const suffix = branch && random() < 0.5 ? [] : this.#tokens(random, 1, 12);
    const stream = branch
      ? branch.generate(suffix, options)
      : this.#llm.generate([...path, ...suffix], options);
    if (random() < 0.25) return this.#cancel(stream, below(random, 20));
    const { samples } = await stream;
    for (const { tokens } of samples) {
      this.counts.tokens += tokens.length;
      if (tokens.length === options.maxTokens) continue;
      this.#fail(`${options.maxTokens} tokens were asked for, ${tokens.length} came`);
    }
    if (options.temperature === 0) this.#keepSome([...path, ...suffix], samples[0].tokens);
  }

  async #cancel(stream: GenerationStream<Generated>, after: number): Promise<void> {
    try {
      let chunks = 0;
      for await (const { token } of stream) {
        if (token !== null) this.counts.tokens++;
        if (++chunks > after) break;
      }
      stream.abort();
      await stream;
    } catch (error) {
      if (!(error instanceof FlashForgeError) || error.code !== 'aborted') throw error;
      this.counts.cancelled++;
    }
  }

  #sampling(random: Random): GenerateOptions & { maxTokens: number; temperature: number } {
    const greedy = random() < 0.6;
    return {
      maxTokens: 1 + below(random, NEW_TOKENS_MAX),
      temperature: greedy ? 0 : 0.5 + random(),
      ...(greedy ? {} : { seed: below(random, 1e6), topK: below(random, 50), topP: 0.95 }),
      ...(random() < 0.2 ? { n: 1 + below(random, 4) } : {}),
      ...(random() < 0.1 ? { logprobs: below(random, 5) } : {}),
      ...(random() < 0.1 ? { repetitionPenalty: 1.1, temperature: 0.7 } : {}),
      priority: below(random, 5) - 2,
      ignoreEos: true,
      signal: this.#signal,
    };
  }

  /** A document's beginning, or a text of its own. */
  #prompt(random: Random): number[] {
    if (random() < 0.15) return this.#tokens(random, 1, 200);
    const document = this.#documents[below(random, DOCUMENTS)];
    // Often the whole document, else cut anywhere: also within a page.
    const cut = random() < 0.5 ? document.length : 1 + below(random, document.length);
    return document.slice(0, cut);
  }

  #tokens(random: Random, from: number, to: number): number[] {
    const length = from + below(random, to - from + 1);
    return Array.from({ length }, () => below(random, this.#llm.config.vocab));
  }

  /** What the machine cannot do anything about is counted; all other errors are failures. */
  async #tolerate(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (error instanceof FlashForgeError && error.code === 'out-of-pages') this.counts.refused++;
      else if (!this.#signal.aborted) this.#fail((error as Error).message);
    }
  }

  #fail(what: string): void {
    if (this.failures.length < FAILURES_MAX) this.failures.push(what);
  }

  /** A fair sample of all greedy outputs. */
  #keepSome(prompt: readonly number[], tokens: readonly number[]): void {
    const at = this.#finished++;
    const place = at < KEPT_MAX ? at : Math.floor(this.#keep() * at);
    if (place < KEPT_MAX) this.#kept[place] = { prompt, tokens };
  }

  /** Computes the kept outputs again, each alone. */
  async replay(): Promise<ReplayResult> {
    const leads: number[] = [];
    for (const { prompt, tokens } of this.#kept) {
      await this.#llm.clearCache();
      const options = { ignoreEos: true, signal: this.#signal };
      const again = await this.#llm.generate(prompt, { ...options, maxTokens: tokens.length });
      const at = tokens.findIndex((token, i) => token !== again.tokens[i]);
      if (at < 0) continue;
      const common = [...prompt, ...tokens.slice(0, at)];
      const next = { ...options, maxTokens: 1, logprobs: TOP_MAX };
      const { logprobs } = await this.#llm.generate(common, next);
      const top = logprobs?.[0]?.top ?? [];
      const of = (id: number): number =>
        top.find(({ token }) => token === id)?.logprob ?? Number.NEGATIVE_INFINITY;
      leads.push(Math.abs(of(again.tokens[at]) - of(tokens[at])));
    }
    const replayed = this.#kept.length;
    return { replayed, equal: replayed - leads.length, leads };
  }
}

const below = (random: Random, n: number): number => Math.floor(random() * n);

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
