/**
 * Which tokens a draw may take at all, the same for the host's draws and every device's.
 * @module
 */

/**
 * Tokens whose logit (over the temperature) is this far below the best are never drawn. Their
 * total probability is below vocab * e^-24, 6e-6 for 150,000 tokens.
 */
export const NEGLIGIBLE = 24;

/** How far below the best a logit (over the temperature) may lie to be drawn. */
export const drawRange = (minP: number): number =>
  minP > 0 ? Math.min(NEGLIGIBLE, -Math.log(minP)) : NEGLIGIBLE;
