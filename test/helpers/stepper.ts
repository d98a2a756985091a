/**
 * Drives a runner over a real prefix tree without an engine: sequences are added, forked and
 * stepped by hand, and each step returns the logits of the sequences' last tokens.
 * @module
 */
import type { Runner, StepOutput } from '../../src/backend/backend.ts';
import { ForestBuilder, type ForestEntry } from '../../src/kvcache/forest-builder.ts';
import type { Path } from '../../src/kvcache/path.ts';
import { PrefixTree } from '../../src/kvcache/prefix-tree.ts';
import { makePlan } from '../../src/plan/make-plan.ts';
import type { PlanOptions } from '../../src/plan/plan.ts';

export class Stepper {
  readonly tree: PrefixTree;
  readonly #runner: Runner;
  readonly #forests: ForestBuilder;
  readonly #options: Partial<PlanOptions>;

  constructor(runner: Runner, options: Partial<PlanOptions> = {}) {
    this.#runner = runner;
    this.#options = options;
    this.tree = new PrefixTree(runner.pages, runner.pageSize);
    this.#forests = new ForestBuilder(this.tree);
  }

  /**
   * One step over some paths: of each, the uncomputed tokens, `chunk` at most. A path that waits
   * for tokens that another one computes is left out.
   * @param everyRow asks for the logits of all rows in `output`, not only of each path's last.
   * @returns per path, in the given order, the logits after its last row; and the raw output.
   */
  async step(
    paths: readonly Path[],
    chunk = Number.POSITIVE_INFINITY,
    everyRow = false,
  ): Promise<{ logits: Float32Array[]; output: StepOutput }> {
    const entries: ForestEntry[] = [];
    for (const path of paths) {
      const { from, to } = this.tree.claim(path);
      if (from < to) entries.push({ path, from, to: Math.min(to, from + chunk) });
      // A complete path is asked again for its last token, whose KV is already there.
      else if (from === path.length) entries.push({ path, from: from - 1, to: from });
    }
    const forest = this.#forests.build(entries);
    const tokens = new Int32Array(forest.rows);
    const writeSlots = new Int32Array(forest.rows).fill(-1);
    const lastRows = forest.requestRow.subarray(1, forest.requests + 1).map((end) => end - 1);
    const logitRows = everyRow ? Int32Array.from({ length: forest.rows }, (_, i) => i) : lastRows;
    for (let request = 0; request < forest.requests; request++) {
      const { path, from, to } = entries[this.#forests.order[request]];
      const all = path.tokens();
      for (let at = from; at < to; at++) {
        const row = forest.requestRow[request] + at - from;
        tokens[row] = all[at];
        if (at >= path.computed) writeSlots[row] = this.tree.slotOf(path, at);
      }
    }
    const spec = this.#runner.planSpec;
    const plan = makePlan(forest, { ...spec, options: { ...spec.options, ...this.#options } });
    const output = await this.#runner.step({ tokens, forest, plan, writeSlots, logitRows });
    for (const { path, to } of entries) this.tree.commit(path, Math.max(to, path.computed));
    const vocab = output.logits.length / logitRows.length;
    const logits: Float32Array[] = new Array(paths.length);
    for (let request = 0; request < forest.requests; request++) {
      const at = everyRow ? lastRows[request] : request;
      const row = output.logits.slice(at * vocab, (at + 1) * vocab);
      logits[paths.indexOf(entries[this.#forests.order[request]].path)] = row;
    }
    return { logits, output };
  }
}
