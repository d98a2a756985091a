/**
 * From a row of logits to a token. One sampler belongs to one sequence and keeps its random
 * stream and its token counts; a forked sequence takes a copy.
 *
 * Order of the steps: logit bias, penalties, temperature, min-p, top-k, top-p, draw. Vocabularies
 * have 50,000 to 150,000 tokens, so nothing sorts them: one pass keeps the tokens near the best
 * one, a heap takes the largest of these in order.
 * @module
 */
import { randomStream } from '../base/math.ts';
import type { SamplingParams } from './sampling-params.ts';

/** A token with the natural log of its probability under the model (before any option). */
export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
}

/** The chosen token, its log-probability, and the best tokens where they were asked for. */
export interface Sampled extends TokenLogprob {
  readonly top: readonly TokenLogprob[] | null;
}

/**
 * Tokens whose logit (over the temperature) is this far below the best are never drawn. Their
 * total probability is below vocab * e^-24, 6e-6 for 150,000 tokens.
 */
const NEGLIGIBLE = 24;

export class Sampler {
  readonly params: SamplingParams;
  /** Times each token was generated. */
  private readonly generated: Map<number, number>;
  /** Tokens of the prompt, kept only where the repetition penalty needs them. */
  private readonly prompt: ReadonlySet<number>;
  private readonly random: () => number;
  private readonly seed: number;

  /**
   * @param sample index of the sample among n, so that samples of one seed differ
   * @param prompt tokens of the prompt
   */
  constructor(params: SamplingParams, sample: number, prompt: Iterable<number>) {
    this.params = params;
    this.generated = new Map();
    this.prompt = new Set(params.repetitionPenalty === 1 ? [] : prompt);
    this.seed = params.seed ?? Math.floor(Math.random() * 4294967296);
    this.random = randomStream(mix(this.seed, sample));
  }

  /** True where the token is simply the largest logit of the row. */
  get plainGreedy(): boolean {
    return this.params.temperature === 0 && !this.changesLogits;
  }

  private get changesLogits(): boolean {
    const p = this.params;
    return (
      p.logitBias.size > 0 ||
      p.repetitionPenalty !== 1 ||
      p.presencePenalty !== 0 ||
      p.frequencyPenalty !== 0
    );
  }

  /**
   * Chooses the next token.
   * @param logits (vocab) of the row; not changed
   * @param argmax index of the largest logit
   * @param logSumExp natural log of the sum of exp(logit)
   * @param allowed optional mask (vocab): tokens with 0 are never chosen (constrained decoding)
   */
  sample(
    logits: Float32Array,
    argmax: number,
    logSumExp: number,
    allowed?: Uint8Array | null,
  ): Sampled {
    let token = argmax;
    if (allowed || !this.plainGreedy) {
      const changed = this.adjusted(logits, allowed ?? null);
      token = this.params.temperature === 0 ? largest(changed) : this.draw(changed);
    }
    this.generated.set(token, (this.generated.get(token) ?? 0) + 1);
    const count = this.params.logprobs;
    return {
      token,
      logprob: logits[token] - logSumExp,
      top: count === null ? null : topLogprobs(logits, logSumExp, count),
    };
  }

  /** Counts a token that was chosen by somebody else (forced or replayed). */
  accept(token: number): void {
    this.generated.set(token, (this.generated.get(token) ?? 0) + 1);
  }

  /** A sampler for a fork of this sequence: the same counts, a random stream of its own. */
  fork(sample: number, params: SamplingParams = this.params): Sampler {
    const copy = new Sampler({ ...params, seed: mix(this.seed, 0x5bd1) }, sample, this.prompt);
    for (const [token, count] of this.generated) copy.generated.set(token, count);
    return copy;
  }

  private adjusted(logits: Float32Array, allowed: Uint8Array | null): Float32Array {
    if (!allowed && !this.changesLogits) return logits;
    const p = this.params;
    const out = logits.slice();
    for (const [token, bias] of p.logitBias) out[token] += bias;
    if (p.repetitionPenalty !== 1) {
      const seen = new Set(this.prompt);
      for (const token of this.generated.keys()) seen.add(token);
      for (const token of seen) {
        out[token] =
          out[token] > 0 ? out[token] / p.repetitionPenalty : out[token] * p.repetitionPenalty;
      }
    }
    if (p.presencePenalty !== 0 || p.frequencyPenalty !== 0) {
      for (const [token, count] of this.generated) {
        out[token] -= p.presencePenalty + p.frequencyPenalty * count;
      }
    }
    if (allowed) {
      for (let i = 0; i < out.length; i++) if (allowed[i] === 0) out[i] = Number.NEGATIVE_INFINITY;
    }
    return out;
  }

  private draw(logits: Float32Array): number {
    const p = this.params;
    const best = logits[largest(logits)];
    let range = NEGLIGIBLE;
    if (p.minP > 0) range = Math.min(range, -Math.log(p.minP));
    const threshold = best - range * p.temperature;
    const ids: number[] = [];
    for (let i = 0; i < logits.length; i++) if (logits[i] >= threshold) ids.push(i);
    const weight = (id: number) => Math.exp((logits[id] - best) / p.temperature);
    const kept = p.topK > 0 || p.topP < 1 ? mostLikely(ids, logits, weight, p) : ids;
    const weights = kept.map(weight);
    let left = this.random() * weights.reduce((sum, w) => sum + w, 0);
    for (let i = 0; i < kept.length; i++) {
      left -= weights[i];
      if (left < 0) return kept[i];
    }
    return kept[kept.length - 1];
  }
}

/** Mixes a seed of any size with the index of a sample into 32 bits. */
function mix(seed: number, sample: number): number {
  const high = Math.floor(seed / 4294967296) | 0;
  let z = (seed | 0) ^ Math.imul(high, 0x85ebca6b) ^ Math.imul(sample + 1, 0x9e3779b1);
  z = Math.imul(z ^ (z >>> 15), 0x2c1b3c6d);
  return (z ^ (z >>> 13)) >>> 0;
}

function largest(logits: Float32Array): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

/** The tokens that top-k and then top-p keep, likeliest first. */
function mostLikely(
  ids: number[],
  logits: Float32Array,
  weight: (id: number) => number,
  p: SamplingParams,
): number[] {
  const heap = new LogitHeap(ids, logits);
  let kept: number[] | null = null;
  if (p.topK > 0 && p.topK < ids.length) kept = Array.from({ length: p.topK }, () => heap.pop());
  if (p.topP >= 1) return kept ?? ids;
  const total = (kept ?? ids).reduce((sum, id) => sum + weight(id), 0);
  const nucleus: number[] = [];
  for (let mass = 0, i = 0; i < (kept ?? ids).length && mass < p.topP * total; i++) {
    const id = kept ? kept[i] : heap.pop();
    nucleus.push(id);
    mass += weight(id);
  }
  return nucleus;
}

/** A binary heap of token ids by logit, largest first, lower id first among equals. */
class LogitHeap {
  private readonly ids: number[];
  private readonly logits: Float32Array;

  constructor(ids: readonly number[], logits: Float32Array) {
    this.ids = ids.slice();
    this.logits = logits;
    for (let i = (this.ids.length >> 1) - 1; i >= 0; i--) this.sink(i);
  }

  pop(): number {
    const top = this.ids[0];
    const last = this.ids.pop() as number;
    if (this.ids.length > 0) {
      this.ids[0] = last;
      this.sink(0);
    }
    return top;
  }

  private before(a: number, b: number): boolean {
    const [x, y] = [this.logits[a], this.logits[b]];
    return x > y || (x === y && a < b);
  }

  private sink(start: number): void {
    const ids = this.ids;
    for (let i = start; ; ) {
      let next = i;
      for (const child of [2 * i + 1, 2 * i + 2]) {
        if (child < ids.length && this.before(ids[child], ids[next])) next = child;
      }
      if (next === i) return;
      [ids[i], ids[next]] = [ids[next], ids[i]];
      i = next;
    }
  }
}

/** The `count` largest logits as log-probabilities, largest first. */
export function topLogprobs(
  logits: Float32Array,
  logSumExp: number,
  count: number,
): TokenLogprob[] {
  const best: number[] = [];
  if (count === 0) return [];
  let floor = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < logits.length; i++) {
    if (best.length === count && !(logits[i] > floor)) continue;
    let at = best.length;
    while (at > 0 && logits[best[at - 1]] < logits[i]) at--;
    best.splice(at, 0, i);
    if (best.length > count) best.pop();
    if (best.length === count) floor = logits[best[count - 1]];
  }
  return best.map((token) => ({ token, logprob: logits[token] - logSumExp }));
}
