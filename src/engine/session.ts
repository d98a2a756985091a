/**
 * The engine thread's side of the conversation: calls in, replies out, text on the outside and
 * tokens inside. It runs the engine whenever there is work and lets other messages in between
 * steps. It knows no thread itself, so that tests can drive it directly.
 * @module
 */
import { FlashForgeError, isProcessLost, requestAborted } from '../base/errors.ts';
import { treeStats } from '../kvcache/tree-stats.ts';
import { beamSearch, type Hypothesis } from './beam-search.ts';
import { Branch, type BranchInit } from './branch.ts';
import { BranchTable } from './branch-table.ts';
import { EnergyCount } from './energy.ts';
import type { Engine } from './engine.ts';
import { checkPromptLogprobs, Generation, type SampleEnd, type SampleStats } from './generation.ts';
import type { Constraint, Grammars } from './grammar.ts';
import { type EngineView, type PathView, viewPath, viewPlan, viewTree } from './inspect.ts';
import type { PromptEncoder } from './prompt-encoder.ts';
import type { BranchMove, Call, EngineSnapshot, Placement, PromptSource, Reply } from './rpc.ts';
import { Sampler, topLogprobs } from './sampler.ts';
import { samplingParams } from './sampling-params.ts';

type CallOf<K extends Call['kind']> = Extract<Call, { kind: K }>;

/** Statistics are sent with every answer, and this often while requests run. */
const STATS_EVERY_MS = 200;

export class Session {
  readonly #engine: Engine;
  readonly #energy: EnergyCount;
  readonly #encoder: PromptEncoder;
  readonly #model: { readonly vocab: number; readonly contextLength: number };
  readonly #post: (replies: Reply[]) => void;
  readonly #grammars: Grammars | null;
  readonly #branches = new BranchTable();
  /** How to abort the calls that run. */
  readonly #aborts = new Map<number, () => void>();
  #outbox: Reply[] = [];
  #looping = false;
  /** Work came up since the engine last said that it has none. */
  #woken = false;
  #statsDueMs = 0;
  #statsChanged = true;

  constructor(
    engine: Engine,
    encoder: PromptEncoder,
    model: { readonly vocab: number; readonly contextLength: number },
    post: (replies: Reply[]) => void,
    grammars: Grammars | null = null,
  ) {
    this.#engine = engine;
    this.#energy = new EnergyCount(engine.runner.energy);
    this.#encoder = encoder;
    this.#model = model;
    this.#post = post;
    this.#grammars = grammars;
    engine.onWork = () => this.#wake();
  }

  /** Takes one call; everything it causes comes back through `post`. Resolves when it is done. */
  handle(call: Call): Promise<void> {
    return this.#run(call).then(
      (value) => {
        if ('id' in call && call.kind !== 'abort')
          this.#answer({ kind: 'result', id: call.id, value });
      },
      (error: unknown) => {
        if (!('id' in call)) throw error;
        const { code, message } = asFlashForgeError(error);
        const elsewhere = isProcessLost(error);
        this.#answer({ kind: 'error', id: call.id, code, message, elsewhere });
      },
    );
  }

  #answer(reply: Reply): void {
    this.#outbox.push(reply);
    this.#statsChanged = true;
    if (!this.#looping) this.#flush();
  }

  async #run(call: Call): Promise<unknown> {
    switch (call.kind) {
      case 'generate':
        return call.grammar === undefined ? this.#generate(call) : this.#constrained(call);
      case 'abort':
        return this.#aborts.get(call.id)?.();
      case 'prefill':
        return this.#prefill(call);
      case 'fork':
        return this.#fork(call);
      case 'append':
        return this.#append(call.moves);
      case 'top':
        return this.#top(call);
      case 'sample':
        return this.#sample(call);
      case 'branchTokens':
        return [...this.#branches.get(call.branch).tokens()];
      case 'branchView':
        return this.#branchView(call.branch);
      case 'release':
        return this.#release(call.branch);
      case 'beamSearch':
        return this.#beamSearch(call);
      case 'encode':
        return this.#encoder.encode(call.prompt);
      case 'decode':
        return this.#encoder.decode(call.tokens);
      case 'inspect':
        return this.#inspect(call.nodes);
      case 'flat':
        this.#engine.flat = call.flat;
        return;
      case 'resetStats':
        this.#energy.reset();
        return this.#engine.stats.reset();
      case 'clearCache':
        return (this.#engine.host ?? this.#engine.tree).evictAll();
      case 'close':
        return this.#close();
    }
  }

  /** Compiles the grammar first, which may take seconds; the request may be aborted meanwhile. */
  async #constrained(call: CallOf<'generate'>): Promise<void> {
    const { id, grammar, options, prompts } = call;
    const { n } = samplingParams(options, this.#model.vocab);
    const constraints: Constraint[] = [];
    const controller = new AbortController();
    this.#aborts.set(id, () => controller.abort());
    try {
      if (this.#grammars === null || grammar === undefined) {
        throw new FlashForgeError('request', 'grammars are not available here');
      }
      for (const _ of prompts) {
        constraints.push(await this.#grammars.constraint(grammar, n, controller.signal));
      }
      this.#aborts.delete(id);
      if (controller.signal.aborted) throw requestAborted();
      await this.#generate(call, constraints);
    } finally {
      this.#aborts.delete(id);
      for (const constraint of constraints) constraint.dispose();
    }
  }

  #generate(
    { id, prompts, options, placement }: CallOf<'generate'>,
    constraints: readonly Constraint[] = [],
  ): Promise<void> {
    const params = samplingParams(options, this.#model.vocab);
    return new Promise((resolve, reject) => {
      const generations: Generation[] = [];
      let left = prompts.length;
      const stop = (error: unknown): void => {
        this.#aborts.delete(id);
        reject(error);
        for (const generation of generations) generation.abort();
      };
      this.#aborts.set(id, () => {
        stop(requestAborted());
      });
      try {
        const tokenized = prompts.map((source) => this.#tokensOf(source));
        const inBranch = prompts.map(({ branch }) =>
          branch === undefined ? 0 : this.#branches.get(branch).length,
        );
        checkPromptLogprobs(
          tokenized.reduce((sum, { length }, at) => sum + length - inBranch[at], 0),
          params,
        );
        for (const [prompt, source] of prompts.entries()) {
          const tokens = tokenized[prompt];
          const generation = new Generation(
            this.#engine,
            {
              prompt: tokens,
              params,
              contextLength: this.#model.contextLength,
              branchTokens: inBranch[prompt],
              eosIds: this.#encoder.eosIds,
              namespace: this.#branches.namespaceOf(source.branch, placement.salt, tokens),
              priority: placement.priority,
              text: () => this.#encoder.stream(),
              constraint: constraints[prompt],
            },
            {
              onPrompt: (end) => this.#outbox.push({ kind: 'prompt', id, prompt, end }),
              onToken: (event) => this.#outbox.push({ kind: 'token', id, prompt, event }),
              onEnd: (end) => this.#outbox.push({ kind: 'end', id, prompt, end }),
              onDone: () => {
                if (--left > 0) return;
                this.#aborts.delete(id);
                resolve();
              },
              onError: stop,
            },
          );
          generations.push(generation);
        }
      } catch (error) {
        stop(error);
      }
    });
  }

  async #prefill(call: CallOf<'prefill'>): Promise<unknown> {
    const { id, branch, prompt, placement } = call;
    if (call.public === true && placement.salt !== undefined) {
      throw new FlashForgeError('request', 'a public prefix must not have a salt');
    }
    const made = this.#create(prompt, placement);
    this.#branches.set(branch, made);
    this.#aborts.set(id, () => made.end(requestAborted()));
    try {
      await made.row();
      if (call.public === true) this.#branches.publish(branch);
    } catch (error) {
      this.#branches.release(branch);
      throw error;
    } finally {
      this.#aborts.delete(id);
    }
    return { length: made.length, cachedTokens: made.cachedTokens };
  }

  #create(prompt: PromptSource, placement: Placement, cost?: BranchInit['cost']): Branch {
    const tokens = this.#tokensOf(prompt);
    return Branch.create(this.#engine, tokens, {
      contextLength: this.#model.contextLength,
      namespace: this.#branches.namespaceOf(prompt.branch, placement.salt, tokens),
      priority: placement.priority,
      cost,
    });
  }

  /** A fork is not answered: what is wrong with it shows when it is used. */
  #fork({ branch, of, length, salt }: CallOf<'fork'>): void {
    try {
      this.#branches.set(branch, this.#branches.fork(of, length, salt));
    } catch (error) {
      this.#branches.set(branch, asFlashForgeError(error));
    }
  }

  /** Grows branches in lockstep. All tokens are encoded and checked before any branch grows. */
  async #append(moves: readonly BranchMove[]): Promise<number[]> {
    const growth = moves.map(({ branch, tokens, text }) => ({
      branch: this.#branches.get(branch),
      tokens: this.#encoder.encode({ branch, tokens, text }),
    }));
    for (const { branch, tokens } of growth) branch.append(tokens);
    await Promise.all(growth.map(({ branch }) => branch.row()));
    return growth.map(({ branch }) => branch.length);
  }

  async #top({ branches, count }: CallOf<'top'>): Promise<unknown> {
    const rows = await Promise.all(branches.map((branch) => this.#branches.get(branch).row()));
    return rows.map((row) => topLogprobs(row.logits, row.logSumExp, count));
  }

  async #sample({ branch, options, sample }: CallOf<'sample'>): Promise<unknown> {
    const params = samplingParams(options, this.#model.vocab);
    const origin = this.#branches.get(branch);
    const row = await origin.row();
    const prompt = params.repetitionPenalty === 1 ? [] : origin.tokens();
    return new Sampler(params, sample, prompt).sample(row.logits, row.argmax, row.logSumExp);
  }

  #inspect(nodes: number): EngineView {
    const { tree, planned } = this.#engine;
    return { ...viewTree(tree, nodes), plan: planned === null ? null : viewPlan(planned) };
  }

  #branchView(handle: number): PathView {
    const { path, length } = this.#branches.get(handle);
    return path === null ? { tokens: length, pages: 0, sharers: 0 } : viewPath(path);
  }

  #release(handle: number): void {
    this.#branches.release(handle);
    this.#statsChanged = true;
    if (!this.#looping) this.#flush();
  }

  /** The figures of the search go out as the end of a sample, as those of a generation do. */
  async #beamSearch({ id, prompt, options, placement }: CallOf<'beamSearch'>): Promise<unknown> {
    const controller = new AbortController();
    const cost = { kvBytes: 0, kvBytesFlat: 0 };
    const origin = this.#create(prompt, placement, cost);
    const started = performance.now();
    let stats: Omit<SampleStats, keyof typeof cost> | null = null;
    this.#aborts.set(id, () => {
      controller.abort();
      origin.end(requestAborted());
    });
    try {
      await origin.row();
      const ttftMs = performance.now() - started;
      const { length, cachedTokens } = origin;
      const room = this.#model.contextLength - length;
      const { eosIds } = this.#encoder;
      const found = await beamSearch(origin, options, eosIds, room, controller.signal);
      const newTokens = found.reduce((sum, { tokens }) => sum + tokens.length, 0);
      const longest = Math.max(1, ...found.map(({ tokens }) => tokens.length - 1));
      const tpotMs = (performance.now() - started - ttftMs) / longest;
      stats = { promptTokens: length, cachedTokens, newTokens, ttftMs, tpotMs };
      return found.map((each: Hypothesis) => ({
        ...each,
        text: this.#encoder.decodeNew(each.tokens),
      }));
    } finally {
      this.#aborts.delete(id);
      origin.end();
      if (stats !== null) {
        const end = { index: 0, finishReason: 'stop', text: '', stats: { ...stats, ...cost } };
        this.#outbox.push({ kind: 'end', id, prompt: 0, end: end as SampleEnd });
      }
    }
  }

  /** Ends everything and waits until the last step is over and all owners have been told. */
  async #close(): Promise<void> {
    this.#engine.endAll(new FlashForgeError('aborted', 'the model was disposed'));
    do await new Promise((resolve) => setImmediate(resolve));
    while (this.#looping);
  }

  #tokensOf(prompt: PromptSource): Int32Array {
    const own = this.#encoder.encode(prompt);
    if (prompt.branch === undefined) return Int32Array.from(own);
    const before = this.#branches.get(prompt.branch).tokens();
    const tokens = new Int32Array(before.length + own.length);
    tokens.set(before);
    tokens.set(own, before.length);
    return tokens;
  }

  #wake(): void {
    this.#woken = true;
    if (this.#looping) return;
    this.#looping = true;
    setImmediate(() => void this.#loop());
  }

  /** Steps until nothing is left, with a turn of the event loop after each for new messages. */
  async #loop(): Promise<void> {
    while (this.#woken) {
      this.#woken = false;
      try {
        while (await this.#engine.step()) {
          await new Promise((resolve) => setImmediate(resolve));
          this.#flush();
        }
      } catch (error) {
        // It has ended every sequence already: this is for those that came in the meantime.
        this.#engine.endAll(asFlashForgeError(error));
      }
    }
    this.#looping = false;
    // Owners were told in microtasks: what they answer now goes out with the same message.
    setImmediate(() => this.#flush());
  }

  #flush(): void {
    const now = performance.now();
    if (this.#statsChanged || now >= this.#statsDueMs) {
      this.#statsChanged = false;
      this.#statsDueMs = now + STATS_EVERY_MS;
      // Before the answers, so that whoever awaited one finds them up to date.
      this.#outbox.unshift({ kind: 'stats', stats: this.snapshot() });
    }
    if (this.#outbox.length === 0) return;
    const replies = this.#outbox;
    this.#outbox = [];
    this.#post(replies);
  }

  snapshot(): EngineSnapshot {
    const engine = this.#engine;
    return {
      tree: treeStats(engine.tree, engine.runner.tokenBytes),
      host: engine.host?.stats(engine.runner.tokenBytes) ?? null,
      steps: engine.stats.totals(),
      times: engine.stats.times(),
      energy: this.#energy.use(),
      running: engine.running,
      waiting: engine.waiting,
      flat: engine.flat,
    };
  }
}

function asFlashForgeError(error: unknown): FlashForgeError {
  if (error instanceof FlashForgeError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new FlashForgeError('device', `the engine failed: ${message}`, { cause: error });
}
