/**
 * A plan as the kernel reads it: one block of 32-bit words, copied to a fixed device address.
 * The layout is that of kernels/plan-image.cuh. Workers' records come first and hold their first
 * item and its first entries, so that a block's first KV copies wait for one read only. Tasks with
 * growing leaves have room for more entries, which plan-growth.ts fills in over the steps.
 * @module
 */
import { assert } from '../../base/errors.ts';
import type { Forest } from '../../kvcache/forest.ts';
import { OPEN_END, type Plan } from '../../plan/plan.ts';

/** Sizes in 32-bit words, as in plan-image.cuh. */
export const WORKER_WORDS = 144;
export const WORKER_FIRST_ITEM = 8;
export const WORKER_ENTRIES = 16;
export const FIRST_ENTRIES = 32;
export const ITEM_WORDS = 8;
export const ENTRY_WORDS = 4;
const ROW_WORDS = 2;
const MERGE_WORDS = 4;
export const UNIT_TOKENS = 16;
const NARROW = 1 << 17;
/** Entries of a tile of 64 tokens. */
const TILE_ENTRIES = 4;
/** Consumer warps of a block; the queue of entries that are for more than one of them. */
const WARPS = 8;
const WIDE = WARPS;
/** us of one entry by one warp alone, and of a tile by both groups of warps taking turns. */
const NARROW_US = 0.35;
/** Partials of a row up to which one worker merges all query heads of its KV head. */
const TOGETHER_MAX = 24;
const WIDE_US = 0.6;
export const CAUSAL = 1 << 16;
/** Units by which the leaf of an open segment may grow before a new image is needed. */
const GROWTH_UNITS = 4;

/** What the image depends on besides the plan. */
export interface ImageShape {
  readonly pageSize: number;
  /** Query heads of one KV head. */
  readonly groupSize: number;
  /** Rows of one group of consumer warps: a task with more is shared by two. */
  readonly groupRows: number;
  /** True if warps compute by themselves on what is for their rows alone. */
  readonly narrow: boolean;
  /** True if a sliding window makes every entry compare positions. */
  readonly window?: boolean;
}

/** All arrays are valid until the next call of the same builder. */
export interface PlanImage {
  readonly words: Int32Array;
  /** Partial slots and merge counters that the launch needs. */
  readonly slots: number;
  readonly merges: number;
  /** Words at which items and entries begin. */
  readonly items: number;
  readonly entries: number;
  /** (tasks + 1) first entry of each task, room for growth included; (tasks) entries in use. */
  readonly taskEntry: Int32Array;
  readonly taskCount: Int32Array;
  /** True if leaves may grow: then no row is beyond the end of its open segments. */
  readonly growable: boolean;
}

/** Builds images; keeps its memory between calls. */
export class PlanImageBuilder {
  #words: Int32Array = new Int32Array(0);
  readonly #shape: ImageShape;
  readonly #queues: number[][] = Array.from({ length: WIDE + 1 }, () => []);
  #scratch = new Int32Array(0);
  readonly #target: (words: number) => Int32Array;
  #taskEntry = new Int32Array(0);
  #taskCount = new Int32Array(0);
  /** (tasks) 1 if warps compute by themselves on what is for their rows alone. */
  #taskAlone = new Uint8Array(0);
  #taskPartials = new Int32Array(0);
  #growable = true;

  /** @param target gives memory for so many words, asked once a build. */
  constructor(shape: ImageShape, target = (words: number): Int32Array => new Int32Array(words)) {
    this.#shape = shape;
    this.#target = target;
  }

  build(plan: Plan, forest: Forest): PlanImage {
    const entryTotal = this.#countEntries(plan, forest);
    const items = plan.workers * WORKER_WORDS;
    const merges = items + plan.items * ITEM_WORDS;
    const entries = merges + plan.merges * plan.kvHeads * MERGE_WORDS;
    const rows = entries + entryTotal * ENTRY_WORDS;
    const total = rows + plan.taskDestination[plan.tasks] * ROW_WORDS;
    this.#words = this.#target(total);

    this.#writeEntries(plan, forest, entries);
    this.#writeRows(plan, rows);
    this.#writeItems(plan, items, entries, rows);
    this.#writeMerges(plan, merges);
    return {
      words: this.#words.subarray(0, total),
      slots: plan.slots,
      merges: plan.merges,
      items,
      entries,
      taskEntry: this.#taskEntry,
      taskCount: this.#taskCount,
      growable: this.#growable,
    };
  }

  /** Flags of an entry that is added to a task for an interval of its rows. */
  addedFlags(task: number, low: number, high: number): number {
    return this.#taskAlone[task] === 1 && this.#queueOf(low, high) < WIDE
      ? CAUSAL | NARROW
      : CAUSAL;
  }

  /** Fills taskEntry (tasks + 1) with running counts, room included; returns the total. */
  #countEntries(plan: Plan, forest: Forest): number {
    if (this.#taskEntry.length <= plan.tasks) {
      this.#taskEntry = new Int32Array(plan.tasks * 2 + 1);
      this.#taskCount = new Int32Array(plan.tasks * 2);
      this.#taskAlone = new Uint8Array(plan.tasks * 2);
    }
    let total = 0;
    for (let task = 0; task < plan.tasks; task++) {
      this.#taskEntry[task] = total;
      for (let s = plan.taskSegment[task]; s < plan.taskSegment[task + 1]; s++) {
        const slot = forest.firstSlot[plan.segmentNode[s]];
        const end = slot + segmentEnd(plan, forest, s);
        const first = Math.floor((slot + plan.segmentBegin[s]) / UNIT_TOKENS);
        total += Math.max(0, Math.ceil(end / UNIT_TOKENS) - first);
        if (plan.segmentEnd[s] === OPEN_END) total += GROWTH_UNITS;
      }
    }
    this.#taskEntry[plan.tasks] = total;
    return total;
  }

  #writeEntries(plan: Plan, forest: Forest, at: number): void {
    const words = this.#words;
    const units = this.#shape.pageSize / UNIT_TOKENS;
    this.#growable = true;
    for (let task = 0; task < plan.tasks; task++) {
      const taskRow = plan.taskRowBegin[task];
      const taskAt = at + this.#taskEntry[task] * ENTRY_WORDS;
      let out = taskAt;
      for (let s = plan.taskSegment[task]; s < plan.taskSegment[task + 1]; s++) {
        const node = plan.segmentNode[s];
        const slot = forest.firstSlot[node];
        const begin = slot + plan.segmentBegin[s];
        const end = slot + segmentEnd(plan, forest, s);
        const rowBegin = plan.segmentRowBegin[s];
        const rowEnd = plan.segmentRowEnd[s];
        const rows = (rowBegin - taskRow) | ((rowEnd - taskRow) << 16);
        const position = forest.start[node] - slot;
        const causalFrom = this.#shape.window
          ? 0
          : leastPosition(forest, rowBegin, rowEnd) - position;
        const pages = forest.pageBegin[node];
        const open = plan.segmentEnd[s] === OPEN_END && this.#seesNoMore(forest, s, plan);
        for (let unit = Math.floor(begin / UNIT_TOKENS); unit * UNIT_TOKENS < end; unit++) {
          const first = unit * UNIT_TOKENS;
          const page = forest.pages[pages + Math.floor(unit / units)];
          const low = begin > first ? begin - first : 0;
          /* Positions end a growing unit, not its count: they are renewed in every step. */
          const high = end - first < UNIT_TOKENS && !open ? end - first : UNIT_TOKENS;
          words[out] = page * units + (unit % units);
          words[out + 1] = position + first;
          words[out + 2] = rows;
          words[out + 3] = low | (high << 8) | (first + high - 1 > causalFrom ? CAUSAL : 0);
          out += ENTRY_WORDS;
        }
      }
      const shared = plan.taskRowEnd[task] - taskRow > this.#shape.groupRows;
      this.#taskCount[task] = (out - taskAt) / ENTRY_WORDS;
      this.#taskAlone[task] = this.#alternate(taskAt, out, shared) ? 1 : 0;
    }
  }

  /** Whether an open segment's rows are all within its node; else its end must be written down. */
  #seesNoMore(forest: Forest, segment: number, plan: Plan): boolean {
    const node = plan.segmentNode[segment];
    const end = forest.start[node] + forest.length[node];
    for (let row = plan.segmentRowBegin[segment]; row < plan.segmentRowEnd[segment]; row++) {
      if (forest.rowPosition[row] >= end) this.#growable = false;
    }
    return this.#growable;
  }

  /**
   * Puts a task's entries into the order in which all warps are busy: first what is for many rows,
   * then what is for the rows of one warp or two, one entry for each warp in turn. Where warps
   * do not compute by themselves, their groups take turns, a tile each. Returns whether they do.
   */
  #alternate(from: number, to: number, shared: boolean): boolean {
    const words = this.#words;
    if (this.#scratch.length < to - from) this.#scratch = new Int32Array((to - from) * 2);
    const old = this.#scratch.subarray(0, to - from);
    old.set(words.subarray(from, to));
    const queues = this.#queues;
    for (const queue of queues) queue.length = 0;
    let out = from;
    let longest = 0;
    for (let at = 0; at < old.length; at += ENTRY_WORDS) {
      const queue = this.#queueOf(old[at + 2] & 0xffff, old[at + 2] >>> 16);
      queues[queue].push(at);
      if (queue < WIDE && queues[queue].length > longest) longest = queues[queue].length;
    }
    const wide = queues[WIDE];
    const narrow = old.length / ENTRY_WORDS - wide.length;
    const narrowUs = (longest * NARROW_US) / (shared ? 1 : 2);
    const alone = this.#shape.narrow && narrowUs < (narrow / TILE_ENTRIES) * WIDE_US;
    if (!alone && !shared) return false;
    const copy = (at: number, flag: number): void => {
      for (let k = 0; k < ENTRY_WORDS; k++) words[out++] = old[at + k];
      words[out - 1] |= flag;
    };
    for (const at of wide) copy(at, 0);
    if (alone) {
      for (let i = 0; i < longest; i++) {
        for (let queue = 0; queue < WIDE; queue++) {
          if (i < queues[queue].length) copy(queues[queue][i], NARROW);
        }
      }
      return true;
    }
    const half = WIDE / 2;
    const sides = [queues.slice(0, half).flat(), queues.slice(half, WIDE).flat()];
    for (let i = 0; i < Math.max(sides[0].length, sides[1].length); i += TILE_ENTRIES) {
      for (const side of sides) for (const at of side.slice(i, i + TILE_ENTRIES)) copy(at, 0);
    }
    return false;
  }

  /** Number of the warp that the rows belong to, or WIDE. */
  #queueOf(low: number, high: number): number {
    const { groupRows, groupSize } = this.#shape;
    const group = low >= groupRows ? 1 : 0;
    if (group === 0 && high > groupRows) return WIDE;
    const base = group * groupRows;
    const first = ((low - base) * groupSize) >> 4;
    const last = ((high - base) * groupSize - 1) >> 4;
    /* One row's query heads may lie across a border of warps. */
    if (last === first || (last === first + 1 && high - low === 1)) return group * 4 + first;
    return this.#shape.narrow ? WIDE : group * 4;
  }

  #writeRows(plan: Plan, at: number): void {
    const words = this.#words;
    const mergeOf = new Int32Array(plan.rows).fill(-1);
    for (let m = 0; m < plan.merges; m++) mergeOf[plan.mergeRow[m]] = m;
    if (this.#taskPartials.length < plan.tasks) {
      this.#taskPartials = new Int32Array(plan.tasks * 2);
    }
    let out = at;
    for (let task = 0; task < plan.tasks; task++) {
      const first = plan.taskDestination[task];
      const rows = plan.taskRowEnd[task] - plan.taskRowBegin[task];
      let partials = 0;
      for (let r = 0; r < rows; r++) {
        if (plan.destination[first + r] >= 0) partials++;
        words[out] = plan.destination[first + r];
        words[out + 1] = mergeOf[plan.taskRowBegin[task] + r];
        out += ROW_WORDS;
      }
      this.#taskPartials[task] = partials;
    }
  }

  #writeItems(plan: Plan, at: number, entries: number, rows: number): void {
    const words = this.#words;
    assert(entries % ENTRY_WORDS === 0 && rows % ROW_WORDS === 0, 'records must be aligned');
    for (let worker = 0; worker < plan.workers; worker++) {
      const base = worker * WORKER_WORDS;
      const first = plan.workerItem[worker];
      const count = plan.workerItem[worker + 1] - first;
      words[base] = at / ITEM_WORDS + first;
      words[base + 1] = count;
      for (let i = first; i < first + count; i++) {
        const task = Math.floor(plan.schedule[i] / plan.kvHeads);
        const out = at + i * ITEM_WORDS;
        words[out] = entries / ENTRY_WORDS + this.#taskEntry[task];
        words[out + 1] = this.#taskCount[task];
        words[out + 2] = plan.taskRowBegin[task];
        words[out + 3] = plan.taskRowEnd[task] - plan.taskRowBegin[task];
        words[out + 4] = plan.schedule[i] % plan.kvHeads;
        words[out + 5] = rows / ROW_WORDS + plan.taskDestination[task];
        words[out + 6] = this.#taskPartials[task];
      }
      if (count === 0) continue;
      const item = at + first * ITEM_WORDS;
      words.copyWithin(base + WORKER_FIRST_ITEM, item, item + ITEM_WORDS);
      const from = words[item] * ENTRY_WORDS;
      const copied = Math.min(FIRST_ENTRIES, words[item + 1]) * ENTRY_WORDS;
      words.copyWithin(base + WORKER_ENTRIES, from, from + copied);
    }
  }

  /** Merges in the order of their rows; every worker gets an equal share of their vectors. */
  #writeMerges(plan: Plan, at: number): void {
    const words = this.#words;
    const total = plan.merges * plan.kvHeads;
    for (let i = 0; i < total; i++) {
      const merge = Math.floor(i / plan.kvHeads);
      const out = at + i * MERGE_WORDS;
      words[out] = plan.mergeRow[merge];
      words[out + 1] = plan.mergeSlot[merge];
      words[out + 2] = plan.mergeCount[merge];
      words[out + 3] = i;
    }
    /* What the warps of one worker can merge at once stays together, else heads are spread. */
    let most = 0;
    for (let merge = 0; merge < plan.merges; merge++) most = Math.max(most, plan.mergeCount[merge]);
    const spread = most > TOGETHER_MAX || this.#shape.groupSize > WARPS;
    const shares = spread ? total * this.#shape.groupSize : total;
    const vectors = spread ? 1 : this.#shape.groupSize;
    for (let worker = 0; worker < plan.workers; worker++) {
      const first = Math.floor((shares * worker) / plan.workers);
      const base = worker * WORKER_WORDS;
      const end = Math.floor((shares * (worker + 1)) / plan.workers);
      words[base + 2] = first * vectors;
      words[base + 3] = (end - first) * vectors;
      words[base + 4] = at / MERGE_WORDS;
    }
  }
}

function segmentEnd(plan: Plan, forest: Forest, segment: number): number {
  const length = forest.length[plan.segmentNode[segment]];
  const end = plan.segmentEnd[segment];
  return end === OPEN_END || end > length ? length : end;
}

function leastPosition(forest: Forest, begin: number, end: number): number {
  let least = forest.rowPosition[begin];
  for (let row = begin + 1; row < end; row++) {
    if (forest.rowPosition[row] < least) least = forest.rowPosition[row];
  }
  return least;
}
