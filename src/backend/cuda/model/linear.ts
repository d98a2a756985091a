/**
 * Our own dense products for decode steps, of up to four that follow each other in one launch
 * (kernels/linear.cu): which variant of the kernel a number of rows takes, and its arguments.
 * @module
 */
import { ceilDiv } from '../../../base/math.ts';
import type { DeviceMemory, Kernel, Module, Stream } from '../driver.ts';
import type { KernelLoader } from '../kernel-loader.ts';
import { packArguments } from '../launch-arguments.ts';
import { TENSOR_MAP_BYTES, tensorMap } from '../tensor-map.ts';
import type { DenseMatrix, HalfType } from './cuda-model.ts';

/** Most rows that a variant takes; more rows are cuBLAS' business. */
export const LINEAR_ROWS_MAX = 64;
/** Outputs and columns of a unit of work, and products of one launch. */
const TILE = 128;
const CHUNK = 64;
const PHASES_MAX = 4;
const WARPS = 8;
const THREADS = (WARPS + 2) * 32;
/** Letters of `struct Phase` and of what follows the phases in `struct Linear`. */
const PHASE = 'ppppiiii';
const REST = 'pppiif';
/** sizeof(Linear): a multiple of its alignment. */
const ARGUMENT_BYTES = 896;

/** Constants of a variant: padded rows, 16-output blocks of a warp, units of x in flight. */
const VARIANTS = [
  { rows: 8, height: 1, stagesX: 16 },
  { rows: 16, height: 1, stagesX: 10 },
  { rows: 32, height: 1, stagesX: 8 },
  { rows: 48, height: 2, stagesX: 6 },
  { rows: 64, height: 2, stagesX: 5 },
] as const;

export interface LinearShape {
  readonly headDim: number;
  readonly pageSize: number;
  readonly dtype: HalfType;
}

/** A compiled variant: how it is launched. */
export interface LinearVariant {
  readonly defines: Readonly<Record<string, number>>;
  readonly rows: number;
  readonly sharedBytes: number;
}

/** What becomes of a product's sums: the kernel's kPlain, kResidual, kSwiglu, kRotate. */
export const PHASE_KINDS = ['plain', 'residual', 'swiglu', 'rotate'] as const;

/** One product of a launch. Addresses that its kind does not use are 0. */
export interface LinearPhase {
  readonly kind: (typeof PHASE_KINDS)[number];
  readonly matrix: DenseMatrix;
  /** (rows, columns) in 16 bits */
  readonly input: bigint;
  /** 'plain': the result; 'residual': the residual stream. (rows, outputs) f32 */
  readonly out?: bigint;
  /** 'residual': its norm, (rows, outputs); 'swiglu': (rows, outputs / 2); 16 bits. */
  readonly out16?: bigint;
  /** 'residual': weights of the norm; without them there is none. */
  readonly norm?: bigint;
}

/** The variant for so many rows, with the deepest ring that fits into a block's shared memory. */
export function linearVariant(
  rows: number,
  { headDim, pageSize, dtype }: LinearShape,
  sharedBudget: number,
): LinearVariant {
  const variant = VARIANTS.find((v) => v.rows >= rows) ?? VARIANTS[VARIANTS.length - 1];
  const { height, stagesX } = variant;
  const fixed =
    stagesX * (variant.rows * CHUNK * 2 + 16) +
    (height > 1 ? variant.rows * TILE * 4 : 16) +
    (2 + WARPS / 2) * 8;
  const stageBytes = TILE * CHUNK * 2 + 16;
  const stages = Math.floor((sharedBudget - fixed) / stageBytes);
  return {
    defines: {
      FF_ROWS: variant.rows,
      FF_HEIGHT: height,
      FF_STAGES: stages,
      FF_STAGES_X: stagesX,
      FF_HEAD_DIM: headDim,
      FF_PAGE_TOKENS: pageSize,
      FF_BF16: dtype === 'bf16' ? 1 : 0,
    },
    rows: variant.rows,
    sharedBytes: fixed + stages * stageBytes,
  };
}

/** Whether the kernel can compute a product. */
export const fitsLinear = ({ outputs, columns }: DenseMatrix): boolean =>
  columns % CHUNK === 0 && outputs % 4 === 0;
/** Widest residual stream that the kernel norms. */
export const LINEAR_HIDDEN_MAX = 5120;

export class LinearKernels {
  readonly #loader: KernelLoader;
  readonly #shape: LinearShape;
  readonly #variants = new Map<
    number,
    { module: Module; kernel: Kernel; variant: LinearVariant }
  >();
  readonly #maps = new Map<bigint, Uint8Array>();
  readonly #partials: DeviceMemory;
  /** Of blocks that have written their parts, and their results. */
  readonly #counters: DeviceMemory;
  readonly #abortFlag: bigint;

  /**
   * @param outputsMax the widest product's outputs.
   * @param abortFlag a word on the device that says which wait did not end; 0 means none.
   */
  constructor(
    loader: KernelLoader,
    shape: LinearShape,
    outputsMax: number,
    abortFlag: bigint,
    stream: Stream,
  ) {
    this.#loader = loader;
    this.#shape = shape;
    this.#abortFlag = abortFlag;
    const { cuda } = loader;
    const slots = cuda.info.multiprocessors + ceilDiv(outputsMax, TILE);
    this.#partials = cuda.alloc(slots * TILE * LINEAR_ROWS_MAX * 4);
    this.#counters = cuda.alloc(16);
    cuda.fill(this.#counters.address, 0, 16, stream);
  }

  /** Whether this device has what the kernel is made of. */
  static runsOn(arch: string): boolean {
    return Number(/^sm_(\d+)/.exec(arch)?.[1] ?? 0) >= 90;
  }

  /**
   * Brings in what so many rows take.
   * @throws FlashForgeError 'compile' where it neither ships nor can be compiled.
   */
  load(rows: number): void {
    this.#variantOf(rows);
  }

  #variantOf(rows: number): { kernel: Kernel; variant: LinearVariant } {
    const { cuda } = this.#loader;
    const variant = linearVariant(rows, this.#shape, cuda.info.sharedBytes);
    const known = this.#variants.get(variant.rows);
    if (known) return known;
    const module = this.#loader.load('linear.cu', variant.defines);
    const made = { module, kernel: module.kernel('ff_linear', variant.sharedBytes), variant };
    this.#variants.set(variant.rows, made);
    return made;
  }

  #mapOf({ address, outputs, columns }: DenseMatrix): Uint8Array {
    let map = this.#maps.get(address);
    if (!map) {
      map = tensorMap(this.#loader.cuda, address, outputs, columns, TILE);
      this.#maps.set(address, map);
    }
    return map;
  }

  /**
   * Enqueues products that follow each other, each on what the one before has made.
   * @param rotate arguments of `struct Rotate`, packed, where a phase rotates.
   */
  launch(
    phases: readonly LinearPhase[],
    rows: number,
    epsilon: number,
    rotate: Uint8Array | undefined,
    stream: Stream,
  ): void {
    const { cuda } = this.#loader;
    const { kernel, variant } = this.#variantOf(rows);
    const blocks = cuda.info.multiprocessors;
    const args = new Uint8Array(ARGUMENT_BYTES);
    let first = 0;
    for (let i = 0; i < phases.length; i++) {
      const { matrix, input, out = 0n, out16 = 0n, norm = 0n, kind } = phases[i];
      const { outputs, columns } = matrix;
      args.set(this.#mapOf(matrix), i * TENSOR_MAP_BYTES);
      const fields = [input, out, out16, norm, columns, outputs, PHASE_KINDS.indexOf(kind), first];
      args.set(packArguments(PHASE, fields), PHASES_MAX * TENSOR_MAP_BYTES + i * 48);
      first = (first + ceilDiv(outputs, TILE) * (columns / CHUNK)) % blocks;
    }
    const rotateAt = PHASES_MAX * (TENSOR_MAP_BYTES + 48);
    if (rotate) args.set(rotate, rotateAt);
    const rest = [this.#partials.address, this.#counters.address, this.#abortFlag];
    args.set(packArguments(REST, [...rest, phases.length, rows, epsilon]), rotateAt + 96);
    const { sharedBytes } = variant;
    const shape = { blocks, threads: THREADS, sharedBytes, overlaps: true, isStruct: true };
    cuda.launch(kernel, shape, args, stream);
  }

  free(): void {
    for (const { module } of this.#variants.values()) module.free();
    this.#partials.free();
    this.#counters.free();
  }
}
