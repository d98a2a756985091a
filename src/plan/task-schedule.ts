/**
 * Scheduling: units (pieces that stay together) x KV heads go to workers, longest processing time
 * first. Every KV head has the same units, so only the units are sorted. Equal costs keep their
 * place in the lists, so that all tiles that read one part of a shared node run at the same time
 * and it comes from memory once (head after head, as the heads' KV differ). A flat plan runs
 * request after request, as a decoder does that knows of no sharing.
 * @module
 */
import type { PlanOptions } from './plan.ts';
import { roomFor, roomForFloats } from './row-tiling.ts';
import type { Pieces } from './task-division.ts';

/** Costs within 1/64 of the largest count as equal. */
const COST_STEPS = 64;

/** Finds makespans and assignments; holds the scratch arrays. */
export class TaskScheduler {
  readonly #heads: number;
  readonly #workers: number;
  readonly #longestFirst: boolean;
  readonly #headsTogether: boolean;
  #keys = new Float64Array(0);
  readonly #load: Float64Array;
  readonly #heap: Int32Array;
  /** (units x heads) unit * heads + head in the order of assignment, and the worker of each. */
  order = new Int32Array(0);
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

  /** True if the last `makespan` left the assignment in `order` and `worker`. */
  assigned = false;

  /** The makespan in us; the assignment itself is only made where it takes one to know. */
  makespan(pieces: Pieces): number {
    this.assigned = pieces.units * this.#heads > this.#workers || !this.#longestFirst;
    if (this.assigned) return this.assign(pieces);
    let most = 0;
    for (let unit = 0; unit < pieces.units; unit++) {
      if (pieces.unitUs[unit] > most) most = pieces.unitUs[unit];
    }
    return most;
  }

  /** Fills `order` and `worker` and returns the makespan in us. */
  assign(pieces: Pieces): number {
    const count = pieces.units * this.#heads;
    this.order = roomFor(this.order, count);
    this.worker = roomFor(this.worker, count);
    this.#load.fill(0);
    if (!this.#longestFirst) return this.#roundRobin(pieces, count);
    this.#sort(pieces);
    return this.#leastLoaded(pieces, count);
  }

  #roundRobin(pieces: Pieces, count: number): number {
    let most = 0;
    for (let i = 0; i < count; i++) {
      const worker = i % this.#workers;
      this.order[i] = i;
      this.worker[i] = worker;
      this.#load[worker] += pieces.unitUs[Math.floor(i / this.#heads)];
      if (this.#load[worker] > most) most = this.#load[worker];
    }
    return most;
  }

  /** Orders the items: cost falling, then place in the list, then head and list. */
  #sort(pieces: Pieces): void {
    const { units, unitUs, unitPiece, order } = pieces;
    let most = 0;
    for (let unit = 0; unit < units; unit++) if (unitUs[unit] > most) most = unitUs[unit];
    this.#keys = roomForFloats(this.#keys, units);
    const keys = this.#keys.subarray(0, units);
    const step = most > 0 ? COST_STEPS / most : 0;
    for (let unit = 0; unit < units; unit++) {
      const cost = COST_STEPS - Math.floor(unitUs[unit] * step);
      const place = Math.min(order[unitPiece[unit]], 0xffff);
      keys[unit] = (cost * 0x10000 + place) * 0x1000000 + unit;
    }
    keys.sort();
    let item = 0;
    for (let begin = 0; begin < units; ) {
      const group = Math.floor(keys[begin] / 0x1000000);
      let end = begin + 1;
      while (end < units && Math.floor(keys[end] / 0x1000000) === group) end++;
      const length = end - begin;
      for (let i = 0; i < length * this.#heads; i++) {
        const unit = begin + (this.#headsTogether ? Math.floor(i / this.#heads) : i % length);
        const head = this.#headsTogether ? i % this.#heads : Math.floor(i / length);
        this.order[item++] = (keys[unit] % 0x1000000) * this.#heads + head;
      }
      begin = end;
    }
  }

  /** Each item to the worker that is free first; a binary heap over the loads. */
  #leastLoaded(pieces: Pieces, count: number): number {
    const [heap, load, heads, workers] = [this.#heap, this.#load, this.#heads, this.#workers];
    const first = Math.min(count, workers);
    // Costs fall, so the workers in reverse order are a heap after their first item.
    for (let i = 0; i < workers; i++) heap[i] = workers - 1 - i;
    for (let i = 0; i < first; i++) {
      this.worker[i] = i;
      load[i] = pieces.unitUs[Math.floor(this.order[i] / heads)];
    }
    if (count > workers) {
      for (let i = (workers >> 1) - 1; i >= 0; i--) siftDown(heap, load, i);
      for (let i = workers; i < count; i++) {
        const worker = heap[0];
        this.worker[i] = worker;
        load[worker] += pieces.unitUs[Math.floor(this.order[i] / heads)];
        siftDown(heap, load, 0);
      }
    }
    let most = 0;
    for (let i = 0; i < first; i++) if (load[i] > most) most = load[i];
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
): { workerItem: Int32Array; schedule: Int32Array } {
  const count = pieces.units * heads;
  const { order, worker } = scheduler;
  const workerItem = new Int32Array(workers + 1);
  const schedule = new Int32Array(pieces.count * heads);
  for (let i = 0; i < count; i++) {
    const unit = Math.floor(order[i] / heads);
    workerItem[worker[i] + 1] += pieces.unitPiece[unit + 1] - pieces.unitPiece[unit];
  }
  for (let w = 0; w < workers; w++) workerItem[w + 1] += workerItem[w];
  const next = workerItem.slice(0, workers);
  for (let i = 0; i < count; i++) {
    const unit = Math.floor(order[i] / heads);
    const head = order[i] - unit * heads;
    for (let piece = pieces.unitPiece[unit]; piece < pieces.unitPiece[unit + 1]; piece++) {
      schedule[next[worker[i]]++] = piece * heads + head;
    }
  }
  return { workerItem, schedule };
}
