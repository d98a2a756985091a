/**
 * The entry of a CPU worker thread: opens the kernels over the shared memory and runs its share of
 * every step until the pool is closed.
 * @module
 */
import { parentPort, workerData } from 'node:worker_threads';
import { Barrier } from '../backend/cpu/barrier.ts';
import { CpuOps } from '../backend/cpu/cpu-ops.ts';
import type { CpuProgram } from '../backend/cpu/cpu-runner.ts';
import { openProvider } from '../backend/cpu/provider.ts';
import { type PoolWorkerData, serveSteps } from '../backend/cpu/worker-pool.ts';
import { forward } from './decoder.ts';

const { worker, workers, control, program } = workerData as PoolWorkerData;
const { source, model, buffers, image } = program as CpuProgram;
const { kernels, memory } = await openProvider(source, worker);
const barrier = new Barrier(control, workers);
const ops = new CpuOps({ worker, workers, kernels, memory, barrier }, model, buffers, image);

serveSteps(
  barrier,
  () => parentPort?.postMessage('ready'),
  () => {
    ops.begin();
    forward(ops, model.config.layers);
  },
);
