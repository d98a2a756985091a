/**
 * Chooses the rows of a step. Decoding sequences go first, one row each; prefill fills the rest
 * in chunks, so that a long prompt never stops those that stream.
 * @module
 */

import type { Path } from '../kvcache/path.ts';
import type { PrefixTree } from '../kvcache/prefix-tree.ts';
import { byUrgency, type Sequence } from './sequence.ts';

/** A sequence's rows in a step: tokens from <= position < to. */
export interface BatchEntry {
  readonly sequence: Sequence;
  readonly path: Path;
  readonly from: number;
  readonly to: number;
}

export interface SchedulerLimits {
  /** Most rows of one step. */
  readonly maxRows: number;
  /** Most prefill rows of a step in which others decode. */
  readonly mixedPrefillRows: number;
}

/** A prefill chunk below this is not worth a place in the step. */
const CHUNK_MIN = 16;
/** Prefill rows of a step in which owners see all rows: each is as long as the vocabulary. */
const SHOWN_ROWS = 128;

/** The next step's entries; empty when nothing can run. */
export function chooseBatch(
  sequences: Iterable<Sequence>,
  tree: PrefixTree,
  limits: SchedulerLimits,
): BatchEntry[] {
  const decode: BatchEntry[] = [];
  const prefill: BatchEntry[] = [];
  let shown = false;
  for (const sequence of sequences) {
    if (!sequence.active || sequence.stalled || sequence.awaitsAnswer) continue;
    const { path } = sequence;
    if (path === null) continue;
    const { from, to } = tree.claim(path);
    if (sequence.rowsFrom < path.length) {
      const entry = shownRows(sequence, path, from, to);
      if (entry !== null) prefill.push(entry);
      shown = true;
    } else if (from === path.length) {
      // All there, from the cache: the last token is asked again for its logits.
      decode.push({ sequence, path, from: from - 1, to: from });
    } else if (to - from === 1) decode.push({ sequence, path, from, to });
    else if (to > from) prefill.push({ sequence, path, from, to });
  }
  // Among equals those that waited longest go first, so that a full step starves nobody.
  decode.sort(
    (a, b) =>
      b.sequence.priority - a.sequence.priority || a.sequence.lastStep - b.sequence.lastStep,
  );
  const reserved = prefill.length === 0 ? 0 : Math.min(CHUNK_MIN, limits.maxRows >> 2);
  const batch = decode.slice(0, limits.maxRows - reserved);
  const left = limits.maxRows - batch.length;
  const rows = Math.min(
    left,
    batch.length === 0 ? left : limits.mixedPrefillRows,
    shown ? SHOWN_ROWS : left,
  );
  prefill.sort((a, b) => byUrgency(a.sequence, b.sequence));
  return batch.concat(shareRows(prefill, rows));
}

/** Who is to give way to `sequence` where pages run out; null where nobody may. */
export function leastUrgent(sequences: Iterable<Sequence>, sequence: Sequence): Sequence | null {
  let worst: Sequence | null = null;
  for (const other of sequences) {
    if (other === sequence || !other.preemptible || !other.active || other.stalled) continue;
    if (byUrgency(other, sequence) < 0) continue;
    if (worst === null || byUrgency(other, worst) >= 0) worst = other;
  }
  return worst;
}

/**
 * The next rows of a sequence whose owner wants to see them, of which `from` to `to` may be
 * computed: a chunk has rows either with KV or without. Null while another sequence computes them.
 */
function shownRows(sequence: Sequence, path: Path, from: number, to: number): BatchEntry | null {
  const { rowsFrom } = sequence;
  if (rowsFrom < from) return { sequence, path, from: rowsFrom, to: from };
  const end = rowsFrom > from ? Math.min(to, rowsFrom) : to;
  return end > from ? { sequence, path, from, to: end } : null;
}

/**
 * Divides prefill rows: of the most urgent prompts each gets an even share, short ones are served
 * in full, and what they leave goes to the longer ones.
 */
function shareRows(prefill: readonly BatchEntry[], rows: number): BatchEntry[] {
  const places = Math.max(1, Math.floor(rows / CHUNK_MIN));
  const chosen = prefill.slice(0, rows === 0 ? 0 : places);
  chosen.sort((a, b) => a.to - a.from - (b.to - b.from));
  let left = rows;
  return chosen.map((entry, index) => {
    const share = Math.min(entry.to - entry.from, Math.floor(left / (chosen.length - index)));
    left -= share;
    return { ...entry, to: entry.from + share };
  });
}
