/**
 * Measures attention on prefix trees without a model: the tree plan against the flat plan (every
 * request alone, its GQA group together), by the same kernels on the same pages, all workers.
 * @module
 */
import { freemem } from 'node:os';
import { extname } from 'node:path';
import { FlashForgeError, show } from '../../base/errors.ts';
import { ceilDiv, median, randomStream } from '../../base/math.ts';
import { PLAN_SHAPES } from '../../plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS, Planner } from '../../plan/make-plan.ts';
import type { PlanSpec } from '../../plan/plan.ts';
import { timePlans } from '../../plan/plan-timing.ts';
import { type Workload, workloadBytes, workloadForest } from '../../plan/workload.ts';
import {
  type AttentionShape,
  CUT_TOKENS,
  fastestKvType,
  type KvLayout,
  type KvType,
  kvLayout,
  PAGE_TOKENS,
  runAttention,
} from './attention.ts';
import { AttentionCheck } from './attention-check.ts';
import { PlanImage } from './attention-image.ts';
import type { Barrier } from './barrier.ts';
import type { Kernels } from './kernel-table.ts';
import type { Block, Memory } from './memory.ts';
import { costProfile } from './profile.ts';
import { createProvider, type Provider, type ProviderChoice } from './provider.ts';
import { WorkerPool } from './worker-pool.ts';

/** Bytes of a number of the measured KV cache, f16 or i16, without the scales of the latter. */
const KV_BYTES = 2;
/** Part of the free memory that KV pages may take. */
const MEMORY_SHARE = 0.6;
/** What 32-bit WebAssembly can hold besides queries, outputs and partial results. */
const WASM_BYTES_MAX = 3 * 2 ** 30;
/** Largest chunk of shared memory that JavaScript can address with one view. */
const NATIVE_BYTES_MAX = 8 * 2 ** 30 - 2 ** 20;
/** Measuring one workload ends after this time or this many samples of each kernel. */
const BUDGET_MS = 3000;
const SAMPLES_MAX = 41;
const SAMPLES_MIN = 3;
const WARM_UPS = 2;
/** Random numbers that pages are filled from, each page at another offset. */
const POOL_HALVES = 1 << 22;
/** Even of 512 such integers the length stays far from the kernels' limit. */
const INTEGER_MAX = 2000;
/** Queries are uniform in (-QUERY_SCALE, QUERY_SCALE), keys and values in (-1, 1). */
const QUERY_SCALE = 4;

/** One workload's result; times are null where it could not be measured. */
export interface AttentionBenchRow {
  readonly name: string;
  readonly unique_bytes: number;
  readonly flat_bytes: number;
  readonly reduction: number;
  readonly tree_us: number | null;
  readonly flat_us: number | null;
  /** flat_us / tree_us */
  readonly speedup: number | null;
  readonly plan_us: number | null;
  /** Largest difference of an output from float64, over both kernels and the checked rows. */
  readonly max_error: number | null;
  /** Query vectors that were compared with float64. */
  readonly checked: number;
  /** Why it was not measured. */
  readonly skipped?: string;
}

export interface AttentionBenchReport {
  readonly device: 'cpu';
  readonly provider: string;
  readonly workers: number;
  readonly rows: readonly AttentionBenchRow[];
}

export interface AttentionBenchOptions {
  readonly provider?: ProviderChoice | undefined;
  /** Threads, the caller included. */
  readonly workers: number;
  /** Most bytes of KV pages; default: 60% of the free memory. */
  readonly memoryBytes?: number | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly log?: ((message: string) => void) | undefined;
  /** Told each row as it is measured. */
  readonly onRow?: ((row: AttentionBenchRow) => void) | undefined;
}

/** What worker threads are started with: where to find the image to run, by address. */
export interface BenchProgram {
  readonly source: Provider['source'];
  /** f64: address of the PlanImage, number of runs. */
  readonly command: number;
}

/** One worker's share of `runs` runs; worker 0 gets each run's time in us. */
export function benchRuns(
  kernels: Kernels,
  barrier: Barrier,
  command: Float64Array,
  worker: number,
): number[] {
  const [image, runs] = command;
  const times: number[] = [];
  for (let run = 0; run < runs; run++) {
    barrier.meet();
    const start = performance.now();
    runAttention(kernels, image, 0, worker);
    barrier.meet();
    times.push((performance.now() - start) * 1000);
  }
  return times;
}

/**
 * Measures every workload that fits into memory.
 * @throws FlashForgeError 'compile', 'device' or 'aborted'.
 */
export async function benchAttention(
  workloads: readonly Workload[],
  options: AttentionBenchOptions,
): Promise<AttentionBenchReport> {
  const { workers, signal } = options;
  const provider = await createProvider({ provider: options.provider, workers, log: options.log });
  const kvType = fastestKvType(provider.kernels);
  const most = provider.kind === 'wasm' ? WASM_BYTES_MAX : NATIVE_BYTES_MAX;
  const limit = Math.min(most, options.memoryBytes ?? freemem() * MEMORY_SHARE);
  const reasons = workloads.map((workload) => whyNot(workload, kvType, limit));
  const largest = Math.max(
    0,
    ...workloads.map((workload, i) => (reasons[i] === null ? kvBytes(workload, kvType) : 0)),
  );
  options.log?.(`KV pages: ${mebibytes(largest)} MiB of random numbers`);
  const pages = provider.memory.alloc(largest, 4096);
  const command = provider.memory.alloc(16);
  const program: BenchProgram = { source: provider.source, command: command.address };
  const entry = new URL(`./attention-bench-worker${extname(import.meta.url)}`, import.meta.url);
  const pool = await WorkerPool.start({ workers, entry, program });
  try {
    const bench = new Bench(provider, pool, pages, kvType, command.address);
    const rows: AttentionBenchRow[] = [];
    for (const [i, workload] of workloads.entries()) {
      await checkSignal(signal);
      const reason = reasons[i];
      const row =
        reason === null
          ? await bench.measure(workload, options)
          : { ...sizes(workload), ...NOT_MEASURED, skipped: reason };
      rows.push(row);
      options.onRow?.(row);
    }
    return { device: 'cpu', provider: provider.kind, workers, rows };
  } finally {
    await pool.close();
  }
}

/** A turn of the event loop lets signals arrive. */
async function checkSignal(signal: AbortSignal | undefined): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
  if (signal?.aborted) throw new FlashForgeError('aborted', 'interrupted');
}

const NOT_MEASURED = {
  ...{ tree_us: null, flat_us: null, speedup: null, plan_us: null, max_error: null, checked: 0 },
} as const;

const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);

const shapeOf = ({ queryHeads, kvHeads, headDim }: Workload, kvType: KvType): AttentionShape => ({
  kvHeads,
  groupSize: queryHeads / kvHeads,
  headDim,
  kvType,
});

/** Bytes of the workload's pages, every node in pages of its own. */
function kvBytes(workload: Workload, kvType: KvType): number {
  let pages = 0;
  for (const count of workload.tokens) pages += ceilDiv(count, PAGE_TOKENS);
  return kvLayout(shapeOf(workload, kvType), 1, pages).totalBytes;
}

function whyNot(workload: Workload, kvType: KvType, limit: number): string | null {
  const { headDim, name } = workload;
  if (headDim % 16 !== 0 || headDim > 512) {
    return `head_dim of ${show(name)} must be a multiple of 16 up to 512, got ${headDim}`;
  }
  const bytes = kvBytes(workload, kvType);
  if (bytes <= limit) return null;
  return `its KV pages need ${mebibytes(bytes)} MiB and ${mebibytes(limit)} MiB are allowed`;
}

function sizes(
  workload: Workload,
): Pick<AttentionBenchRow, 'name' | 'unique_bytes' | 'flat_bytes' | 'reduction'> {
  const { unique, flat, reduction } = workloadBytes(workload, KV_BYTES);
  return { name: workload.name, unique_bytes: unique, flat_bytes: flat, reduction };
}

/** Random bits of keys and values in (-1, 1). */
function randomPool(kvType: KvType): Uint16Array {
  const random = randomStream(7);
  return Uint16Array.from({ length: POOL_HALVES }, () => {
    if (kvType === 'i16') return Math.round((random() * 2 - 1) * INTEGER_MAX);
    // Uniform but for the mantissa's low bits: the exponent of a uniform number.
    const exponent = Math.max(1, 15 + Math.floor(Math.log2(random() || 0.5)));
    return (random() < 0.5 ? 0x8000 : 0) | (exponent << 10) | Math.floor(random() * 1024);
  });
}

/** Copies of the pool at offsets that never repeat, and the scales of integers. */
function fillPages(
  memory: Memory,
  pool: Uint16Array,
  at: number,
  layout: KvLayout,
  shape: AttentionShape,
): void {
  const random = randomStream(8);
  const step = 1 << 19;
  const end = at + layout.totalBytes;
  for (let to = at; to < end; to += step * 2) {
    const count = Math.min(step, (end - to) / 2);
    const offset = Math.floor(random() * (POOL_HALVES - count));
    memory.u16(to, count).set(pool.subarray(offset, offset + count));
  }
  if (shape.kvType !== 'i16') return;
  const integers = PAGE_TOKENS * shape.headDim * 2;
  for (let plane = at; plane < end; plane += layout.valueOffset)
    memory.f32(plane + integers, PAGE_TOKENS).fill(1 / INTEGER_MAX);
}

/** Measures workloads on one pool and one piece of memory. */
class Bench {
  readonly #provider: Provider;
  readonly #pool: WorkerPool;
  readonly #pages: Block;
  readonly #kvType: KvType;
  readonly #numbers: Uint16Array;
  #filled = { bytes: 0, scalesEvery: 0 };
  readonly #command: Float64Array;
  #tensors: Block | null = null;

  constructor(provider: Provider, pool: WorkerPool, pages: Block, kvType: KvType, command: number) {
    this.#provider = provider;
    this.#kvType = kvType;
    this.#numbers = randomPool(kvType);
    this.#pool = pool;
    this.#pages = pages;
    this.#command = provider.memory.f64(command, 2);
  }

  async measure(workload: Workload, options: AttentionBenchOptions): Promise<AttentionBenchRow> {
    const { queryHeads } = workload;
    const shape = shapeOf(workload, this.#kvType);
    const { kvHeads, groupSize, headDim } = shape;
    const { forest, pages } = workloadForest(workload, PAGE_TOKENS);
    const spec: PlanSpec = {
      ...{ kvHeads, groupSize, headDim, pageSize: PAGE_TOKENS, cutTokens: CUT_TOKENS },
      workers: options.workers,
      taskRows: Math.max(1, Math.floor(PLAN_SHAPES.cpu.taskQueries / groupSize)),
      profile: await costProfile(this.#provider, shape, options.log),
      options: DEFAULT_PLAN_OPTIONS,
    };
    const { plan, planUs } = timePlans(new Planner(spec), forest);
    const flat = new Planner({
      ...spec,
      options: { ...DEFAULT_PLAN_OPTIONS, flat: true },
    }).plan(forest);

    const width = queryHeads * headDim;
    const [query, output] = this.#queriesAndOutput(forest.rows * width);
    const { memory, kernels } = this.#provider;
    const layout = kvLayout(shape, 1, pages);
    this.#fill(layout, shape);
    const buffers = {
      ...{ query, key: 0, value: 0, inputStride: width, output, outputStride: width },
      ...{ pages: this.#pages.address, layout, cosine: 0, sine: 0, writeSlots: 0 },
    };
    const images = [plan, flat].map((each) => {
      const image = new PlanImage(memory, kernels, shape, buffers);
      image.write(each, forest);
      return image.address;
    });
    const [tree, alone] = await this.#time(images, options.signal);
    const check = new AttentionCheck(memory, shape, layout, this.#pages.address, forest);
    let error = 0;
    for (const image of images) {
      await checkSignal(options.signal);
      memory.f32(output, forest.rows * width).fill(Number.NaN);
      this.#run(image, 1);
      error = Math.max(error, check.largestError(query, output));
      if (Number.isNaN(error)) break;
    }
    return {
      ...sizes(workload),
      ...{ tree_us: tree, flat_us: alone, speedup: alone / tree, plan_us: planUs },
      ...{ max_error: error, checked: check.vectors },
    };
  }

  /** Fills the pages, unless they are full in the same layout already. */
  #fill(layout: KvLayout, shape: AttentionShape): void {
    const scalesEvery = shape.kvType === 'i16' ? layout.valueOffset : 0;
    const { bytes, scalesEvery: before } = this.#filled;
    if (scalesEvery === before && layout.totalBytes <= bytes) return;
    fillPages(this.#provider.memory, this.#numbers, this.#pages.address, layout, shape);
    this.#filled = { bytes: layout.totalBytes, scalesEvery };
  }

  /** Median times of the images in us, measured in turn so that drift meets both. */
  async #time(images: readonly number[], signal: AbortSignal | undefined): Promise<number[]> {
    const samples: number[][] = images.map(() => []);
    for (const image of images) {
      await checkSignal(signal);
      this.#run(image, WARM_UPS);
    }
    const start = performance.now();
    for (let i = 0; i < SAMPLES_MAX; i++) {
      if (i >= SAMPLES_MIN && performance.now() - start > BUDGET_MS) break;
      for (const [j, image] of images.entries()) {
        await checkSignal(signal);
        // The first run after another kernel finds caches that are not its own.
        samples[j].push(...this.#run(image, 2).slice(1));
      }
    }
    return samples.map(median);
  }

  /** Runs an image on all workers; returns each run's time in us. */
  #run(image: number, runs: number): number[] {
    this.#command.set([image, runs]);
    let times: number[] = [];
    const { barrier } = this.#pool;
    this.#pool.step(() => {
      times = benchRuns(this.#provider.kernels, barrier, this.#command, 0);
    });
    return times;
  }

  /** Random queries and room for outputs, `count` floats each; reused where they are enough. */
  #queriesAndOutput(count: number): [query: number, output: number] {
    const bytes = count * 4;
    if (this.#tensors === null || this.#tensors.bytes < 2 * bytes) {
      this.#tensors = this.#provider.memory.alloc(2 * bytes);
    }
    const { address } = this.#tensors;
    const random = randomStream(11);
    const query = this.#provider.memory.f32(address, count);
    for (let i = 0; i < count; i++) query[i] = (random() * 2 - 1) * QUERY_SCALE;
    return [address, address + bytes];
  }
}
