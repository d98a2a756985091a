/**
 * Reads workload files for the commands that plan or measure trees.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import { parseWorkloads, type Workload } from '../plan/workload.ts';
import { readTextFile } from './read-text.ts';

/** @throws FlashForgeError 'input' if the file cannot be read or holds no valid workloads. */
export function readWorkloadFile(path: string): Workload[] {
  let text: string;
  try {
    text = readTextFile(path);
  } catch (cause) {
    const message = `workload file ${path} cannot be read: ${(cause as Error).message}`;
    throw new FlashForgeError('input', message, { cause });
  }
  try {
    return parseWorkloads(text);
  } catch (error) {
    if (!(error instanceof FlashForgeError)) throw error;
    throw new FlashForgeError(error.code, `${path}: ${error.message}`, { cause: error });
  }
}
