/**
 * From a row of logits to a token. One sampler belongs to one sequence and keeps its random
 * stream and its token counts; a forked sequence takes a copy.
 *
 * Order of the steps: logit bias, penalties, temperature, min-p, top-k, top-p, draw.
 * @module
 */
import { randomStream } from '../base/math.ts';
import { ChangedTokens } from './changed-tokens.ts';
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
  /** Tokens of the prompt are in it only where the repetition penalty needs them. */
  private readonly changed: ChangedTokens;
  private readonly random: () => number;
  /** Numbers of the random stream that were looked at and are not used yet. */
  private readonly peeked: number[] = [];
  private readonly seed: number;

  /**
   * @param sample index of the sample among n, so that samples of one seed differ
   * @param prompt tokens of the prompt, or what a fork takes over
   */
  constructor(params: SamplingParams, sample: number, prompt: Iterable<number> | ChangedTokens) {
    this.params = params;
    this.changed =
      prompt instanceof ChangedTokens
        ? prompt
        : new ChangedTokens(params.logitBias, params.repetitionPenalty === 1 ? [] : prompt);
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
    this.changed.count(token);
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
    if ((logprobs ?? 0) > 0) return null;
    if (this.plainGreedy) return 'argmax';
    const isPending = ahead > 0;
    const changes = this.changesLogits ? this.changed.changes(this.params, isPending) : undefined;
    if (changes === null) return null;
    const choice = { temperature, topK, topP, minP, changes };
    if (temperature === 0) return { ...choice, uniform: 0 };
    while (this.peeked.length <= ahead) this.peeked.push(this.random());
    return { ...choice, uniform: this.peeked[ahead] };
  }

  /** Takes the token that a device drew by `draw(0)`, and its log-probability, as the next one. */
  take(token: number, logprob: number): Sampled {
    if (this.params.temperature > 0) this.uniform();
    this.changed.count(token);
    return { token, logprob, top: this.params.logprobs === null ? null : [] };
  }

  private uniform(): number {
    return this.peeked.shift() ?? this.random();
  }

  /** A sampler for a fork of this sequence: the same counts, a random stream of its own. */
  fork(sample: number, params: SamplingParams = this.params): Sampler {
    const changed = this.changed.copy(params.logitBias);
    return new Sampler({ ...params, seed: mix(this.seed, 0x5bd1) }, sample, changed);
  }

  private adjusted(logits: Float32Array, allowed: Uint8Array | null): Float32Array {
    if (!allowed && !this.changesLogits) return logits;
    const out = logits.slice();
    if (this.changesLogits) this.changed.apply(out, this.params);
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
