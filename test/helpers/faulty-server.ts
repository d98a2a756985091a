/**
 * The command line with a weakness: on SIGUSR2 its newest engine thread dies.
 * @module
 */
import type { Worker } from 'node:worker_threads';

const workers: Worker[] = [];
process.on('worker', (worker: Worker) => workers.push(worker));
process.on('SIGUSR2', () => void workers.at(-1)?.terminate());

await import('../../src/cli/main.ts');
