/**
 * Emission: pieces become tasks, and each row of a task gets the place its result goes to, the
 * final output or a partial slot; rows with several partials get a merge (POR).
 * @module
 */
import type { PiecePricer } from './piece-pricer.ts';
import { OPEN_END, type Plan } from './plan.ts';
import type { Layout } from './row-tiling.ts';
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
  const part = {
    tasks,
    taskRowBegin: new Int32Array(tasks),
    taskRowEnd: new Int32Array(tasks),
    taskSegment: new Int32Array(tasks + 1),
    taskDestination: new Int32Array(tasks + 1),
    segments,
    segmentNode: new Int32Array(segments),
    segmentBegin: new Int32Array(segments),
    segmentEnd: new Int32Array(segments),
    segmentRowBegin: new Int32Array(segments),
    segmentRowEnd: new Int32Array(segments),
  };
  const { length } = layout.forest;
  let out = 0;
  for (let task = 0; task < tasks; task++) {
    const last = pieces.lastSegment[task];
    let token = pieces.firstToken[task];
    let rowEnd = 0;
    for (let segment = pieces.firstSegment[task]; segment <= last; segment++, out++) {
      const node = layout.segmentNode[segment];
      const end = segment === last ? pieces.lastToken[task] : layout.segmentTokens[segment];
      pricer.partRows(layout, segment, token);
      part.segmentNode[out] = node;
      part.segmentBegin[out] = token;
      part.segmentEnd[out] = end === length[node] && hasChild[node] === 0 ? OPEN_END : end;
      part.segmentRowBegin[out] = pricer.rowBegin;
      part.segmentRowEnd[out] = pricer.rowEnd;
      if (pricer.rowEnd > rowEnd) rowEnd = pricer.rowEnd;
      token = 0;
    }
    const first = part.taskSegment[task];
    part.taskRowBegin[task] = part.segmentRowBegin[first];
    part.taskRowEnd[task] = rowEnd;
    part.taskSegment[task + 1] = out;
    part.taskDestination[task + 1] =
      part.taskDestination[task] + rowEnd - part.segmentRowBegin[first];
  }
  return part;
}

/** The parts of a plan that say how partial results come together. */
export type MergePart = Pick<
  Plan,
  'destination' | 'slots' | 'merges' | 'mergeRow' | 'mergeSlot' | 'mergeCount'
>;

/** Slots of one row are consecutive, rows ascending. Reads `pricer.rowPieces` of these pieces. */
export function planMerges(rows: number, part: TaskPart, pricer: PiecePricer): MergePart {
  const destination = new Int32Array(part.taskDestination[part.tasks]).fill(-2);
  let merges = 0;
  const { rowPieces } = pricer;
  if (!pricer.whole) {
    for (let row = 0; row < rows; row++) if (rowPieces[row] > 1) merges++;
  }
  const mergeRow = new Int32Array(merges);
  const mergeSlot = new Int32Array(merges);
  const mergeCount = new Int32Array(merges);
  let slots = 0;
  if (merges > 0) {
    let merge = 0;
    for (let row = 0; row < rows; row++) {
      if (rowPieces[row] < 2) continue;
      mergeRow[merge] = row;
      mergeSlot[merge] = slots;
      mergeCount[merge++] = rowPieces[row];
      slots += rowPieces[row];
    }
  }
  const nextSlot = merges > 0 ? firstSlots(rows, mergeRow, mergeSlot) : undefined;
  for (let task = 0; task < part.tasks; task++) {
    const shift = part.taskDestination[task] - part.taskRowBegin[task];
    let done = part.taskRowBegin[task];
    for (let s = part.taskSegment[task]; s < part.taskSegment[task + 1]; s++) {
      const end = part.segmentRowEnd[s];
      for (let row = Math.max(done, part.segmentRowBegin[s]); row < end; row++) {
        const shared = nextSlot !== undefined && rowPieces[row] > 1;
        destination[shift + row] = shared ? nextSlot[row]++ : -1;
      }
      if (end > done) done = end;
    }
  }
  return { destination, slots, merges, mergeRow, mergeSlot, mergeCount };
}

function firstSlots(rows: number, mergeRow: Int32Array, mergeSlot: Int32Array): Int32Array {
  const slot = new Int32Array(rows);
  for (let merge = 0; merge < mergeRow.length; merge++) slot[mergeRow[merge]] = mergeSlot[merge];
  return slot;
}
