/**
 * The C functions of the CUDA driver and of NVRTC that this backend calls, one line each.
 * A letter is a parameter: p pointer, handle or device address; z size_t; i int; u unsigned;
 * f float; s text. Every function returns a status, 0 for success.
 * @module
 */
export type Signatures = Readonly<Record<string, string>>;

export const DRIVER = {
  cuInit: 'u',
  cuDriverGetVersion: 'p',
  cuGetErrorName: 'ip',
  cuGetErrorString: 'ip',
  cuDeviceGetCount: 'p',
  cuDeviceGet: 'pi',
  cuDeviceGetName: 'pii',
  cuDeviceTotalMem_v2: 'pi',
  cuDeviceGetAttribute: 'pii',
  cuDevicePrimaryCtxRetain: 'pi',
  cuDevicePrimaryCtxRelease_v2: 'i',
  cuCtxSetCurrent: 'p',
  cuCtxSynchronize: '',
  cuMemGetInfo_v2: 'pp',
  cuMemAlloc_v2: 'pz',
  cuMemFree_v2: 'p',
  cuMemHostAlloc: 'pzu',
  cuMemFreeHost: 'p',
  cuMemcpyHtoD_v2: 'ppz',
  cuMemcpyDtoH_v2: 'ppz',
  cuMemcpyHtoDAsync_v2: 'ppzp',
  cuMemcpyDtoHAsync_v2: 'ppzp',
  cuMemsetD8Async: 'puzp',
  cuStreamCreate: 'pu',
  cuStreamDestroy_v2: 'p',
  cuStreamSynchronize: 'p',
  cuEventCreate: 'pu',
  cuEventDestroy_v2: 'p',
  cuEventRecord: 'pp',
  cuEventRecordWithFlags: 'ppu',
  cuEventQuery: 'p',
  cuEventSynchronize: 'p',
  cuEventElapsedTime: 'ppp',
  cuModuleLoadData: 'pp',
  cuModuleUnload: 'p',
  cuModuleGetFunction: 'pps',
  cuFuncSetAttribute: 'pii',
  cuLaunchKernel: 'puuuuuuuppp',
  cuLaunchKernelEx: 'pppp',
  cuStreamBeginCapture_v2: 'pi',
  cuStreamEndCapture: 'pp',
  cuGraphInstantiateWithFlags: 'ppz',
  cuGraphLaunch: 'pp',
  cuGraphExecDestroy: 'p',
  cuGraphDestroy: 'p',
} as const satisfies Signatures;

export const NVRTC = {
  nvrtcVersion: 'pp',
  nvrtcCreateProgram: 'pssipp',
  nvrtcDestroyProgram: 'p',
  nvrtcCompileProgram: 'pip',
  nvrtcGetProgramLogSize: 'pp',
  nvrtcGetProgramLog: 'pp',
  nvrtcGetCUBINSize: 'pp',
  nvrtcGetCUBIN: 'pp',
  nvrtcGetPTXSize: 'pp',
  nvrtcGetPTX: 'pp',
} as const satisfies Signatures;

/** What may be given for a parameter; a typed array stands for the address of its first byte. */
export type Argument = number | bigint | string | null | NodeJS.TypedArray;

/** A bound library: the functions named in a signature table, and where it was found. */
export interface Library<S extends Signatures> {
  readonly path: string;
  readonly call: { readonly [Name in keyof S]: (...args: Argument[]) => number };
  /** Address of a typed array's first byte; valid while the array is alive. */
  addressOf(array: NodeJS.TypedArray): bigint;
  /** Memory outside the JavaScript heap (pinned host memory) as an ArrayBuffer. */
  viewOf(address: bigint, bytes: number): ArrayBuffer;
}

export type DriverLibrary = Library<typeof DRIVER>;
export type NvrtcLibrary = Library<typeof NVRTC>;
