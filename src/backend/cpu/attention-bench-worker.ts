/**
 * The entry of a worker thread of the attention benchmark.
 * @module
 */
import { parentPort, workerData } from 'node:worker_threads';
import { type BenchProgram, benchRuns } from './attention-bench.ts';
import { Barrier } from './barrier.ts';
import { openProvider } from './provider.ts';
import { type PoolWorkerData, serveSteps } from './worker-pool.ts';

const { worker, workers, control, program } = workerData as PoolWorkerData;
const { source, command } = program as BenchProgram;
const { kernels, memory } = await openProvider(source, worker);
const barrier = new Barrier(control, workers);
const words = memory.f64(command, 2);

serveSteps(
  barrier,
  () => parentPort?.postMessage('ready'),
  () => {
    benchRuns(kernels, barrier, words, worker);
  },
);
