/**
 * The entries of a plan's image: every task's segments as runs of up to 16 tokens of one page, in
 * the order in which all warps of a block are busy. Most of an image is entries, and most of the
 * time of building it.
 * @module
 */
import type { Forest } from '../../kvcache/forest.ts';
import { OPEN_END, type Plan } from '../../plan/plan.ts';

export const ENTRY_WORDS = 4;
export const UNIT_TOKENS = 16;
const CAUSAL = 1 << 16;
const NARROW = 1 << 17;
/** Entries of a tile of 64 tokens. */
const TILE_ENTRIES = 4;
/** Consumer warps of a block; the queue of entries that are for more than one of them. */
export const WARPS = 8;
const WIDE = WARPS;
/** us of one entry by one warp alone, and of a tile by both groups of warps taking turns. */
const NARROW_US = 0.35;
const WIDE_US = 0.6;
/** Entries for many rows, and for few, with which a task is long enough to begin with either. */
const EITHER_FIRST = 28;
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

/** Writes entries; keeps its memory between calls. */
export class EntryWriter {
  /** (tasks + 1) first entry of each task, room for growth included; (tasks) entries in use. */
  taskEntry = new Int32Array(1);
  taskCount = new Int32Array(0);
  /** True if leaves may grow: then no row is beyond the end of its open segments. */
  growable = true;
  readonly #shape: ImageShape;
  /** (tasks) 1 if warps compute by themselves on what is for their rows alone. */
  #taskAlone = new Uint8Array(0);
  /** (segments of the task) queue of each; (queues + 1) entries, then places, of each queue. */
  #queue = new Uint8Array(16);
  readonly #queued = new Int32Array(WIDE + 1);
  readonly #place = new Int32Array(WIDE + 1);
  /** Entries that are put into another order, queue by queue. */
  #scratch = new Int32Array(0);

  constructor(shape: ImageShape) {
    this.#shape = shape;
  }

  /** Flags of an entry that is added to a task for an interval of its rows. */
  addedFlags(task: number, low: number, high: number): number {
    return this.#taskAlone[task] === 1 && this.#queueOf(low, high) < WIDE
      ? CAUSAL | NARROW
      : CAUSAL;
  }

  /** Fills `taskEntry` with running counts, room included; returns the total. */
  count(plan: Plan, forest: Forest): number {
    if (this.taskEntry.length <= plan.tasks) {
      this.taskEntry = new Int32Array(plan.tasks * 2 + 1);
      this.taskCount = new Int32Array(plan.tasks * 2);
      this.#taskAlone = new Uint8Array(plan.tasks * 2);
    }
    let total = 0;
    for (let task = 0; task < plan.tasks; task++) {
      this.taskEntry[task] = total;
      for (let s = plan.taskSegment[task]; s < plan.taskSegment[task + 1]; s++) {
        total += unitsOf(plan, forest, s);
        if (plan.segmentEnd[s] === OPEN_END) total += GROWTH_UNITS;
      }
    }
    this.taskEntry[plan.tasks] = total;
    return total;
  }

  /** Writes all entries, the first one at word `at`; `count` has been called. */
  write(plan: Plan, forest: Forest, words: Int32Array, at: number): void {
    this.growable = true;
    for (let task = 0; task < plan.tasks; task++) {
      const from = at + this.taskEntry[task] * ENTRY_WORDS;
      const to = this.#writeTask(plan, forest, task, words, from);
      this.taskCount[task] = (to - from) / ENTRY_WORDS;
    }
  }

  /**
   * First what is for many rows, then what is for the rows of one warp or two, one entry for each
   * warp in turn. Where warps do not compute by themselves, their groups take turns, a tile each.
   * Every other long task has them the other way round: what is for many rows keeps tensor cores
   * busy, leaves keep memory busy, and multiprocessors that are not in step do both at a time.
   * Returns the word after the last one.
   */
  #writeTask(plan: Plan, forest: Forest, task: number, words: Int32Array, from: number): number {
    const [first, end] = [plan.taskSegment[task], plan.taskSegment[task + 1]];
    const rows = plan.taskRowEnd[task] - plan.taskRowBegin[task];
    const shared = rows > this.#shape.groupRows;
    this.#sort(plan, forest, task);
    const longest = this.#queued.subarray(0, WIDE).reduce((a, b) => Math.max(a, b));
    const narrow = this.#queued.subarray(0, WIDE).reduce((a, b) => a + b);
    const narrowUs = (longest * NARROW_US) / (shared ? 1 : 2);
    const alone = this.#shape.narrow && narrowUs < (narrow / TILE_ENTRIES) * WIDE_US;
    this.#taskAlone[task] = alone ? 1 : 0;
    const inOrder = (!alone && !shared) || narrow === 0;
    if (!inOrder) this.#reserve(narrow);
    const long = Math.min(narrow, this.#queued[WIDE]) >= EITHER_FIRST;
    const leavesFirst = alone && long && task % 2 === 1;
    let out = leavesFirst ? from + narrow * ENTRY_WORDS : from;
    for (let s = first; s < end; s++) {
      const queue = this.#queue[s - first];
      if (inOrder || queue === WIDE) {
        out = this.#emit(plan, forest, task, s, 0, words, out);
      } else {
        const flag = alone ? NARROW : 0;
        const place = this.#place[queue];
        this.#place[queue] = this.#emit(plan, forest, task, s, flag, this.#scratch, place);
      }
    }
    if (inOrder) return out;
    if (leavesFirst) {
      this.#takeTurns(WIDE, 1, words, from);
      return out;
    }
    return alone
      ? this.#takeTurns(WIDE, 1, words, out)
      : this.#takeTurns(2, TILE_ENTRIES, words, out);
  }

  /** Finds the queue of each of a task's segments, and counts the queues' entries. */
  #sort(plan: Plan, forest: Forest, task: number): void {
    const [first, end] = [plan.taskSegment[task], plan.taskSegment[task + 1]];
    const taskRow = plan.taskRowBegin[task];
    if (this.#queue.length < end - first) this.#queue = new Uint8Array((end - first) * 2);
    this.#queued.fill(0);
    for (let s = first; s < end; s++) {
      const low = plan.segmentRowBegin[s] - taskRow;
      const queue = this.#queueOf(low, plan.segmentRowEnd[s] - taskRow);
      this.#queue[s - first] = queue;
      this.#queued[queue] += unitsOf(plan, forest, s);
    }
  }

  /** Makes room for the queues' entries, one queue after the other. */
  #reserve(entries: number): void {
    const words = entries * ENTRY_WORDS;
    if (this.#scratch.length < words) this.#scratch = new Int32Array(words * 2);
    let place = 0;
    for (let queue = 0; queue < WIDE; queue++) {
      this.#place[queue] = place;
      place += this.#queued[queue] * ENTRY_WORDS;
    }
  }

  /**
   * Copies from the queues, taken together as `sides` of equally many, so many entries of each
   * side at a time. Returns the word after the last one.
   */
  #takeTurns(sides: number, entries: number, words: Int32Array, at: number): number {
    const each = WIDE / sides;
    let out = at;
    for (let turn = 0, left = true; left; turn += entries * ENTRY_WORDS) {
      left = false;
      for (let side = 0; side < sides; side++) {
        /* `place` has moved on to the queues' ends. */
        const end = this.#place[side * each + each - 1];
        const begin = side === 0 ? 0 : this.#place[side * each - 1];
        const stop = Math.min(end, begin + turn + entries * ENTRY_WORDS);
        for (let from = begin + turn; from < stop; from++) words[out++] = this.#scratch[from];
        left ||= stop < end;
      }
    }
    return out;
  }

  /** Writes one segment's entries; returns the word after the last one. */
  #emit(
    plan: Plan,
    forest: Forest,
    task: number,
    segment: number,
    flag: number,
    words: Int32Array,
    at: number,
  ): number {
    const units = this.#shape.pageSize / UNIT_TOKENS;
    const node = plan.segmentNode[segment];
    const slot = forest.firstSlot[node];
    const begin = slot + plan.segmentBegin[segment];
    const end = slot + segmentEnd(plan, forest, segment);
    const taskRow = plan.taskRowBegin[task];
    const [rowBegin, rowEnd] = [plan.segmentRowBegin[segment], plan.segmentRowEnd[segment]];
    const rows = (rowBegin - taskRow) | ((rowEnd - taskRow) << 16);
    const position = forest.start[node] - slot;
    const least = this.#shape.window ? -1 : leastPosition(forest, rowBegin, rowEnd) - position;
    const open = plan.segmentEnd[segment] === OPEN_END && this.#seesNoMore(plan, forest, segment);
    const { pages } = forest;
    let unit = Math.floor(begin / UNIT_TOKENS);
    let page = forest.pageBegin[node] + Math.floor(unit / units);
    let within = unit % units;
    let out = at;
    for (; unit * UNIT_TOKENS < end; unit++) {
      const first = unit * UNIT_TOKENS;
      const low = begin > first ? begin - first : 0;
      /* Positions end a growing unit, not its count: they are renewed in every step. */
      const high = end - first < UNIT_TOKENS && !open ? end - first : UNIT_TOKENS;
      words[out] = pages[page] * units + within;
      words[out + 1] = position + first;
      words[out + 2] = rows;
      words[out + 3] = low | (high << 8) | flag | (first + high - 1 > least ? CAUSAL : 0);
      out += ENTRY_WORDS;
      if (++within === units) {
        within = 0;
        page++;
      }
    }
    return out;
  }

  /** Whether an open segment's rows are all within its node; else its end must be written down. */
  #seesNoMore(plan: Plan, forest: Forest, segment: number): boolean {
    const node = plan.segmentNode[segment];
    const end = forest.start[node] + forest.length[node];
    for (let row = plan.segmentRowBegin[segment]; row < plan.segmentRowEnd[segment]; row++) {
      if (forest.rowPosition[row] >= end) this.growable = false;
    }
    return this.growable;
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
}

/** Entries of a segment. */
function unitsOf(plan: Plan, forest: Forest, segment: number): number {
  const slot = forest.firstSlot[plan.segmentNode[segment]];
  const first = Math.floor((slot + plan.segmentBegin[segment]) / UNIT_TOKENS);
  const end = Math.ceil((slot + segmentEnd(plan, forest, segment)) / UNIT_TOKENS);
  return end > first ? end - first : 0;
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
