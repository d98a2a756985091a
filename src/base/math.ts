/**
 * Small arithmetic that several folders need.
 * @module
 */

/** The smallest integer that is at least a / b, for a >= 0 and b > 0. */
export const ceilDiv = (a: number, b: number): number => Math.floor((a + b - 1) / b);

/** The smallest multiple of `step` that is at least `value`. */
export const alignUp = (value: number, step: number): number => ceilDiv(value, step) * step;

/** The middle value of a list (the mean of the two middle ones for an even length). */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/**
 * A seeded generator of uniform numbers in [0, 1): 32-bit state, the same stream on every machine.
 * (SplitMix32 mixing; good enough for sampling and test data, not for cryptography.)
 */
export function randomStream(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 4294967296;
  };
}
