/**
 * The worker side of worker-pool.test.ts: counts in shared memory between barriers, and fails or
 * vanishes when told to.
 * @module
 */
import { parentPort, workerData } from 'node:worker_threads';
import { Barrier } from '../../../src/backend/cpu/barrier.ts';
import { type PoolWorkerData, serveSteps } from '../../../src/backend/cpu/worker-pool.ts';

/** Words of the shared program: what to do, then one counter a worker. */
export const MODE = 0;
/** `vanish` + r: its thread ends before round r; `hang`: it lives and never comes. */
export const MODES = {
  count: 0,
  throwInWorker: 1,
  throwInMain: 2,
  stray: 3,
  hang: 4,
  vanish: 5,
} as const;
export const ROUNDS = 200;

/** A worker's share: every round, all counters must be equal after the barrier. */
export function countRounds(
  barrier: Barrier,
  words: Int32Array,
  worker: number,
  before: () => void = () => {},
): void {
  for (let round = 0; round < ROUNDS; round++) {
    before();
    Atomics.add(words, 1 + worker, 1);
    barrier.meet();
    for (let other = 1; other < words.length; other++) {
      if (Atomics.load(words, other) !== Atomics.load(words, 1 + worker)) {
        throw new Error('a worker was not at the barrier');
      }
    }
    barrier.meet();
  }
}

/**
 * Keeps the others waiting until they sleep, and wakes them for nothing: what a worker does that is
 * preempted between a change and its notify.
 */
function strayNotifies(control: SharedArrayBuffer): void {
  const shared = new Int32Array(control);
  const end = performance.now() + 1;
  while (performance.now() < end) {
    for (let word = 0; word < 16; word++) Atomics.notify(shared, word);
  }
}

if (workerData !== null) {
  const { worker, workers, control, program } = workerData as PoolWorkerData;
  const words = new Int32Array(program as SharedArrayBuffer);
  const barrier = new Barrier(control, workers, 2000);
  serveSteps(
    barrier,
    () => parentPort?.postMessage('ready'),
    () => {
      if (worker === 1 && words[MODE] === MODES.throwInWorker) throw new Error('share is rotten');
      if (worker === 1 && words[MODE] === MODES.hang) Atomics.wait(words, MODE, MODES.hang);
      let round = 0;
      countRounds(barrier, words, worker, () => {
        if (worker !== 1) return;
        if (words[MODE] === MODES.stray) strayNotifies(control);
        if (words[MODE] === MODES.vanish + round++) process.exit(1);
      });
      if (worker === 1 && words[MODE] === MODES.vanish + ROUNDS) process.exit(1);
    },
  );
}
