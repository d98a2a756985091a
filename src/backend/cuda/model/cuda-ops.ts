/**
 * The decoder's operations on the device: each enqueues a product or a kernel of decoder.cu on one
 * stream. Rows and logit rows are those of the step's bucket; all addresses are fixed, so that the
 * same calls can be recorded as a graph.
 * @module
 */
import { ceilDiv } from '../../../base/math.ts';
import type { DecoderOps } from '../../ops.ts';
import type { TreeAttention } from '../attention.ts';
import type { Cuda, Kernel, Module } from '../driver.ts';
import type { KernelLoader } from '../kernel-loader.ts';
import { packArguments } from '../launch-arguments.ts';
import { type CudaBuffers, type HalfType, INPUTS, type InputName } from './cuda-model.ts';
import type { MeasuredChoices } from './measured-choices.ts';
import { type ProductParts, runProduct } from './products.ts';

const NAMES = [
  'ff_round',
  'ff_embed',
  'ff_rms_norm',
  'ff_rotate_store',
  'ff_swiglu',
  'ff_move_kv',
] as const;
const THREADS = { embed: 256, norm: 512, rotate: 128, swiglu: 256 } as const;

/** Letters of `struct Rotate` in kernels/decoder.cu. */
export const ROTATE = 'ppppppppppiiif';

/** The kernels of decoder.cu, compiled for a model's shape. */
export class DecoderKernels {
  readonly module: Module;
  readonly #kernels: ReadonlyMap<string, Kernel>;

  /** @throws FlashForgeError 'compile' with the compiler's log. */
  constructor(loader: KernelLoader, headDim: number, pageSize: number, dtype: HalfType) {
    this.module = loader.load('decoder.cu', decoderDefines(headDim, pageSize, dtype));
    this.#kernels = new Map(NAMES.map((name) => [name, this.module.kernel(name)]));
  }

  get(name: (typeof NAMES)[number]): Kernel {
    return this.#kernels.get(name) as Kernel;
  }
}

/** The constants that decoder.cu is compiled with. */
export const decoderDefines = (
  headDim: number,
  pageSize: number,
  dtype: HalfType,
): Record<string, number> => ({
  FF_HEAD_DIM: headDim,
  FF_PAGE_TOKENS: pageSize,
  FF_BF16: dtype === 'bf16' ? 1 : 0,
});

/** Everything that operations work with. */
export interface CudaParts extends ProductParts {
  readonly choices: MeasuredChoices;
  readonly cuda: Cuda;
  readonly kernels: DecoderKernels;
  readonly attention: TreeAttention;
  /** First byte of the KV pages, and the bytes of one layer's. */
  readonly kv: bigint;
  readonly kvLayerBytes: number;
}

/** Address of one of the step's input arrays. */
export const inputAddress = ({ inputs, maxRows }: CudaBuffers, name: InputName): bigint =>
  inputs.address + BigInt(INPUTS.indexOf(name) * maxRows * 4);

export class CudaOps implements DecoderOps {
  readonly #parts: CudaParts;
  /** The kernels here may start early, on devices that know how. */
  readonly #overlaps: boolean;
  #rows = 0;
  #logitRows = 0;

  constructor(parts: CudaParts) {
    this.#parts = parts;
    this.#overlaps = parts.cuda.info.arch === 'sm_90a';
  }

  /** Takes up a bucket: operations that follow compute so many rows. */
  begin(rows: number, logitRows: number): void {
    this.#rows = rows;
    this.#logitRows = logitRows;
  }

  embed(): void {
    const { model, buffers } = this.#parts;
    const addresses = [model.embed, inputAddress(buffers, 'tokens'), buffers.x.address];
    const args = packArguments('pppi', [...addresses, model.config.hidden]);
    this.#launch('ff_embed', { blocks: this.#rows, threads: THREADS.embed }, args);
  }

  attentionInput(layer: number): void {
    this.#norm(this.#parts.model.layers[layer].attnNorm, this.#rows, 0n);
    runProduct(this.#parts, 'qkv', layer, this.#rows);
  }

  rotateAndStore(layer: number): void {
    const { heads, kvHeads } = this.#parts.model.config;
    const warps = this.#rows * (heads + 2 * kvHeads);
    const shape = { blocks: ceilDiv(warps, THREADS.rotate / 32), threads: THREADS.rotate };
    this.#launch('ff_rotate_store', shape, this.#rotation(layer));
  }

  /** `struct Rotate`, packed. */
  #rotation(layer: number): Uint8Array {
    const { model, buffers, kv, kvLayerBytes } = this.#parts;
    const { heads, kvHeads, normEpsilon } = model.config;
    const { qkvBias, qNorm, kNorm } = model.layers[layer];
    return packArguments(ROTATE, [
      buffers.qkv.address,
      qkvBias,
      qNorm,
      kNorm,
      model.cosine,
      model.sine,
      inputAddress(buffers, 'positions'),
      inputAddress(buffers, 'writeSlots'),
      buffers.queries.address,
      kv + BigInt(layer) * BigInt(kvLayerBytes),
      this.#rows,
      heads,
      kvHeads,
      normEpsilon,
    ]);
  }

  attention(layer: number): void {
    const { attention, model, buffers, stream, kv, kvLayerBytes } = this.#parts;
    const { heads, headDim, slidingWindow } = model.config;
    attention.launch(
      {
        kv: kv + BigInt(layer) * BigInt(kvLayerBytes),
        queries: buffers.queries.address,
        queryStride: heads * headDim,
        out: buffers.attention.address,
        outStride: heads * headDim,
      },
      stream,
      { window: slidingWindow ?? 0, overlaps: this.#overlaps },
    );
  }

  attentionOutput(layer: number): void {
    runProduct(this.#parts, 'o', layer, this.#rows);
  }

  mlpInput(layer: number): void {
    this.#norm(this.#parts.model.layers[layer].mlpNorm, this.#rows, 0n);
    runProduct(this.#parts, 'gateUp', layer, this.#rows);
  }

  mlpOutput(layer: number): void {
    const { model, buffers } = this.#parts;
    const { intermediate } = model.config;
    const blocks = ceilDiv((this.#rows * intermediate) / 8, THREADS.swiglu);
    const args = [buffers.gateUp.address, buffers.input.address, intermediate, this.#rows];
    const shape = { blocks, threads: THREADS.swiglu };
    this.#launch('ff_swiglu', shape, packArguments('ppii', args));
    runProduct(this.#parts, 'down', layer, this.#rows);
  }

  logits(): void {
    const { model, buffers } = this.#parts;
    const count = this.#logitRows;
    if (count === 0) return;
    this.#norm(model.outputNorm, count, inputAddress(buffers, 'logitRows'));
    runProduct(this.#parts, 'output', 0, count);
  }

  /** buffers.input = RMSNorm(x) * weight, of all rows or of those in `index`. */
  #norm(weight: bigint, rows: number, index: bigint): void {
    const { model, buffers } = this.#parts;
    const { hidden, normEpsilon } = model.config;
    const addresses = [buffers.x.address, weight, index, buffers.input.address];
    const args = packArguments('ppppif', [...addresses, hidden, normEpsilon]);
    this.#launch('ff_rms_norm', { blocks: rows, threads: THREADS.norm }, args);
  }

  #launch(
    name: (typeof NAMES)[number],
    shape: { readonly blocks: number; readonly blocksY?: number; readonly threads: number },
    args: Uint8Array,
  ): void {
    const { cuda, kernels, stream } = this.#parts;
    cuda.launch(kernels.get(name), { ...shape, overlaps: this.#overlaps }, args, stream);
  }
}
