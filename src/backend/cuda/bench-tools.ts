/**
 * What the attention benchmark and the tests on a device share: random tensors, the float64
 * reference, a flushed L2 cache and timing by events around a graph's replay.
 * @module
 */
import { ceilDiv, median } from '../../base/math.ts';
import type { Forest } from '../../kvcache/forest.ts';
import { type Workload, workloadForest } from '../../plan/workload.ts';
import type { AttentionTensors } from './attention.ts';
import type { Cuda, DeviceMemory, Event, Kernel, Module, Stream } from './driver.ts';
import type { KernelLoader } from './kernel-loader.ts';
import { packArguments } from './launch-arguments.ts';
import { type AttentionSpec, variantFor } from './variants.ts';

const UNIT_TOKENS = 16;
/** Read between two timed calls: several times the largest L2 cache. */
const FLUSH_BYTES = 256 * 2 ** 20;
const READ_BYTES = 2 ** 31;

export class BenchTools {
  readonly stream: Stream;
  readonly #cuda: Cuda;
  readonly #loader: KernelLoader;
  readonly #dtype: 'f16' | 'bf16';
  readonly #module: Module;
  readonly #read: Kernel;
  readonly #events: [Event, Event];
  readonly #flush: DeviceMemory;
  #memory: DeviceMemory[] = [];
  #kv = 0n;
  #q = 0n;
  #out = 0n;
  #outBytes = 0;

  constructor(loader: KernelLoader, dtype: 'f16' | 'bf16') {
    this.#loader = loader;
    this.#cuda = loader.cuda;
    this.#dtype = dtype;
    this.stream = this.#cuda.stream();
    this.#module = loader.load('bench-tools.cu', this.#defines(128, 1, UNIT_TOKENS));
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
    for (const part of this.#memory) part.free();
    this.#memory = [kv, ends, ends].map((bytes) => this.#cuda.alloc(bytes));
    [this.#kv, this.#q, this.#out] = this.#memory.map((part) => part.address);
    this.#outBytes = ends;
    this.random(this.#kv, kv / 2, 1);
    this.random(this.#q, ends / 2, 2);
  }

  /** Fills 16-bit numbers with mean 0 and variance 1. */
  random(to: bigint, count: number, seed: number): void {
    const args = packArguments('ppi', [to, BigInt(count), seed]);
    this.#cuda.launch(
      this.#module.kernel('ff_random'),
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
    };
  }

  /** Makes unwritten output visible as NaN. */
  poisonOutput(): void {
    this.#cuda.fill(this.#out, 0xff, this.#outBytes, this.stream);
  }

  /** Bytes per us of a kernel that only reads, warm clocks, data far larger than the cache. */
  readBandwidth(): number {
    const memory = this.#cuda.alloc(READ_BYTES);
    this.#cuda.fill(memory.address, 1, READ_BYTES, this.stream);
    const times: number[] = [];
    for (let i = 0; i < 8; i++) {
      times.push(this.#timed(() => this.#readAll(memory.address, READ_BYTES)));
    }
    memory.free();
    return READ_BYTES / median(times.slice(2));
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
  ): { max_error: number; relative_error: number } {
    if (samples === 0) return { max_error: Number.NaN, relative_error: Number.NaN };
    const count = Math.min(samples, forest.rows);
    const rows = Int32Array.from({ length: count }, (_, i) =>
      count === 1 ? 0 : Math.floor((i * (forest.rows - 1)) / (count - 1)),
    );
    const exact = this.#exact(spec, forest, rows);
    const heads = spec.kvHeads * spec.groupSize * spec.headDim;
    const row = new Uint16Array(heads);
    let [maxError, difference, norm] = [0, 0, 0];
    for (let i = 0; i < count; i++) {
      this.#cuda.download(row, this.#out + BigInt(rows[i] * heads * 2));
      for (let k = 0; k < heads; k++) {
        const value = this.#dtype === 'bf16' ? fromBf16(row[k]) : fromF16(row[k]);
        const error = Math.abs(value - exact[i * heads + k]);
        /* A NaN must not pass as "not larger". */
        if (!(error <= maxError)) maxError = error;
        difference += error * error;
        norm += exact[i * heads + k] ** 2;
      }
    }
    return { max_error: maxError, relative_error: Math.sqrt(difference / norm) };
  }

  /** (rows, query heads, head_dim) in float64. */
  #exact(spec: AttentionSpec, forest: Forest, rows: Int32Array): Float64Array {
    const spans: number[] = [];
    const begins = [0];
    let longest = 0;
    for (const row of rows) {
      spans.push(...pathSpans(forest, row, spec.pageSize));
      begins.push(spans.length / 4);
      longest = Math.max(longest, begins[begins.length - 1] - begins[begins.length - 2]);
    }
    const heads = spec.kvHeads * spec.groupSize;
    const result = new Float64Array(rows.length * heads * spec.headDim);
    const scratchTokens = longest * UNIT_TOKENS;
    const cuda = this.#cuda;
    const held = [
      cuda.alloc(rows.byteLength),
      cuda.alloc(spans.length * 4),
      cuda.alloc(begins.length * 4),
      cuda.alloc(result.byteLength),
      cuda.alloc(rows.length * heads * scratchTokens * 8),
    ];
    const defines = this.#defines(spec.headDim, spec.groupSize, spec.pageSize);
    const module = this.#loader.load('bench-tools.cu', defines);
    try {
      cuda.upload(held[0].address, rows);
      cuda.upload(held[1].address, Int32Array.from(spans));
      cuda.upload(held[2].address, Int32Array.from(begins));
      const { kv, queries, queryStride } = this.tensors(spec);
      const args = packArguments('pppppppiiip', [
        ...[kv, queries, ...held.map((part) => part.address)],
        ...[scratchTokens, spec.kvHeads, queryStride],
        ...[doubleBits(1 / Math.sqrt(spec.headDim))],
      ]);
      this.#launchGrid(module.kernel('ff_reference'), rows.length, heads, args);
      this.stream.synchronize();
      cuda.download(result, held[3].address);
      return result;
    } finally {
      for (const part of held) part.free();
      module.free();
    }
  }

  #launchGrid(kernel: Kernel, x: number, y: number, args: Uint8Array): void {
    this.#cuda.launch(kernel, { blocks: x, blocksY: y, threads: 256 }, args, this.stream);
  }

  free(): void {
    for (const part of [...this.#memory, this.#flush, ...this.#events, this.#module]) part.free();
    this.stream.free();
  }
}

/** (unit, first token, one past the last, 0) of every 16-token unit on a row's path. */
function pathSpans(forest: Forest, row: number, pageSize: number): number[] {
  const spans: number[] = [];
  const perPage = pageSize / UNIT_TOKENS;
  for (let node = 0; node < forest.nodes; node++) {
    if (row < forest.rowBegin[node] || row >= forest.rowEnd[node]) continue;
    const slot = forest.firstSlot[node];
    const seen = Math.min(forest.length[node], forest.rowPosition[row] + 1 - forest.start[node]);
    const last = slot + seen;
    for (let unit = Math.floor(slot / UNIT_TOKENS); unit < ceilDiv(last, UNIT_TOKENS); unit++) {
      const first = unit * UNIT_TOKENS;
      const page = forest.pages[forest.pageBegin[node] + Math.floor(unit / perPage)];
      const index = page * perPage + (unit % perPage);
      spans.push(index, Math.max(slot - first, 0), Math.min(last - first, UNIT_TOKENS), 0);
    }
  }
  return spans;
}

function doubleBits(value: number): bigint {
  return new BigUint64Array(new Float64Array([value]).buffer)[0];
}

function fromBf16(bits: number): number {
  return new Float32Array(new Uint32Array([bits << 16]).buffer)[0];
}

function fromF16(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const sign = bits & 0x8000 ? -1 : 1;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
