/**
 * Preloaded into a server: its CUDA context is broken once the file exists that this variable
 * names. The file goes with it.
 * @module
 */
import { existsSync, unlinkSync } from 'node:fs';
import { isMainThread } from 'node:worker_threads';
import { breakContext } from './cuda-fault.ts';

export const FAULT_FILE = 'FLASHFORGE_TEST_FAULT_FILE';
const POLL_MS = 20;

const file = process.env[FAULT_FILE];
if (file !== undefined && isMainThread) {
  const timer = setInterval(() => {
    if (!existsSync(file)) return;
    clearInterval(timer);
    unlinkSync(file);
    void breakContext('illegal address');
  }, POLL_MS);
  timer.unref();
}
