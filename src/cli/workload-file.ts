/**
 * Reads workload files and cost profiles for the commands that plan or measure trees.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import type { CostProfile } from '../plan/plan.ts';
import { parseProfile } from '../plan/profile-store.ts';
import { parseWorkloads, type Workload } from '../plan/workload.ts';
import { readTextFile } from './read-text.ts';

/** @throws FlashForgeError 'input' if the file cannot be read or holds no valid workloads. */
export const readWorkloadFile = (path: string): Workload[] =>
  readParsed('workload file', path, parseWorkloads);

/** @throws FlashForgeError 'input' if the file cannot be read or holds no usable cost profile. */
export const readProfileFile = (path: string): CostProfile =>
  readParsed('profile file', path, parseProfile);

function readParsed<T>(what: string, path: string, parse: (text: string) => T): T {
  let text: string;
  try {
    text = readTextFile(path);
  } catch (cause) {
    const message = `${what} ${path} cannot be read: ${(cause as Error).message}`;
    throw new FlashForgeError('input', message, { cause });
  }
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof FlashForgeError)) throw error;
    throw new FlashForgeError(error.code, `${path}: ${error.message}`, { cause: error });
  }
}
