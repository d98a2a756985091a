/**
 * Tree attention on the device: holds the plan's image, the partials and the counters at fixed
 * addresses, and launches one kernel for a layer.
 * @module
 */
import { FlashForgeError } from '../../base/errors.ts';
import type { Forest } from '../../kvcache/forest.ts';
import type { Plan } from '../../plan/plan.ts';
import {
  type Cuda,
  type DeviceMemory,
  type Kernel,
  type Module,
  type PinnedMemory,
  packArguments,
  type Stream,
} from './driver.ts';
import type { KernelLoader } from './kernel-loader.ts';
import { PlanImageBuilder } from './plan-image.ts';
import { type AttentionSpec, type Variant, variantFor } from './variants.ts';

/** Letters of `struct Attention` in kernels/plan-image.cuh. */
const ARGUMENTS = 'pppppppppffiiii';
const ABORTS: Readonly<Record<number, string>> = {
  1: 'a KV tile was never given back by its readers',
  2: 'a KV tile never arrived',
  3: 'a partial result of a split row never arrived',
};

/** One layer's tensors: addresses on the device. Strides are in elements. */
export interface AttentionTensors {
  /** This layer's KV pages, see `pageBytes`. */
  readonly kv: bigint;
  /** (rows, queryStride): q heads of a row consecutive. */
  readonly queries: bigint;
  readonly queryStride: number;
  readonly out: bigint;
  readonly outStride: number;
}

/** Optional terms of the attention formula. */
export interface AttentionOptions {
  /** Softmax scale; 1 / sqrt(headDim) by default. */
  readonly scale?: number;
  /** Scores become softcap * tanh(score / softcap); the spec must say `softcap: true`. */
  readonly softcap?: number;
  /** Only the last `window` positions are seen. */
  readonly window?: number;
}

/** Device memory that only grows; `grown` counts how often its address changed. */
class Growing {
  #memory: DeviceMemory | undefined;
  readonly #cuda: Cuda;
  grown = 0;

  constructor(cuda: Cuda) {
    this.#cuda = cuda;
  }

  /** At least `bytes`; new memory is zero. */
  reserve(bytes: number, stream: Stream): void {
    if (this.#memory && this.#memory.bytes >= bytes) return;
    stream.synchronize();
    this.#memory?.free();
    this.#memory = this.#cuda.alloc(Math.ceil(bytes * 1.5));
    this.#cuda.fill(this.#memory.address, 0, this.#memory.bytes, stream);
    this.grown++;
  }

  get address(): bigint {
    return this.#memory?.address ?? 0n;
  }

  get bytes(): number {
    return this.#memory?.bytes ?? 0;
  }

  free(): void {
    this.#memory?.free();
    this.#memory = undefined;
  }
}

export class TreeAttention {
  readonly spec: AttentionSpec;
  readonly variant: Variant;
  readonly #cuda: Cuda;
  readonly #module: Module;
  readonly #kernel: Kernel;
  readonly #image: Growing;
  readonly #partials: Growing;
  readonly #sums: Growing;
  readonly #counters: Growing;
  readonly #positions: Growing;
  readonly #abort: DeviceMemory;
  readonly #builder: PlanImageBuilder;
  #staging: PinnedMemory | undefined;
  #workers = 0;

  /** @throws FlashForgeError 'device' for a shape that no variant covers. */
  constructor(
    loader: KernelLoader,
    spec: AttentionSpec,
    stream: Stream,
    options: { readonly window?: boolean; readonly portable?: boolean } = {},
  ) {
    this.spec = spec;
    this.#cuda = loader.cuda;
    this.variant = variantFor(spec, loader.cuda.info.arch, options.portable);
    this.#module = loader.load('tree-attention.cu', this.variant.defines);
    this.#kernel = this.#module.kernel('ff_tree_attention', this.variant.sharedBytes);
    const growing = (): Growing => new Growing(this.#cuda);
    this.#image = growing();
    this.#partials = growing();
    this.#sums = growing();
    this.#counters = growing();
    this.#positions = growing();
    this.#abort = this.#cuda.alloc(16);
    this.#cuda.fill(this.#abort.address, 0, 16, stream);
    const { groupRows, narrow } = this.variant;
    this.#builder = new PlanImageBuilder(
      { ...spec, groupRows, narrow, window: options.window ?? false },
      (words) => this.#pinnedWords(words, stream),
    );
  }

  /** Bytes of one page of one layer: all KV heads, K and V. */
  get pageBytes(): number {
    const { pageSize, kvHeads, headDim } = this.spec;
    return pageSize * kvHeads * headDim * 4;
  }

  /** Changes when a captured graph of launches must be made again. */
  get version(): number {
    const parts = [this.#image, this.#partials, this.#sums, this.#counters, this.#positions];
    return parts.reduce((sum, part) => sum + part.grown, this.#workers);
  }

  #pinnedWords(words: number, stream: Stream): Int32Array {
    stream.synchronize();
    this.#staging?.free();
    this.#staging = this.#cuda.pinned(words * 4);
    return new Int32Array(this.#staging.buffer);
  }

  /** Copies the plan to the device; launches enqueued after this use it. */
  setPlan(plan: Plan, forest: Forest, stream: Stream): void {
    if (plan.kvHeads !== this.spec.kvHeads || plan.workers > this.#cuda.info.multiprocessors) {
      throw new FlashForgeError('device', 'the plan was made for another model or device');
    }
    /* The staging memory may still be read by the copy of the last plan. */
    stream.synchronize();
    const { kvHeads, groupSize, headDim } = this.spec;
    const { words, slots, merges } = this.#builder.build(plan, forest);
    const partials = slots * kvHeads * groupSize;
    this.#image.reserve(words.byteLength, stream);
    this.#partials.reserve(partials * headDim * 4, stream);
    this.#sums.reserve(partials * 8, stream);
    this.#counters.reserve(merges * kvHeads * 8, stream);
    this.#positions.reserve(plan.rows * 4, stream);
    this.#workers = plan.workers;
    this.#clearCounters(stream);
    const staging = this.#staging as PinnedMemory;
    this.#cuda.uploadAsync(this.#image.address, staging, words.byteLength, stream);
    this.#cuda.upload(this.#positions.address, forest.rowPosition.subarray(0, plan.rows));
  }

  /** Launches count partials and ended blocks; a new plan starts from zero. */
  #clearCounters(stream: Stream): void {
    this.#cuda.fill(this.#abort.address + 4n, 0, 4, stream);
    if (this.#counters.bytes > 0) {
      this.#cuda.fill(this.#counters.address, 0, this.#counters.bytes, stream);
    }
  }

  /** Enqueues the attention of one layer. */
  launch(tensors: AttentionTensors, stream: Stream, options: AttentionOptions = {}): void {
    const scale = options.scale ?? 1 / Math.sqrt(this.spec.headDim);
    const args = packArguments(ARGUMENTS, [
      tensors.kv,
      tensors.queries,
      tensors.out,
      this.#image.address,
      this.#positions.address,
      this.#partials.address,
      this.#sums.address,
      this.#counters.address,
      this.#abort.address,
      scale * Math.LOG2E,
      options.softcap ?? 0,
      options.window ?? 0,
      this.spec.kvHeads,
      tensors.queryStride,
      tensors.outStride,
    ]);
    const { threads, sharedBytes } = this.variant;
    this.#cuda.launch(this.#kernel, { blocks: this.#workers, threads, sharedBytes }, args, stream);
  }

  /**
   * Waits for the stream and reads the abort flag.
   * @throws FlashForgeError 'device' if a wait on the device did not end.
   */
  check(stream: Stream): void {
    stream.synchronize();
    const code = new Int32Array(1);
    this.#cuda.download(code, this.#abort.address);
    if (code[0] === 0) return;
    this.#cuda.fill(this.#abort.address, 0, 16, stream);
    this.#clearCounters(stream);
    throw new FlashForgeError(
      'device',
      `the attention kernel gave up: ${ABORTS[code[0]] ?? `code ${code[0]}`}`,
    );
  }

  free(): void {
    for (const part of [this.#image, this.#partials, this.#sums, this.#counters]) part.free();
    this.#positions.free();
    this.#abort.free();
    this.#staging?.free();
    this.#module.free();
  }
}
