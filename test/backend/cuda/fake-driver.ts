/**
 * A stand-in for the CUDA driver on machines without a GPU: objects are counted, calls can be
 * made to fail, kernels do nothing.
 * @module
 */
import { DRIVER, type DriverLibrary } from '../../../src/backend/cuda/signatures.ts';

const ATTRIBUTES: Readonly<Record<number, number>> = {
  16: 132,
  38: 50 * 2 ** 20,
  97: 227 * 1024,
};
const [MAJOR, MINOR] = [75, 76];
/** Calls that create an object into their first parameter, and the ones that end it. */
const CREATES = new Map([
  ['cuMemAlloc_v2', 'memory'],
  ['cuMemHostAlloc', 'pinned'],
  ['cuStreamCreate', 'stream'],
  ['cuEventCreate', 'event'],
  ['cuModuleLoadData', 'module'],
  ['cuGraphInstantiateWithFlags', 'graph'],
]);
const ENDS = new Map([
  ['cuMemFree_v2', 'memory'],
  ['cuMemFreeHost', 'pinned'],
  ['cuStreamDestroy_v2', 'stream'],
  ['cuEventDestroy_v2', 'event'],
  ['cuModuleUnload', 'module'],
  ['cuGraphExecDestroy', 'graph'],
]);

export class FakeDriver {
  /** Status to return for a call's name, instead of doing it. */
  readonly failures = new Map<string, number>();
  /** Living objects by kind. */
  readonly living = new Map<string, number>();
  /** Launches: blocks, threads and shared bytes. */
  readonly launches: { blocks: number; threads: number; sharedBytes: number }[] = [];
  driverVersion = 13000;
  devices = 1;
  #next = 1n << 40n;
  readonly #attributes: Readonly<Record<number, number>>;
  readonly #host = new Map<bigint, ArrayBuffer>();

  constructor(capability = '9.0') {
    const [major, minor] = capability.split('.').map(Number);
    this.#attributes = { ...ATTRIBUTES, [MAJOR]: major, [MINOR]: minor };
  }

  get library(): DriverLibrary {
    const call: Record<string, (...args: never[]) => number> = {};
    for (const name of Object.keys(DRIVER)) {
      call[name] = (...args: unknown[]) => this.failures.get(name) ?? this.#run(name, args);
    }
    return {
      path: 'fake',
      call: call as unknown as DriverLibrary['call'],
      addressOf: () => 0n,
      viewOf: (address, bytes) => this.#host.get(address) ?? new ArrayBuffer(bytes),
    };
  }

  /** Objects that were never given back. */
  get leaks(): number {
    return [...this.living.values()].reduce((sum, count) => sum + count, 0);
  }

  #run(name: string, args: unknown[]): number {
    const out = args[0] as { [index: number]: number | bigint };
    const created = CREATES.get(name);
    if (created !== undefined) {
      out[0] = this.#next;
      if (created === 'pinned') this.#host.set(this.#next, new ArrayBuffer(Number(args[1])));
      this.#next += 1n << 32n;
      this.living.set(created, (this.living.get(created) ?? 0) + 1);
    }
    const ended = ENDS.get(name);
    if (ended !== undefined) this.living.set(ended, (this.living.get(ended) ?? 0) - 1);
    if (name === 'cuDriverGetVersion') out[0] = this.driverVersion;
    if (name === 'cuDeviceGetCount') out[0] = this.devices;
    if (name === 'cuDeviceGetName') new TextEncoder().encodeInto('Fake', args[0] as Uint8Array);
    if (name === 'cuDeviceGetAttribute') out[0] = this.#attributes[args[1] as number];
    if (name === 'cuDeviceTotalMem_v2') out[0] = 1n << 37n;
    if (name === 'cuMemGetInfo_v2') out[0] = (args[1] as BigUint64Array)[0] = 1n << 37n;
    if (name === 'cuModuleGetFunction') out[0] = this.#next;
    if (name === 'cuStreamEndCapture') (args[1] as BigUint64Array)[0] = this.#next;
    if (name === 'cuLaunchKernel') {
      const [, blocks, , , threads, , , sharedBytes] = args as number[];
      this.launches.push({ blocks, threads, sharedBytes });
    }
    return 0;
  }
}
