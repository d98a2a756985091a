/**
 * The planner: packs rows and nodes into lists (row-tiling), cuts lists into pieces
 * (task-division), gives pieces to workers (task-schedule), and lays out the merges (merge-plan).
 * Several ways to cut are tried; the one with the least makespan under the cost model wins.
 * @module
 */
import { assert, checkInteger } from '../base/errors.ts';
import type { Forest } from '../kvcache/forest.ts';
import { CostModel } from './cost-model.ts';
import { IntBlock } from './int-block.ts';
import { Layout } from './layout.ts';
import { LeastWork } from './lower-bound.ts';
import { emitTasks, planMerges } from './merge-plan.ts';
import { PiecePricer } from './piece-pricer.ts';
import type { Plan, PlanOptions, PlanSpec } from './plan.ts';
import { type PlanBasis, planBasis } from './plan-reuse.ts';
import { RowTiler } from './row-tiling.ts';
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
/**
 * A stream reads shared nodes out of step, so that it must be better by this factor than what was
 * tried before it.
 */
const STREAM_GAIN = 0.97;
/**
 * Tiles of more rows than one group of warps holds make a group wait wherever tokens are for the
 * other's rows only, so that they must be better by this factor.
 */
const PAIRED_GAIN = 0.95;

/** What divisions of a layout's lists into equal parts were looked at. */
interface Tried {
  /** Numbers of parts, of all lists together; the same number gives the same cuts. */
  readonly parts: number[];
  /** The most partials among them, and the fewest parts that left so many. */
  partials: number;
  partialParts: number;
}

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
  /** The same, not counting whole lists of layouts that are still to be divided. */
  #dividedScore = 0;
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
    if (!this.#fresh) {
      this.#pricer.count(layout, this.#best);
      this.#pricer.price(layout, this.#best);
    }
    if (!this.#fresh || !this.#scheduler.assigned) this.#scheduler.assign(this.#best);
    const part = emitTasks(layout, this.#best, this.#pricer, this.#hasChild);
    const items = part.tasks * kvHeads;
    const results = part.taskDestination[part.tasks] + 3 * forest.rows;
    const ints = new IntBlock(results + workers + 1 + items);
    const merge = planMerges(forest.rows, part, this.#pricer, ints);
    const schedule = scheduleItems(this.#best, this.#scheduler, kvHeads, workers, ints);
    const work = options.flat
      ? this.#least.ofFlat(layout)
      : this.#least.ofTree(forest, this.#tiler.allSeen);
    return {
      rows: forest.rows,
      kvHeads,
      workers,
      ...part,
      ...merge,
      items,
      ...schedule,
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
    const { kvHeads, workers, taskRows, options } = this.spec;
    const [joined, lower, trunk, single] = this.#layouts;
    this.#bestUs = Number.POSITIVE_INFINITY;
    this.#bestScore = Number.POSITIVE_INFINITY;
    this.#dividedScore = Number.POSITIVE_INFINITY;
    if (options.flat || !options.packing) {
      if (options.flat) this.#tiler.flat(forest, taskRows, joined);
      else this.#tiler.apart(forest, taskRows, joined);
      this.#tryWhole(joined, 1);
      if (options.division) this.#divide(joined);
      return;
    }
    const groupRows = Math.min(taskRows, this.spec.groupRows ?? taskRows);
    const paired = options.division && Math.min(taskRows, forest.rows) > groupRows;
    const weight = paired ? 1 / PAIRED_GAIN : 1;
    this.#tiler.joined(forest, taskRows, joined);
    // Before the tiler forgets these tiles: a trunk of its own, where their borders cost much.
    const hasTrunk = this.#tiler.trunkApart(forest, taskRows, trunk);
    this.#tryWhole(joined, weight);
    if (hasTrunk) this.#tryWhole(trunk, weight);
    // Whole lists are priced quickly, and what they take tells which divisions need no look.
    const rows = options.division ? this.#lowerRows(forest.rows, joined.lists) : 0;
    if (rows > 0) {
      this.#tiler.joined(forest, rows, lower);
      this.#tryWhole(lower, rows <= groupRows ? 1 : weight);
    }
    if (!options.division) return;
    this.#divide(joined);
    if (hasTrunk) this.#divide(trunk);
    if (rows > 0) this.#divide(lower);
    if (!paired || rows === groupRows || this.#bestLayout.weight === 1) return;
    const least = this.#least.ofTree(forest, this.#tiler.allSeen, groupRows).us;
    if ((least * kvHeads) / workers >= this.#bestScore) return;
    this.#tiler.joined(forest, groupRows, single);
    this.#tryWhole(single, 1);
    this.#divide(single);
  }

  /**
   * Where the tiles leave workers idle: rows of lower tiles, so that there is one for each worker
   * in each round; else 0. They need no merge; the shared nodes are read more often instead.
   */
  #lowerRows(rows: number, lists: number): number {
    const { kvHeads, workers, taskRows } = this.spec;
    const rounds = Math.ceil((lists * kvHeads) / workers);
    const wanted = Math.floor((rounds * workers) / kvHeads);
    const least = Math.ceil(rows / Math.max(1, wanted));
    const useful = lists < wanted * FULL_ROUNDS && least < Math.min(taskRows, rows);
    return useful ? least : 0;
  }

  #tryWhole(layout: Layout, weight: number): void {
    layout.weight = weight;
    this.#cutter.whole(layout, this.#trial);
    this.#consider(layout, 1);
    layout.wholeScore = this.#fresh ? this.#bestScore : Number.POSITIVE_INFINITY;
    // Lists that can be severed may be cut without a merge, others not.
    const merges = this.#pricer.partials > 0 || !layout.severable;
    layout.mergeUs = merges ? this.#cost.mergeUs : 0;
  }

  /** Tries the divisions of one layout. */
  #divide(layout: Layout): void {
    const { kvHeads, workers } = this.spec;
    if (layout.lists === 0) return;
    this.#dividedScore = Math.min(this.#dividedScore, layout.wholeScore);
    const total = layout.segmentUs[layout.segments];
    const itemUs = this.#cost.itemUs;
    const rounds = Math.ceil((layout.lists * kvHeads) / workers);
    const tried: Tried = { parts: [layout.lists], partials: 0, partialParts: 0 };
    let streams = 0;
    for (let round = rounds; round < rounds + ROUNDS_TRIED; round++) {
      const parts = Math.floor((round * workers) / kvHeads);
      if (parts < 1) continue;
      // Estimates are held against what was tried before, bounds against the best of all.
      const before = this.#dividedScore / layout.weight;
      if (this.#meanUs(total, parts, 0) >= before) break;
      const partUs = partSizeFor(layout, parts);
      if (round * (partUs + itemUs) < before) this.#tryParts(layout, partUs, tried);
      const used = (parts * kvHeads) / (round * workers);
      if (layout.lists === 1 || used < FULL_ROUNDS || streams === 2) continue;
      const streamUs = round * ((total + layout.lists * itemUs) / parts + itemUs);
      if (streamUs >= (this.#dividedScore / layout.weight) * STREAM_GAIN) continue;
      if (this.#leastUs(layout, layout.lists, 0) >= this.#limit(layout, STREAM_GAIN)) continue;
      streams++;
      this.#cutter.stream(layout, parts, this.#trial);
      this.#considerDivision(layout, STREAM_GAIN);
    }
    // Only lists longer than a worker's fair share.
    const fair = this.#meanUs(total, layout.lists, 0);
    if (fair < (this.#dividedScore / layout.weight) * 0.99) this.#tryParts(layout, fair, tried);
  }

  /** Each list in equal parts of at most `partUs`, if that number of parts is new and may win. */
  #tryParts(layout: Layout, partUs: number, tried: Tried): void {
    const parts = partsOf(layout, partUs);
    if (tried.parts.includes(parts)) return;
    tried.parts.push(parts);
    // Under a node over all rows of a list more parts leave more partials, as a rule.
    const known = !layout.severable && parts >= tried.partialParts;
    const least = this.#leastUs(layout, parts, known ? tried.partials : 0);
    if (least >= this.#limit(layout, 1)) return;
    this.#cutter.evenly(layout, partUs, this.#trial);
    this.#considerDivision(layout, 1);
    if (this.#pricer.partials <= tried.partials) return;
    tried.partials = this.#pricer.partials;
    tried.partialParts = parts;
  }

  /** A worker's mean time if the layout is divided into `parts`, fewer where cuts are too few. */
  #leastUs(layout: Layout, parts: number, partials: number): number {
    const most = layout.tokens / this.#cutter.cutTokens + layout.segments;
    const us = layout.segmentUs[layout.segments] - layout.spareUs;
    return this.#meanUs(us, Math.min(parts, most), partials) + layout.mergeUs;
  }

  /** A worker's mean time for segments of so many us, in so many pieces with so many partials. */
  #meanUs(segmentsUs: number, pieces: number, partials: number): number {
    const { itemUs, partialUs } = this.#cost;
    const us = segmentsUs + pieces * itemUs + partials * partialUs;
    return (us * this.spec.kvHeads) / this.spec.workers;
  }

  /**
   * The makespan from which on a division of the layout is of no use.
   * @param gain factor by which it must be better than divisions before it.
   */
  #limit(layout: Layout, gain: number): number {
    return Math.min(this.#bestScore, this.#dividedScore * gain) / layout.weight;
  }

  #considerDivision(layout: Layout, gain: number): void {
    this.#consider(layout, gain);
    if (this.#fresh) this.#dividedScore = this.#bestScore;
  }

  /** Prices the trial and keeps it if its makespan is below the layout's limit. */
  #consider(layout: Layout, gain: number): void {
    this.#fresh = false;
    this.#pricer.count(layout, this.#trial);
    const { partials } = this.#pricer;
    const mergeUs = partials > 0 ? this.#cost.mergeUs : 0;
    const limit = this.#limit(layout, gain) - mergeUs;
    const least = layout.segmentUs[layout.segments] - layout.spareUs;
    if (this.#meanUs(least, this.#trial.count, partials) >= limit) return;
    this.#pricer.price(layout, this.#trial, limit);
    const us = this.#scheduler.makespan(this.#trial, limit);
    this.#fresh = us < limit;
    if (!this.#fresh) return;
    this.#bestUs = us + mergeUs;
    this.#bestScore = this.#bestUs * layout.weight;
    this.#bestLayout = layout;
    [this.#best, this.#trial] = [this.#trial, this.#best];
  }
}

/** Plans one step from scratch; use a `Planner` to plan many. */
export function makePlan(forest: Forest, spec: PlanSpec): ReusablePlan {
  return new Planner(spec).plan(forest);
}
