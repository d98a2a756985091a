/**
 * The planner: packs rows and nodes into lists (row-tiling), cuts lists into pieces
 * (task-division), gives pieces to workers (task-schedule), and lays out the merges (merge-plan).
 * Several ways to cut are tried; the one with the least makespan under the cost model wins.
 * @module
 */
import { assert, checkInteger } from '../base/errors.ts';
import type { Forest } from '../kvcache/forest.ts';
import { CostModel } from './cost-model.ts';
import { LeastWork } from './lower-bound.ts';
import { emitTasks, planMerges } from './merge-plan.ts';
import { PiecePricer } from './piece-pricer.ts';
import type { Plan, PlanOptions, PlanSpec } from './plan.ts';
import { type PlanBasis, planBasis } from './plan-reuse.ts';
import { Layout, RowTiler } from './row-tiling.ts';
import { ListCutter, Pieces, partSizeFor, partsOf } from './task-division.ts';
import { scheduleItems, TaskScheduler } from './task-schedule.ts';

/** Everything on: the options of a normal run. */
export const DEFAULT_PLAN_OPTIONS: PlanOptions = {
  flat: false,
  packing: true,
  division: true,
  scheduling: true,
};

/** A plan together with what `planStillGood` compares later forests with. */
export interface ReusablePlan extends Plan {
  readonly basis: PlanBasis;
}

/**
 * Rounds of work over all workers that are tried: more rounds balance better and cost more fixed
 * parts and merges.
 */
const ROUNDS_TRIED = 4;
/** Rounds whose workers are busy to this share need no more pieces. */
const FULL_ROUNDS = 0.94;
/** A stream reads shared nodes out of step, so that it must be better by this factor. */
const STREAM_GAIN = 0.97;
/**
 * Tiles of more rows than one group of warps holds make a group wait wherever tokens are for the
 * other's rows only, so that they must be better by this factor.
 */
const PAIRED_GAIN = 0.95;

/** Makes plans for one spec; keeps scratch memory between calls. Plans stay valid. */
export class Planner {
  readonly spec: PlanSpec;
  readonly #cost: CostModel;
  readonly #least: LeastWork;
  readonly #tiler: RowTiler;
  readonly #cutter: ListCutter;
  readonly #pricer: PiecePricer;
  readonly #scheduler: TaskScheduler;
  readonly #layouts = [new Layout(), new Layout(), new Layout(), new Layout()];
  #trial = new Pieces();
  #best = new Pieces();
  #bestLayout: Layout;
  #bestUs = 0;
  /** What candidates are compared by: the makespan, made larger where tiles are for two groups. */
  #bestScore = 0;
  /** What the makespans of the layout that is tried count times. */
  #weight = 1;
  /** True if pricer and scheduler still hold the state of the best pieces. */
  #fresh = false;
  #hasChild = new Uint8Array(0);

  /** @throws FlashForgeError 'input' if a number of the spec or its profile is out of range. */
  constructor(spec: PlanSpec) {
    for (const field of ['kvHeads', 'groupSize', 'headDim', 'pageSize', 'taskRows'] as const) {
      checkInteger('input', field, spec[field], 1, 65536);
    }
    checkInteger('input', 'workers', spec.workers, 1, 65536);
    this.spec = spec;
    this.#cost = new CostModel(spec.profile, spec.groupSize, spec.taskRows);
    this.#least = new LeastWork(this.#cost);
    this.#tiler = new RowTiler(this.#cost);
    this.#cutter = new ListCutter(this.#cost, spec.cutTokens ?? spec.pageSize);
    this.#pricer = new PiecePricer(this.#cost);
    this.#scheduler = new TaskScheduler(spec.kvHeads, spec.workers, spec.options);
    this.#bestLayout = this.#layouts[0];
  }

  /**
   * Plans one step. Rows that see no token at all get no task and no output.
   * @param forest with nodes in depth-first order.
   */
  plan(forest: Forest): ReusablePlan {
    const { kvHeads, workers, options } = this.spec;
    this.#checkForest(forest);
    this.#tiler.prepare(forest);
    this.#search(forest);

    const layout = this.#bestLayout;
    if (!this.#fresh) this.#pricer.price(layout, this.#best);
    if (!this.#fresh || !this.#scheduler.assigned) this.#scheduler.assign(this.#best);
    const part = emitTasks(layout, this.#best, this.#pricer, this.#hasChild);
    const merge = planMerges(forest.rows, part, this.#pricer);
    const items = scheduleItems(this.#best, this.#scheduler, kvHeads, workers);
    const work = options.flat ? this.#least.ofFlat(layout) : this.#least.ofTree(forest);
    return {
      rows: forest.rows,
      kvHeads,
      workers,
      ...part,
      ...merge,
      items: part.tasks * kvHeads,
      ...items,
      makespanUs: this.#bestUs,
      lowerBoundUs: (work.us * kvHeads) / workers,
      kvTokens: work.tokens,
      basis: planBasis(forest, this.#cost, this.#scheduler.load),
    };
  }

  #checkForest(forest: Forest): void {
    const { nodes, parent, rows, rowBegin, rowEnd } = forest;
    if (this.#hasChild.length < nodes) this.#hasChild = new Uint8Array(nodes * 2);
    this.#hasChild.fill(0, 0, nodes);
    for (let node = 0; node < nodes; node++) {
      const above = parent[node];
      assert(above < node, 'a parent must stand before its children');
      if (above >= 0) this.#hasChild[above] = 1;
      if (rowEnd[node] <= rowBegin[node]) continue;
      const inside =
        above < 0
          ? rowBegin[node] >= 0 && rowEnd[node] <= rows
          : rowBegin[node] >= rowBegin[above] && rowEnd[node] <= rowEnd[above];
      assert(inside, "a node's rows must lie within its parent's");
    }
  }

  /** Tries layouts and divisions; leaves the best in bestLayout and best. */
  #search(forest: Forest): void {
    const { taskRows, options } = this.spec;
    const [joined, other, trunk, single] = this.#layouts;
    const groupRows = Math.min(taskRows, this.spec.groupRows ?? taskRows);
    const paired = options.division && Math.min(taskRows, forest.rows) > groupRows;
    this.#bestUs = Number.POSITIVE_INFINITY;
    this.#bestScore = Number.POSITIVE_INFINITY;
    this.#weight = 1;
    if (options.flat) {
      this.#tiler.flat(forest, taskRows, joined);
      this.#divide(joined);
      return;
    }
    if (!options.packing) {
      this.#tiler.apart(forest, taskRows, joined);
      this.#divide(joined);
      return;
    }
    this.#tiler.joined(forest, taskRows, joined);
    // Before the tiler forgets these tiles: a trunk of its own, where their borders cost much.
    const hasTrunk = this.#tiler.trunkApart(forest, taskRows, trunk);
    this.#weight = paired ? 1 / PAIRED_GAIN : 1;
    this.#divide(joined);
    if (hasTrunk) this.#divide(trunk);
    if (options.division) this.#tryLowerTiles(forest, joined.lists, groupRows, other);
    // If lower tiles have won, they are for one group already.
    if (!paired || this.#bestScore === this.#bestUs) return;
    this.#weight = 1;
    this.#tiler.joined(forest, groupRows, single);
    this.#divide(single);
  }

  /**
   * Where the tiles leave workers idle: tiles of fewer rows, so that there is one for each worker
   * in each round. They need no merge; the shared nodes are read more often instead.
   */
  #tryLowerTiles(forest: Forest, lists: number, groupRows: number, out: Layout): void {
    const { kvHeads, workers, taskRows } = this.spec;
    const rounds = Math.ceil((lists * kvHeads) / workers);
    const wanted = Math.floor((rounds * workers) / kvHeads);
    const rows = Math.ceil(forest.rows / Math.max(1, wanted));
    if (lists >= wanted * FULL_ROUNDS || rows >= taskRows) return;
    if (rows <= groupRows) this.#weight = 1;
    this.#tiler.joined(forest, rows, out);
    this.#divide(out);
  }

  /** Tries the divisions of one layout. */
  #divide(layout: Layout): void {
    const { kvHeads, workers, options } = this.spec;
    this.#cutter.whole(layout, this.#trial);
    this.#consider(layout, 1);
    if (!options.division || layout.lists === 0) return;
    const total = layout.segmentUs[layout.segments];
    const itemUs = this.#cost.itemUs;
    const rounds = Math.ceil((layout.lists * kvHeads) / workers);
    const bound = (): number => this.#bestScore / this.#weight;
    let streams = 0;
    for (let round = rounds; round < rounds + ROUNDS_TRIED; round++) {
      const parts = Math.floor((round * workers) / kvHeads);
      if (parts < 1) continue;
      const ideal = ((total + parts * itemUs) * kvHeads) / workers;
      if (ideal >= bound()) break;
      const partUs = partSizeFor(layout, parts);
      if (round * (partUs + itemUs) < bound() && partsOf(layout, partUs) > layout.lists) {
        this.#cutter.evenly(layout, partUs, this.#trial);
        this.#consider(layout, 1);
      }
      const used = (parts * kvHeads) / (round * workers);
      const streamUs = round * ((total + layout.lists * itemUs) / parts + itemUs);
      if (layout.lists === 1 || used < FULL_ROUNDS || streams === 2) continue;
      if (streamUs >= bound() * STREAM_GAIN) continue;
      streams++;
      this.#cutter.stream(layout, parts, this.#trial);
      this.#consider(layout, STREAM_GAIN);
    }
    this.#splitLongest(layout, total);
  }

  /** Only lists longer than a worker's fair share, in parts of at most that share. */
  #splitLongest(layout: Layout, total: number): void {
    const { kvHeads, workers } = this.spec;
    const fair = ((total + layout.lists * this.#cost.itemUs) * kvHeads) / workers;
    if (fair >= (this.#bestScore / this.#weight) * 0.99 || partsOf(layout, fair) === layout.lists)
      return;
    this.#cutter.evenly(layout, fair, this.#trial);
    this.#consider(layout, 1);
  }

  /** Prices the trial and keeps it if its makespan is below `gain` x the best so far. */
  #consider(layout: Layout, gain: number): void {
    this.#pricer.price(layout, this.#trial);
    const mergeUs = this.#pricer.partials > 0 ? (this.spec.profile.mergeUs ?? 0) : 0;
    const us = this.#scheduler.makespan(this.#trial) + mergeUs;
    this.#fresh = us * this.#weight < this.#bestScore * gain;
    if (!this.#fresh) return;
    this.#bestScore = us * this.#weight;
    this.#bestUs = us;
    this.#bestLayout = layout;
    [this.#best, this.#trial] = [this.#trial, this.#best];
  }
}

/** Plans one step from scratch; use a `Planner` to plan many. */
export function makePlan(forest: Forest, spec: PlanSpec): ReusablePlan {
  return new Planner(spec).plan(forest);
}
