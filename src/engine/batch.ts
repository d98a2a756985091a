/**
 * From a step's entries to the runner's input: forest, token ids, slots to write and the plan,
 * which is kept over steps as long as it is still good.
 * @module
 */
import type { RowDraw, Runner, StepInput } from '../backend/backend.ts';
import type { Forest } from '../kvcache/forest.ts';
import { ForestBuilder } from '../kvcache/forest-builder.ts';
import type { PrefixTree } from '../kvcache/prefix-tree.ts';
import { Planner, type ReusablePlan } from '../plan/make-plan.ts';
import { planStillGood } from '../plan/plan-reuse.ts';
import type { BatchEntry } from './scheduler.ts';

/** What is done with a row of logits. */
export interface Answer {
  /** Index in the step's entries, and the row's position in that sequence. */
  readonly entry: number;
  readonly position: number;
  /** The sequence had no token after this one when the step was built. */
  readonly isLast: boolean;
  /** The device draws the token; otherwise the owner looks at the logits. */
  readonly isDrawn: boolean;
}

/**
 * A step ready to run, and what the engine needs afterwards. What is not of `StepInput` outlives
 * the next build.
 */
export interface Batch extends StepInput {
  /** (logitRows) */
  readonly answers: readonly Answer[];
  readonly rows: number;
  readonly requests: number;
  /** KV tokens that this step reads for one head and layer; what flat decoding would read. */
  readonly kvTokens: number;
  readonly kvTokensFlat: number;
  readonly planMs: number;
  readonly planReused: boolean;
}

/** A plan with the forest that it was last used for. */
export interface PlannedStep {
  readonly plan: ReusablePlan;
  readonly forest: Forest;
}

export class BatchBuilder {
  readonly #tree: PrefixTree;
  readonly #forests: ForestBuilder;
  readonly #planners: { readonly tree: Planner; readonly flat: Planner };
  /** The device draws tokens where the owners agree. */
  readonly #deviceDraws: boolean;
  #flat = false;
  #plan: ReusablePlan | null = null;
  #forest: Forest | null = null;
  /** KV tokens visible when the plan was made, to tell how far leaves have grown since. */
  #plannedTokens = 0;
  #tokens = new Int32Array(64);
  #slots = new Int32Array(64);

  constructor(tree: PrefixTree, runner: Runner) {
    const { planSpec } = runner;
    const flat = { ...planSpec, options: { ...planSpec.options, flat: true } };
    this.#tree = tree;
    this.#forests = new ForestBuilder(tree);
    this.#planners = { tree: new Planner(planSpec), flat: new Planner(flat) };
    this.#deviceDraws = runner.depth === 2;
  }

  /** Flat: attention reads every request's path alone, as engines without a tree do. */
  get flat(): boolean {
    return this.#flat;
  }

  set flat(flat: boolean) {
    if (flat !== this.#flat) this.#plan = null;
    this.#flat = flat;
  }

  /** The last step's plan; valid until the next `build`. */
  get planned(): PlannedStep | null {
    if (this.#plan === null || this.#forest === null) return null;
    return { plan: this.#plan, forest: this.#forest };
  }

  /** The step of these entries; the arrays of its input are valid until the next call. */
  build(entries: readonly BatchEntry[]): Batch {
    const started = performance.now();
    const forest = this.#forests.build(entries);
    this.#forest = forest;
    const unique = sum(forest.length, forest.nodes);
    const kvTokensFlat = flatTokens(forest);
    const visible = this.#flat ? kvTokensFlat : unique;
    const planReused = this.#plan !== null && planStillGood(this.#plan, forest);
    if (this.#plan === null || !planReused) {
      this.#plan = (this.#flat ? this.#planners.flat : this.#planners.tree).plan(forest);
      this.#plannedTokens = visible;
    }
    const planMs = performance.now() - started;
    return {
      ...this.#fill(entries, forest),
      forest,
      rows: forest.rows,
      requests: forest.requests,
      plan: this.#plan,
      kvTokens: this.#plan.kvTokens + visible - this.#plannedTokens,
      kvTokensFlat,
      planMs,
      planReused,
    };
  }

  #fill(
    entries: readonly BatchEntry[],
    forest: Forest,
  ): Pick<Batch, 'tokens' | 'writeSlots' | 'logitRows' | 'answers' | 'draws'> {
    const { rows, requestRow } = forest;
    if (rows > this.#tokens.length) {
      this.#tokens = new Int32Array(2 * rows);
      this.#slots = new Int32Array(2 * rows);
    }
    const logitRows: number[] = [];
    const answers: Answer[] = [];
    const draws: (RowDraw | null)[] = [];
    for (let request = 0; request < forest.requests; request++) {
      const entry = this.#forests.order[request];
      const { sequence, path, from, to } = entries[entry];
      const row = requestRow[request];
      path.copyTokens(from, to, this.#tokens, row);
      if (path.computed > from) this.#slots.fill(-1, row, row + to - from);
      else this.#tree.copySlots(path, from, to, this.#slots, row);
      const last = to < path.length ? to : to - 1;
      for (let at = Math.min(last, Math.max(from, sequence.rowsFrom)); at < to; at++) {
        const isLast = at === path.length - 1;
        const draw = isLast && this.#deviceDraws ? sequence.nextDraw() : null;
        logitRows.push(row + at - from);
        answers.push({ entry, position: at, isLast, isDrawn: draw !== null });
        draws.push(draw === 'argmax' ? null : draw);
      }
    }
    return {
      tokens: this.#tokens.subarray(0, rows),
      writeSlots: this.#slots.subarray(0, rows),
      logitRows: Int32Array.from(logitRows),
      answers,
      draws: draws.some((draw) => draw !== null) ? draws : undefined,
    };
  }
}

function sum(values: Int32Array, count: number): number {
  let total = 0;
  for (let index = 0; index < count; index++) total += values[index];
  return total;
}

/** Every request's context, as if nothing were shared. */
function flatTokens(forest: Forest): number {
  let total = 0;
  for (let request = 1; request <= forest.requests; request++) {
    total += forest.rowPosition[forest.requestRow[request] - 1] + 1;
  }
  return total;
}
