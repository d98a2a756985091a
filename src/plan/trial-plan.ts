/**
 * Plans written by hand, to measure kernels with: tasks of given rows and segments on given
 * workers, whether or not a planner would make them.
 * @module
 */
import type { Plan } from './plan.ts';

/** Tokens `begin` to `end` of a node for rows `rowBegin` to `rowEnd`. */
export interface TrialSegment {
  readonly node: number;
  readonly begin: number;
  readonly end: number;
  readonly rowBegin: number;
  readonly rowEnd: number;
}

/** One task and the worker that runs it. Its segments are in the order of their rows. */
export interface TrialTask {
  readonly worker: number;
  readonly segments: readonly TrialSegment[];
}

/**
 * The plan of `tasks` for one KV head.
 * @param merged false: every task writes its rows to the output, as if it had all of their tokens,
 *   so that what tasks cost can be measured without merges; such output is not a result.
 */
export function trialPlan(
  rows: number,
  workers: number,
  tasks: readonly TrialTask[],
  merged: boolean,
): Plan {
  const count = tasks.length;
  const segments = tasks.flatMap((task) => task.segments);
  const ints = (values: readonly number[]): Int32Array => Int32Array.from(values);
  const running = (values: readonly number[]): Int32Array => {
    const sums = new Int32Array(values.length + 1);
    for (let i = 0; i < values.length; i++) sums[i + 1] = sums[i] + values[i];
    return sums;
  };
  const rowBegin = tasks.map((task) => task.segments[0].rowBegin);
  const rowEnd = tasks.map((task) => Math.max(...task.segments.map((part) => part.rowEnd)));
  const destinations = running(rowEnd.map((end, task) => end - rowBegin[task]));
  const order = tasks.map((_, task) => task).sort((a, b) => tasks[a].worker - tasks[b].worker);
  const perWorker = new Array<number>(workers).fill(0);
  for (const { worker } of tasks) perWorker[worker]++;
  const parts = new Int32Array(rows);
  for (let task = 0; task < count; task++) {
    for (let row = rowBegin[task]; row < rowEnd[task]; row++) parts[row]++;
  }
  const mergeRow = merged ? [...parts.keys()].filter((row) => parts[row] > 1) : [];
  const mergeCount = mergeRow.map((row) => parts[row]);
  const slots = running(mergeCount);
  const next = new Int32Array(rows).fill(-1);
  mergeRow.forEach((row, merge) => {
    next[row] = slots[merge];
  });
  const destination = new Int32Array(destinations[count]).fill(-1);
  for (let task = 0; task < count; task++) {
    for (let row = rowBegin[task]; row < rowEnd[task]; row++) {
      const at = destinations[task] + row - rowBegin[task];
      if (next[row] >= 0) destination[at] = next[row]++;
    }
  }
  return {
    ...{ rows, kvHeads: 1, workers, tasks: count, items: count, segments: segments.length },
    taskRowBegin: ints(rowBegin),
    taskRowEnd: ints(rowEnd),
    taskSegment: running(tasks.map((task) => task.segments.length)),
    taskDestination: destinations,
    destination,
    segmentNode: ints(segments.map((part) => part.node)),
    segmentBegin: ints(segments.map((part) => part.begin)),
    segmentEnd: ints(segments.map((part) => part.end)),
    segmentRowBegin: ints(segments.map((part) => part.rowBegin)),
    segmentRowEnd: ints(segments.map((part) => part.rowEnd)),
    workerItem: running(perWorker),
    schedule: ints(order),
    slots: slots[mergeRow.length],
    merges: mergeRow.length,
    mergeRow: ints(mergeRow),
    mergeSlot: slots.slice(0, mergeRow.length),
    mergeCount: ints(mergeCount),
    ...{ makespanUs: 0, lowerBoundUs: 0, kvTokens: 0 },
  };
}
