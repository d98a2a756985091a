/**
 * Every FLASHFORGE_* environment variable in one place: name, meaning, default. Read at the time
 * of use, so that tests can set them.
 * @module
 */
import { lstatSync, mkdirSync, mkdtempSync } from 'node:fs';
import { homedir, platform, tmpdir } from 'node:os';
import { join } from 'node:path';
import { packageRoot } from './package-files.ts';

/**
 * The user's home folder. A user without one (a container's numeric user) gets a folder of his own
 * beside the temporary files; never one that belongs to somebody else, as kernels are loaded from
 * it.
 */
export function homeFolder(): string {
  try {
    const home = homedir();
    if (home !== '') return home;
  } catch {
    // The system knows no such user.
  }
  const user = process.getuid?.() ?? 0;
  const folder = join(tmpdir(), `flashforge-home-${user}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { uid, mode } = lstatSync(folder);
  const own = uid === user && (mode & 0o022) === 0;
  return own ? folder : mkdtempSync(`${folder}-`);
}

/** Folder of compiled kernels and measured profiles; default: the user's cache folder. */
export function cacheFolder(): string {
  const set = process.env.FLASHFORGE_CACHE;
  if (set) return set;
  if (platform() === 'win32') {
    return join(process.env.LOCALAPPDATA ?? join(homeFolder(), 'AppData', 'Local'), 'flashforge');
  }
  if (platform() === 'darwin') return join(homeFolder(), 'Library', 'Caches', 'flashforge');
  return join(process.env.XDG_CACHE_HOME || join(homeFolder(), '.cache'), 'flashforge');
}

/** FLASHFORGE_CC: the C compiler command, arguments allowed ("zig cc"); default: search. */
export const compilerCommand = (): string | undefined => process.env.FLASHFORGE_CC || undefined;

/**
 * FLASHFORGE_PREBUILT: folder of what was compiled when the package was made: CPU libraries and
 * PTX; default: `prebuilt` in the package.
 */
export const prebuiltFolder = (): string =>
  process.env.FLASHFORGE_PREBUILT || join(packageRoot(), 'prebuilt');

/** FLASHFORGE_NVRTC=off: CUDA kernels come from the package's PTX though NVRTC may be there. */
export const usesNvrtc = (): boolean => process.env.FLASHFORGE_NVRTC !== 'off';

/**
 * FLASHFORGE_NVRTC_FLAGS: more options for compiling CUDA kernels, for those who work on them
 * ("-lineinfo" for a profiler's source view); default: none.
 */
export const nvrtcFlags = (): readonly string[] =>
  process.env.FLASHFORGE_NVRTC_FLAGS?.split(' ').filter((flag) => flag !== '') ?? [];
