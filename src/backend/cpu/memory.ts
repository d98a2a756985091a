/**
 * Memory that kernels and all workers share. An address is a plain JavaScript number everywhere:
 * a real address for native kernels, an offset into the WebAssembly memory otherwise.
 *
 * Nothing is freed singly: a runner allocates what it needs when it loads and drops the whole.
 * @module
 */
import { FlashForgeError } from '../../base/errors.ts';
import { alignUp } from '../../base/math.ts';

/** One shared buffer and the address of its first byte. Can be posted to a worker. */
export interface MemoryChunk {
  readonly buffer: SharedArrayBuffer;
  readonly base: number;
}

/** What a worker needs to see the same memory. */
export type MemoryHandle =
  | { readonly kind: 'native'; readonly chunks: readonly MemoryChunk[] }
  | { readonly kind: 'wasm'; readonly memory: WebAssembly.Memory };

/** Typed windows on shared memory by address; they stay valid as long as the memory lives. */
export interface MemoryView {
  u8(address: number, length: number): Uint8Array<SharedArrayBuffer>;
  i8(address: number, length: number): Int8Array<SharedArrayBuffer>;
  u16(address: number, length: number): Uint16Array<SharedArrayBuffer>;
  i32(address: number, length: number): Int32Array<SharedArrayBuffer>;
  f32(address: number, length: number): Float32Array<SharedArrayBuffer>;
  f64(address: number, length: number): Float64Array<SharedArrayBuffer>;
}

/** An allocated piece of shared memory. */
export class Block {
  readonly address: number;
  readonly bytes: number;
  readonly #view: MemoryView;

  constructor(view: MemoryView, address: number, bytes: number) {
    this.#view = view;
    this.address = address;
    this.bytes = bytes;
  }

  u8(): Uint8Array<SharedArrayBuffer> {
    return this.#view.u8(this.address, this.bytes);
  }
  i8(): Int8Array<SharedArrayBuffer> {
    return this.#view.i8(this.address, this.bytes);
  }
  u16(): Uint16Array<SharedArrayBuffer> {
    return this.#view.u16(this.address, this.bytes >> 1);
  }
  i32(): Int32Array<SharedArrayBuffer> {
    return this.#view.i32(this.address, this.bytes >> 2);
  }
  f32(): Float32Array<SharedArrayBuffer> {
    return this.#view.f32(this.address, this.bytes >> 2);
  }
}

/** Shared memory as one worker sees it; the thread that created it may also allocate. */
export interface Memory extends MemoryView {
  readonly handle: MemoryHandle;
  /** Bytes handed out so far. */
  readonly used: number;
  /**
   * A zeroed piece at a multiple of `align` (a power of two).
   * @throws FlashForgeError 'device' when the memory is not enough.
   */
  alloc(bytes: number, align?: number): Block;
}

/** Chunks are at least this large, so that small allocations share one. */
const CHUNK_BYTES = 32 * 1024 * 1024;
const WASM_PAGE = 65536;
/** The largest memory of 32-bit WebAssembly, in pages of 64 KB. */
const WASM_PAGES_MAX = 65536;

type BufferAt = (address: number, bytes: number) => { buffer: SharedArrayBuffer; offset: number };

function views(at: BufferAt): MemoryView {
  const make =
    <T>(
      Type: new (buffer: SharedArrayBuffer, offset: number, length: number) => T,
      size: number,
    ): ((address: number, length: number) => T) =>
    (address, length) => {
      const { buffer, offset } = at(address, length * size);
      return new Type(buffer, offset, length);
    };
  return {
    u8: make(Uint8Array<SharedArrayBuffer>, 1),
    i8: make(Int8Array<SharedArrayBuffer>, 1),
    u16: make(Uint16Array<SharedArrayBuffer>, 2),
    i32: make(Int32Array<SharedArrayBuffer>, 4),
    f32: make(Float32Array<SharedArrayBuffer>, 4),
    f64: make(Float64Array<SharedArrayBuffer>, 8),
  };
}

const notEnough = (bytes: number, used: number, limit: string): FlashForgeError =>
  new FlashForgeError(
    'device',
    `memory is not enough: ${(bytes / 2 ** 20).toFixed(0)} MiB more were asked for after ` +
      `${(used / 2 ** 20).toFixed(0)} MiB, and ${limit}`,
  );

/**
 * Memory for native kernels: shared buffers whose real addresses `addressOf` tells.
 * @param chunks those of another thread's handle; new chunks are not seen by that thread.
 * @param advise told each new chunk before it is touched.
 */
export function nativeMemory(
  addressOf: (buffer: SharedArrayBuffer) => number,
  chunks: readonly MemoryChunk[] = [],
  advise: (address: number, bytes: number) => void = () => {},
): Memory {
  const all = [...chunks];
  let next = 0;
  let end = 0;
  let used = 0;
  const at: BufferAt = (address, bytes) => {
    for (const { buffer, base } of all) {
      const offset = address - base;
      if (offset >= 0 && offset + bytes <= buffer.byteLength) return { buffer, offset };
    }
    throw new Error(`internal error: address ${address} is in no shared buffer`);
  };
  const grow = (bytes: number): void => {
    try {
      const buffer = new SharedArrayBuffer(bytes);
      const base = addressOf(buffer);
      advise(base, bytes);
      all.push({ buffer, base });
      next = base;
      end = base + bytes;
    } catch (cause) {
      if (!(cause instanceof RangeError)) throw cause;
      throw notEnough(bytes, used, 'the system gives no more');
    }
  };
  const view = views(at);
  return {
    ...view,
    get handle(): MemoryHandle {
      return { kind: 'native', chunks: [...all] };
    },
    get used() {
      return used;
    },
    alloc(bytes, align = 64) {
      if (alignUp(next, align) + bytes > end) grow(Math.max(bytes + align, CHUNK_BYTES));
      const address = alignUp(next, align);
      next = address + bytes;
      used += bytes;
      return new Block(view, address, bytes);
    },
  };
}

/** A new shared WebAssembly memory that can grow to 4 GiB. */
export const newWasmMemory = (bytes: number): WebAssembly.Memory =>
  new WebAssembly.Memory({
    initial: Math.ceil(bytes / WASM_PAGE),
    maximum: WASM_PAGES_MAX,
    shared: true,
  });

/**
 * Memory for WebAssembly kernels: one shared memory of at most 4 GiB.
 * @param start the first free byte, after what the module itself uses.
 */
export function wasmMemory(memory: WebAssembly.Memory, start: number): Memory {
  let next = start;
  const buffer = (): SharedArrayBuffer => memory.buffer as unknown as SharedArrayBuffer;
  const view = views((address) => ({ buffer: buffer(), offset: address }));
  return {
    ...view,
    handle: { kind: 'wasm', memory },
    get used() {
      return next - start;
    },
    alloc(bytes, align = 64) {
      const address = alignUp(next, align);
      const missing = address + bytes - buffer().byteLength;
      if (missing > 0) {
        try {
          const least = Math.ceil(missing / WASM_PAGE);
          const roomy = Math.min(
            Math.max(least, CHUNK_BYTES / WASM_PAGE),
            WASM_PAGES_MAX - buffer().byteLength / WASM_PAGE,
          );
          memory.grow(Math.max(least, roomy));
        } catch (cause) {
          if (!(cause instanceof RangeError)) throw cause;
          throw notEnough(bytes, next - start, 'WebAssembly reaches 4096 MiB at most');
        }
      }
      next = address + bytes;
      return new Block(view, address, bytes);
    },
  };
}
