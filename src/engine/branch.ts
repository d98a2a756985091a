/**
 * A held path that its user drives: forked at any token, grown token by token in lockstep with
 * others, pruned. Shared prefixes and every search (beam, best-of-n, tree of thought) are made
 * of branches.
 * @module
 */
import { assert, FlashForgeError } from '../base/errors.ts';
import type { Namespace, Path } from '../kvcache/path.ts';
import type { Engine } from './engine.ts';
import { checkPrompt } from './generation.ts';
import type { LogitsRow, Sequence, SequenceOwner } from './sequence.ts';

export interface BranchInit {
  readonly contextLength: number;
  readonly namespace?: Namespace | undefined;
  readonly priority?: number | undefined;
  /** Adds up what the branch and all its forks have cost, when they end. */
  readonly cost?: { kvBytes: number; kvBytesFlat: number } | undefined;
}

interface Waiter {
  resolve(row: LogitsRow): void;
  reject(error: FlashForgeError): void;
}

export class Branch implements SequenceOwner {
  readonly #engine: Engine;
  readonly #init: BranchInit;
  readonly #sequence: Sequence;
  /** Logits after the last token, once they are computed; forks share them. */
  #row: LogitsRow | null = null;
  #error: FlashForgeError | null = null;
  #waiters: Waiter[] = [];

  private constructor(
    engine: Engine,
    init: BranchInit,
    sequence: (owner: SequenceOwner) => Sequence,
  ) {
    this.#engine = engine;
    this.#init = init;
    this.#sequence = sequence(this);
  }

  /**
   * A branch that holds these tokens; `row()` tells when they are computed.
   * @throws FlashForgeError 'request' for tokens that are none or longer than the context,
   * 'out-of-pages' for more than the cache could ever hold.
   */
  static create(engine: Engine, tokens: Int32Array, init: BranchInit): Branch {
    checkPrompt(tokens.length, init.contextLength);
    const { namespace, priority } = init;
    return new Branch(engine, init, (owner) =>
      engine.add(tokens, owner, { namespace, priority, preemptible: false }),
    );
  }

  get namespace(): Namespace {
    return this.#sequence.namespace;
  }

  get length(): number {
    return this.#sequence.length;
  }

  /** Its path in the tree; null while it waits for pages, and after its end. */
  get path(): Path | null {
    return this.#sequence.path;
  }

  /** Tokens of the path that the cache held when the branch was made. */
  get cachedTokens(): number {
    return Math.max(0, this.#sequence.cost.cachedTokens);
  }

  tokens(): Int32Array {
    return this.#sequence.tokens();
  }

  /**
   * A branch that shares the first `length` tokens: no copy, nothing computed again. Under
   * another salt, which a public branch allows, what follows them is that salt's own.
   * @throws FlashForgeError 'request' if this one has ended or is not yet computed.
   */
  fork(length: number = this.length, salt: string = this.namespace.salt): Branch {
    this.#checkReady();
    assert(length >= 1 && length <= this.length, 'fork outside of the branch');
    const fork = new Branch(this.#engine, this.#init, (owner) =>
      this.#engine.fork(this.#sequence, owner, length, salt),
    );
    this.#engine.pause(fork.#sequence);
    if (length === this.length) fork.#row = this.#row;
    return fork;
  }

  /**
   * Grows the branch. The tokens are computed in the engine's next steps, together with those of
   * all other branches that have grown: await `row()` of each.
   * @throws FlashForgeError 'request' if the context is full or the branch is not ready,
   * 'out-of-pages' if the tokens do not fit; the branch is as before then.
   */
  append(tokens: ArrayLike<number>): void {
    this.#checkReady();
    if (tokens.length === 0) return;
    const length = this.length + tokens.length;
    if (length > this.#init.contextLength) {
      throw new FlashForgeError(
        'request',
        `a branch must stay within the model's context of ${this.#init.contextLength} tokens, ` +
          `got ${length}`,
      );
    }
    this.#engine.extend(this.#sequence, tokens);
    this.#row = null;
  }

  /**
   * The logits after the last token; valid as long as the branch does not grow.
   * @throws FlashForgeError when the branch was ended or could not be computed.
   */
  row(): Promise<LogitsRow> {
    if (this.#error !== null) return Promise.reject(this.#error);
    if (this.#row !== null) return Promise.resolve(this.#row);
    this.#engine.resume(this.#sequence);
    return new Promise((resolve, reject) => this.#waiters.push({ resolve, reject }));
  }

  /** Prunes the branch; its tokens stay cached until their pages are needed. */
  end(error: FlashForgeError = new FlashForgeError('request', 'the prefix was disposed')): void {
    const { cost } = this.#init;
    if (cost !== undefined && !this.#sequence.ended) {
      cost.kvBytes += this.#sequence.cost.kvBytes;
      cost.kvBytesFlat += this.#sequence.cost.kvBytesFlat;
    }
    this.#engine.end(this.#sequence);
    this.onError(this.#sequence, error);
  }

  onComputed(sequence: Sequence, row: LogitsRow): void {
    this.#row = { ...row, logits: row.logits.slice() };
    this.#engine.pause(sequence);
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const { resolve } of waiters) resolve(this.#row);
  }

  onError(_sequence: Sequence, error: FlashForgeError): void {
    this.#error ??= error;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const { reject } of waiters) reject(error);
  }

  #checkReady(): void {
    if (this.#error !== null) throw this.#error;
    if (this.#sequence.path === null) {
      throw new FlashForgeError('request', 'the branch is not computed yet: await it first');
    }
  }
}
