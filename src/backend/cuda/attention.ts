/**
 * Tree attention on the device: holds the plan's image, the partials and the counters at fixed
 * addresses, brings them up to date before a step, and launches one kernel for a layer.
 * @module
 */
import { FlashForgeError } from '../../base/errors.ts';
import type { Forest } from '../../kvcache/forest.ts';
import type { Plan } from '../../plan/plan.ts';
import type { Cuda, DeviceInfo, DeviceMemory, Kernel, Module, Stream } from './driver.ts';
import type { KernelLoader } from './kernel-loader.ts';
import { packArguments } from './launch-arguments.ts';
import { PlanGrowth } from './plan-growth.ts';
import { PlanImageBuilder } from './plan-image.ts';
import { Staging } from './staging.ts';
import { type AttentionSpec, kvNumberBytes, type Variant, variantFor } from './variants.ts';

/** Letters of `struct Attention` in kernels/plan-image.cuh. */
const ARGUMENTS = 'ppppppppppffiiii';
/** Those of `ff_plan_step` in kernels/plan-step.cuh, and its blocks. */
const STEP_ARGUMENTS = 'pppppiii';
const STEP_BLOCKS = 8;
const STEP_THREADS = 256;
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
  /** (kv heads, 2) floats with 8-bit KV: what K and V of each head are multiplied by. */
  readonly kvScales?: bigint;
}

/** Optional terms of the attention formula. */
export interface AttentionOptions {
  /** Softmax scale; 1 / sqrt(headDim) by default. */
  readonly scale?: number;
  /** Scores become softcap * tanh(score / softcap); the spec must say `softcap: true`. */
  readonly softcap?: number;
  /** Only the last `window` positions are seen. */
  readonly window?: number;
  /** The kernel before it in the stream lets this one begin early, see LaunchShape. */
  readonly overlaps?: boolean;
}

/** Device memory that only grows; `grown` counts how often its address changed. */
class Growing {
  #memory: DeviceMemory | undefined;
  /** Kept until the next growth: what was enqueued before may still use it. */
  #last: DeviceMemory | undefined;
  readonly #cuda: Cuda;
  grown = 0;

  constructor(cuda: Cuda) {
    this.#cuda = cuda;
  }

  /** At least `bytes`; new memory is zero. */
  reserve(bytes: number, stream: Stream): void {
    if (this.#memory && this.#memory.bytes >= bytes) return;
    this.#last?.free();
    this.#last = this.#memory;
    this.#memory = this.#cuda.alloc(Math.ceil(bytes * 1.5));
    this.#cuda.fill(this.#memory.address, 0, this.#memory.bytes, stream);
    this.grown++;
  }

  get address(): bigint {
    return this.#memory?.address ?? 0n;
  }

  free(): void {
    this.#last?.free();
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
  readonly #step: Kernel;
  readonly #image: Growing;
  readonly #partials: Growing;
  readonly #sums: Growing;
  readonly #counters: Growing;
  readonly #positions: Growing;
  readonly #abort: DeviceMemory;
  readonly #builder: PlanImageBuilder;
  readonly #growth: PlanGrowth;
  readonly #imageStaging: Staging;
  readonly #stepStaging: Staging;
  #workers = 0;
  /** Counters of the current plan, in words. */
  #counterWords = 0;

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
    this.#step = this.#module.kernel('ff_plan_step');
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
      (words) => this.#imageStaging.take(words),
    );
    this.#growth = new PlanGrowth(this.#builder, spec.pageSize);
    this.#imageStaging = new Staging(this.#cuda);
    this.#stepStaging = new Staging(this.#cuda);
  }

  get device(): DeviceInfo {
    return this.#cuda.info;
  }

  /** Bytes of one page of one layer: all KV heads, K and V. */
  get pageBytes(): number {
    const { pageSize, kvHeads, headDim } = this.spec;
    return pageSize * kvHeads * headDim * 2 * kvNumberBytes(this.spec);
  }

  /** Changes when a captured graph of launches must be made again. */
  get version(): number {
    const parts = [this.#image, this.#partials, this.#sums, this.#counters, this.#positions];
    return parts.reduce((sum, part) => sum + part.grown, this.#workers);
  }

  /**
   * Launches enqueued after this use the plan. Waits for nothing that the stream still has to do.
   * The plan of the last call costs only what has changed in the forest: rows' positions, and
   * entries of leaves that have grown into a new unit. Returns whether the image was kept.
   */
  setPlan(plan: Plan, forest: Forest, stream: Stream): boolean {
    if (plan.kvHeads !== this.spec.kvHeads || plan.workers > this.#cuda.info.multiprocessors) {
      throw new FlashForgeError('device', 'the plan was made for another model or device');
    }
    const patches = this.#growth.follow(plan, forest);
    if (patches < 0) this.#newImage(plan, forest, stream);
    this.#sendStep(plan.rows, forest, Math.max(0, patches), patches < 0, stream);
    return patches >= 0;
  }

  #newImage(plan: Plan, forest: Forest, stream: Stream): void {
    const { kvHeads, groupSize, headDim } = this.spec;
    const image = this.#builder.build(plan, forest);
    const partials = image.slots * kvHeads * groupSize;
    this.#image.reserve(image.words.byteLength, stream);
    this.#partials.reserve(partials * headDim * 4, stream);
    this.#sums.reserve(partials * 8, stream);
    this.#counters.reserve(image.merges * kvHeads * 8, stream);
    this.#positions.reserve(plan.rows * 4, stream);
    this.#workers = plan.workers;
    this.#counterWords = image.merges * kvHeads * 2;
    this.#imageStaging.upload(this.#image.address, image.words.length, stream);
    this.#growth.begin(plan, forest, image);
  }

  /**
   * Enqueues the kernel that takes positions and patches from pinned memory, which costs less
   * than a copy, and for a new plan clears what launches count: partials and ended blocks.
   */
  #sendStep(rows: number, forest: Forest, patches: number, clear: boolean, stream: Stream): void {
    const words = this.#stepStaging.take(rows + patches * 2);
    words.set(forest.rowPosition.subarray(0, rows));
    words.set(this.#growth.patches.subarray(0, patches * 2), rows);
    const args = packArguments(STEP_ARGUMENTS, [
      this.#stepStaging.address,
      this.#positions.address,
      this.#image.address,
      this.#counters.address,
      this.#abort.address,
      rows,
      patches,
      clear ? this.#counterWords : -1,
    ]);
    this.#cuda.launch(this.#step, { blocks: STEP_BLOCKS, threads: STEP_THREADS }, args, stream);
    this.#stepStaging.sent(stream);
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
      tensors.kvScales ?? 0n,
      scale * Math.LOG2E,
      options.softcap ?? 0,
      options.window ?? 0,
      this.spec.kvHeads,
      tensors.queryStride,
      tensors.outStride,
    ]);
    const { threads, sharedBytes } = this.variant;
    const { overlaps = false } = options;
    const shape = { blocks: this.#workers, threads, sharedBytes, overlaps };
    this.#cuda.launch(this.#kernel, shape, args, stream);
  }

  /** Device address of the abort code: 0, or what `raise` explains. */
  get abortAddress(): bigint {
    return this.#abort.address;
  }

  /**
   * Waits for the stream and reads the abort flag.
   * @throws FlashForgeError 'device' if a wait on the device did not end.
   */
  check(stream: Stream): void {
    stream.synchronize();
    const code = new Int32Array(1);
    this.#cuda.download(code, this.#abort.address);
    this.raise(code[0], stream);
  }

  /**
   * Does nothing for code 0; otherwise makes the next plan start anew.
   * @throws FlashForgeError 'device' with the wait that the code of the abort flag stands for.
   */
  raise(code: number, stream: Stream): void {
    if (code === 0) return;
    this.#growth.forget();
    this.#cuda.fill(this.#abort.address, 0, 16, stream);
    throw new FlashForgeError(
      'device',
      `the attention kernel gave up: ${ABORTS[code] ?? `code ${code}`}`,
    );
  }

  free(): void {
    for (const part of [this.#image, this.#partials, this.#sums, this.#counters]) part.free();
    this.#positions.free();
    this.#abort.free();
    this.#imageStaging.free();
    this.#stepStaging.free();
    this.#module.free();
  }
}
