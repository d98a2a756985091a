/**
 * A pool of worker threads that execute steps together with the calling thread (worker 0): every
 * worker runs the same program on its share of the work and meets the others at barriers.
 * @module
 */
import { once } from 'node:events';
import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { FlashForgeError } from '../../base/errors.ts';
import { BARRIER_BYTES, Barrier, StepAbandoned } from './barrier.ts';

/** What every worker thread of a pool is started with. */
export interface PoolWorkerData {
  /** From 1 to workers - 1. */
  readonly worker: number;
  readonly workers: number;
  readonly control: SharedArrayBuffer;
  /** The program's own data. */
  readonly program: unknown;
}

/** What the thread that starts the others is started with. */
export interface PoolGuardData extends Omit<PoolWorkerData, 'worker'> {
  readonly entry: string;
}

/** Sent once: all worker threads are ready, or why one is not. */
export interface PoolGuardMessage {
  readonly failed: string | null;
}

export interface PoolOptions {
  /** Threads in all, the caller included. */
  readonly workers: number;
  /** The module that worker threads run; it must call `serveSteps`. */
  readonly entry: URL;
  /** Posted to every worker thread. */
  readonly program: unknown;
  /** How long a silent worker is waited for within a step; default two minutes. */
  readonly patienceMs?: number;
}

const GUARD = new URL(`./pool-guard${extname(import.meta.url)}`, import.meta.url);

/** Threads that execute steps. One step at a time; worker 0 is the thread that owns the pool. */
export class WorkerPool {
  readonly workers: number;
  readonly barrier: Barrier;
  /** Null for a pool of the calling thread alone. */
  readonly #guard: Worker | null;
  #lost: string | null = null;
  #closed = false;

  private constructor(guard: Worker | null, workers: number, barrier: Barrier) {
    this.#guard = guard;
    this.workers = workers;
    this.barrier = barrier;
  }

  /**
   * Starts the threads and waits until all are ready.
   * @throws FlashForgeError 'device' when one does not start.
   */
  static async start(options: PoolOptions): Promise<WorkerPool> {
    const { workers, entry, program, patienceMs } = options;
    const control = new SharedArrayBuffer(BARRIER_BYTES);
    const barrier = new Barrier(control, workers, patienceMs);
    if (workers === 1) return new WorkerPool(null, workers, barrier);
    const workerData: PoolGuardData = { entry: entry.href, workers, control, program };
    const guard = new Worker(GUARD, { workerData, name: 'flashforge-guard' });
    const pool = new WorkerPool(guard, workers, barrier);
    try {
      const [{ failed }] = (await once(guard, 'message')) as [PoolGuardMessage];
      if (failed !== null) throw new Error(failed);
    } catch (cause) {
      await pool.close();
      throw new FlashForgeError(
        'device',
        `a worker thread did not start: ${(cause as Error).message}`,
        { cause },
      );
    }
    pool.#watch(guard);
    return pool;
  }

  /** Without its guard the pool is of no use; the guard never keeps the process alive. */
  #watch(guard: Worker): void {
    guard.unref();
    guard.on('error', (error) => {
      this.#lost ??= error.message;
    });
    guard.on('exit', () => {
      if (!this.#closed) this.#lost ??= 'its guard has ended';
    });
  }

  /**
   * Runs one step: `task` here, and what `serveSteps` was given on every other worker.
   * @throws FlashForgeError 'device' when a worker failed; the pool cannot be used afterwards.
   */
  step(task: () => void): void {
    if (this.#closed) throw new FlashForgeError('device', 'the worker pool is closed');
    const { barrier } = this;
    this.#lost ??= barrier.failure();
    if (this.#lost !== null) {
      throw new FlashForgeError('device', `a worker thread failed: ${this.#lost}`);
    }
    if (this.workers > 1) barrier.begin();
    let thrown: unknown = null;
    try {
      task();
    } catch (error) {
      thrown = error;
      if (!(error instanceof StepAbandoned)) barrier.fail((error as Error).message);
    }
    const lost = this.workers > 1 && !barrier.finished();
    if (lost) barrier.fail('a worker does not answer');
    const failure = barrier.failure() ?? (lost ? 'a worker died' : null);
    if (failure === null) return;
    this.#lost = failure;
    if (thrown instanceof FlashForgeError) throw thrown;
    throw new FlashForgeError('device', `a step failed: ${failure}`, { cause: thrown });
  }

  /** Ends all threads; a second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.barrier.stop();
    await this.#guard?.terminate();
  }
}

/**
 * A worker thread's life: parks between steps and runs `step` for each. Returns when the pool is
 * closed. `ready` is called once, before the first wait.
 */
export function serveSteps(barrier: Barrier, ready: () => void, step: () => void): void {
  let last = 0;
  ready();
  for (;;) {
    last = barrier.park(last);
    if (last < 0) return;
    try {
      step();
    } catch (error) {
      if (!(error instanceof StepAbandoned)) barrier.fail((error as Error).message);
    } finally {
      barrier.finish();
    }
  }
}
