/**
 * How rows are drawn, as the sampler's kernels read it: a `struct Draw` for each logit row, and a
 * list of `struct Change` that the draws point into.
 * @module
 */
import { assert } from '../../../base/errors.ts';
import { CHANGES_MAX, type LogitChanges, type RowDraw } from '../../backend.ts';
import { drawRange } from '../../draw-range.ts';
import { DRAW_WORDS } from './cuda-model.ts';

/** Words of `struct Change` in kernels/sampler.cu. */
export const CHANGE_WORDS = 4;
/** No logit is changed. */
const NO_CHANGES = -1;

/** One `struct Draw` of kernels/sampler-search.cuh, seen as each of its types. */
const words = new Int32Array(DRAW_WORDS);
const floats = new Float32Array(words.buffer);
const doubles = new Float64Array(words.buffer);

/** Writes `draw` at word `at`; its changes begin with the `first` of all. */
export function packDraw(draw: RowDraw | null, first: number, to: Int32Array, at: number): void {
  words.fill(0);
  words[3] = NO_CHANGES;
  if (draw !== null) {
    const { temperature, minP, changes } = draw;
    floats[0] = temperature > 0 ? 1 / temperature : 0;
    floats[1] = drawRange(minP);
    words[2] = draw.topK;
    doubles[2] = draw.topP;
    doubles[3] = draw.uniform;
    if (changes) packPenalties(changes, first);
  }
  to.set(words, at);
}

function packPenalties(changes: LogitChanges, first: number): void {
  assert(changes.tokens.length <= CHANGES_MAX, 'more changed logits than a row may have');
  words[3] = changes.tokens.length;
  words[8] = first;
  floats[9] = changes.repetitionPenalty;
  floats[10] = changes.presencePenalty;
  floats[11] = changes.frequencyPenalty;
  words[12] = changes.pending ? 1 : 0;
}

/** Writes a row's list of changes at word `at` of memory that is seen as both. */
export function packChanges(
  changes: LogitChanges,
  to: Int32Array,
  toFloats: Float32Array,
  at: number,
): void {
  const { tokens, bias, counts, inPrompt } = changes;
  for (let i = 0; i < tokens.length; i++, at += CHANGE_WORDS) {
    to[at] = tokens[i];
    toFloats[at + 1] = bias[i];
    to[at + 2] = counts[i];
    to[at + 3] = inPrompt[i];
  }
}

/** Changes of all rows. */
export const changesOf = (draws: readonly (RowDraw | null)[]): number =>
  draws.reduce((sum, draw) => sum + (draw?.changes?.tokens.length ?? 0), 0);
