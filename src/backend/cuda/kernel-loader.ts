/**
 * From a kernel source file and its constants to a module on the device: out of the cache on
 * disk, else through NVRTC, else from the package's PTX, which the driver compiles.
 * @module
 */
import { join } from 'node:path';
import { cacheFolder, usesNvrtc } from '../../base/env.ts';
import { FlashForgeError } from '../../base/errors.ts';
import type { Cuda, Module } from './driver.ts';
import { KernelCache } from './kernel-cache.ts';
import { openNvrtc } from './libraries.ts';
import { compile, nvrtcVersion, type Sources } from './nvrtc.ts';
import { findPtx, hasPtx, shippedPtx } from './shipped-ptx.ts';
import type { NvrtcLibrary } from './signatures.ts';
import { kernelSources } from './variants.ts';

type Defines = Readonly<Record<string, number>>;

/** What turns a source file into machine code for one device. */
export interface KernelCompiler {
  /** For people. */
  readonly name: string;
  /** All that its results depend on besides sources and constants. */
  readonly version: string;
  /** Results are machine code, to be kept on disk; else PTX, which the driver keeps by itself. */
  readonly kept: boolean;
  /** @throws FlashForgeError 'compile'. */
  code(main: string, defines: Defines): Uint8Array;
}

export class KernelLoader {
  readonly cuda: Cuda;
  readonly compiler: KernelCompiler;
  readonly #cache: KernelCache;
  readonly #sources: Sources;

  constructor(cuda: Cuda, compiler: KernelCompiler, cache: KernelCache, sources: Sources) {
    this.cuda = cuda;
    this.compiler = compiler;
    this.#cache = cache;
    this.#sources = sources;
  }

  /** @throws FlashForgeError 'compile' with neither NVRTC nor PTX in the package. */
  static async open(cuda: Cuda, folder: string = defaultCacheFolder()): Promise<KernelLoader> {
    const sources = kernelSources();
    const compiler = await openCompiler(cuda, sources);
    return new KernelLoader(cuda, compiler, new KernelCache(folder), sources);
  }

  /** @throws FlashForgeError 'compile' with the log, 'device' if the module does not load. */
  load(main: string, defines: Defines): Module {
    if (!this.compiler.kept) return loadPtx(this.cuda, main, this.compiler.code(main, defines));
    const { arch, driverVersion } = this.cuda.info;
    const compilerVersion = this.compiler.version;
    const sources = this.#sources;
    const key = { main, sources, arch, defines, driverVersion, compilerVersion };
    let compiled = false;
    const compile = (): Uint8Array => {
      compiled = true;
      return this.compiler.code(main, defines);
    };
    const cubin = this.#cache.get(key, compile);
    try {
      return this.cuda.load(cubin);
    } catch (error) {
      if (compiled) throw error;
      return this.cuda.load(this.#cache.renew(key, compile));
    }
  }
}

/** NVRTC where it is, else the package's PTX. */
async function openCompiler(cuda: Cuda, sources: Sources): Promise<KernelCompiler> {
  const way = await findCompilation();
  return way.nvrtc
    ? nvrtcCompiler(cuda, sources, way.nvrtc)
    : ptxCompiler(cuda, sources, way.reason);
}

/**
 * How this machine gets kernels: by NVRTC, or by the package's PTX for the reason given.
 * @throws FlashForgeError 'compile' with neither of both.
 */
export async function findCompilation(): Promise<
  { readonly nvrtc: NvrtcLibrary } | { readonly nvrtc: undefined; readonly reason: string }
> {
  if (!usesNvrtc()) {
    if (hasPtx()) return { nvrtc: undefined, reason: 'FLASHFORGE_NVRTC is off' };
    throw new FlashForgeError(
      'compile',
      'FLASHFORGE_NVRTC is off, and this package was made without PTX: unset it',
    );
  }
  try {
    return { nvrtc: await openNvrtc() };
  } catch (error) {
    if (!(error instanceof FlashForgeError) || !hasPtx()) throw error;
    return { nvrtc: undefined, reason: error.message };
  }
}

function nvrtcCompiler(cuda: Cuda, sources: Sources, nvrtc: NvrtcLibrary): KernelCompiler {
  const version = `nvrtc ${nvrtcVersion(nvrtc).join('.')}`;
  return {
    name: version.toUpperCase(),
    version,
    kept: true,
    code: (main, defines) => compile(nvrtc, sources, main, cuda.info.arch, defines).cubin,
  };
}

function ptxCompiler(cuda: Cuda, sources: Sources, reason: string): KernelCompiler {
  return {
    name: "the package's PTX, compiled by the driver",
    version: 'ptx',
    kept: false,
    code: (main, defines) => {
      const ptx = findPtx(shippedPtx(sources, main, cuda.info.arch, defines));
      if (ptx !== undefined) return new TextEncoder().encode(`${ptx}\0`);
      throw new FlashForgeError(
        'compile',
        `the package has no PTX of ${main} for this model's shape on ${cuda.info.arch}, and it ` +
          `cannot be compiled: ${reason}`,
      );
    },
  };
}

/**
 * The driver compiles PTX as one whole. (Its linker, which would give us the machine code, compiles
 * as for separate units, which serialises wgmma: wide trees took 65 us instead of 35 on an H200.)
 */
function loadPtx(cuda: Cuda, main: string, ptx: Uint8Array): Module {
  try {
    return cuda.load(ptx);
  } catch (cause) {
    throw new FlashForgeError(
      'compile',
      `the driver does not compile the package's PTX of ${main} (${(cause as Error).message}); ` +
        'update the driver or install NVRTC with "pip install nvidia-cuda-nvrtc"',
      { cause },
    );
  }
}

/** FLASHFORGE_CACHE, else the user's cache folder. */
export const defaultCacheFolder = (): string => join(cacheFolder(), 'cuda');
