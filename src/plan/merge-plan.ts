/**
 * Emission: pieces become tasks, and each row of a task gets the place its result goes to, the
 * final output or a partial slot; rows with several partials get a merge (POR).
 * @module
 */
import { IntBlock } from './int-block.ts';
import type { Layout } from './layout.ts';
import type { PiecePricer } from './piece-pricer.ts';
import { OPEN_END, type Plan } from './plan.ts';
import type { Pieces } from './task-division.ts';

/** The parts of a plan that say what tasks read and where their results go. */
export type TaskPart = Pick<
  Plan,
  | 'tasks'
  | 'taskRowBegin'
  | 'taskRowEnd'
  | 'taskSegment'
  | 'taskDestination'
  | 'segments'
  | 'segmentNode'
  | 'segmentBegin'
  | 'segmentEnd'
  | 'segmentRowBegin'
  | 'segmentRowEnd'
>;

/** Task t is piece t. Segments that reach the end of a node without children stay open. */
export function emitTasks(
  layout: Layout,
  pieces: Pieces,
  pricer: PiecePricer,
  hasChild: Uint8Array,
): TaskPart {
  const tasks = pieces.count;
  let segments = 0;
  for (let t = 0; t < tasks; t++) segments += pieces.lastSegment[t] - pieces.firstSegment[t] + 1;
  const ints = new IntBlock(4 * tasks + 2 + 5 * segments);
  const part = {
    tasks,
    taskRowBegin: ints.take(tasks),
    taskRowEnd: ints.take(tasks),
    taskSegment: ints.take(tasks + 1),
    taskDestination: ints.take(tasks + 1),
    segments,
    segmentNode: ints.take(segments),
    segmentBegin: ints.take(segments),
    segmentEnd: ints.take(segments),
    segmentRowBegin: ints.take(segments),
    segmentRowEnd: ints.take(segments),
  };
  const { length } = layout.forest;
  const { segmentNode, segmentTokens, segmentRowBegin, segmentRowEnd } = layout;
  let out = 0;
  for (let task = 0; task < tasks; task++) {
    const first = pieces.firstSegment[task];
    const last = pieces.lastSegment[task];
    let token = pieces.firstToken[task];
    pricer.partRows(layout, first, token);
    let { rowBegin, rowEnd } = pricer;
    part.taskRowBegin[task] = rowBegin;
    let taskEnd = rowEnd;
    for (let segment = first; ; out++) {
      const node = segmentNode[segment];
      const end = segment === last ? pieces.lastToken[task] : segmentTokens[segment];
      part.segmentNode[out] = node;
      part.segmentBegin[out] = token;
      part.segmentEnd[out] = end === length[node] && hasChild[node] === 0 ? OPEN_END : end;
      part.segmentRowBegin[out] = rowBegin;
      part.segmentRowEnd[out] = rowEnd;
      if (++segment > last) break;
      token = 0;
      rowBegin = segmentRowBegin[segment];
      rowEnd = segmentRowEnd[segment];
      if (rowEnd > taskEnd) taskEnd = rowEnd;
    }
    out++;
    part.taskRowEnd[task] = taskEnd;
    part.taskSegment[task + 1] = out;
    part.taskDestination[task + 1] = part.taskDestination[task] + taskEnd - part.taskRowBegin[task];
  }
  return part;
}

/** The parts of a plan that say how partial results come together. */
export type MergePart = Pick<
  Plan,
  'destination' | 'slots' | 'merges' | 'mergeRow' | 'mergeSlot' | 'mergeCount'
>;

/**
 * Slots of one row are consecutive, rows ascending. Reads `pricer.rowPieces` of these pieces.
 * @param ints room for the merges of all rows and for the destinations.
 */
export function planMerges(
  rows: number,
  part: TaskPart,
  pricer: PiecePricer,
  ints: IntBlock,
): MergePart {
  const destination = ints.take(part.taskDestination[part.tasks]);
  const merge = listMerges(rows, pricer, ints);
  const { rowPieces } = pricer;
  const next = merge.merges > 0 ? firstSlots(rows, merge) : undefined;
  for (let task = 0; task < part.tasks; task++) {
    const shift = part.taskDestination[task] - part.taskRowBegin[task];
    const last = part.taskRowEnd[task];
    let done = part.taskRowBegin[task];
    for (let s = part.taskSegment[task]; done < last; s++) {
      const [begin, end] = [part.segmentRowBegin[s], part.segmentRowEnd[s]];
      if (begin > done) destination.fill(-2, shift + done, shift + begin);
      for (let row = Math.max(done, begin); row < end; row++) {
        destination[shift + row] = next !== undefined && rowPieces[row] > 1 ? next[row]++ : -1;
      }
      if (end > done) done = end;
    }
  }
  return { destination, ...merge };
}

function listMerges(
  rows: number,
  { whole, rowPieces }: PiecePricer,
  ints: IntBlock,
): Omit<MergePart, 'destination'> {
  let merges = 0;
  for (let row = 0; row < rows && !whole; row++) if (rowPieces[row] > 1) merges++;
  const merge = {
    slots: 0,
    merges,
    mergeRow: ints.take(merges),
    mergeSlot: ints.take(merges),
    mergeCount: ints.take(merges),
  };
  for (let row = 0, next = 0; next < merges; row++) {
    if (rowPieces[row] < 2) continue;
    merge.mergeRow[next] = row;
    merge.mergeSlot[next] = merge.slots;
    merge.mergeCount[next++] = rowPieces[row];
    merge.slots += rowPieces[row];
  }
  return merge;
}

/** (rows) the first slot of each row that has any. */
function firstSlots(
  rows: number,
  { merges, mergeRow, mergeSlot }: Pick<MergePart, 'merges' | 'mergeRow' | 'mergeSlot'>,
): Int32Array {
  const slot = new Int32Array(rows);
  for (let merge = 0; merge < merges; merge++) slot[mergeRow[merge]] = mergeSlot[merge];
  return slot;
}
