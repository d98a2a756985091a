/**
 * What the attention benchmark and the tests on a device share: random tensors, the float64
 * reference, a flushed L2 cache and timing by events around a graph's replay.
 * @module
 */
import { alignUp, median } from '../../base/math.ts';
import type { Forest } from '../../kvcache/forest.ts';
import { type Workload, workloadForest } from '../../plan/workload.ts';
import type { AttentionOptions, AttentionTensors } from './attention.ts';
import { AttentionReference } from './attention-reference.ts';
import type { Cuda, DeviceMemory, Event, Kernel, Module, Stream } from './driver.ts';
import type { KernelLoader } from './kernel-loader.ts';
import { packArguments } from './launch-arguments.ts';
import { type AttentionSpec, variantFor } from './variants.ts';

/** Read between two timed calls: several times the largest L2 cache. */
const FLUSH_BYTES = 256 * 2 ** 20;
const READ_BYTES = 2 ** 31;
/** Scales of K and V of each KV head with 8-bit KV: any numbers that differ. */
const SCALES_MAX = 256;
export const KV_SCALES = Float32Array.from(
  { length: SCALES_MAX },
  (_, i) => 0.5 + ((i * 7) % 16) / 16,
);

export class BenchTools {
  readonly stream: Stream;
  readonly #cuda: Cuda;
  readonly #reference: AttentionReference;
  readonly #dtype: 'f16' | 'bf16';
  readonly #kvType: 'e4m3' | undefined;
  readonly #module: Module;
  readonly #read: Kernel;
  readonly #events: [Event, Event];
  readonly #flush: DeviceMemory;
  #memory: DeviceMemory[] = [];
  #kv = 0n;
  #q = 0n;
  #out = 0n;
  #scales = 0n;
  #outBytes = 0;

  constructor(loader: KernelLoader, dtype: 'f16' | 'bf16', kvType?: 'e4m3') {
    this.#reference = new AttentionReference(loader);
    this.#cuda = loader.cuda;
    this.#dtype = dtype;
    this.#kvType = kvType;
    this.stream = this.#cuda.stream();
    this.#module = loader.load('bench-tools.cu', this.#defines(128, 1, 16));
    this.#read = this.#module.kernel('ff_read');
    this.#events = [this.#cuda.event(), this.#cuda.event()];
    this.#flush = this.#cuda.alloc(FLUSH_BYTES);
    this.#cuda.fill(this.#flush.address, 1, FLUSH_BYTES, this.stream);
  }

  #defines(headDim: number, groupSize: number, pageSize: number): Record<string, number> {
    const spec: AttentionSpec = { headDim, groupSize, kvHeads: 1, pageSize, dtype: this.#dtype };
    return { ...variantFor(spec, this.#cuda.info.arch).defines };
  }

  /** Allocates random KV, random queries and an output that all workloads fit in. */
  reserve(workloads: readonly Workload[], pageSize: number): void {
    let kv = 0;
    let ends = 0;
    for (const workload of workloads) {
      const { pages } = workloadForest(workload, pageSize, false);
      kv = Math.max(kv, pages * pageSize * workload.kvHeads * workload.headDim * 4);
      ends = Math.max(ends, workload.requests.length * workload.queryHeads * workload.headDim * 2);
    }
    this.reserveBytes(kv, ends);
  }

  /** The same for so many bytes of KV, and of queries and output. */
  reserveBytes(kv: number, ends: number): void {
    for (const part of this.#memory) part.free();
    this.#memory = [kv, ends, ends, SCALES_MAX * 4].map((bytes) => this.#cuda.alloc(bytes));
    [this.#kv, this.#q, this.#out, this.#scales] = this.#memory.map((part) => part.address);
    this.#cuda.upload(this.#scales, KV_SCALES);
    this.#outBytes = ends;
    this.#random(this.#kvType ? 'ff_random8' : 'ff_random', this.#kv, kv / 2, 1);
    this.random(this.#q, ends / 2, 2);
  }

  /** Fills 16-bit numbers with mean 0 and variance 1. */
  random(to: bigint, count: number, seed: number): void {
    this.#random('ff_random', to, count, seed);
  }

  #random(name: string, to: bigint, count: number, seed: number): void {
    const args = packArguments('ppi', [to, BigInt(count), seed]);
    this.#cuda.launch(
      this.#module.kernel(name),
      { blocks: this.#cuda.info.multiprocessors * 8, threads: 256 },
      args,
      this.stream,
    );
  }

  tensors(spec: AttentionSpec): AttentionTensors {
    const stride = spec.kvHeads * spec.groupSize * spec.headDim;
    return {
      kv: this.#kv,
      queries: this.#q,
      queryStride: stride,
      out: this.#out,
      outStride: stride,
      ...(spec.kv === undefined ? {} : { kvScales: this.#scales }),
    };
  }

  /** Copies whole pages of KV to the host, as 16-bit words. */
  downloadKv(byte: number, words: Uint16Array): void {
    this.#cuda.download(words, this.#kv + BigInt(byte));
  }

  downloadQueries(words: Uint16Array, element: number): void {
    this.#cuda.download(words, this.#q + BigInt(element * 2));
  }

  /** Makes unwritten output visible as NaN. */
  poisonOutput(): void {
    this.#cuda.fill(this.#out, 0xff, this.#outBytes, this.stream);
  }

  /** Bytes per us of a kernel that only reads, warm clocks, data far larger than the cache. */
  readBandwidth(): number {
    // Less on a device that has no room for it.
    const bytes = Math.min(READ_BYTES, alignUp(Math.floor(this.#cuda.memory()[0] / 4), 16));
    const memory = this.#cuda.alloc(bytes);
    this.#cuda.fill(memory.address, 1, bytes, this.stream);
    const times: number[] = [];
    for (let i = 0; i < 8; i++) {
      times.push(this.#timed(() => this.#readAll(memory.address, bytes)));
    }
    memory.free();
    return bytes / median(times.slice(2));
  }

  #readAll(from: bigint, bytes: number): void {
    const args = packArguments('ppp', [from, BigInt(bytes / 16), this.#flush.address]);
    const blocks = this.#cuda.info.multiprocessors * 2;
    this.#cuda.launch(this.#read, { blocks, threads: 512 }, args, this.stream);
  }

  #timed(work: () => void): number {
    const [from, to] = this.#events;
    from.record(this.stream);
    work();
    to.record(this.stream);
    to.synchronize();
    return this.#cuda.elapsedUs(from, to);
  }

  /** A kernel that does nothing, with so much shared memory. */
  emptyUs(sharedBytes: number): number {
    const kernel = this.#module.kernel('ff_empty', sharedBytes);
    const args = packArguments('i', [0]);
    const { multiprocessors: blocks } = this.#cuda.info;
    const shape = { blocks, threads: 384, sharedBytes };
    const work = (): void => this.#cuda.launch(kernel, shape, args, this.stream);
    return median(this.timeCold(work, { most: 21, least: 21, totalUs: 1e6 }));
  }

  /** Times of single calls in a graph, the L2 cache flushed by reads before each. */
  timeCold(
    work: () => void,
    calls: { readonly most: number; readonly least: number; readonly totalUs: number },
  ): number[] {
    const graph = this.#cuda.capture(this.stream, work);
    try {
      const times: number[] = [];
      let total = 0;
      for (let i = -2; i < calls.most; i++) {
        this.#readAll(this.#flush.address, FLUSH_BYTES);
        const us = this.#timed(() => graph.launch(this.stream));
        if (i < 0) continue;
        times.push(us);
        total += us;
        if (times.length >= calls.least && total > calls.totalUs) break;
      }
      return times;
    } finally {
      graph.free();
    }
  }

  /** Compares `samples` rows, spread evenly, of the last output with float64. */
  compare(
    spec: AttentionSpec,
    forest: Forest,
    samples: number,
    options: AttentionOptions = {},
  ): { max_error: number; relative_error: number } {
    if (samples === 0) return { max_error: Number.NaN, relative_error: Number.NaN };
    const count = Math.min(samples, forest.rows);
    const rows = Int32Array.from({ length: count }, (_, i) =>
      count === 1 ? 0 : Math.floor((i * (forest.rows - 1)) / (count - 1)),
    );
    const { tensors, stream } = { tensors: this.tensors(spec), stream: this.stream };
    const errors = this.#reference.compare(spec, tensors, forest, rows, stream, options);
    /* Math.max keeps NaN: a row that is not a number must not pass. */
    return {
      max_error: Math.max(...errors.map(({ largest }) => largest)),
      relative_error: Math.max(...errors.map(({ relative }) => relative)),
    };
  }

  free(): void {
    this.#reference.free();
    for (const part of [...this.#memory, this.#flush, ...this.#events, this.#module]) part.free();
    this.stream.free();
  }
}
