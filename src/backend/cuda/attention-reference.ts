/**
 * Attention in float64 on the device, straight from its formula: a row's path is walked node by
 * node, token by token, without plan, tiles or merges. What the kernel is compared with.
 * @module
 */
import type { Forest } from '../../kvcache/forest.ts';
import type { AttentionOptions, AttentionTensors } from './attention.ts';
import type { Cuda, DeviceMemory, Module, Stream } from './driver.ts';
import type { KernelLoader } from './kernel-loader.ts';
import { packArguments } from './launch-arguments.ts';
import { type AttentionSpec, variantFor } from './variants.ts';

/** Letters of `struct Reference` in kernels/bench-tools.cu. */
const ARGUMENTS = 'pppppppppppppiiiiii';
const NODE_WORDS = 5;
const SAMPLE_WORDS = 3;
const ERROR_NUMBERS = 3;
/** Scratch memory; more samples than fit are computed one batch after the other. */
const SCRATCH_BYTES = 2 ** 29;
const POSITION_BYTES = 12;

/** Errors of one row over all of its heads, or of several rows together. */
export interface RowError {
  /** |out - exact| / |exact|, norms over all numbers; NaN if any of them is not a number. */
  readonly relative: number;
  /** Largest |out - exact|. */
  readonly largest: number;
}

/** Keeps device memory and compiled kernels between calls. */
export class AttentionReference {
  readonly #cuda: Cuda;
  readonly #loader: KernelLoader;
  readonly #modules = new Map<string, Module>();
  #memory: DeviceMemory | undefined;

  constructor(loader: KernelLoader) {
    this.#cuda = loader.cuda;
    this.#loader = loader;
  }

  /**
   * Compares rows of the last output, after all that the stream has to do, with float64.
   * @param rows of the forest. `exact` receives (rows, query heads, head_dim), if given.
   */
  compare(
    spec: AttentionSpec,
    tensors: AttentionTensors,
    forest: Forest,
    rows: Int32Array,
    stream: Stream,
    options: AttentionOptions & { readonly exact?: Float64Array | undefined } = {},
  ): RowError[] {
    const heads = spec.kvHeads * spec.groupSize;
    const room = 1 + rows.reduce((most, row) => Math.max(most, forest.rowPosition[row]), 0);
    const each = Math.max(1, Math.floor(SCRATCH_BYTES / (heads * room * POSITION_BYTES)));
    const errors: RowError[] = [];
    for (let first = 0; first < rows.length; first += each) {
      const part = rows.subarray(first, first + each);
      const exact = options.exact?.subarray(first * heads * spec.headDim);
      errors.push(...this.#batch(spec, tensors, forest, part, room, stream, { ...options, exact }));
    }
    return errors;
  }

  #batch(
    spec: AttentionSpec,
    tensors: AttentionTensors,
    forest: Forest,
    rows: Int32Array,
    room: number,
    stream: Stream,
    options: AttentionOptions & { readonly exact?: Float64Array | undefined },
  ): RowError[] {
    const heads = spec.kvHeads * spec.groupSize;
    const places = rows.length * heads;
    const input = inputWords(forest, rows);
    const [weight, exact, error] = [places * room * 8, places * spec.headDim * 8, places * 24];
    const at = this.#reserve(weight + exact + error + places * room * 4 + input.byteLength, stream);
    const [exactAt, errorAt] = [at + BigInt(weight), at + BigInt(weight + exact)];
    const slotAt = errorAt + BigInt(error);
    const inputAt = slotAt + BigInt(places * room * 4);
    const pagesAt = inputAt + BigInt(forest.nodes * NODE_WORDS * 4);
    const sampleAt = inputAt + BigInt(input.byteLength - rows.length * SAMPLE_WORDS * 4);
    stream.synchronize();
    this.#cuda.upload(inputAt, input);
    const args = packArguments(ARGUMENTS, [
      ...[tensors.kv, tensors.queries, tensors.out, inputAt, pagesAt, sampleAt],
      ...[at, slotAt, exactAt, errorAt, tensors.kvScales ?? 0n],
      doubleBits(options.scale ?? 1 / Math.sqrt(spec.headDim)),
      doubleBits(options.softcap ?? 0),
      ...[options.window ?? 0, room, spec.kvHeads, tensors.queryStride, tensors.outStride, 0],
    ]);
    const shape = { blocks: rows.length, blocksY: heads, threads: 256 };
    const kernel = this.#moduleOf(spec).kernel('ff_reference');
    this.#cuda.launch(kernel, shape, args, stream);
    stream.synchronize();
    const sums = new Float64Array(places * ERROR_NUMBERS);
    this.#cuda.download(sums, errorAt);
    if (options.exact) {
      this.#cuda.download(options.exact.subarray(0, places * spec.headDim), exactAt);
    }
    return Array.from(rows, (_, row) => errorOf(sums, row * heads, heads));
  }

  #reserve(bytes: number, stream: Stream): bigint {
    if (this.#memory === undefined || this.#memory.bytes < bytes) {
      stream.synchronize();
      this.#memory?.free();
      this.#memory = this.#cuda.alloc(bytes * 2);
    }
    return this.#memory.address;
  }

  #moduleOf(spec: AttentionSpec): Module {
    const { defines } = variantFor({ ...spec, softcap: false }, this.#cuda.info.arch);
    const key = JSON.stringify(defines);
    const module = this.#modules.get(key) ?? this.#loader.load('bench-tools.cu', defines);
    this.#modules.set(key, module);
    return module;
  }

  free(): void {
    this.#memory?.free();
    this.#memory = undefined;
    for (const module of this.#modules.values()) module.free();
    this.#modules.clear();
  }
}

/** Nodes, page ids, then samples. */
function inputWords(forest: Forest, rows: Int32Array): Int32Array {
  const { nodes, pages, pageBegin, rowBegin, rowEnd } = forest;
  const deepest = new Int32Array(forest.rows).fill(-1);
  const pageCount = Math.min(pageBegin[nodes], pages.length);
  const words = new Int32Array(nodes * NODE_WORDS + pageCount + rows.length * SAMPLE_WORDS);
  for (let node = 0; node < nodes; node++) {
    /* A node's children come after it and take their rows over. */
    deepest.fill(node, rowBegin[node], rowEnd[node]);
    const of = [forest.parent, forest.start, forest.length, forest.firstSlot, pageBegin];
    for (let k = 0; k < NODE_WORDS; k++) words[node * NODE_WORDS + k] = of[k][node];
  }
  words.set(pages.subarray(0, pageCount), nodes * NODE_WORDS);
  let at = nodes * NODE_WORDS + pageCount;
  for (const row of rows) {
    words[at++] = row;
    words[at++] = forest.rowPosition[row];
    words[at++] = deepest[row];
  }
  return words;
}

function errorOf(sums: Float64Array, first: number, heads: number): RowError {
  let [wrong, norm, largest] = [0, 0, 0];
  for (let place = first; place < first + heads; place++) {
    wrong += sums[place * ERROR_NUMBERS];
    norm += sums[place * ERROR_NUMBERS + 1];
    largest = Math.max(largest, sums[place * ERROR_NUMBERS + 2]);
  }
  return { relative: Math.sqrt(wrong / norm), largest: Number.isNaN(wrong) ? wrong : largest };
}

function doubleBits(value: number): bigint {
  return new BigUint64Array(new Float64Array([value]).buffer)[0];
}
