/**
 * A step's plan and forest laid out in shared memory for the attention kernels: one table of
 * addresses and sizes (struct attention_image in kernels/attention-image.h) whose own address
 * never changes, so that other workers need nothing but that number.
 * @module
 */
import type { Forest } from '../../kvcache/forest.ts';
import type { Plan } from '../../plan/plan.ts';
import { type AttentionShape, checkShape, KV_TYPES, type KvLayout } from './attention.ts';
import type { Kernels } from './kernel-table.ts';
import type { Memory } from './memory.ts';

/** The table's fields in order, f64 each. */
const IMAGE_FIELDS = [
  ...['rowPosition', 'start', 'length', 'firstSlot', 'pageBegin', 'pages'],
  ...['taskRowBegin', 'taskRowEnd', 'taskSegment', 'taskDestination', 'destination'],
  ...['segmentNode', 'segmentBegin', 'segmentEnd', 'segmentRowBegin', 'segmentRowEnd'],
  ...['workerItem', 'schedule', 'rowMerge', 'mergeSlot', 'mergeCount', 'arrived'],
  ...['query', 'key', 'value', 'inputStride', 'output', 'outputStride'],
  ...['partial', 'partialWeight', 'scratch', 'scratchStride'],
  ...['kvHeads', 'groupSize', 'headDim', 'kvType', 'scale', 'window'],
  ...['keys', 'values', 'layerBytes', 'pageBytes', 'headBytes'],
  ...['cosine', 'sine', 'writeSlots'],
] as const;

type ImageField = (typeof IMAGE_FIELDS)[number];

/** Where the kernels find the step's tensors; addresses, and strides in floats. */
export interface AttentionBuffers {
  /** q (rows, query heads, headDim), k and v (rows, KV heads, headDim), f32. */
  readonly query: number;
  readonly key: number;
  readonly value: number;
  /** From row to row of q, k and v. */
  readonly inputStride: number;
  /** (rows, query heads, headDim) f32 */
  readonly output: number;
  readonly outputStride: number;
  /** First byte of the KV pages, laid out as `layout` says. */
  readonly pages: number;
  readonly layout: KvLayout;
  /** (positions, headDim / 2) f32 cosines and sines of RoPE; 0 where rotation is not used. */
  readonly cosine: number;
  readonly sine: number;
  /** (rows) i32: page * 64 + slot of each row's K and V, -1 = nowhere. */
  readonly writeSlots: number;
}

/** Regions grow to this multiple of what is needed, because nothing is freed. */
const GROWTH = 1.5;
const LINE_BYTES = 64;

/** A piece of shared memory that is replaced by a larger one when a step needs more. */
class Region {
  readonly #memory: Memory;
  address = 0;
  bytes = 0;

  constructor(memory: Memory) {
    this.#memory = memory;
  }

  /** Makes the region at least `bytes` long; its content may be lost. */
  reserve(bytes: number): void {
    if (bytes <= this.bytes) return;
    const block = this.#memory.alloc(Math.ceil((bytes * GROWTH) / 8) * 8, 4096);
    this.address = block.address;
    this.bytes = block.bytes;
  }
}

/** Written by worker 0 once a step, read by the kernels of all workers. */
export class PlanImage {
  /** What kernels are called with; stays the same. */
  readonly address: number;
  readonly #table: Float64Array;
  readonly #memory: Memory;
  readonly #kernels: Kernels;
  readonly #shape: AttentionShape;
  readonly #arrays: Region;
  readonly #partials: Region;
  readonly #scratch: Region;

  /** @throws FlashForgeError 'model' for a shape that the kernels cannot serve. */
  constructor(memory: Memory, kernels: Kernels, shape: AttentionShape, buffers: AttentionBuffers) {
    checkShape(shape);
    this.#memory = memory;
    this.#kernels = kernels;
    this.#shape = shape;
    this.#arrays = new Region(memory);
    this.#partials = new Region(memory);
    this.#scratch = new Region(memory);
    this.address = memory.alloc(IMAGE_FIELDS.length * 8).address;
    this.#table = memory.f64(this.address, IMAGE_FIELDS.length);
    const { layout } = buffers;
    this.#set('kvHeads', shape.kvHeads);
    this.#set('groupSize', shape.groupSize);
    this.#set('headDim', shape.headDim);
    this.#set('kvType', KV_TYPES.indexOf(shape.kvType));
    // The kernels' softmax is in base 2.
    this.#set('scale', (shape.scale ?? 1 / Math.sqrt(shape.headDim)) * Math.LOG2E);
    this.#set('window', shape.window ?? 0);
    for (const field of ['query', 'key', 'value', 'inputStride', 'output', 'outputStride'] as const)
      this.#set(field, buffers[field]);
    for (const field of ['cosine', 'sine', 'writeSlots'] as const) this.#set(field, buffers[field]);
    for (const field of ['layerBytes', 'pageBytes', 'headBytes'] as const)
      this.#set(field, layout[field]);
    this.#set('keys', buffers.pages);
    this.#set('values', buffers.pages + layout.valueOffset);
  }

  /**
   * Copies the step's plan and forest into shared memory; no kernel may be running.
   * @throws FlashForgeError 'device' when memory is not enough.
   */
  write(plan: Plan, forest: Forest): void {
    const arrays = arraysOf(plan, forest);
    let bytes = 0;
    for (const [, , length] of arrays) bytes += roundedBytes(length);
    this.#arrays.reserve(bytes);
    let address = this.#arrays.address;
    const words = this.#memory.i32(address, bytes / 4);
    for (const [field, array, length] of arrays) {
      const at = (address - this.#arrays.address) / 4;
      words.set(length === array.length ? array : array.subarray(0, length), at);
      this.#set(field, address);
      address += roundedBytes(length);
    }
    this.#reserveWork(plan);
  }

  /** Partial results and each worker's scratch memory. */
  #reserveWork(plan: Plan): void {
    const { kvHeads, groupSize, headDim } = this.#shape;
    const entries = plan.slots * kvHeads * groupSize;
    // f64: an output vector, its sum of probabilities and their maximum.
    this.#partials.reserve(entries * (headDim + 2) * 8);
    this.#set('partial', this.#partials.address);
    this.#set('partialWeight', this.#partials.address + entries * headDim * 8);

    let rows = 1;
    for (let task = 0; task < plan.tasks; task++)
      rows = Math.max(rows, plan.taskRowEnd[task] - plan.taskRowBegin[task]);
    const each = roundedBytes(this.#kernels.ff_attention_scratch(headDim, rows * groupSize) / 4);
    this.#scratch.reserve(each * plan.workers);
    this.#set('scratch', this.#scratch.address);
    this.#set('scratchStride', each);
  }

  #set(field: ImageField, value: number): void {
    this.#table[IMAGE_FIELDS.indexOf(field)] = value;
  }
}

/** Bytes of `length` ints, rounded up to whole cache lines. */
const roundedBytes = (length: number): number => Math.ceil((length * 4) / LINE_BYTES) * LINE_BYTES;

type ImageArray = readonly [field: ImageField, array: Int32Array, length: number];

/** Every array that the kernels read, with its length in use. */
function arraysOf(plan: Plan, forest: Forest): ImageArray[] {
  const { tasks, segments, merges } = plan;
  const { nodes } = forest;
  return [
    ['rowPosition', forest.rowPosition, forest.rows],
    ['start', forest.start, nodes],
    ['length', forest.length, nodes],
    ['firstSlot', forest.firstSlot, nodes],
    ['pageBegin', forest.pageBegin, nodes + 1],
    ['pages', forest.pages, forest.pageBegin[nodes]],
    ['taskRowBegin', plan.taskRowBegin, tasks],
    ['taskRowEnd', plan.taskRowEnd, tasks],
    ['taskSegment', plan.taskSegment, tasks + 1],
    ['taskDestination', plan.taskDestination, tasks + 1],
    ['destination', plan.destination, plan.taskDestination[tasks]],
    ['segmentNode', plan.segmentNode, segments],
    ['segmentBegin', plan.segmentBegin, segments],
    ['segmentEnd', plan.segmentEnd, segments],
    ['segmentRowBegin', plan.segmentRowBegin, segments],
    ['segmentRowEnd', plan.segmentRowEnd, segments],
    ['workerItem', plan.workerItem, plan.workers + 1],
    ['schedule', plan.schedule, plan.items],
    ['rowMerge', rowMerges(plan), plan.rows],
    ['mergeSlot', plan.mergeSlot, merges],
    ['mergeCount', plan.mergeCount, merges],
    // Zeros: the kernels count in them and leave zeros again.
    ['arrived', new Int32Array(merges * plan.kvHeads), merges * plan.kvHeads],
  ];
}

/** (rows) index of the merge that makes the row's output, -1 where a task writes it. */
function rowMerges(plan: Plan): Int32Array {
  const merge = new Int32Array(plan.rows).fill(-1);
  for (let i = 0; i < plan.merges; i++) merge[plan.mergeRow[i]] = i;
  return merge;
}
