/**
 * Draws a token from a row of logits. A vocabulary of 150,000 tokens takes well under a
 * millisecond: exponentials come from a table, and only tokens that top-k or top-p may keep are
 * collected and sorted.
 * @module
 */
import { drawRange, NEGLIGIBLE } from '../backend/draw-range.ts';
import type { SamplingParams } from './sampling-params.ts';

/** Table entries for one unit of the exponent. */
const STEPS = 64;
/** Histogram bins for one unit. */
const BINS = 8;

const TABLE = Float64Array.from({ length: NEGLIGIBLE * STEPS + 2 }, (_, i) => Math.exp(-i / STEPS));

/** Tokens whose weights are summed together. */
const BLOCK = 512;

let blockMass = new Float64Array(0);
const counts = new Int32Array(NEGLIGIBLE * BINS + 1);
const masses = new Float64Array(NEGLIGIBLE * BINS + 1);

/** exp(-x) for 0 <= x <= NEGLIGIBLE, to a relative error of 7e-7: table and Taylor's rest. */
function decay(x: number): number {
  const step = (x * STEPS) | 0;
  const rest = step / STEPS - x;
  return TABLE[step] * (1 + rest * (1 + 0.5 * rest));
}

type Choice = Pick<SamplingParams, 'temperature' | 'minP' | 'topK' | 'topP'>;

/**
 * @param logits (vocab)
 * @param best the largest logit
 * @param params with a temperature above 0
 * @param uniform a number in [0, 1)
 */
export function drawToken(
  logits: Float32Array,
  best: number,
  params: Choice,
  uniform: number,
): number {
  const range = drawRange(params.minP);
  return params.topK > 0 || params.topP < 1
    ? drawKept(logits, best, params, range, uniform)
    : drawAny(logits, best, params.temperature, range, uniform);
}

/** Sums the weights by blocks of tokens, then looks for the drawn one in its block only. */
function drawAny(
  logits: Float32Array,
  best: number,
  temperature: number,
  range: number,
  uniform: number,
): number {
  const scale = 1 / temperature;
  const blocks = Math.ceil(logits.length / BLOCK);
  if (blockMass.length < blocks) blockMass = new Float64Array(2 * blocks);
  let total = 0;
  for (let block = 0; block < blocks; block++) {
    const end = Math.min(logits.length, (block + 1) * BLOCK);
    let mass = 0;
    for (let id = block * BLOCK; id < end; id++) {
      const x = (best - logits[id]) * scale;
      if (x <= range) mass += decay(x);
    }
    blockMass[block] = mass;
    total += mass;
  }
  let left = uniform * total;
  let block = 0;
  while (block < blocks - 1 && left >= blockMass[block]) left -= blockMass[block++];
  // Rounding may lead past the last token with weight: then it is that one.
  while (blockMass[block] === 0) block--;
  let last = block * BLOCK;
  const end = Math.min(logits.length, (block + 1) * BLOCK);
  for (let id = block * BLOCK; id < end; id++) {
    const x = (best - logits[id]) * scale;
    if (!(x <= range)) continue;
    last = id;
    left -= decay(x);
    if (left < 0) break;
  }
  return last;
}

/** Top-k, then top-p of what it keeps. */
function drawKept(
  logits: Float32Array,
  best: number,
  { temperature, topK, topP }: Choice,
  range: number,
  uniform: number,
): number {
  const limit = cut(logits, best, temperature, range, topK, topP);
  const scale = 1 / temperature;
  const ids: number[] = [];
  for (let id = 0; id < logits.length; id++) {
    if ((best - logits[id]) * scale <= limit) ids.push(id);
  }
  ids.sort((a, b) => logits[b] - logits[a] || a - b);
  if (topK > 0 && ids.length > topK) ids.length = topK;
  const weights = ids.map((id) => decay((best - logits[id]) * scale));
  // Without top-k, the mass of tokens beyond the cut counts towards the whole as well.
  const whole = topK > 0 ? sum(weights) : sum(masses);
  let [mass, kept] = [0, 0];
  while (kept < ids.length && mass < topP * whole) mass += weights[kept++];
  let left = uniform * mass;
  for (let at = 0; at < kept; at++) {
    left -= weights[at];
    if (left < 0) return ids[at];
  }
  return ids[kept - 1];
}

/**
 * How far below the best a token may lie to be kept, rounded up to a bin. Leaves the weights of
 * all tokens by bin in `masses`.
 */
function cut(
  logits: Float32Array,
  best: number,
  temperature: number,
  range: number,
  topK: number,
  topP: number,
): number {
  const scale = 1 / temperature;
  counts.fill(0);
  masses.fill(0);
  for (let id = 0; id < logits.length; id++) {
    const x = (best - logits[id]) * scale;
    if (!(x <= range)) continue;
    const bin = (x * BINS) | 0;
    counts[bin]++;
    masses[bin] += decay(x);
  }
  const enough = topK > 0 ? Number.POSITIVE_INFINITY : topP * sum(masses);
  let [count, mass] = [0, 0];
  for (let bin = 0; bin < counts.length; bin++) {
    count += counts[bin];
    mass += masses[bin];
    // A little more than asked for, as sums in another order differ in the last digits.
    const reached = topK > 0 ? count >= topK : mass >= enough * (1 + 1e-9);
    if (reached) return Math.min(range, (bin + 1) / BINS);
  }
  return range;
}

const sum = (values: ArrayLike<number> & Iterable<number>): number => {
  let total = 0;
  for (let index = 0; index < values.length; index++) total += values[index];
  return total;
};
