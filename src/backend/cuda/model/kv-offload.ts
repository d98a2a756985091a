/**
 * Pinned host memory for KV that leaves the device. Copies are kernels in the stream of the steps,
 * so that they come in order with them, and gather a chunk's tokens from whatever slots they have.
 * (A page's layers lie further apart than the 2 GB that a strided copy of the driver may skip.)
 * @module
 */
import { assert, FlashForgeError } from '../../../base/errors.ts';
import type { HostKv } from '../../../kvcache/host-cache.ts';
import type { Cuda, DeviceMemory } from '../driver.ts';
import type { CudaParts } from './cuda-ops.ts';

/** Memory is pinned in pieces: what there is of it is used, where there is less than was asked. */
const BLOCK_BYTES = 2 ** 29;
/** Pinned memory cannot be swapped: more than this share of what is available is never taken. */
const AVAILABLE_SHARE = 0.8;
const THREADS = 256;
/** Bytes of `struct MoveKv` before its arrays. */
const HEADER_BYTES = 32;
const GIB = 2 ** 30;

/** Chunks of one launch, as in kernels/move-kv.cuh. */
export const moveChunks = (pageTokens: number): number => Math.floor(3456 / (8 + 4 * pageTokens));

export interface HostMemory {
  readonly blocks: readonly DeviceMemory[];
  readonly blockPages: number;
  readonly pages: number;
}

/**
 * Pins memory for as many whole pages as `bytes` hold, or for fewer with a warning where the
 * machine has less.
 * @param pageBytes one page over all layers
 */
export function pinHostMemory(
  cuda: Cuda,
  bytes: number,
  pageBytes: number,
  log: (message: string) => void,
  availableBytes: number = process.availableMemory(),
): HostMemory {
  const blockPages = Math.max(1, Math.floor(BLOCK_BYTES / pageBytes));
  const most = Math.floor(Math.min(bytes, availableBytes * AVAILABLE_SHARE) / pageBytes);
  const blocks: DeviceMemory[] = [];
  let pages = 0;
  while (pages < most) {
    const count = Math.min(blockPages, most - pages);
    try {
      const { address, bytes, free } = cuda.pinned(count * pageBytes);
      blocks.push({ address, bytes, free });
    } catch (error) {
      if (!(error instanceof FlashForgeError)) throw error;
      log(`warning: host memory for KV ends early: ${error.message}`);
      break;
    }
    pages += count;
  }
  const [given, asked] = [(pages * pageBytes) / GIB, bytes / GIB];
  if (pages < Math.floor(bytes / pageBytes)) {
    log(
      `warning: ${given.toFixed(2)} of ${asked.toFixed(2)} GiB of host memory for KV are pinned, ` +
        `as ${(availableBytes / GIB).toFixed(2)} GiB are available`,
    );
  } else log(`${given.toFixed(2)} GiB of host memory are pinned for evicted KV`);
  return { blocks, blockPages, pages };
}

export class CudaHostKv implements HostKv {
  readonly pages: number;
  readonly #parts: CudaParts;
  readonly #memory: HostMemory;
  readonly #pageTokens: number;
  /** Arguments of a launch, and views of them. */
  readonly #bytes: Uint8Array;
  readonly #words: BigUint64Array;
  readonly #ints: Int32Array;

  constructor(parts: CudaParts, memory: HostMemory) {
    this.#parts = parts;
    this.#memory = memory;
    this.pages = memory.pages;
    this.#pageTokens = parts.attention.spec.pageSize;
    const chunks = moveChunks(this.#pageTokens);
    this.#bytes = new Uint8Array(HEADER_BYTES + chunks * (8 + 4 * this.#pageTokens));
    this.#words = new BigUint64Array(this.#bytes.buffer);
    this.#ints = new Int32Array(this.#bytes.buffer);
  }

  save(slots: Int32Array, pages: Int32Array): void {
    this.#move(slots, pages, 1);
  }

  load(pages: Int32Array, slots: Int32Array): void {
    this.#move(slots, pages, 0);
  }

  #move(slots: Int32Array, pages: Int32Array, toHost: 0 | 1): void {
    const { cuda, stream, kernels, model, kv, kvLayerBytes, attention } = this.#parts;
    const size = this.#pageTokens;
    const most = moveChunks(size);
    assert(slots.length === pages.length * size, 'a slot for each token of each chunk');
    const kernel = kernels.get('ff_move_kv');
    this.#words[0] = kv;
    this.#words[1] = BigInt(kvLayerBytes);
    const groups = (attention.spec.kvHeads * size) / 8;
    this.#ints[4] = groups;
    this.#ints[5] = attention.pageBytes / 16 / groups;
    this.#ints[6] = toHost;
    for (let from = 0; from < pages.length; from += most) {
      const count = Math.min(most, pages.length - from);
      for (let chunk = 0; chunk < count; chunk++) {
        this.#words[HEADER_BYTES / 8 + chunk] = this.#addressOf(pages[from + chunk]);
      }
      const own = slots.subarray(from * size, (from + count) * size);
      this.#ints.set(own, HEADER_BYTES / 4 + 2 * most);
      const shape = { blocks: model.config.layers, blocksY: count, threads: THREADS };
      cuda.launch(kernel, shape, this.#bytes, stream);
    }
  }

  #addressOf(page: number): bigint {
    const { blocks, blockPages, pages } = this.#memory;
    assert(page >= 0 && page < pages, `no host page ${page}`);
    const pageBytes = this.#parts.attention.pageBytes * this.#parts.model.config.layers;
    return blocks[Math.floor(page / blockPages)].address + BigInt((page % blockPages) * pageBytes);
  }
}
