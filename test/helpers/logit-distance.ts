/**
 * How far one model's predictions are from another's: the measure that our distance and
 * llama.cpp's distance to float32 are both taken with.
 * @module
 */

/** Logits of the same tokens at the same positions, and each position's log-sum-exp of all. */
export interface ChosenLogits {
  readonly logits: readonly (readonly number[])[];
  readonly logSumExp: readonly number[];
}

export interface LogitDistance {
  /** Root mean square of the differences of log-probability, in nats. */
  readonly rms: number;
  /** Mean Kullback-Leibler divergence from the oracle, all other tokens taken as one, in nats. */
  readonly kl: number;
}

/** Compares over the tokens chosen by the oracle: its most likely ones at each position. */
export function logitDistance(oracle: ChosenLogits, other: ChosenLogits): LogitDistance {
  let squares = 0;
  let count = 0;
  let divergence = 0;
  oracle.logits.forEach((row, at) => {
    const p = row.map((logit) => logit - oracle.logSumExp[at]);
    const q = other.logits[at].map((logit) => logit - other.logSumExp[at]);
    p.forEach((value, i) => {
      squares += (value - q[i]) ** 2;
    });
    count += p.length;
    divergence += divergenceOf(p, q);
  });
  return { rms: Math.sqrt(squares / count), kl: divergence / oracle.logits.length };
}

/** Two log-probability lists whose missing mass is one more outcome. */
function divergenceOf(p: readonly number[], q: readonly number[]): number {
  const rest = (list: readonly number[]): number =>
    Math.log(Math.max(1e-12, 1 - list.reduce((sum, value) => sum + Math.exp(value), 0)));
  const [full, other] = [
    [...p, rest(p)],
    [...q, rest(q)],
  ];
  return full.reduce((sum, value, i) => sum + Math.exp(value) * (value - other[i]), 0);
}
