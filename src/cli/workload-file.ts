/**
 * Reads workload files for the commands that plan or measure trees.
 * @module
 */
import { readFile, stat } from 'node:fs/promises';
import { FlashForgeError } from '../base/errors.ts';
import { fileReason } from '../base/file-errors.ts';
import { parseWorkloads, type Workload } from '../plan/workload.ts';

const FILE_BYTES_MAX = 256 * 1024 * 1024;

/** @throws FlashForgeError 'input' if the file cannot be read or holds no valid workloads. */
export async function readWorkloadFile(path: string): Promise<Workload[]> {
  let text: string;
  try {
    const { size } = await stat(path);
    if (size > FILE_BYTES_MAX) throw new Error(`it has ${size} of at most ${FILE_BYTES_MAX} bytes`);
    // Some editors begin a text with a byte order mark.
    text = (await readFile(path, 'utf8')).replace(/^\uFEFF/, '');
  } catch (cause) {
    const message = `workload file ${path} cannot be read: ${fileReason(cause)}`;
    throw new FlashForgeError('input', message, { cause });
  }
  try {
    return parseWorkloads(text);
  } catch (error) {
    if (!(error instanceof FlashForgeError)) throw error;
    throw new FlashForgeError(error.code, `${path}: ${error.message}`, { cause: error });
  }
}
