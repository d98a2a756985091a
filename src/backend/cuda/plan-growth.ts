/**
 * A plan that is used again while its leaves grow: the image on the device is not built again, it
 * only gets the few words that change. How far a row sees follows from its position, which every
 * step renews, so that words change only where a leaf goes on into 16 more tokens: the new entry
 * with its page, and the number of entries of its task's items.
 * @module
 */
import type { Forest } from '../../kvcache/forest.ts';
import { OPEN_END, type Plan } from '../../plan/plan.ts';
import { ENTRY_WORDS, UNIT_TOKENS } from './plan-entries.ts';
import {
  FIRST_ENTRIES,
  ITEM_WORDS,
  type PlanImage,
  type PlanImageBuilder,
  WORKER_ENTRIES,
  WORKER_FIRST_ITEM,
  WORKER_WORDS,
} from './plan-image.ts';

/** More words than this are not sent one by one: a new image costs less. */
const PATCHES_MAX = 1 << 14;

/** A copy of an array of which only the first part counts. */
class Kept {
  values = new Int32Array(0);

  keep(from: Int32Array, count: number): void {
    if (this.values.length < count) this.values = new Int32Array(count * 2);
    this.values.set(from.subarray(0, count));
  }

  equals(other: Int32Array, count: number): boolean {
    if (other.length < count) return false;
    return bytesOf(this.values, count).equals(bytesOf(other, count));
  }
}

const bytesOf = (array: Int32Array, count: number): Buffer =>
  Buffer.from(array.buffer, array.byteOffset, count * 4);

/** Follows one image over the steps that use it. */
export class PlanGrowth {
  /** (word of the image, new value) pairs of the last `follow`. */
  readonly patches = new Int32Array(PATCHES_MAX * 2);
  readonly #builder: PlanImageBuilder;
  readonly #pageUnits: number;
  #plan: Plan | undefined;
  #image: PlanImage | undefined;
  #rows = 0;
  #nodes = 0;
  readonly #position = new Kept();
  readonly #start = new Kept();
  readonly #length = new Kept();
  readonly #slot = new Kept();
  readonly #pageBegin = new Kept();
  readonly #pages = new Kept();
  /** True once the lists below are filled: only when a leaf grows into a new unit. */
  #listed = false;
  /** (nodes) first open segment, -1 for none; (segments) the next one of the node, and its task. */
  #firstOpen = new Int32Array(0);
  #nextOpen = new Int32Array(0);
  #segmentTask = new Int32Array(0);
  /** (task * kvHeads + head) place in the schedule; (places) worker that begins there, or -1. */
  #itemPlace = new Int32Array(0);
  #workerAt = new Int32Array(0);
  readonly #touched: number[] = [];
  #count = 0;
  /** Rows that moved since the last step, less those of leaves that grew. */
  #moved = 0;

  constructor(builder: PlanImageBuilder, pageSize: number) {
    this.#builder = builder;
    this.#pageUnits = pageSize / UNIT_TOKENS;
  }

  /** Remembers what an image was built for. The image's arrays must stay as they are. */
  begin(plan: Plan, forest: Forest, image: PlanImage): void {
    const { nodes, rows } = forest;
    this.#plan = plan;
    this.#image = image;
    this.#rows = rows;
    this.#nodes = nodes;
    this.#position.keep(forest.rowPosition, rows);
    this.#start.keep(forest.start, nodes);
    this.#length.keep(forest.length, nodes);
    this.#slot.keep(forest.firstSlot, nodes);
    this.#pageBegin.keep(forest.pageBegin, nodes + 1);
    this.#pages.keep(forest.pages, Math.min(forest.pageBegin[nodes], forest.pages.length));
    this.#listed = false;
  }

  /** The next plan gets an image of its own, whatever it is. */
  forget(): void {
    this.#plan = undefined;
  }

  /**
   * Brings the image up to date with a forest whose leaves have grown. Returns the number of
   * patches, or -1 if the plan or the forest differs in more than that or room has run out: then
   * a new image is needed, and `begin`.
   */
  follow(plan: Plan, forest: Forest): number {
    this.#count = 0;
    if (this.#plan !== plan || !this.#sameShape(forest) || !this.#grow(forest)) {
      this.#plan = undefined;
      return -1;
    }
    this.#position.keep(forest.rowPosition, forest.rows);
    return this.#count;
  }

  #sameShape(forest: Forest): boolean {
    const { nodes, rows } = forest;
    if (nodes !== this.#nodes || rows !== this.#rows) return false;
    this.#moved = 0;
    for (let row = 0; row < rows; row++) {
      if (forest.rowPosition[row] !== this.#position.values[row]) this.#moved++;
    }
    return (
      this.#start.equals(forest.start, nodes) &&
      this.#slot.equals(forest.firstSlot, nodes) &&
      this.#pageBegin.equals(forest.pageBegin, nodes + 1)
    );
  }

  /** False if anything but open leaves grew, or something grew out of its room. */
  #grow(forest: Forest): boolean {
    const { nodes } = forest;
    const length = this.#length.values;
    this.#touched.length = 0;
    for (let node = 0; node < nodes; node++) {
      if (forest.length[node] === length[node]) continue;
      if (forest.length[node] < length[node] || !this.#growNode(forest, node)) return false;
      length[node] = forest.length[node];
    }
    for (const task of this.#touched) this.#patchCounts(task);
    /* Last, as growing has put the new pages into the copy. */
    return (
      this.#moved === 0 &&
      this.#count <= PATCHES_MAX &&
      this.#pages.equals(forest.pages, Math.min(forest.pageBegin[nodes], forest.pages.length))
    );
  }

  #growNode(forest: Forest, node: number): boolean {
    const image = this.#image as PlanImage;
    if (!image.growable) return false;
    this.#list();
    let segment = this.#firstOpen[node];
    if (segment < 0) return false;
    const slot = forest.firstSlot[node];
    const before = Math.ceil((slot + this.#length.values[node]) / UNIT_TOKENS);
    const after = Math.ceil((slot + forest.length[node]) / UNIT_TOKENS);
    const end = forest.start[node] + forest.length[node];
    for (let row = forest.rowBegin[node]; row < forest.rowEnd[node]; row++) {
      const position = forest.rowPosition[row];
      if (position >= end || position < this.#position.values[row]) return false;
      if (position > this.#position.values[row]) this.#moved--;
    }
    for (; segment >= 0; segment = this.#nextOpen[segment]) {
      const task = this.#segmentTask[segment];
      const room = image.taskEntry[task + 1] - image.taskEntry[task] - image.taskCount[task];
      if (after - before > room) return false;
      if (after > before && this.#touched.at(-1) !== task) this.#touched.push(task);
      for (let unit = before; unit < after; unit++) this.#add(forest, segment, task, unit);
    }
    return true;
  }

  /** One more unit of an open segment, at the end of its task's entries. */
  #add(forest: Forest, segment: number, task: number, unit: number): void {
    const plan = this.#plan as Plan;
    const image = this.#image as PlanImage;
    const node = plan.segmentNode[segment];
    const slot = forest.firstSlot[node];
    const page = forest.pageBegin[node] + Math.floor(unit / this.#pageUnits);
    this.#pages.values[page] = forest.pages[page];
    const [low, high] = [plan.segmentRowBegin[segment], plan.segmentRowEnd[segment]];
    const taskRow = plan.taskRowBegin[task];
    const begin = slot + plan.segmentBegin[segment] - unit * UNIT_TOKENS;
    const flags = this.#builder.entries.addedFlags(task, low - taskRow, high - taskRow);
    const index = image.taskCount[task]++;
    const entry = [
      forest.pages[page] * this.#pageUnits + (unit % this.#pageUnits),
      forest.start[node] - slot + unit * UNIT_TOKENS,
      (low - taskRow) | ((high - taskRow) << 16),
      Math.max(0, begin) | (UNIT_TOKENS << 8) | flags,
    ];
    this.#patchEntry(image.entries + (image.taskEntry[task] + index) * ENTRY_WORDS, entry);
    if (index >= FIRST_ENTRIES) return;
    for (let head = 0; head < plan.kvHeads; head++) {
      const worker = this.#workerAt[this.#itemPlace[task * plan.kvHeads + head]];
      if (worker < 0) continue;
      this.#patchEntry(worker * WORKER_WORDS + WORKER_ENTRIES + index * ENTRY_WORDS, entry);
    }
  }

  #patchEntry(at: number, entry: readonly number[]): void {
    for (let k = 0; k < ENTRY_WORDS; k++) this.#patch(at + k, entry[k]);
  }

  /** The number of a task's entries, wherever an item of it stands. */
  #patchCounts(task: number): void {
    const { kvHeads } = this.#plan as Plan;
    const { items, taskCount } = this.#image as PlanImage;
    for (let head = 0; head < kvHeads; head++) {
      const place = this.#itemPlace[task * kvHeads + head];
      this.#patch(items + place * ITEM_WORDS + 1, taskCount[task]);
      const worker = this.#workerAt[place];
      if (worker < 0) continue;
      this.#patch(worker * WORKER_WORDS + WORKER_FIRST_ITEM + 1, taskCount[task]);
    }
  }

  /** Past the end of `patches` nothing is written; `follow` tells by the count. */
  #patch(word: number, value: number): void {
    this.patches[this.#count * 2] = word;
    this.patches[this.#count * 2 + 1] = value;
    this.#count++;
  }

  /** Fills the lists that lead from a node to its entries' places. */
  #list(): void {
    if (this.#listed) return;
    this.#listed = true;
    const plan = this.#plan as Plan;
    if (this.#firstOpen.length < this.#nodes) this.#firstOpen = new Int32Array(this.#nodes * 2);
    if (this.#nextOpen.length < plan.segments) {
      this.#nextOpen = new Int32Array(plan.segments * 2);
      this.#segmentTask = new Int32Array(plan.segments * 2);
    }
    this.#firstOpen.fill(-1, 0, this.#nodes);
    for (let task = 0; task < plan.tasks; task++) {
      for (let s = plan.taskSegment[task]; s < plan.taskSegment[task + 1]; s++) {
        if (plan.segmentEnd[s] !== OPEN_END) continue;
        this.#segmentTask[s] = task;
        this.#nextOpen[s] = this.#firstOpen[plan.segmentNode[s]];
        this.#firstOpen[plan.segmentNode[s]] = s;
      }
    }
    if (this.#itemPlace.length < plan.items) {
      this.#itemPlace = new Int32Array(plan.items * 2);
      this.#workerAt = new Int32Array(plan.items * 2);
    }
    this.#workerAt.fill(-1, 0, plan.items);
    for (let place = 0; place < plan.items; place++) this.#itemPlace[plan.schedule[place]] = place;
    for (let worker = 0; worker < plan.workers; worker++) {
      const place = plan.workerItem[worker];
      if (plan.workerItem[worker + 1] > place) this.#workerAt[place] = worker;
    }
  }
}
