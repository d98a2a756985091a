/**
 * A thread that starts the worker threads of a pool and hears when one of them ends. It never
 * computes, so that it can tell those who wait at a barrier: worker 0 itself, blocked there, hears
 * nothing.
 * @module
 */
import { parentPort, Worker, workerData } from 'node:worker_threads';
import { Barrier } from './barrier.ts';
import type { PoolGuardData, PoolGuardMessage, PoolWorkerData } from './worker-pool.ts';

const { entry, workers, control, program } = workerData as PoolGuardData;
const barrier = new Barrier(control, workers);
let ready = 1;

const tell = (message: PoolGuardMessage): void => parentPort?.postMessage(message);

function lost(worker: number, why: string): void {
  if (barrier.stopped) return;
  const message = `worker thread ${worker} ${why}`;
  barrier.lose(message);
  if (ready < workers) tell({ failed: message });
}

for (let worker = 1; worker < workers; worker++) {
  const data: PoolWorkerData = { worker, workers, control, program };
  const thread = new Worker(new URL(entry), { workerData: data, name: `flashforge-${worker}` });
  let reason = 'ended by itself';
  thread.once('message', () => {
    if (++ready === workers) tell({ failed: null });
  });
  thread.on('error', (error) => {
    reason = `failed: ${error.message}`;
  });
  thread.on('exit', () => lost(worker, reason));
}
