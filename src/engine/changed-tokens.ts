/**
 * Tokens of a sequence whose logits change before a draw: those with a bias, those that occurred.
 * They stand in arrays, as a device takes them.
 * @module
 */
import { CHANGES_MAX, type LogitChanges } from '../backend/backend.ts';
import type { SamplingParams } from './sampling-params.ts';

const CAPACITY_MIN = 16;

export class ChangedTokens {
  readonly #place = new Map<number, number>();
  #tokens = new Int32Array(CAPACITY_MIN);
  #bias = new Float32Array(CAPACITY_MIN);
  #counts = new Int32Array(CAPACITY_MIN);
  #inPrompt = new Uint8Array(CAPACITY_MIN);

  /** @param prompt tokens of the prompt, where the repetition penalty needs them */
  constructor(bias: ReadonlyMap<number, number>, prompt: Iterable<number>) {
    for (const [token, amount] of bias) {
      const place = this.#placeOf(token);
      this.#bias[place] = amount;
    }
    for (const token of prompt) {
      const place = this.#placeOf(token);
      this.#inPrompt[place] = 1;
    }
  }

  /** May make the arrays anew: they are to be looked at afterwards. */
  #placeOf(token: number): number {
    const place = this.#place.get(token);
    if (place !== undefined) return place;
    const next = this.#place.size;
    if (next === this.#tokens.length) this.#grow();
    this.#place.set(token, next);
    this.#tokens[next] = token;
    return next;
  }

  #grow(): void {
    const length = 2 * this.#tokens.length;
    const [tokens, bias] = [new Int32Array(length), new Float32Array(length)];
    const [counts, inPrompt] = [new Int32Array(length), new Uint8Array(length)];
    tokens.set(this.#tokens);
    bias.set(this.#bias);
    counts.set(this.#counts);
    inPrompt.set(this.#inPrompt);
    [this.#tokens, this.#bias, this.#counts, this.#inPrompt] = [tokens, bias, counts, inPrompt];
  }

  /** The token was generated, once more. */
  count(token: number): void {
    const place = this.#placeOf(token);
    this.#counts[place]++;
  }

  /** The same tokens with other biases: for a fork. */
  copy(bias: ReadonlyMap<number, number>): ChangedTokens {
    const copy = new ChangedTokens(bias, []);
    for (const [token, place] of this.#place) {
      const at = copy.#placeOf(token);
      copy.#counts[at] = this.#counts[place];
      copy.#inPrompt[at] = this.#inPrompt[place];
    }
    return copy;
  }

  /**
   * For a device, valid until the next `count`; null if there are too many.
   * @param pending whether one more token is drawn that is not known yet
   */
  changes(params: SamplingParams, pending: boolean): LogitChanges | null {
    const length = this.#place.size;
    if (length > CHANGES_MAX) return null;
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = params;
    return {
      tokens: this.#tokens.subarray(0, length),
      bias: this.#bias.subarray(0, length),
      counts: this.#counts.subarray(0, length),
      inPrompt: this.#inPrompt.subarray(0, length),
      pending,
      ...{ repetitionPenalty, presencePenalty, frequencyPenalty },
    };
  }

  /** Changes (vocab) logits. */
  apply(logits: Float32Array, params: SamplingParams): void {
    const { repetitionPenalty, presencePenalty, frequencyPenalty } = params;
    for (let i = 0; i < this.#place.size; i++) {
      const [token, count] = [this.#tokens[i], this.#counts[i]];
      logits[token] += this.#bias[i];
      if (count > 0 || this.#inPrompt[i] === 1) {
        if (logits[token] > 0) logits[token] /= repetitionPenalty;
        else logits[token] *= repetitionPenalty;
      }
      if (count > 0) logits[token] -= presencePenalty + frequencyPenalty * count;
    }
  }
}
