/**
 * The plan of one step's attention: which task reads which keys for which rows, on which worker,
 * and which partial results are merged afterwards. It is made once a step, holds for all layers,
 * and is the one structure that every backend's attention reads.
 * @module
 */

/** As a segment's end: up to the node's length at the time the kernel runs (a growing leaf). */
export const OPEN_END = 0x7fffffff;

/**
 * A task is an interval of rows against a list of segments, for one KV head at a time: the work
 * items that workers execute are (task, KV head). A segment is a token interval of one node,
 * with the sub-interval of the task's rows that it applies to.
 *
 * Every (row, node on its path) pair's tokens are covered by exactly one task's segments.
 * A row whose whole path lies in one task is written to the output by that task; otherwise each
 * of its tasks writes a partial (output, LSE) to a slot and a merge combines them (POR). A row of
 * a segment may see none of its tokens (causality); if that is all a task has for the row, its
 * partial has LSE -Infinity. Rows that see no token at all are written by nobody.
 */
export interface Plan {
  readonly rows: number;
  readonly kvHeads: number;
  readonly workers: number;

  readonly tasks: number;
  /** (tasks) rows taskRowBegin <= r < taskRowEnd. */
  readonly taskRowBegin: Int32Array;
  readonly taskRowEnd: Int32Array;
  /** (tasks + 1) first segment of each task. */
  readonly taskSegment: Int32Array;
  /** (tasks + 1) first entry of each task in `destination`, one entry a row of the task. */
  readonly taskDestination: Int32Array;
  /** Per task and row: -1 = the final output row, -2 = nothing, else the partial slot. */
  readonly destination: Int32Array;

  readonly segments: number;
  /** (segments) node index in the forest. */
  readonly segmentNode: Int32Array;
  /** (segments) token interval within the node; `segmentEnd` may be OPEN_END. */
  readonly segmentBegin: Int32Array;
  readonly segmentEnd: Int32Array;
  /** (segments) rows the segment applies to, inside the task's interval. */
  readonly segmentRowBegin: Int32Array;
  readonly segmentRowEnd: Int32Array;

  /** Number of work items = tasks * kvHeads; item = task * kvHeads + kvHead. */
  readonly items: number;
  /** (workers + 1) first entry of each worker in `schedule`. */
  readonly workerItem: Int32Array;
  /** (items) work items in the order in which each worker runs them. */
  readonly schedule: Int32Array;

  /** Partial slots in use, the same for every KV head; slots of one row are consecutive. */
  readonly slots: number;
  readonly merges: number;
  /** (merges) the row, its first slot and its number of slots (at least 2). */
  readonly mergeRow: Int32Array;
  readonly mergeSlot: Int32Array;
  readonly mergeCount: Int32Array;

  /** Estimated finish time of the busiest worker and the bound no schedule can beat, in us. */
  readonly makespanUs: number;
  readonly lowerBoundUs: number;
  /** KV tokens read by all tasks, for one KV head and layer. */
  readonly kvTokens: number;
}

/** Parts of the planner that can be switched off, to see what each is worth. */
export interface PlanOptions {
  /** Every request alone: no sharing at all. */
  readonly flat: boolean;
  /** Let one task cover several nodes of a subtree. */
  readonly packing: boolean;
  /** Split long segments over workers. */
  readonly division: boolean;
  /** Longest processing time first; otherwise round robin. */
  readonly scheduling: boolean;
}

/** What the planner must know of model and device. */
export interface PlanSpec {
  readonly kvHeads: number;
  /** Query heads that share one KV head (GQA group). */
  readonly groupSize: number;
  readonly headDim: number;
  readonly pageSize: number;
  /**
   * Segments are cut only where (first slot + token) is a multiple of this; default: the page size.
   * Kernels that round sums at such places give the same bits for every plan.
   */
  readonly cutTokens?: number;
  readonly workers: number;
  /** Most rows of one task; a task has at most taskRows * groupSize query vectors. */
  readonly taskRows: number;
  /** Rows that one group of a worker's warps holds by itself; default: taskRows. */
  readonly groupRows?: number;
  readonly profile: CostProfile;
  readonly options: PlanOptions;
}

/**
 * Measured cost of a work item over a grid, interpolated in between: time of n_q query vectors
 * (rows x GQA group) against n_kv tokens of one KV head, in us.
 */
export interface CostProfile {
  /** Device and kernel variant that were measured. */
  readonly device: string;
  readonly kernel: string;
  /** Ascending grid of query vectors (rows x GQA group). */
  readonly queries: readonly number[];
  /** Ascending grid of KV tokens. */
  readonly tokens: readonly number[];
  /** [queries][tokens] us of one work item without its fixed part. */
  readonly us: readonly (readonly number[])[];
  /** Fixed part of a work item, us. */
  readonly itemUs: number;
  /** Added for every segment of a work item, us. */
  readonly segmentUs: number;
  /** Writing and merging one partial (one row, one KV head's group), us. */
  readonly partialUs: number;
  /** Added once if any row needs a merge (a barrier or another's wait), us; default 0. */
  readonly mergeUs?: number;
}
