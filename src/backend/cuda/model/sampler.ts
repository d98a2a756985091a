/**
 * What goes into a step and comes out of it on the device: inputs and drawn tokens, logits'
 * statistics, draws, results. The kernels are those of sampler.cu.
 * @module
 */
import { ceilDiv } from '../../../base/math.ts';
import type { Cuda, DeviceMemory, Kernel, LaunchShape, Module, Stream } from '../driver.ts';
import type { KernelLoader } from '../kernel-loader.ts';
import { packArguments } from '../launch-arguments.ts';
import { type CudaBuffers, DRAW_WORDS, INPUTS } from './cuda-model.ts';

const NAMES = ['ff_step_inputs', 'ff_logit_stats', 'ff_draw_tokens', 'ff_step_results'] as const;
/** Threads of a block; those of the statistics and of draws are constants of the kernels. */
const THREADS = { words: 256, stats: 256, draw: 512 } as const;
/** Blocks of ff_logit_stats that a multiprocessor holds, and logits that are worth a block. */
const STATS_BLOCKS = 8;
const SLICE_MIN = 2048;
const SPLITS_MAX = 64;
/** Bytes of `Stats` in sampler.cu. */
const PART_BYTES = 16;

/** What of a step's tensors the sampler works on. */
export type SamplerBuffers = Pick<CudaBuffers, 'maxRows' | 'inputs' | 'logits'>;

/** Words of a logit row's results, in this order: argmax, log-sum-exp, drawn, its logit. */
export const RESULT_WORDS = 4;

export class Sampler {
  readonly #cuda: Cuda;
  readonly #module: Module;
  readonly #kernels: ReadonlyMap<string, Kernel>;
  readonly #buffers: SamplerBuffers;
  readonly #vocab: number;
  readonly #parts: DeviceMemory;
  readonly #tickets: DeviceMemory;
  readonly #results: DeviceMemory;

  /** @throws FlashForgeError 'compile' with the compiler's log. */
  constructor(loader: KernelLoader, buffers: SamplerBuffers, vocab: number, stream: Stream) {
    const { cuda } = loader;
    this.#cuda = cuda;
    this.#module = loader.load('sampler.cu', {});
    this.#kernels = new Map(NAMES.map((name) => [name, this.#module.kernel(name)]));
    this.#buffers = buffers;
    this.#vocab = vocab;
    const { maxRows } = buffers;
    this.#parts = cuda.alloc(maxRows * SPLITS_MAX * PART_BYTES);
    this.#tickets = cuda.alloc(maxRows * 4);
    this.#results = cuda.alloc(maxRows * RESULT_WORDS * 4);
    for (const memory of [this.#tickets, this.#results]) {
      cuda.fill(memory.address, 0, memory.bytes, stream);
    }
  }

  /**
   * Enqueues the step's inputs: `staged` is pinned memory with tokens, positions and slots (rows),
   * logit rows (logitRows) and draws (draws) one after the other. Resolves tokens drawn before.
   */
  readInputs(staged: bigint, rows: number, logitRows: number, draws: number, stream: Stream): void {
    const words = 3 * rows + logitRows + draws * DRAW_WORDS;
    const shape = { blocks: ceilDiv(words, THREADS.words), threads: THREADS.words };
    const { inputs, maxRows } = this.#buffers;
    const [to, results] = [inputs.address, this.#results.address];
    const values = [staged, to, results, rows, logitRows, draws, maxRows];
    this.#launch('ff_step_inputs', shape, 'pppiiii', values, stream);
  }

  /** Enqueues argmax and log-sum-exp of `rows` rows of logits; each row's argmax is its draw. */
  stats(rows: number, stream: Stream): void {
    const blocks = this.#cuda.info.multiprocessors * STATS_BLOCKS;
    const wanted = Math.floor(Math.min(blocks / rows, this.#vocab / SLICE_MIN));
    const splits = Math.max(1, Math.min(SPLITS_MAX, wanted));
    const slice = ceilDiv(this.#vocab, splits * 4) * 4;
    const shape = { blocks: splits, blocksY: rows, threads: THREADS.stats };
    this.#launch(
      'ff_logit_stats',
      shape,
      'ppppii',
      [
        this.#buffers.logits.address,
        this.#parts.address,
        this.#tickets.address,
        this.#results.address,
        this.#vocab,
        slice,
      ],
      stream,
    );
  }

  /**
   * Enqueues the draws of the first `rows` rows, after `stats`.
   * @param changes pinned memory with the changes that the draws refer to.
   */
  draw(rows: number, changes: bigint, stream: Stream): void {
    const { logits, inputs, maxRows } = this.#buffers;
    const array = (index: number): bigint => inputs.address + BigInt(index * maxRows * 4);
    const [tokens, logitRows] = [INPUTS.indexOf('tokens'), INPUTS.indexOf('logitRows')].map(array);
    const shape = { blocks: rows, threads: THREADS.draw };
    const addresses = [logits.address, array(INPUTS.length), changes, tokens, logitRows];
    const values = [...addresses, this.#results.address, this.#vocab];
    this.#launch('ff_draw_tokens', shape, 'ppppppi', values, stream);
  }

  /** Enqueues the way back: the abort code and `rows` results, to RESULT_WORDS on, in `to`. */
  writeResults(abort: bigint, to: bigint, rows: number, stream: Stream): void {
    const shape = { blocks: Math.max(1, ceilDiv(rows, THREADS.words)), threads: THREADS.words };
    const values = [this.#results.address, abort, to, rows];
    this.#launch('ff_step_results', shape, 'pppi', values, stream);
  }

  #launch(
    name: (typeof NAMES)[number],
    shape: LaunchShape,
    letters: string,
    values: readonly (number | bigint)[],
    stream: Stream,
  ): void {
    const kernel = this.#kernels.get(name) as Kernel;
    this.#cuda.launch(kernel, shape, packArguments(letters, values), stream);
  }

  free(): void {
    for (const memory of [this.#parts, this.#tickets, this.#results]) memory.free();
    this.#module.free();
  }
}
