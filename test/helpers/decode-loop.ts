/**
 * A decode loop over branches of one shared prompt, without an engine: step by step, or with the
 * next step handed in before the last one's tokens are known.
 * @module
 */
import type { RowDraw, Runner, StepOutput } from '../../src/backend/backend.ts';
import { randomStream } from '../../src/base/math.ts';
import { ForestBuilder, type ForestEntry } from '../../src/kvcache/forest-builder.ts';
import type { Path } from '../../src/kvcache/path.ts';
import { PrefixTree } from '../../src/kvcache/prefix-tree.ts';
import { Planner, type ReusablePlan } from '../../src/plan/make-plan.ts';
import { planStillGood } from '../../src/plan/plan-reuse.ts';

export interface LoopOptions {
  /** Tokens of the shared prompt. */
  readonly shared: number;
  readonly batch: number;
}

type DrawOf = (path: number, turn: number) => RowDraw | null;

export class DecodeLoop {
  readonly runner: Runner;
  readonly tree: PrefixTree;
  /** Host time of handing in a step, ms, by turn; planning is not in it. */
  readonly handInMs: number[] = [];
  readonly #forests: ForestBuilder;
  readonly #planner: Planner;
  readonly #shared: Path;
  readonly #paths: Path[] = [];
  readonly #batch: number;
  #plan: ReusablePlan | undefined;
  /** Of the last step: its logit row of each path, and its tokens once they are known. */
  #rowOf = new Int32Array(0);
  #drawn: Int32Array | undefined;
  #turn = 0;

  constructor(runner: Runner, { shared, batch }: LoopOptions) {
    this.runner = runner;
    this.tree = new PrefixTree(runner.pages, runner.pageSize);
    this.#forests = new ForestBuilder(this.tree);
    this.#planner = new Planner(runner.planSpec);
    const random = randomStream(11);
    const prompt = Array.from({ length: shared }, () => Math.floor(random() * 250));
    this.#shared = this.tree.insert(prompt);
    this.#batch = batch;
  }

  /** Computes the shared prompt in chunks and forks the branches. */
  async prefill(chunk = this.runner.maxRows): Promise<void> {
    const path = this.#shared;
    while (path.computed < path.length) {
      const { from, to } = this.tree.claim(path);
      await this.#enter([{ path, from, to: Math.min(to, from + chunk) }], () => null);
    }
    for (let branch = 0; branch < this.#batch; branch++) {
      const fork = this.tree.fork(path, path.length);
      this.tree.extend(fork, [branch + 3]);
      this.#paths.push(fork);
    }
  }

  /**
   * Hands in one step of all branches. Their tokens are those of the step before: the device's
   * if `ahead`, else that step must have ended.
   */
  step(ahead: boolean, drawOf: DrawOf): Promise<StepOutput> {
    const turn = this.#turn++;
    // What is in the tree are placeholders: only the rows' tokens are computed on.
    for (const path of turn > 0 ? this.#paths : []) this.tree.append(path, (turn * 31) % 250);
    const entries = this.#paths.map((path): ForestEntry => ({ path, ...this.tree.claim(path) }));
    const tokenOf = (index: number): number | null => {
      if (turn === 0) return null;
      return ahead ? -1 - this.#rowOf[index] : (this.#drawn?.[this.#rowOf[index]] ?? 0);
    };
    return this.#enter(entries, (index) => drawOf(index, turn), tokenOf);
  }

  #enter(
    entries: readonly ForestEntry[],
    drawOf: (index: number) => RowDraw | null,
    tokenOf: (index: number) => number | null = () => null,
  ): Promise<StepOutput> {
    const forest = this.#forests.build(entries);
    if (!this.#plan || !planStillGood(this.#plan, forest)) this.#plan = this.#planner.plan(forest);
    const tokens = new Int32Array(forest.rows);
    const writeSlots = new Int32Array(forest.rows).fill(-1);
    const draws: (RowDraw | null)[] = [];
    const rowOf = new Int32Array(entries.length);
    for (let request = 0; request < forest.requests; request++) {
      const index = this.#forests.order[request];
      const { path, from, to } = entries[index];
      const given = tokenOf(index);
      const all = given === null ? path.tokens() : [];
      rowOf[index] = request;
      draws.push(drawOf(index));
      for (let at = from; at < to; at++) {
        const row = forest.requestRow[request] + at - from;
        tokens[row] = given ?? all[at];
        writeSlots[row] = this.tree.slotOf(path, at);
      }
    }
    this.#rowOf = rowOf;
    const logitRows = forest.requestRow.slice(1, forest.requests + 1).map((end) => end - 1);
    const began = performance.now();
    const plan = this.#plan;
    const step = this.runner.step({ tokens, forest, plan, writeSlots, logitRows, draws });
    this.handInMs.push(performance.now() - began);
    for (const { path, to } of entries) this.tree.commit(path, Math.max(to, path.computed));
    return step.then((output) => {
      this.#drawn = output.drawn;
      return output;
    });
  }

  /** So many steps, two at a time under way if `ahead`; `seen` gets each step's tokens by path. */
  async run(
    turns: number,
    ahead: boolean,
    drawOf: DrawOf,
    seen: (drawn: number[], output: StepOutput) => void,
  ): Promise<void> {
    let before: { step: Promise<StepOutput>; rowOf: Int32Array } | undefined;
    const take = async ({ step, rowOf }: NonNullable<typeof before>): Promise<void> => {
      const output = await step;
      seen(
        Array.from(rowOf, (row) => output.drawn?.[row] ?? -1),
        output,
      );
    };
    for (let turn = 0; turn < turns; turn++) {
      const step = this.step(ahead && turn > 0, drawOf);
      const now = { step, rowOf: this.#rowOf };
      if (before) await take(before);
      before = now;
      if (ahead) continue;
      await take(now);
      before = undefined;
    }
    if (before) await take(before);
  }
}
