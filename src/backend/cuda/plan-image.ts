/**
 * A plan as the kernel reads it: one block of 32-bit words, copied to a fixed device address.
 * The layout is that of kernels/plan-image.cuh. Workers' records come first and hold their first
 * item and its first entries, so that a block's first KV copies wait for one read only. Tasks with
 * growing leaves have room for more entries, which plan-growth.ts fills in over the steps.
 * @module
 */
import { assert } from '../../base/errors.ts';
import type { Forest } from '../../kvcache/forest.ts';
import type { Plan } from '../../plan/plan.ts';
import { ENTRY_WORDS, EntryWriter, type ImageShape, WARPS } from './plan-entries.ts';

/** Sizes in 32-bit words, as in plan-image.cuh. */
export const WORKER_WORDS = 144;
export const WORKER_FIRST_ITEM = 8;
export const WORKER_ENTRIES = 16;
export const FIRST_ENTRIES = 32;
export const ITEM_WORDS = 8;
const ROW_WORDS = 2;
const MERGE_WORDS = 4;
/** Partials of a row up to which one worker merges all query heads of its KV head. */
const TOGETHER_MAX = 24;
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
  /** Writes the entries of the last image. */
  readonly entries: EntryWriter;
  readonly #target: (words: number) => Int32Array;
  #taskPartials = new Int32Array(0);

  /** @param target gives memory for so many words, asked once a build. */
  constructor(shape: ImageShape, target = (words: number): Int32Array => new Int32Array(words)) {
    this.#shape = shape;
    this.entries = new EntryWriter(shape);
    this.#target = target;
  }

  build(plan: Plan, forest: Forest): PlanImage {
    const entryTotal = this.entries.count(plan, forest);
    const items = plan.workers * WORKER_WORDS;
    const merges = items + plan.items * ITEM_WORDS;
    const entries = merges + plan.merges * plan.kvHeads * MERGE_WORDS;
    const rows = entries + entryTotal * ENTRY_WORDS;
    const total = rows + plan.taskDestination[plan.tasks] * ROW_WORDS;
    this.#words = this.#target(total);

    this.entries.write(plan, forest, this.#words, entries);
    this.#writeRows(plan, rows);
    this.#writeItems(plan, items, entries, rows);
    this.#writeMerges(plan, merges);
    return {
      words: this.#words.subarray(0, total),
      slots: plan.slots,
      merges: plan.merges,
      items,
      entries,
      taskEntry: this.entries.taskEntry,
      taskCount: this.entries.taskCount,
      growable: this.entries.growable,
    };
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
    const { taskEntry, taskCount } = this.entries;
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
        words[out] = entries / ENTRY_WORDS + taskEntry[task];
        words[out + 1] = taskCount[task];
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
