/**
 * From a row of logits to a token. One sampler belongs to one sequence and keeps its random
 * stream and its token counts; a forked sequence takes a copy.
 *
 * Order of the steps: logit bias, penalties, temperature, min-p, top-k, top-p, draw.
 * @module
 */
import { randomStream } from '../base/math.ts';
import { drawToken } from './draw.ts';
import type { SamplingParams } from './sampling-params.ts';
import type { Draw } from './sequence.ts';

/** A token with the natural log of its probability under the model (before any option). */
export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
}

/** The chosen token, its log-probability, and the best tokens where they were asked for. */
export interface Sampled extends TokenLogprob {
  readonly top: readonly TokenLogprob[] | null;
}

export class Sampler {
  readonly params: SamplingParams;
  /** Times each token was generated. */
  private readonly generated: Map<number, number>;
  /** Tokens of the prompt, kept only where the repetition penalty needs them. */
  private readonly prompt: ReadonlySet<number>;
  private readonly random: () => number;
  /** Numbers of the random stream that were looked at and are not used yet. */
  private readonly peeked: number[] = [];
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
      if (changed !== logits) token = largest(changed);
      if (this.params.temperature > 0) {
        token = drawToken(changed, changed[token], this.params, this.uniform());
      }
    }
    this.count(token);
    const count = this.params.logprobs;
    return {
      token,
      logprob: logits[token] - logSumExp,
      top: count === null ? null : topLogprobs(logits, logSumExp, count),
    };
  }

  /**
   * How a device draws the token after next `ahead` ones (0: the next one) as `sample` would, or
   * null where it takes more than that. Looking ahead uses up nothing of the random stream.
   */
  draw(ahead: number): Draw | null {
    const { temperature, topK, topP, minP, logprobs } = this.params;
    if (this.changesLogits || (logprobs ?? 0) > 0) return null;
    if (temperature === 0) return 'argmax';
    while (this.peeked.length <= ahead) this.peeked.push(this.random());
    return { temperature, topK, topP, minP, uniform: this.peeked[ahead] };
  }

  /** Takes the token that a device drew by `draw(0)`, and its log-probability, as the next one. */
  take(token: number, logprob: number): Sampled {
    if (this.params.temperature > 0) this.uniform();
    this.count(token);
    return { token, logprob, top: this.params.logprobs === null ? null : [] };
  }

  private uniform(): number {
    return this.peeked.shift() ?? this.random();
  }

  private count(token: number): void {
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
      for (const token of this.prompt) penalize(out, token, p.repetitionPenalty);
      for (const token of this.generated.keys()) {
        if (!this.prompt.has(token)) penalize(out, token, p.repetitionPenalty);
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
}

/** Mixes a seed of any size with the index of a sample into 32 bits. */
function mix(seed: number, sample: number): number {
  const high = Math.floor(seed / 4294967296) | 0;
  let z = (seed | 0) ^ Math.imul(high, 0x85ebca6b) ^ Math.imul(sample + 1, 0x9e3779b1);
  z = Math.imul(z ^ (z >>> 15), 0x2c1b3c6d);
  return (z ^ (z >>> 13)) >>> 0;
}

function penalize(logits: Float32Array, token: number, penalty: number): void {
  logits[token] = logits[token] > 0 ? logits[token] / penalty : logits[token] * penalty;
}

function largest(logits: Float32Array): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
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
