/**
 * The CUDA driver API behind typed, owned objects: memory, streams, events, modules, launches and
 * graphs. Every status goes through `check`, which turns it into an error that names the call;
 * an error that CUDA never recovers from ends the device with one clear message.
 * @module
 */
import { FlashForgeError, PROCESS_LOST } from '../../base/errors.ts';
import { LAUNCH_CONFIG_BYTES, packOverlapping } from './launch-config.ts';
import { openDriver } from './libraries.ts';
import type { Argument, DRIVER, DriverLibrary } from './signatures.ts';
import { STICKY, statusText, versionText } from './statuses.ts';

/** Oldest driver that runs what NVRTC 12 and 13 compile (12.4). */
const DRIVER_VERSION_MIN = 12040;

/** Values of CUdevice_attribute. */
const ATTRIBUTE = {
  multiprocessors: 16,
  l2Bytes: 38,
  major: 75,
  minor: 76,
  sharedBytes: 97,
} as const;
const FUNCTION_SHARED_BYTES = 8;
/** Flag of cuEventRecordWithFlags: a node of the graph that is being captured. */
const EVENT_RECORD_EXTERNAL = 1;
const STATUS_NOT_READY = 600;
/** More than CUDA takes for one kernel. */
const ARGUMENT_BYTES_MAX = 4096;

export interface DeviceInfo {
  readonly name: string;
  /** For NVRTC: 'sm_90a', 'sm_80', ... */
  readonly arch: string;
  readonly multiprocessors: number;
  readonly memoryBytes: number;
  readonly l2Bytes: number;
  /** Most shared memory of one block. */
  readonly sharedBytes: number;
  /** 13000 for 13.0. */
  readonly driverVersion: number;
}

/** Device memory; give it back with `free`. */
export interface DeviceMemory {
  readonly address: bigint;
  readonly bytes: number;
  free(): void;
}

/** Page-locked host memory, seen as an ArrayBuffer until `free`. */
export interface PinnedMemory extends DeviceMemory {
  readonly buffer: ArrayBuffer;
}

export interface Stream {
  readonly handle: bigint;
  synchronize(): void;
  free(): void;
}

export interface Event {
  readonly handle: bigint;
  record(stream: Stream): void;
  /** While the stream is captured: each replay of the graph records the event here. */
  recordInGraph(stream: Stream): void;
  /** Whether the device has passed the last record; throws what the device failed with. */
  done(): boolean;
  synchronize(): void;
  free(): void;
}

export interface Kernel {
  readonly handle: bigint;
  readonly name: string;
}

export interface Module {
  /** A kernel of the module that may use `sharedBytes` of dynamic shared memory. */
  kernel(name: string, sharedBytes?: number): Kernel;
  free(): void;
}

export interface Graph {
  launch(stream: Stream): void;
  free(): void;
}

/** Grid and block of a launch; blocks are one-dimensional. */
export interface LaunchShape {
  readonly blocks: number;
  readonly blocksY?: number;
  readonly threads: number;
  readonly sharedBytes?: number;
  /** It may start before the one before it ends, and waits by itself (griddepcontrol). */
  readonly overlaps?: boolean;
}

/** One CUDA device with its primary context current on the calling thread. */
export class Cuda {
  readonly info: DeviceInfo;
  readonly #library: DriverLibrary;
  readonly #device: number;
  #lost: FlashForgeError | undefined;
  #closed = false;
  readonly #out = new BigUint64Array(1);
  readonly #elapsedMs = new Float32Array(1);
  /** Ends the objects that are not given back yet. */
  readonly #owned = new Set<() => void>();
  /** Launch arguments, the five words that point at them, and their size: never moved. */
  readonly #launchArguments = new Uint8Array(new ArrayBuffer(ARGUMENT_BYTES_MAX));
  readonly #launchSize = new BigUint64Array(new ArrayBuffer(64), 0, 1);
  readonly #launchExtra = new BigUint64Array(new ArrayBuffer(64), 0, 5);
  readonly #launchConfig = new Uint8Array(new ArrayBuffer(LAUNCH_CONFIG_BYTES));

  private constructor(library: DriverLibrary, index: number) {
    this.#library = library;
    this.check('cuInit', 0);
    const version = this.#int('cuDriverGetVersion');
    if (version < DRIVER_VERSION_MIN) {
      throw new FlashForgeError(
        'device',
        `the NVIDIA driver supports CUDA ${versionText(version)}, and FlashForge needs ` +
          `${versionText(DRIVER_VERSION_MIN)} or later: update the driver or use --device cpu`,
      );
    }
    const count = this.#int('cuDeviceGetCount');
    if (index >= count) {
      throw new FlashForgeError(
        'device',
        `CUDA device ${index} was asked for, and this machine has ${count}`,
      );
    }
    this.#device = this.#int('cuDeviceGet', index);
    this.#retain();
    this.info = this.#describe(version);
  }

  /** @throws FlashForgeError 'device' without a driver, with an old one, or without the device. */
  static async open(index = 0, library?: DriverLibrary): Promise<Cuda> {
    return new Cuda(library ?? (await openDriver()), index);
  }

  /** After a fault CUDA refuses to serve the process for good, whatever it destroys. */
  #retain(): void {
    const { call } = this.#library;
    const opened = call.cuDevicePrimaryCtxRetain(this.#out, this.#device);
    const status = opened || call.cuCtxSetCurrent(this.#out[0]) || call.cuCtxSynchronize();
    if (status === 0) return;
    if (opened === 0) call.cuDevicePrimaryCtxRelease_v2(this.#device);
    const message = `the CUDA device cannot be opened: ${statusText(this.#library, status)}`;
    throw new FlashForgeError('device', message, STICKY.has(status) ? { cause: PROCESS_LOST } : {});
  }

  #describe(driverVersion: number): DeviceInfo {
    const name = new Uint8Array(256);
    this.check('cuDeviceGetName', name, name.length, this.#device);
    this.check('cuDeviceTotalMem_v2', this.#out, this.#device);
    const memoryBytes = Number(this.#out[0]);
    const get = (key: keyof typeof ATTRIBUTE): number =>
      this.#int('cuDeviceGetAttribute', ATTRIBUTE[key], this.#device);
    const [major, minor] = [get('major'), get('minor')];
    if (major < 8) {
      throw new FlashForgeError(
        'device',
        `CUDA kernels need compute capability 8.0 or later, and this device has ${major}.${minor}`,
      );
    }
    return {
      name: new TextDecoder().decode(name.subarray(0, name.indexOf(0))),
      arch: `sm_${major}${minor}${major === 9 ? 'a' : ''}`,
      multiprocessors: get('multiprocessors'),
      memoryBytes,
      l2Bytes: get('l2Bytes'),
      sharedBytes: get('sharedBytes'),
      driverVersion,
    };
  }

  /**
   * Calls the driver and turns a bad status into an error.
   * @throws FlashForgeError 'device' with the call's and the error's names.
   */
  check(name: keyof typeof DRIVER, ...args: Argument[]): void {
    if (this.#lost !== undefined) throw this.#lost;
    const status = this.#library.call[name](...args);
    if (status !== 0) this.#fail(name, status);
  }

  #fail(name: keyof typeof DRIVER, status: number): never {
    const message = `${name} failed: ${statusText(this.#library, status)}`;
    if (STICKY.has(status)) {
      throw this.giveUp(`the CUDA device can no longer be used (${message}); load the model again`);
    }
    throw new FlashForgeError('device', message);
  }

  /** Address of a typed array's first byte, for structures that point at others. */
  addressOf(array: NodeJS.TypedArray): bigint {
    return this.#library.addressOf(array);
  }

  /** A call whose first parameter receives an int. */
  #int(name: keyof typeof DRIVER, ...args: Argument[]): number {
    const out = new Int32Array(1);
    this.check(name, out, ...args);
    return out[0];
  }

  /** An owned object: `free` gives it back once, and never throws for a lost device. */
  #own(free: () => void): () => void {
    const end = (): void => {
      if (this.#owned.delete(end) && this.#lost === undefined) free();
    };
    this.#owned.add(end);
    return end;
  }

  /** Objects not given back yet: a leak shows as a number above zero after disposal. */
  get live(): number {
    return this.#owned.size;
  }

  alloc(bytes: number): DeviceMemory {
    try {
      this.check('cuMemAlloc_v2', this.#out, Math.max(16, bytes));
    } catch (error) {
      const [free, total] = this.memory();
      throw new FlashForgeError(
        'device',
        `${(bytes / 2 ** 20).toFixed(0)} MiB of device memory were asked for, and ` +
          `${(free / 2 ** 20).toFixed(0)} of ${(total / 2 ** 20).toFixed(0)} MiB are free`,
        { cause: error },
      );
    }
    const address = this.#out[0];
    return { address, bytes, free: this.#own(() => this.check('cuMemFree_v2', address)) };
  }

  pinned(bytes: number): PinnedMemory {
    this.check('cuMemHostAlloc', this.#out, Math.max(16, bytes), 0);
    const address = this.#out[0];
    return {
      address,
      bytes,
      buffer: this.#library.viewOf(address, bytes),
      free: this.#own(() => this.check('cuMemFreeHost', address)),
    };
  }

  /** Free and total bytes of device memory. */
  memory(): [number, number] {
    const total = new BigUint64Array(1);
    this.check('cuMemGetInfo_v2', this.#out, total);
    return [Number(this.#out[0]), Number(total[0])];
  }

  upload(to: bigint, from: NodeJS.TypedArray): void {
    this.check('cuMemcpyHtoD_v2', to, from, from.byteLength);
  }

  download(to: NodeJS.TypedArray, from: bigint): void {
    this.check('cuMemcpyDtoH_v2', to, from, to.byteLength);
  }

  /** Copies pinned memory to the device in the stream's order. */
  uploadAsync(to: bigint, from: PinnedMemory, bytes: number, stream: Stream): void {
    this.check('cuMemcpyHtoDAsync_v2', to, from.address, bytes, stream.handle);
  }

  downloadAsync(to: PinnedMemory, from: bigint, bytes: number, stream: Stream): void {
    this.check('cuMemcpyDtoHAsync_v2', to.address, from, bytes, stream.handle);
  }

  fill(to: bigint, value: number, bytes: number, stream: Stream): void {
    this.check('cuMemsetD8Async', to, value, bytes, stream.handle);
  }

  stream(): Stream {
    this.check('cuStreamCreate', this.#out, 1);
    const handle = this.#out[0];
    return {
      handle,
      synchronize: () => this.check('cuStreamSynchronize', handle),
      free: this.#own(() => this.check('cuStreamDestroy_v2', handle)),
    };
  }

  event(): Event {
    this.check('cuEventCreate', this.#out, 0);
    const handle = this.#out[0];
    return {
      handle,
      record: (stream) => this.check('cuEventRecord', handle, stream.handle),
      recordInGraph: (stream) =>
        this.check('cuEventRecordWithFlags', handle, stream.handle, EVENT_RECORD_EXTERNAL),
      done: () => this.#isDone(handle),
      synchronize: () => this.check('cuEventSynchronize', handle),
      free: this.#own(() => this.check('cuEventDestroy_v2', handle)),
    };
  }

  #isDone(event: bigint): boolean {
    if (this.#lost !== undefined) throw this.#lost;
    const status = this.#library.call.cuEventQuery(event);
    if (status !== 0 && status !== STATUS_NOT_READY) this.#fail('cuEventQuery', status);
    return status === 0;
  }

  /** Time between two recorded events, us. */
  elapsedUs(from: Event, to: Event): number {
    this.check('cuEventElapsedTime', this.#elapsedMs, from.handle, to.handle);
    return this.#elapsedMs[0] * 1000;
  }

  load(cubin: Uint8Array): Module {
    this.check('cuModuleLoadData', this.#out, cubin);
    const handle = this.#out[0];
    return {
      kernel: (name, sharedBytes = 0) => {
        this.check('cuModuleGetFunction', this.#out, handle, name);
        const kernel = this.#out[0];
        if (sharedBytes > 48 * 1024) {
          this.check('cuFuncSetAttribute', kernel, FUNCTION_SHARED_BYTES, sharedBytes);
        }
        return { handle: kernel, name };
      },
      free: this.#own(() => this.check('cuModuleUnload', handle)),
    };
  }

  /** Launches with `args` as the bytes of the kernel's parameters. */
  launch(kernel: Kernel, shape: LaunchShape, args: Uint8Array, stream: Stream): void {
    const { addressOf } = this.#library;
    this.#launchArguments.set(args);
    this.#launchSize[0] = BigInt(args.byteLength);
    const [bytes, size] = [addressOf(this.#launchArguments), addressOf(this.#launchSize)];
    this.#launchExtra.set([1n, bytes, 2n, size, 0n]);
    const { blocks, blocksY = 1, threads, sharedBytes = 0 } = shape;
    if (shape.overlaps) {
      packOverlapping(this.#launchConfig, addressOf(this.#launchConfig), shape, stream.handle);
      this.check('cuLaunchKernelEx', this.#launchConfig, kernel.handle, null, this.#launchExtra);
      return;
    }
    const grid = [blocks, blocksY, 1, threads, 1, 1, sharedBytes];
    this.check('cuLaunchKernel', kernel.handle, ...grid, stream.handle, null, this.#launchExtra);
  }

  /** Records what `work` enqueues on `stream` as a graph. */
  capture(stream: Stream, work: () => void): Graph {
    this.check('cuStreamBeginCapture_v2', stream.handle, 2);
    try {
      work();
    } finally {
      this.check('cuStreamEndCapture', stream.handle, this.#out);
    }
    const graph = this.#out[0];
    this.check('cuGraphInstantiateWithFlags', this.#out, graph, 0);
    const handle = this.#out[0];
    this.check('cuGraphDestroy', graph);
    return {
      launch: (on) => this.check('cuGraphLaunch', handle, on.handle),
      free: this.#own(() => this.check('cuGraphExecDestroy', handle)),
    };
  }

  synchronize(): void {
    this.check('cuCtxSynchronize');
  }

  /** From now on every call fails with this: for a device that does not come back. */
  giveUp(why: string): FlashForgeError {
    this.#lost ??= new FlashForgeError('device', why, { cause: PROCESS_LOST });
    return this.#lost;
  }

  /** Gives back the context and every object that is left, after a load that failed half-way. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const end of this.#owned) this.#endQuietly(end);
    this.#library.call.cuDevicePrimaryCtxRelease_v2(this.#device);
    this.#lost ??= new FlashForgeError('device', 'the CUDA device was closed');
  }

  #endQuietly(end: () => void): void {
    try {
      end();
    } catch {} // It goes with the context; its caller has been told the first error.
  }
}
