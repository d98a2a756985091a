/**
 * Finds and opens the CUDA driver and NVRTC where users have them: the loader's own paths,
 * CUDA_HOME, Python's nvidia-* wheels and what torch brings. The only file here that names koffi.
 * @module
 */
import { existsSync, readdirSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { homeFolder } from '../../base/env.ts';
import { FlashForgeError } from '../../base/errors.ts';
import { NVML, type NvmlLibrary, PCI, type PciLibrary } from './nvml-signatures.ts';
import {
  DRIVER,
  type DriverLibrary,
  type Library,
  NVRTC,
  type NvrtcLibrary,
  type Signatures,
} from './signatures.ts';

type Koffi = typeof import('koffi')['default'];
type Environment = Readonly<Record<string, string | undefined>>;

const LETTERS: Readonly<Record<string, string>> = {
  p: 'void *',
  z: 'size_t',
  i: 'int',
  u: 'unsigned int',
  f: 'float',
  s: 'str',
};

const WINDOWS = process.platform === 'win32';
const DRIVER_NAMES = WINDOWS ? ['nvcuda.dll'] : ['libcuda.so.1', 'libcuda.so'];
const NVML_NAMES = WINDOWS ? ['nvml.dll'] : ['libnvidia-ml.so.1', 'libnvidia-ml.so'];
const ENERGY = 'nvmlDeviceGetTotalEnergyConsumption' satisfies keyof typeof NVML;
/** Newest first: a newer NVRTC also compiles for older devices. */
const NVRTC_NAMES = WINDOWS
  ? ['nvrtc64_130_0.dll', 'nvrtc64_120_0.dll']
  : ['libnvrtc.so.13', 'libnvrtc.so.12', 'libnvrtc.so'];

async function loadKoffi(): Promise<Koffi> {
  try {
    return (await import('koffi')).default;
  } catch (cause) {
    throw new FlashForgeError('device', 'CUDA needs the npm package koffi', { cause });
  }
}

/** Folders of `lib/python3.x/{site,dist}-packages` under a prefix. */
function sitePackages(prefix: string): string[] {
  const found: string[] = [];
  for (const lib of ['lib', 'lib64']) {
    for (const python of entries(join(prefix, lib))) {
      if (!/^python3/.test(python)) continue;
      for (const kind of ['site-packages', 'dist-packages']) {
        const folder = join(prefix, lib, python, kind);
        if (existsSync(folder)) found.push(folder);
      }
    }
  }
  return found;
}

function entries(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** Folders that may hold NVRTC, in the order in which they are tried. */
export function libraryFolders(env: Environment = process.env): string[] {
  const folders: string[] = [];
  if (env.FLASHFORGE_CUDA_LIBRARIES) {
    folders.push(...env.FLASHFORGE_CUDA_LIBRARIES.split(delimiter));
  }
  for (const home of [env.CUDA_HOME, env.CUDA_PATH, '/usr/local/cuda']) {
    if (home) folders.push(join(home, 'lib64'), join(home, 'lib'), join(home, 'bin'));
  }
  /* A virtual environment's python stands in its bin folder: the prefix is one up. */
  const pythons = (env.PATH ?? '')
    .split(delimiter)
    .filter((folder) => existsSync(join(folder, 'python3')))
    .map((folder) => dirname(folder));
  const prefixes = [env.VIRTUAL_ENV, env.CONDA_PREFIX, ...pythons, join(homeFolder(), '.local')];
  const sites = new Set([
    ...(env.PYTHONPATH ?? '').split(delimiter).filter((folder) => folder !== ''),
    ...prefixes.filter((p) => p !== undefined && p !== '').flatMap((p) => sitePackages(String(p))),
    ...entries('/usr/local/lib').flatMap((name) =>
      /^python3/.test(name) ? [join('/usr/local/lib', name, 'dist-packages')] : [],
    ),
  ]);
  for (const site of sites) {
    for (const part of ['nvidia/cu13/lib', 'nvidia/cuda_nvrtc/lib', 'torch/lib']) {
      folders.push(join(site, part));
    }
  }
  return folders.filter((folder) => existsSync(folder));
}

function bind<S extends Signatures>(koffi: Koffi, path: string, signatures: S): Library<S> {
  const library = koffi.load(path);
  const call: Record<string, (...args: unknown[]) => number> = {};
  for (const [name, letters] of Object.entries(signatures)) {
    call[name] = library.func(
      name,
      'int',
      [...letters].map((letter) => LETTERS[letter]),
    );
  }
  return {
    path,
    call: call as Library<S>['call'],
    addressOf: (array) => koffi.address(array),
    viewOf: (address, bytes) => koffi.view(address, bytes),
  };
}

/** The first of `paths` that opens with all functions; `tried` collects why others did not. */
function openFirst<S extends Signatures>(
  koffi: Koffi,
  paths: readonly string[],
  signatures: S,
  tried: string[],
): Library<S> | undefined {
  for (const path of paths) {
    try {
      return bind(koffi, path, signatures);
    } catch (error) {
      tried.push(`${path}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  return undefined;
}

/**
 * Opens the CUDA driver library.
 * @throws FlashForgeError 'device' when the machine has none.
 */
export async function openDriver(names: readonly string[] = DRIVER_NAMES): Promise<DriverLibrary> {
  const koffi = await loadKoffi();
  const tried: string[] = [];
  const library = openFirst(koffi, names, DRIVER, tried);
  if (library) return library;
  throw new FlashForgeError(
    'device',
    `device "cuda" needs the NVIDIA driver, and ${names[0]} was not found on this machine; ` +
      'install the driver or use --device cpu',
    { cause: tried.join('; ') },
  );
}

/**
 * Opens NVML, the driver's library of sensors, and what names a device in it.
 * @throws FlashForgeError 'device' when the machine has none.
 */
export async function openNvml(
  names: readonly string[] = NVML_NAMES,
): Promise<{ readonly nvml: NvmlLibrary; readonly driver: PciLibrary }> {
  const koffi = await loadKoffi();
  const tried: string[] = [];
  const nvml = openFirst(koffi, names, NVML, tried);
  const driver = openFirst(koffi, DRIVER_NAMES, PCI, tried);
  if (nvml && driver) {
    const read = koffi.load(nvml.path).func(ENERGY, 'int', ['void *', 'void *']);
    const readEnergy = (handle: bigint, out: BigUint64Array): Promise<number> =>
      new Promise((resolve, reject) => {
        read.async(handle, out, (error: unknown, status: number) => {
          if (error) reject(error);
          else resolve(status);
        });
      });
    return { nvml: { ...nvml, readEnergy }, driver };
  }
  throw new FlashForgeError('device', `NVML could not be opened: ${tried.join('; ')}`);
}

/** NVRTC opens its builtins by name alone; loaded before, they are found outside loader paths. */
function preloadBuiltins(koffi: Koffi, folder: string, names: readonly string[]): void {
  for (const name of names) {
    if (!/^(lib)?nvrtc-builtins[._\d]/.test(name)) continue;
    try {
      koffi.load(join(folder, name));
    } catch {
      /* Then NVRTC itself says what it misses. */
    }
  }
}

/**
 * Opens NVRTC, CUDA's run-time compiler.
 * @throws FlashForgeError 'compile' naming where it was looked for and what to install.
 */
export async function openNvrtc(env: Environment = process.env): Promise<NvrtcLibrary> {
  const koffi = await loadKoffi();
  const folders = libraryFolders(env);
  const paths = folders.flatMap((folder) => {
    const names = entries(folder);
    preloadBuiltins(koffi, folder, names);
    return NVRTC_NAMES.filter((name) => names.includes(name)).map((name) => join(folder, name));
  });
  const tried: string[] = [];
  const library = openFirst(koffi, [...paths, ...NVRTC_NAMES], NVRTC, tried);
  if (library) return library;
  throw new FlashForgeError(
    'compile',
    'NVRTC (libnvrtc) was not found in CUDA_HOME, the loader paths or Python packages; ' +
      'install it with "pip install nvidia-cuda-nvrtc" or set CUDA_HOME',
    { cause: tried.join('; ') },
  );
}
