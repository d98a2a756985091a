/**
 * Constrained decoding: which tokens may come next so that the text conforms to JSON, a JSON
 * schema or a grammar. Grammars are compiled and followed in threads of their own, so that nobody
 * waits for one but those who decode under it; a mask is made while the model computes its step.
 * @module
 */
import { type FlashForgeError, requestAborted } from '../base/errors.ts';
import { BYTE_CHARACTERS } from '../tokenizer/token-bytes.ts';
import type { Tokenizer } from '../tokenizer/tokenizer.ts';
import type { GrammarVocabulary } from './grammar-library.ts';
import { type CheckedSource, checkSource, type GrammarSource } from './grammar-source.ts';
import { GrammarThread } from './grammar-thread.ts';

export interface GrammarOptions {
  /** Longest time that compiling may take. */
  readonly compileMaxMs?: number;
}

/** Bad grammars that are remembered, so that each costs its time only once. */
const REFUSED_SIZE = 64;
/** Threads for grammars that may take seconds; those that take milliseconds share one more. */
const COSTLY_THREADS = 3;
const COMPILE_MAX_MS = 30_000;

/** Compiles grammars for one vocabulary. Threads start at the first use. */
export class Grammars {
  readonly #tokenizer: Tokenizer;
  readonly #vocab: number;
  readonly #compileMaxMs: number;
  readonly #refused = new Map<string, FlashForgeError>();
  #vocabulary: GrammarVocabulary | null = null;
  #cheap: GrammarThread | null = null;
  readonly #costly = new Set<GrammarThread>();
  /** Where costly grammars were compiled. */
  readonly #homes = new Map<string, GrammarThread>();
  /** Costly grammars that wait for a thread on which nobody decodes. */
  readonly #queue: (() => void)[] = [];
  #closed = false;

  constructor(tokenizer: Tokenizer, vocab: number, options: GrammarOptions = {}) {
    this.#tokenizer = tokenizer;
    this.#vocab = vocab;
    this.#compileMaxMs = options.compileMaxMs ?? COMPILE_MAX_MS;
  }

  /**
   * Compiles a grammar and makes matchers for n samples.
   * @throws FlashForgeError 'request' for a grammar that cannot be compiled, 'aborted' when nobody
   * wants it any more.
   */
  async constraint(
    source: GrammarSource,
    samples: number,
    signal?: AbortSignal,
  ): Promise<Constraint> {
    const checked = checkSource(source);
    for (;;) {
      if (signal?.aborted || this.#closed) throw requestAborted();
      const refused = this.#refused.get(checked.key);
      if (refused !== undefined) throw refused;
      const thread = checked.isCostly ? this.#costlyThread(checked.key) : this.#cheapThread();
      if (thread !== null) return this.#open(thread, checked, source, samples, signal);
      await this.#turn(signal);
    }
  }

  /** Ends all threads. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const next of this.#queue.splice(0)) next();
    const threads = [...this.#costly, ...(this.#cheap === null ? [] : [this.#cheap])];
    await Promise.all(threads.map((thread) => thread.terminate('the engine is closed')));
  }

  #open(
    thread: GrammarThread,
    { key, isCostly }: CheckedSource,
    source: GrammarSource,
    samples: number,
    signal: AbortSignal | undefined,
  ): Promise<Constraint> {
    if (isCostly) this.#homes.set(key, thread);
    const constraint = new Constraint(thread, this.#vocab, samples, () => this.#advance());
    return new Promise((resolve, reject) => {
      let tooSlow = false;
      const timer = setTimeout(() => {
        tooSlow = true;
        void thread.terminate(`it takes more than ${this.#compileMaxMs / 1000} s to compile`);
      }, this.#compileMaxMs);
      // Compiling goes on all the same: nothing can stop it, and it may be asked for again.
      const abort = (): void => reject(requestAborted());
      signal?.addEventListener('abort', abort, { once: true });
      constraint.open(key, source, {
        onOpened: () => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', abort);
          if (signal?.aborted) constraint.dispose();
          else resolve(constraint);
        },
        onFailed: (error) => {
          clearTimeout(timer);
          signal?.removeEventListener('abort', abort);
          // A thread that ended for another one's sake says nothing about this grammar.
          if (tooSlow || !thread.ended) this.#refuse(key, error);
          if (this.#homes.get(key) === thread) this.#homes.delete(key);
          reject(error);
          this.#advance();
        },
      });
    });
  }

  #cheapThread(): GrammarThread {
    this.#cheap ??= this.#start(() => {
      this.#cheap = null;
    }, false);
    return this.#cheap;
  }

  /** Where the grammar was compiled, or a thread on which nobody decodes; null: there is none. */
  #costlyThread(key: string): GrammarThread | null {
    const home = this.#homes.get(key);
    if (home !== undefined) return home;
    for (const thread of this.#costly) if (thread.size === 0) return thread;
    if (this.#costly.size >= COSTLY_THREADS) return null;
    const thread = this.#start(() => this.#forget(thread), true);
    this.#costly.add(thread);
    return thread;
  }

  #turn(signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve) => {
      this.#queue.push(resolve);
      signal?.addEventListener('abort', () => resolve(), { once: true });
    });
  }

  #start(onEnd: () => void, background: boolean): GrammarThread {
    this.#vocabulary ??= { tokens: this.#tokens(), stops: [...this.#tokenizer.stopIds] };
    const thread = new GrammarThread(this.#vocabulary, background);
    thread.onEnd = onEnd;
    return thread;
  }

  #forget(thread: GrammarThread): void {
    this.#costly.delete(thread);
    for (const [key, home] of this.#homes) if (home === thread) this.#homes.delete(key);
    this.#advance();
  }

  /** A thread may have become free: those who wait look again. */
  #advance(): void {
    for (const next of this.#queue.splice(0)) next();
  }

  #refuse(key: string, error: FlashForgeError): void {
    if (this.#closed) return;
    this.#refused.set(key, error);
    if (this.#refused.size > REFUSED_SIZE) {
      const [oldest] = this.#refused.keys();
      this.#refused.delete(oldest);
    }
  }

  /** Every token as byte-level BPE writes it, which is exact for tokens that cut characters. */
  #tokens(): string[] {
    return Array.from({ length: this.#vocab }, (_, id) => {
      if (this.#tokenizer.isSpecial(id)) return '';
      let text = '';
      for (const byte of this.#tokenizer.bytesOf(id)) text += BYTE_CHARACTERS[byte];
      return text;
    });
  }
}

interface SampleState {
  /** The mask after all accepted tokens; null while it is being made. */
  mask: Int32Array | null;
  waiter: { resolve(mask: Uint8Array): void; reject(error: FlashForgeError): void } | null;
}

/** The state of n samples in one grammar. */
export class Constraint {
  readonly #thread: GrammarThread;
  readonly #samples: readonly SampleState[];
  readonly #onClose: () => void;
  /** (vocab) the mask that was asked for last. */
  readonly #bytes: Uint8Array;
  #id = 0;
  #error: FlashForgeError | null = null;

  constructor(thread: GrammarThread, vocab: number, samples: number, onClose: () => void) {
    this.#thread = thread;
    this.#samples = Array.from({ length: samples }, () => ({ mask: null, waiter: null }));
    this.#bytes = new Uint8Array(vocab);
    this.#onClose = onClose;
  }

  /** Compiles the grammar; used once, by `Grammars`. */
  open(
    key: string,
    source: GrammarSource,
    told: { onOpened(): void; onFailed(error: FlashForgeError): void },
  ): void {
    let opened = false;
    this.#id = this.#thread.open(key, source, this.#samples.length, {
      onOpened: (mask) => {
        opened = true;
        for (const sample of this.#samples) sample.mask = mask;
        told.onOpened();
      },
      onMask: (sample, mask) => this.#take(sample, mask),
      onFailed: (error) => {
        this.#error = error;
        for (const { waiter } of this.#samples) waiter?.reject(error);
        if (!opened) told.onFailed(error);
      },
    });
  }

  /** The sample has drawn a token; the mask for its next one is made meanwhile. */
  accept(index: number, token: number): void {
    this.#samples[index].mask = null;
    this.#thread.accept(this.#id, index, token);
  }

  /**
   * (vocab) 1 for each token that sample `index` may continue with, valid until the next call; a
   * promise of it while it is being made.
   */
  allowed(index: number): Uint8Array | Promise<Uint8Array> {
    const sample = this.#samples[index];
    if (sample.mask === null) this.#thread.poll();
    if (sample.mask !== null) return this.#expand(sample.mask);
    if (this.#error !== null) return Promise.reject(this.#error);
    return new Promise((resolve, reject) => {
      sample.waiter = { resolve, reject };
    });
  }

  dispose(): void {
    this.#thread.close(this.#id);
    this.#onClose();
  }

  #take(index: number, mask: Int32Array): void {
    const sample = this.#samples[index];
    sample.mask = mask;
    sample.waiter?.resolve(this.#expand(mask).slice());
    sample.waiter = null;
  }

  #expand(mask: Int32Array): Uint8Array {
    const bytes = this.#bytes;
    bytes.fill(0);
    for (let word = 0; word < mask.length; word++) {
      let left = mask[word];
      for (let id = word * 32; left !== 0; id++, left >>>= 1) {
        if ((left & 1) !== 0 && id < bytes.length) bytes[id] = 1;
      }
    }
    return bytes;
  }
}
