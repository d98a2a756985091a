/**
 * Steps are padded to one of a few numbers of rows, so that a graph captured once serves many
 * steps and cuBLAS is asked about few shapes.
 * @module
 */
import { alignUp } from '../../../base/math.ts';

/** Rows of the buckets that are captured as graphs: decode batches. */
export const GRAPH_ROWS = [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128] as const;
/** Larger steps, which prefill mostly, are padded to a multiple of this and launched one by one. */
const EAGER_STEP = 64;

/** The bucket of a step of `rows` rows (or of its logit rows; 0 stays 0). */
export function bucketOf(rows: number, maxRows: number): number {
  if (rows === 0) return 0;
  const bucket = GRAPH_ROWS.find((size) => size >= rows) ?? alignUp(rows, EAGER_STEP);
  return Math.min(bucket, maxRows);
}

/** Whether steps of a bucket run as a graph. */
export const isGraphBucket = (rows: number): boolean => rows <= GRAPH_ROWS[GRAPH_ROWS.length - 1];
