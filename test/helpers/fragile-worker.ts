/**
 * Preloaded into every thread of a server: the compute threads end in the midst of a step, at their
 * next barrier, once the file exists that this variable names. The file goes with the first.
 * @module
 */
import { unlinkSync } from 'node:fs';
import { workerData } from 'node:worker_threads';

export const CRASH_FILE = 'FLASHFORGE_TEST_CRASH_FILE';

const file = process.env[CRASH_FILE];
if (file !== undefined && workerData?.worker > 0) {
  const { add } = Atomics;
  Atomics.add = ((words: Int32Array, index: number, value: number): number => {
    let found = true;
    try {
      unlinkSync(file);
    } catch {
      found = false;
    }
    if (found) process.exit(1);
    return add(words, index, value);
  }) as typeof add;
}
