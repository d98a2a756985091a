/**
 * Where the files that ship with the package are. Compiled code lies at another depth than its
 * sources, so that the folder is searched for upwards.
 * @module
 */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** The folder with package.json, from a source or a compiled file. */
export function packageRoot(): string {
  let folder = import.meta.dirname;
  while (!existsSync(join(folder, 'package.json')) && dirname(folder) !== folder) {
    folder = dirname(folder);
  }
  return folder;
}

/** A file of the folder `assets`. */
export const assetPath = (name: string): string => join(packageRoot(), 'assets', name);
