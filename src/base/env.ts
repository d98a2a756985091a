/**
 * Every FLASHFORGE_* environment variable in one place: name, meaning, default. Read at the time
 * of use, so that tests can set them.
 * @module
 */
import { homedir, platform } from 'node:os';
import { join } from 'node:path';

/** Folder of compiled kernels and measured profiles; default: the user's cache folder. */
export function cacheFolder(): string {
  const set = process.env.FLASHFORGE_CACHE;
  if (set) return set;
  if (platform() === 'win32') {
    return join(process.env.LOCALAPPDATA ?? join(homedir(), 'AppData', 'Local'), 'flashforge');
  }
  if (platform() === 'darwin') return join(homedir(), 'Library', 'Caches', 'flashforge');
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'flashforge');
}

/** FLASHFORGE_CC: the C compiler command, arguments allowed ("zig cc"); default: search. */
export const compilerCommand = (): string | undefined => process.env.FLASHFORGE_CC || undefined;

/** FLASHFORGE_PREBUILT: folder of prebuilt kernel libraries; default: `prebuilt` in the package. */
export const prebuiltFolder = (): string | undefined =>
  process.env.FLASHFORGE_PREBUILT || undefined;
