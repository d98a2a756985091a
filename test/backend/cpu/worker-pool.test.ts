/**
 * The worker pool: steps run on all workers, failures reach the caller, nothing hangs or leaks.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { WorkerPool } from '../../../src/backend/cpu/worker-pool.ts';
import { countRounds, MODE, MODES, ROUNDS } from './pool-worker.ts';

const WORKERS = 3;

async function startPool(patienceMs = 500): Promise<{ pool: WorkerPool; words: Int32Array }> {
  const program = new SharedArrayBuffer(4 * (1 + WORKERS));
  const entry = new URL('./pool-worker.js', import.meta.url);
  const pool = await WorkerPool.start({ workers: WORKERS, entry, program, patienceMs });
  return { pool, words: new Int32Array(program) };
}

test('all workers run each step and meet at every barrier', async () => {
  const { pool, words } = await startPool();
  for (let step = 0; step < 5; step++) pool.step(() => countRounds(pool.barrier, words, 0));
  assert.deepEqual([...words.subarray(1)], new Array(WORKERS).fill(5 * ROUNDS));
  await pool.close();
  await pool.close();
  assert.throws(() => pool.step(() => {}), { code: 'device', message: /closed/ });
});

test('a notify that comes late lets nobody pass a barrier alone', async () => {
  const { pool, words } = await startPool();
  words[MODE] = MODES.stray;
  pool.step(() => countRounds(pool.barrier, words, 0));
  assert.deepEqual([...words.subarray(1)], new Array(WORKERS).fill(ROUNDS));
  await pool.close();
});

test('a worker that throws fails the step with its message, and all later steps', async () => {
  const { pool, words } = await startPool();
  words[MODE] = MODES.throwInWorker;
  const run = (): void => pool.step(() => countRounds(pool.barrier, words, 0));
  assert.throws(run, { code: 'device', message: /share is rotten/ });
  assert.throws(run, { code: 'device', message: /share is rotten/ });
  await pool.close();
});

test('an error of worker 0 ends the step everywhere', async () => {
  const { pool } = await startPool();
  const run = (): void =>
    pool.step(() => {
      throw new Error('mine');
    });
  assert.throws(run, { code: 'device', message: /mine/ });
  await pool.close();
});

test('a worker thread that ends is noticed wherever it was in the step', async () => {
  for (const round of [0, 7, ROUNDS - 1, ROUNDS]) {
    // With this patience the test would run into its own limit.
    const { pool, words } = await startPool(600_000);
    const run = (): void => pool.step(() => countRounds(pool.barrier, words, 0));
    run();
    words[MODE] = MODES.vanish + round;
    assert.throws(run, { code: 'device', message: /worker thread 1 ended by itself/ });
    assert.throws(run, { code: 'device', message: /worker thread 1 ended by itself/ });
    await pool.close();
  }
});

test('a worker that lives and does not come is given up', async () => {
  const { pool, words } = await startPool();
  words[MODE] = MODES.hang;
  const run = (): void => pool.step(() => countRounds(pool.barrier, words, 0));
  assert.throws(run, { code: 'device', message: /does not answer/ });
  await pool.close();
});

test('a worker module that cannot start is told clearly', async () => {
  const entry = new URL('./no-such-file.js', import.meta.url);
  await assert.rejects(WorkerPool.start({ workers: 2, entry, program: null }), {
    code: 'device',
    message: /did not start/,
  });
});
