/**
 * From a kernel source file and its constants to a module on the device: out of the cache on
 * disk, else through NVRTC.
 * @module
 */
import { join } from 'node:path';
import { cacheFolder } from '../../base/env.ts';
import type { Cuda, Module } from './driver.ts';
import { KernelCache } from './kernel-cache.ts';
import { openNvrtc } from './libraries.ts';
import { compile, nvrtcVersion, type Sources } from './nvrtc.ts';
import type { NvrtcLibrary } from './signatures.ts';
import { kernelSources } from './variants.ts';

export class KernelLoader {
  readonly cuda: Cuda;
  readonly #nvrtc: NvrtcLibrary;
  readonly #cache: KernelCache;
  readonly #sources: Sources = kernelSources();

  private constructor(cuda: Cuda, nvrtc: NvrtcLibrary, cache: KernelCache) {
    this.cuda = cuda;
    this.#nvrtc = nvrtc;
    this.#cache = cache;
  }

  /** @throws FlashForgeError 'compile' without NVRTC. */
  static async open(cuda: Cuda, folder: string = defaultCacheFolder()): Promise<KernelLoader> {
    return new KernelLoader(cuda, await openNvrtc(), new KernelCache(folder));
  }

  /** Where NVRTC was found. */
  get compilerPath(): string {
    return this.#nvrtc.path;
  }

  /** @throws FlashForgeError 'compile' with the log, 'device' if the module does not load. */
  load(main: string, defines: Readonly<Record<string, number>>): Module {
    const { arch, driverVersion } = this.cuda.info;
    const key = {
      main,
      sources: this.#sources,
      arch,
      defines,
      driverVersion,
      compilerVersion: nvrtcVersion(this.#nvrtc),
    };
    const cubin = this.#cache.get(key, () =>
      compile(this.#nvrtc, this.#sources, main, arch, defines),
    );
    return this.cuda.load(cubin);
  }
}

/** FLASHFORGE_CACHE, else the user's cache folder. */
export function defaultCacheFolder(env: NodeJS.ProcessEnv = process.env): string {
  const base = env.FLASHFORGE_CACHE || cacheFolder();
  return join(base, 'cuda');
}
