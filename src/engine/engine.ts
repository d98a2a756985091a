/**
 * Continuous batching over the prefix tree: sequences come and go between steps, every step
 * computes what all of them need next. It knows tokens, pages and steps, but no text, no requests
 * and no threads.
 * @module
 */
import type { Runner } from '../backend/backend.ts';
import { assert, FlashForgeError, isOutOfPages } from '../base/errors.ts';
import { ceilDiv } from '../base/math.ts';
import { HostCache } from '../kvcache/host-cache.ts';
import type { Path } from '../kvcache/path.ts';
import { resolvePending } from '../kvcache/pending.ts';
import { PrefixTree } from '../kvcache/prefix-tree.ts';
import { appendPending, deliver, mayRunAhead } from './ahead.ts';
import { BatchBuilder, type PlannedStep } from './batch.ts';
import { EngineStats } from './engine-stats.ts';
import { Flights, type Landing } from './flights.ts';
import { chooseBatch, leastUrgent, type SchedulerLimits } from './scheduler.ts';
import { Sequence, type SequenceInit, type SequenceOwner } from './sequence.ts';
import { tooFull, WaitingList, withToken } from './waiting-list.ts';

export interface EngineOptions {
  /** Most rows of a step; default and upper bound: the runner's. */
  readonly maxRows?: number | undefined;
  /** Most prefill rows of a step in which others decode; default 128. */
  readonly mixedPrefillRows?: number | undefined;
  /** Most sequences admitted at the same time; default 256. Samples of n > 1 count from one. */
  readonly maxSequences?: number | undefined;
}

const MIXED_PREFILL_ROWS = 128;
const MAX_SEQUENCES = 256;

export class Engine {
  readonly runner: Runner;
  readonly tree: PrefixTree;
  /** Null where the device has no host memory beside its pages. */
  readonly host: HostCache | null;
  readonly stats = new EngineStats();
  /** Called whenever there may be something to do: `step` until it returns false. */
  onWork: () => void = () => {};
  readonly #batches: BatchBuilder;
  readonly #flights: Flights;
  readonly #limits: SchedulerLimits;
  readonly #maxSequences: number;
  readonly #waiting = new WaitingList();
  /** Admitted: active ones and paused ones. */
  readonly #admitted = new Set<Sequence>();
  #arrivals = 0;
  #steps = 0;

  constructor(runner: Runner, options: EngineOptions = {}) {
    this.runner = runner;
    this.tree = new PrefixTree(runner.pages, runner.pageSize);
    const { hostKv } = runner;
    this.host = hostKv === undefined ? null : new HostCache(this.tree, hostKv);
    this.#batches = new BatchBuilder(this.tree, runner);
    this.#flights = new Flights(runner);
    this.#maxSequences = options.maxSequences ?? MAX_SEQUENCES;
    this.#limits = {
      maxRows: Math.min(options.maxRows ?? runner.maxRows, runner.maxRows),
      mixedPrefillRows: options.mixedPrefillRows ?? MIXED_PREFILL_ROWS,
    };
  }

  /** Sequences that wait for pages, and those that are admitted and active. */
  get waiting(): number {
    return this.#waiting.length;
  }

  get running(): number {
    let count = 0;
    for (const sequence of this.#admitted) if (sequence.active) count++;
    return count;
  }

  /** Flat: attention reads every path alone. For comparisons; KV is shared all the same. */
  get flat(): boolean {
    return this.#batches.flat;
  }

  set flat(flat: boolean) {
    this.#batches.flat = flat;
  }

  /** The last step's plan and forest; valid until the next step. */
  get planned(): PlannedStep | null {
    return this.#batches.planned;
  }

  /**
   * Takes the results of one step over all that can run; on a runner of depth 2 the next step is
   * under way before that where it can be. False when nothing is left to do.
   * @throws FlashForgeError 'device' when the runner failed; every sequence has been ended then.
   */
  async step(): Promise<boolean> {
    try {
      if (this.#flights.first === undefined && !this.#handIn()) return this.#nothingRuns();
      this.#runAhead();
      const landing = await this.#flights.land();
      this.#account(landing);
      deliver(landing);
      return true;
    } catch (cause) {
      throw await this.#fail(cause);
    }
  }

  /**
   * Adds a sequence; it starts when there are pages for it.
   * @throws FlashForgeError 'out-of-pages' if it could not even fit alone.
   */
  add(
    tokens: Int32Array,
    owner: SequenceOwner,
    init: Omit<SequenceInit, 'arrival'> = {},
  ): Sequence {
    assert(tokens.length > 0, 'a sequence needs a token');
    const { pages, pageSize } = this.tree.pool;
    const needed = ceilDiv(tokens.length, pageSize);
    if (needed > pages) {
      throw new FlashForgeError(
        'out-of-pages',
        `a sequence of ${tokens.length} tokens needs ${needed} KV pages of ${pageSize} tokens, ` +
          `and the cache has ${pages}`,
      );
    }
    const sequence = new Sequence(owner, { ...init, arrival: this.#arrivals++ });
    this.#waiting.add(sequence, tokens);
    this.onWork();
    return sequence;
  }

  /**
   * A sequence that shares the first `length` tokens of an admitted one. Under another salt,
   * which a public sequence allows, what follows them is that salt's own.
   */
  fork(
    origin: Sequence,
    owner: SequenceOwner,
    length: number = origin.length,
    salt: string = origin.namespace.salt,
  ): Sequence {
    assert(origin.path !== null && length > 0, 'fork of a sequence without KV');
    assert(origin.ahead === 0, 'fork of a sequence that runs ahead');
    const { namespace: from, priority, arrival, preemptible } = origin;
    const publicTokens = salt === from.salt ? Math.min(from.publicTokens, length) : length;
    const namespace = { salt, publicTokens };
    const sequence = new Sequence(owner, { namespace, priority, arrival, preemptible });
    sequence.path = this.tree.fork(origin.path, length, salt);
    sequence.cost.cachedTokens = length;
    this.#admitted.add(sequence);
    this.onWork();
    return sequence;
  }

  /**
   * Appends a sampled token and computes it in the next step, if that is not under way already.
   * Where pages run out, less urgent sequences lose theirs and start again later; if there is none,
   * this one does.
   */
  append(sequence: Sequence, token: number): void {
    assert(!sequence.ended, 'append to an ended sequence');
    sequence.stalled = false;
    const { path } = sequence;
    if (path === null) {
      sequence.waiting = withToken(sequence.waiting!, token);
      return;
    }
    if (sequence.ahead > 0) {
      resolvePending(path, token);
      sequence.ahead = 0;
      if (sequence.underWay > 0) this.tree.commit(path, path.length);
      return;
    }
    const error = this.#grow(sequence, () => this.tree.append(path, token));
    if (error !== null) this.#preempt(sequence, withToken(sequence.tokens(), token));
  }

  /**
   * Appends tokens that the cache may know already, and computes those that it does not.
   * @throws FlashForgeError 'out-of-pages'; the sequence is as before then.
   */
  extend(sequence: Sequence, tokens: ArrayLike<number>): void {
    const { path } = sequence;
    assert(path !== null, 'extend of a sequence without KV');
    assert(sequence.ahead === 0, 'extend of a sequence that runs ahead');
    const error = this.#grow(sequence, () => this.tree.extend(path, tokens));
    if (error !== null) throw tooFull(error, this.#admitted.size - 1);
    this.host?.restore(path, sequence.namespace);
  }

  /** Runs a growth of the tree, taking pages from less urgent sequences if it must. */
  #grow(sequence: Sequence, growth: () => void): FlashForgeError | null {
    this.resume(sequence);
    for (;;) {
      try {
        growth();
        return null;
      } catch (error) {
        if (!isOutOfPages(error)) throw error;
        const victim = leastUrgent(this.#admitted, sequence);
        if (victim === null) return error;
        this.#preempt(victim);
      }
    }
  }

  /** Keeps the KV and computes nothing until `append` or `resume`. */
  pause(sequence: Sequence): void {
    assert(sequence.ahead === 0, 'pause of a sequence that runs ahead');
    sequence.active = false;
    if (sequence.path !== null) this.tree.unclaim(sequence.path);
  }

  /** Keeps its place among those that run, until `append`: its owner still thinks. */
  stall(sequence: Sequence): void {
    sequence.stalled = true;
  }

  resume(sequence: Sequence): void {
    sequence.active = true;
    this.onWork();
  }

  /** Lets a sequence go; what it computed stays cached. Ending twice does nothing. */
  end(sequence: Sequence): void {
    if (sequence.ended) return;
    sequence.ended = true;
    sequence.active = false;
    sequence.stalled = false;
    if (sequence.path !== null) this.tree.release(sequence.path);
    else this.#waiting.remove(sequence);
    this.#admitted.delete(sequence);
    sequence.leavePath();
    sequence.waiting = null;
  }

  /** Ends everything. */
  endAll(error: FlashForgeError): void {
    for (const sequence of [...this.#admitted, ...this.#waiting.all()])
      this.#endWith(sequence, error);
  }

  #admit(): void {
    let running = this.running;
    while (running < this.#maxSequences) {
      const { first: sequence } = this.#waiting;
      if (sequence === undefined) return;
      const tokens = sequence.waiting!;
      const match = this.tree.match(tokens, sequence.namespace);
      // Room for those that run to grow by a page each; without it they would soon be preempted.
      if (running > 0 && match.pages + running > this.tree.availablePages) return;
      const insert = this.#insert.bind(this, sequence, running === 0);
      try {
        sequence.path = this.host?.admit(tokens, sequence.namespace, insert) ?? insert();
      } catch (error) {
        if (running > 0) return;
        this.#endWith(sequence, tooFull(error, this.#admitted.size));
        continue;
      }
      this.#waiting.remove(sequence);
      sequence.waiting = null;
      if (sequence.cost.cachedTokens < 0) {
        sequence.cost.cachedTokens = Math.min(sequence.path.computed, sequence.rowsFrom);
      }
      this.#admitted.add(sequence);
      running++;
    }
  }

  /** `alone`: nothing will free pages, so that the cache itself has to give way. */
  #insert(sequence: Sequence, alone: boolean): Path {
    try {
      return this.tree.insert(sequence.waiting!, sequence.namespace);
    } catch (error) {
      if (!alone || !isOutOfPages(error)) throw error;
      // Matched runs that begin and end inside pages take more of them than one dense run.
      this.tree.evictAll();
      return this.tree.insert(sequence.waiting!, sequence.namespace);
    }
  }

  /**
   * Chooses, builds and hands in a step; false when nothing can run. What it computes counts as
   * computed from now on, as whatever reads it comes later on the device.
   */
  #handIn(): boolean {
    this.#admit();
    const entries = chooseBatch(this.#admitted, this.tree, this.#limits);
    if (entries.length === 0) return false;
    const batch = this.#batches.build(entries);
    this.#steps++;
    for (const { sequence, path, to } of entries) {
      // A token that nobody knows yet is not computed for the tree.
      this.tree.commit(path, Math.min(to, sequence.length));
      if (to === path.length) sequence.underWay++;
      sequence.lastStep = this.#steps;
    }
    this.#flights.handIn(entries, batch);
    return true;
  }

  /** Hands in the next step while one is under way, with what does not wait for its logits. */
  #runAhead(): void {
    const { first, hasRoom } = this.#flights;
    if (first === undefined || !hasRoom || !mayRunAhead(first)) return;
    appendPending(first, this.tree);
    this.#handIn();
  }

  #account({ entries, batch, output }: Landing): void {
    const { tokenBytes } = this.runner;
    this.stats.record(batch, output, tokenBytes, this.#flights.clock.times);
    const share = (batch.kvTokens / batch.kvTokensFlat) * tokenBytes;
    for (const { sequence, path, to } of entries) {
      // Ended while the step ran: its pages may serve somebody else already.
      if (sequence.path !== path) continue;
      sequence.cost.kvBytes += to * share;
      sequence.cost.kvBytesFlat += to * tokenBytes;
    }
  }

  #preempt(sequence: Sequence, tokens: Int32Array = sequence.tokens()): void {
    this.stats.countPreemption();
    this.tree.release(sequence.path!);
    sequence.leavePath();
    this.#admitted.delete(sequence);
    this.#waiting.add(sequence, tokens);
  }

  #endWith(sequence: Sequence, error: FlashForgeError): void {
    this.end(sequence);
    sequence.owner.onError(sequence, error);
  }

  #nothingRuns(): boolean {
    this.#flights.clock.rest();
    for (const sequence of this.#admitted) if (sequence.stalled) return false;
    assert(this.running === 0, 'admitted sequences wait for each other');
    assert(this.#waiting.length === 0, 'sequences wait although nothing runs');
    return false;
  }

  /**
   * Everything that was under way has failed; the steps are over when this resolves. What they
   * should have computed counts as computed, so that nothing of the cache can be trusted.
   */
  async #fail(cause: unknown): Promise<FlashForgeError> {
    const message = cause instanceof Error ? cause.message : String(cause);
    const error =
      cause instanceof FlashForgeError
        ? cause
        : new FlashForgeError('device', `a step failed: ${message}`, { cause });
    try {
      this.endAll(error);
    } finally {
      await this.#flights.drain();
    }
    (this.host ?? this.tree).evictAll();
    return error;
  }
}
