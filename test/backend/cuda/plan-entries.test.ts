/**
 * The order of a task's entries: what is for many rows and what is for few, in turns over tasks.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ENTRY_WORDS, EntryWriter } from '../../../src/backend/cuda/plan-entries.ts';
import { trialPlan } from '../../../src/plan/trial-plan.ts';
import { type Workload, workloadForest } from '../../../src/plan/workload.ts';

const NARROW = 1 << 17;
const ROWS = 32;

/** Two tasks of 32 rows: a root for all of them, and a leaf of `leaf` tokens for each row. */
function order(root: number, leaf: number): { first: boolean[]; sorted: string[] } {
  const leaves = Array.from({ length: 2 * ROWS }, (_, i) => i + 1);
  const workload: Workload = {
    name: 'two tasks',
    parent: Int32Array.from([-1, ...leaves.map(() => 0)]),
    tokens: Int32Array.from([root, ...leaves.map(() => leaf)]),
    requests: Int32Array.from(leaves),
    ...{ queryHeads: 4, kvHeads: 1, headDim: 128 },
  };
  const { forest } = workloadForest(workload, 16);
  const tasks = [0, ROWS].map((row, worker) => ({
    worker,
    segments: [
      { node: 0, begin: 0, end: root, rowBegin: row, rowEnd: row + ROWS },
      ...Array.from({ length: ROWS }, (_, i) => ({
        ...{ node: row + i + 1, begin: 0, end: leaf, rowBegin: row + i, rowEnd: row + i + 1 },
      })),
    ],
  }));
  const plan = trialPlan(2 * ROWS, 2, tasks, false);
  const shape = { pageSize: 16, groupSize: 4, groupRows: 16, narrow: true };
  const writer = new EntryWriter(shape);
  const words = new Int32Array(writer.count(plan, forest) * ENTRY_WORDS);
  writer.write(plan, forest, words, 0);
  const entries = (task: number): Int32Array[] =>
    Array.from({ length: writer.taskCount[task] }, (_, i) => {
      const at = (writer.taskEntry[task] + i) * ENTRY_WORDS;
      return words.subarray(at, at + ENTRY_WORDS);
    });
  return {
    first: [0, 1].map((task) => (entries(task)[0][3] & NARROW) !== 0),
    sorted: [0, 1].flatMap((task) => entries(task).map((entry) => `${entry[0]}`)).sort(),
  };
}

test('every other long task begins with its leaves, and no entry is lost', () => {
  const { first, sorted } = order(1024, 32);
  assert.deepEqual(first, [false, true]);
  const root = Array.from({ length: 64 }, (_, unit) => unit);
  const wanted = [...root, ...root, ...Array.from({ length: 128 }, (_, i) => 64 + i)];
  assert.deepEqual(sorted, wanted.map(String).sort());
});

test('short tasks begin with what is for many rows', () => {
  assert.deepEqual(order(256, 32).first, [false, false]);
});
