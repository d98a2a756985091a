/**
 * The microbenchmarks behind a cost profile: plans of equal items on all multiprocessors, run by
 * the attention kernel itself with a cold L2 cache, so that what is measured is what plans cost.
 * @module
 */
import { median } from '../../base/math.ts';
import type { Plan } from '../../plan/plan.ts';
import { trialPlan } from '../../plan/trial-plan.ts';
import { type Workload, workloadForest } from '../../plan/workload.ts';
import { TreeAttention } from './attention.ts';
import { BenchTools } from './bench-tools.ts';
import type { KernelLoader } from './kernel-loader.ts';
import type { AttentionSpec, Variant } from './variants.ts';

/** What every multiprocessor does in one trial. */
export interface Trial {
  /** Items of each multiprocessor, and rows and KV tokens of each item. */
  readonly items: number;
  readonly rows: number;
  readonly tokens: number;
  /** Segments that an item's tokens are cut into. */
  readonly segments: number;
  /** All items read the same tokens: after the first they come from the L2 cache. */
  readonly shared: boolean;
  /** Multiprocessors that share one set of rows and merge what they found; 1 = no merge. */
  readonly parts: number;
}

/** One item with tokens of its own and no merge. */
export const PLAIN: Trial = {
  ...{ items: 1, rows: 1, tokens: 64, segments: 1, shared: false, parts: 1 },
};

/** Timed calls of one trial, after two that are not. */
const CALLS = { most: 9, least: 9, totalUs: 1e6 };
/** Tokens that one trial may read on each multiprocessor. */
export const TRIAL_TOKENS_MAX = 1024;

/** Runs trials; holds the device memory that they need. */
export class TrialRunner {
  readonly variant: Variant;
  readonly #workers: number;
  readonly #spec: AttentionSpec;
  readonly #tools: BenchTools;
  readonly #attention: TreeAttention;

  constructor(loader: KernelLoader, spec: AttentionSpec) {
    this.#workers = loader.cuda.info.multiprocessors;
    // Items are of one KV head, whatever the model has.
    this.#spec = { ...spec, kvHeads: 1 };
    this.#tools = new BenchTools(loader, spec.dtype);
    this.#attention = new TreeAttention(loader, this.#spec, this.#tools.stream);
    this.variant = this.#attention.variant;
    this.#tools.reserve([this.#tree(this.variant.taskRows * this.#workers)], spec.pageSize);
  }

  /** Median time of a trial's launch, us. */
  us(trial: Trial): number {
    const { forest } = workloadForest(this.#tree(this.#rows(trial)), this.#spec.pageSize);
    const plan = trialPlanOf(trial, this.#workers);
    this.#attention.setPlan(plan, forest, this.#tools.stream);
    const run = (): void =>
      this.#attention.launch(this.#tools.tensors(this.#spec), this.#tools.stream);
    const times = this.#tools.timeCold(run, CALLS);
    this.#attention.check(this.#tools.stream);
    return median(times);
  }

  #rows({ parts, rows }: Trial): number {
    return Math.floor(this.#workers / parts) * rows;
  }

  /** One node that holds every token of any trial; all rows see all of it. */
  #tree(rows: number): Workload {
    return {
      name: 'trial',
      parent: Int32Array.of(-1),
      tokens: Int32Array.of(TRIAL_TOKENS_MAX * this.#workers),
      requests: new Int32Array(rows),
      queryHeads: this.#spec.groupSize,
      kvHeads: 1,
      headDim: this.#spec.headDim,
    };
  }

  free(): void {
    this.#attention.free();
    this.#tools.free();
  }
}

/** The plan of a trial over a tree of one node. */
export function trialPlanOf(trial: Trial, workers: number): Plan {
  const { items, rows, tokens, segments, shared, parts } = trial;
  const sets = Math.floor(workers / parts);
  const busy = sets * parts;
  const each = tokens / segments;
  const tasks = Array.from({ length: busy * items }, (_, index) => {
    const worker = index % busy;
    const set = Math.floor(worker / parts);
    const from = shared ? 0 : index * tokens;
    return {
      worker,
      segments: Array.from({ length: segments }, (_, segment) => ({
        ...{ node: 0, begin: from + segment * each, end: from + (segment + 1) * each },
        ...{ rowBegin: set * rows, rowEnd: (set + 1) * rows },
      })),
    };
  });
  return trialPlan(sets * rows, workers, tasks, parts > 1);
}
