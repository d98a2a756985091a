/**
 * Running ahead: the next step is handed in while one runs whose tokens nobody knows yet. A
 * sequence whose token the device draws gets a place for it in the tree, so that the next step
 * computes it like any other; when the step is over, results go to the owners, who append what was
 * drawn or end. Then the place is filled, or goes with the path.
 * @module
 */
import type { StepOutput } from '../backend/backend.ts';
import { isOutOfPages } from '../base/errors.ts';
import { pendingToken } from '../kvcache/pending.ts';
import type { PrefixTree } from '../kvcache/prefix-tree.ts';
import type { Batch } from './batch.ts';
import type { Flight, Landing } from './flights.ts';
import type { LogitsRow } from './sequence.ts';

/** Logits leave the device with the next step: those that an owner wants must be read before. */
export const mayRunAhead = ({ batch }: Flight): boolean =>
  batch.answers.every(({ isDrawn }) => isDrawn);

/**
 * Appends a place for the token of every sequence that goes on after it. One that finds no page
 * sits the next step out: with its token known it may take a page from others.
 */
export function appendPending({ entries, batch }: Flight, tree: PrefixTree): void {
  batch.answers.forEach(({ entry, isLast }, row) => {
    const { sequence, path } = entries[entry];
    if (!isLast || sequence.path !== path) return;
    if ((sequence.owner.draw?.(sequence, 1) ?? null) === null) return;
    try {
      tree.append(path, pendingToken(row));
      sequence.ahead = 1;
    } catch (error) {
      if (!isOutOfPages(error)) throw error;
    }
  });
}

/**
 * Hands a step's results to the owners. One may end or preempt another, whose result is dropped
 * then: its turn comes again.
 */
export function deliver({ entries, batch, output }: Landing): void {
  batch.answers.forEach(({ entry, position, isLast }, row) => {
    const { sequence, path } = entries[entry];
    if (sequence.path !== path) return;
    if (isLast) sequence.underWay--;
    if (isLast && sequence.length === position + 1) {
      sequence.rowsFrom = Number.POSITIVE_INFINITY;
      sequence.owner.onComputed(sequence, answerOf(batch, output, row));
    } else if (sequence.rowsFrom <= position) {
      sequence.rowsFrom = position + 1;
      sequence.owner.onRow?.(sequence, position, answerOf(batch, output, row));
    }
  });
}

function answerOf(batch: Batch, output: StepOutput, row: number): LogitsRow {
  const { drawn, drawnLogit } = output;
  const isDrawn = batch.answers[row].isDrawn && drawn !== undefined && drawnLogit !== undefined;
  return {
    // Read only when asked for: a device copies logits then.
    get logits() {
      if (output.logitsOf) return output.logitsOf(row);
      const vocab = output.logits.length / batch.answers.length;
      return output.logits.subarray(row * vocab, (row + 1) * vocab);
    },
    argmax: output.argmax[row],
    logSumExp: output.logSumExp[row],
    ...(isDrawn ? { drawn: { token: drawn[row], logit: drawnLogit[row] } } : {}),
  };
}
