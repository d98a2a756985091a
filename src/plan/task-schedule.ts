/**
 * Scheduling: units (pieces that stay together) x KV heads go to workers, longest processing time
 * first. Every KV head has the same units, so only the units are sorted. Equal costs keep their
 * place in the lists, so that all tiles that read one part of a shared node run at the same time
 * and it comes from memory once (head after head, as the heads' KV differ). A flat plan runs
 * request after request, as a decoder does that knows of no sharing.
 * @module
 */

import type { IntBlock } from './int-block.ts';
import { roomFor } from './layout.ts';
import type { PlanOptions } from './plan.ts';
import type { Pieces } from './task-division.ts';

/** Costs within 1/64 of the largest count as equal. */
const COST_STEPS = 64;

/** Finds makespans and assignments; holds the scratch arrays. */
export class TaskScheduler {
  readonly #heads: number;
  readonly #workers: number;
  readonly #longestFirst: boolean;
  readonly #headsTogether: boolean;
  readonly #load: Float64Array;
  readonly #heap: Int32Array;
  /** (units) cost step, counted down from the largest. */
  #step = new Int32Array(0);
  /** (units) units in order; scratch for sorting. */
  #sorted = new Int32Array(0);
  #byPlace = new Int32Array(0);
  #starts = new Int32Array(0);
  /** (units x heads) unit and head in the order of assignment, and the worker of each. */
  unit = new Int32Array(0);
  head = new Int32Array(0);
  worker = new Int32Array(0);

  constructor(heads: number, workers: number, options: PlanOptions) {
    this.#heads = heads;
    this.#workers = workers;
    this.#longestFirst = options.scheduling;
    this.#headsTogether = options.flat;
    this.#load = new Float64Array(workers);
    this.#heap = new Int32Array(workers);
  }

  /** (workers) estimated load of each worker after `assign`, in us. */
  get load(): Float64Array {
    return this.#load;
  }

  /** True if the last `makespan` left the assignment in `unit`, `head` and `worker`. */
  assigned = false;

  /**
   * The makespan in us; the assignment itself is only made where it takes one to know.
   * @param limit a makespan of this or more is of no use: any number from there on may come back.
   */
  makespan(pieces: Pieces, limit: number): number {
    this.assigned = false;
    const { mostUs, leastUs, totalUs } = pieces;
    const items = pieces.units * this.#heads;
    if (this.#longestFirst && items <= this.#workers) return mostUs;
    // Some worker has at least this many items, and some worker at least the mean load.
    const rounds = Math.ceil(items / this.#workers);
    const mean = (totalUs * this.#heads) / this.#workers;
    const bound = Math.max(mostUs, rounds * leastUs, mean);
    if (bound >= limit) return bound;
    this.assigned = true;
    return this.assign(pieces, limit);
  }

  /** Fills `unit`, `head` and `worker` and returns the makespan in us; `limit` as in `makespan`. */
  assign(pieces: Pieces, limit = Number.POSITIVE_INFINITY): number {
    const count = pieces.units * this.#heads;
    this.unit = roomFor(this.unit, count);
    this.head = roomFor(this.head, count);
    this.worker = roomFor(this.worker, count);
    this.#load.fill(0);
    if (!this.#longestFirst) return this.#roundRobin(pieces);
    this.#sort(pieces);
    this.#order(pieces);
    return this.#leastLoaded(pieces, count, limit);
  }

  #roundRobin(pieces: Pieces): number {
    let most = 0;
    let worker = 0;
    let item = 0;
    for (let unit = 0; unit < pieces.units; unit++) {
      for (let head = 0; head < this.#heads; head++, item++) {
        this.unit[item] = unit;
        this.head[item] = head;
        this.worker[item] = worker;
        this.#load[worker] += pieces.unitUs[unit];
        if (this.#load[worker] > most) most = this.#load[worker];
        worker = worker + 1 === this.#workers ? 0 : worker + 1;
      }
    }
    return most;
  }

  /** Sorts the units: cost falling, then place in the list, then list (two stable passes). */
  #sort(pieces: Pieces): void {
    const { units, unitUs, unitPiece, order, mostUs } = pieces;
    this.#step = roomFor(this.#step, units);
    this.#sorted = roomFor(this.#sorted, units);
    this.#byPlace = roomFor(this.#byPlace, units);
    const scale = mostUs > 0 ? COST_STEPS / mostUs : 0;
    let places = 0;
    for (let unit = 0; unit < units; unit++) {
      this.#step[unit] = COST_STEPS - Math.floor(unitUs[unit] * scale);
      const place = order[unitPiece[unit]];
      if (place > places) places = place;
    }
    this.#starts = roomFor(this.#starts, Math.max(places, COST_STEPS) + 2);
    const [starts, byPlace] = [this.#starts.fill(0, 0, places + 2), this.#byPlace];
    for (let unit = 0; unit < units; unit++) starts[order[unitPiece[unit]] + 1]++;
    for (let place = 0; place < places; place++) starts[place + 1] += starts[place];
    for (let unit = 0; unit < units; unit++) byPlace[starts[order[unitPiece[unit]]]++] = unit;
    starts.fill(0, 0, COST_STEPS + 2);
    for (let unit = 0; unit < units; unit++) starts[this.#step[unit] + 1]++;
    for (let step = 0; step < COST_STEPS; step++) starts[step + 1] += starts[step];
    for (let i = 0; i < units; i++) this.#sorted[starts[this.#step[byPlace[i]]]++] = byPlace[i];
  }

  /** Lays out the items: units of equal cost and place go head by head, or unit by unit. */
  #order(pieces: Pieces): void {
    const { units, unitPiece, order } = pieces;
    const [sorted, step, heads] = [this.#sorted, this.#step, this.#heads];
    let item = 0;
    for (let begin = 0; begin < units; ) {
      const first = sorted[begin];
      const place = order[unitPiece[first]];
      let end = begin + 1;
      for (; end < units; end++) {
        const unit = sorted[end];
        if (step[unit] !== step[first] || order[unitPiece[unit]] !== place) break;
      }
      const together = this.#headsTogether ? 1 : end - begin;
      for (; begin < end; begin += together) {
        for (let head = 0; head < heads; head++) {
          for (let i = begin; i < begin + together; i++, item++) {
            this.unit[item] = sorted[i];
            this.head[item] = head;
          }
        }
      }
    }
  }

  /** Each item to the worker that is free first; a binary heap over the loads. */
  #leastLoaded(pieces: Pieces, count: number, limit: number): number {
    const [heap, load, workers] = [this.#heap, this.#load, this.#workers];
    const [unit, worker, unitUs] = [this.unit, this.worker, pieces.unitUs];
    const first = Math.min(count, workers);
    for (let i = 0; i < first; i++) {
      worker[i] = i;
      load[i] = unitUs[unit[i]];
    }
    let most = pieces.mostUs;
    if (count <= workers) return most;
    // Costs fall, so the workers in reverse order are nearly a heap after their first item.
    for (let i = 0; i < workers; i++) heap[i] = workers - 1 - i;
    for (let i = (workers >> 1) - 1; i >= 0; i--) siftDown(heap, load, i);
    for (let i = workers; i < count && most < limit; i++) {
      const next = heap[0];
      worker[i] = next;
      load[next] += unitUs[unit[i]];
      if (load[next] > most) most = load[next];
      siftDown(heap, load, 0);
    }
    return most;
  }
}

function siftDown(heap: Int32Array, load: Float64Array, from: number): void {
  const size = heap.length;
  const worker = heap[from];
  const own = load[worker];
  let at = from;
  for (let child = 2 * at + 1; child < size; child = 2 * at + 1) {
    if (child + 1 < size && load[heap[child + 1]] < load[heap[child]]) child++;
    if (load[heap[child]] >= own) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = worker;
}

/** Schedule arrays of the plan: each worker's items, task = piece, in order of assignment. */
export function scheduleItems(
  pieces: Pieces,
  scheduler: TaskScheduler,
  heads: number,
  workers: number,
  ints: IntBlock,
): { workerItem: Int32Array; schedule: Int32Array } {
  const count = pieces.units * heads;
  const { unitPiece } = pieces;
  const { unit, head, worker } = scheduler;
  const workerItem = ints.take(workers + 1);
  const schedule = ints.take(pieces.count * heads);
  for (let i = 0; i < count; i++) {
    workerItem[worker[i] + 1] += unitPiece[unit[i] + 1] - unitPiece[unit[i]];
  }
  for (let w = 0; w < workers; w++) workerItem[w + 1] += workerItem[w];
  const next = workerItem.slice(0, workers);
  for (let i = 0; i < count; i++) {
    const end = unitPiece[unit[i] + 1];
    for (let piece = unitPiece[unit[i]]; piece < end; piece++) {
      schedule[next[worker[i]]++] = piece * heads + head[i];
    }
  }
  return { workerItem, schedule };
}
