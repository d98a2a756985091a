/**
 * How kernels reach the processor, behind one shape: compiled here (native), compiled before
 * (prebuilt) or WebAssembly. One thread creates a provider and its memory; every worker opens the
 * same by the provider's `source`, which can be posted.
 * @module
 */
import { FlashForgeError } from '../../base/errors.ts';
import type { Kernels } from './kernel-table.ts';
import { type Memory, type MemoryHandle, nativeMemory, wasmMemory } from './memory.ts';
import { compileKernels, findCompiler } from './native-compiler.ts';
import { addressWith, bindLibrary, loadKoffi } from './native-library.ts';
import { prebuiltCandidates } from './prebuilt.ts';
import { compileWasm, instantiateWasm, type WasmKernels } from './wasm-module.ts';

/** What a caller may ask for; auto = native where it can be had, else wasm. */
export type ProviderChoice = 'auto' | 'native' | 'wasm';

export type ProviderKind = 'native' | 'prebuilt' | 'wasm';

/** What another thread needs to open the same kernels. */
export type KernelSource =
  | { readonly kind: 'native' | 'prebuilt'; readonly library: string }
  | { readonly kind: 'wasm'; readonly wasm: WasmKernels };

/** Everything a worker needs; can be posted once all memory is allocated. */
export interface ProviderSource {
  readonly kernels: KernelSource;
  readonly memory: MemoryHandle;
}

/** Kernels and memory as one thread sees them. */
export interface Provider {
  readonly kind: ProviderKind;
  /** One sentence: what runs and why. */
  readonly why: string;
  readonly memory: Memory;
  readonly kernels: Kernels;
  /** For the other workers; take it after the last allocation. */
  readonly source: ProviderSource;
}

export interface ProviderOptions {
  /** Default 'auto'. */
  readonly provider?: ProviderChoice | undefined;
  /** Number of threads that will use the kernels, this one included; default 1. */
  readonly workers?: number | undefined;
  /** Told what takes time. */
  readonly log?: ((message: string) => void) | undefined;
}

/**
 * Chooses, prepares and opens a provider for worker 0.
 * @throws FlashForgeError 'compile' when the one asked for cannot be had.
 */
export async function createProvider(options: ProviderOptions = {}): Promise<Provider> {
  const choice = options.provider ?? 'auto';
  if (choice === 'wasm') return openWasm(options.workers ?? 1, 'asked for');
  try {
    return await openNative(options.log);
  } catch (error) {
    if (choice === 'native' || !(error instanceof FlashForgeError)) throw error;
    return openWasm(options.workers ?? 1, `no native kernels: ${error.message}`);
  }
}

/** Opens another thread's provider as worker `worker`; it must not allocate. */
export async function openProvider(source: ProviderSource, worker: number): Promise<Provider> {
  const { kernels: from } = source;
  if (from.kind === 'wasm') {
    return {
      kind: 'wasm',
      why: 'opened by a worker',
      memory: wasmMemory(from.wasm.memory, from.wasm.memory.buffer.byteLength),
      kernels: instantiateWasm(from.wasm, worker),
      source,
    };
  }
  const koffi = await loadKoffi();
  const chunks = source.memory.kind === 'native' ? source.memory.chunks : [];
  return {
    kind: from.kind,
    why: 'opened by a worker',
    memory: nativeMemory(addressWith(koffi), chunks),
    kernels: bindLibrary(koffi, from.library).kernels,
    source,
  };
}

/** A compiler on the machine is preferred: it knows exactly this processor. */
async function openNative(log?: (message: string) => void): Promise<Provider> {
  const koffi = await loadKoffi();
  const compiler = await findCompiler();
  let problem = 'no C compiler was found';
  if (compiler !== null) {
    try {
      const { path, cached, compiler: title } = await compileKernels(compiler, log);
      const how = cached ? 'compiled earlier' : 'compiled now';
      return nativeProvider(koffi, 'native', path, `${how} for this processor by ${title}`);
    } catch (error) {
      if (!(error instanceof FlashForgeError)) throw error;
      problem = error.message;
    }
  }
  const prebuilt = choosePrebuilt(koffi);
  if (prebuilt !== null) {
    return nativeProvider(koffi, 'prebuilt', prebuilt, `library of the package: ${problem}`);
  }
  throw new FlashForgeError('compile', `${problem}, and no prebuilt library fits this machine`);
}

function nativeProvider(
  koffi: Awaited<ReturnType<typeof loadKoffi>>,
  kind: 'native' | 'prebuilt',
  library: string,
  why: string,
): Provider {
  const { kernels } = bindLibrary(koffi, library);
  const memory = nativeMemory(addressWith(koffi), [], kernels.ff_use_huge_pages);
  return {
    kind,
    why,
    memory,
    kernels,
    get source(): ProviderSource {
      return { kernels: { kind, library }, memory: memory.handle };
    },
  };
}

/** The best library of the package that loads here, has every kernel and suits the processor. */
function choosePrebuilt(koffi: Awaited<ReturnType<typeof loadKoffi>>): string | null {
  const candidates = prebuiltCandidates();
  // The least demanding library answers what the processor has; its answer runs anywhere.
  for (const { path } of [...candidates].reverse()) {
    try {
      const features = bindLibrary(koffi, path).kernels.ff_cpu_features();
      const best = candidates.find(({ target }) => (target.features & ~features) === 0);
      if (best === undefined) return null;
      if (bindLibrary(koffi, best.path).missing.length === 0) return best.path;
    } catch (error) {
      // A file that this system cannot load, or of another version: the next one.
      if (!(error instanceof FlashForgeError)) throw error;
    }
  }
  return null;
}

async function openWasm(workers: number, why: string): Promise<Provider> {
  const { wasm, heapStart } = await compileWasm(workers);
  const memory = wasmMemory(wasm.memory, heapStart);
  return {
    kind: 'wasm',
    why: `${why} (${wasm.relaxed ? 'relaxed SIMD' : 'SIMD128'})`,
    memory,
    kernels: instantiateWasm(wasm, 0),
    get source(): ProviderSource {
      return { kernels: { kind: 'wasm', wasm }, memory: memory.handle };
    },
  };
}
