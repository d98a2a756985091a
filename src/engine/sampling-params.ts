/**
 * What a caller may say about choosing tokens, checked once at the edge: unknown fields, wrong
 * types and values out of range are refused with one sentence.
 * @module
 */
import { checkInteger, checkNumber, FlashForgeError, show } from '../base/errors.ts';

/** Options of one generation, as callers give them; every field has a default. */
export interface SamplingOptions {
  /** Most new tokens; default 256. 0 only computes the prompt. */
  readonly maxTokens?: number;
  /** Neither a stop token nor a stop string ends a sample before this many tokens; default 0. */
  readonly minTokens?: number;
  /** 0 = greedy (the default); above, the softmax temperature. */
  readonly temperature?: number;
  /** Keep the k most likely tokens; 0 = all. */
  readonly topK?: number;
  /** Keep the smallest set of tokens whose probability reaches p, in (0, 1]. */
  readonly topP?: number;
  /** Drop tokens less likely than minP times the likeliest, in [0, 1]. */
  readonly minP?: number;
  /** Divides positive, multiplies negative logits of tokens in prompt or output; 1 = off. */
  readonly repetitionPenalty?: number;
  /** Subtracted once from the logit of every token already generated; in [-2, 2]. */
  readonly presencePenalty?: number;
  /** Subtracted for every time a token was generated; in [-2, 2]. */
  readonly frequencyPenalty?: number;
  /** Added to the logits of single tokens: token id to value in [-100, 100]. */
  readonly logitBias?: Readonly<Record<number, number>>;
  /** Makes sampling repeatable; sample i of n uses a stream of its own derived from it. */
  readonly seed?: number;
  /** Number of samples of the same prompt; default 1. */
  readonly n?: number;
  /** Generation ends before the first of these strings; it is not part of the text. */
  readonly stop?: string | readonly string[];
  /** Generation ends at one of these tokens, which is not part of the text. */
  readonly stopTokenIds?: readonly number[];
  /** Go on past the model's own end-of-sequence tokens. */
  readonly ignoreEos?: boolean;
  /** Report each token's log-probability and those of this many best tokens (0 to 20). */
  readonly logprobs?: number;
  /**
   * Report the same of the prompt's tokens, which computes them anew where the cache has their KV:
   * it holds no log-probabilities.
   */
  readonly promptLogprobs?: number;
}

/** Checked options with every default filled in. */
export interface SamplingParams {
  readonly maxTokens: number;
  readonly minTokens: number;
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetitionPenalty: number;
  readonly presencePenalty: number;
  readonly frequencyPenalty: number;
  readonly logitBias: ReadonlyMap<number, number>;
  readonly seed: number | null;
  readonly n: number;
  readonly stop: readonly string[];
  readonly stopTokenIds: readonly number[];
  readonly ignoreEos: boolean;
  /** null = no log-probabilities; 0 = of the chosen token only. */
  readonly logprobs: number | null;
  readonly promptLogprobs: number | null;
}

/** Names of all options, for messages about unknown ones. */
const SAMPLING_FIELDS: readonly (keyof SamplingOptions)[] = [
  'maxTokens',
  'minTokens',
  'temperature',
  'topK',
  'topP',
  'minP',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'logitBias',
  'seed',
  'n',
  'stop',
  'stopTokenIds',
  'ignoreEos',
  'logprobs',
  'promptLogprobs',
];

/** Number of samples one prompt may have. */
export const SAMPLES_MAX = 1024;
const DEFAULT_MAX_TOKENS = 256;
const STOP_STRINGS_MAX = 16;
/** Below these, logits divided by them leave the range of numbers. */
const PENALTY_MIN = 0.01;
const TEMPERATURE_MIN = 1e-6;

/**
 * Checks options and fills in defaults. `vocab` bounds token ids.
 * @throws FlashForgeError('request') naming the field, the value and what is allowed.
 */
export function samplingParams(options: SamplingOptions, vocab: number): SamplingParams {
  for (const field of Object.keys(options)) {
    if (!SAMPLING_FIELDS.includes(field as keyof SamplingOptions)) {
      const allowed = SAMPLING_FIELDS.join(', ');
      throw new FlashForgeError('request', `unknown option ${field}; allowed are ${allowed}`);
    }
  }
  const integer = (name: keyof SamplingOptions, fallback: number, min: number, max?: number) =>
    options[name] === undefined ? fallback : checkInteger('request', name, options[name], min, max);
  const number = (name: keyof SamplingOptions, fallback: number, min: number, max?: number) =>
    options[name] === undefined ? fallback : checkNumber('request', name, options[name], min, max);

  const topP = number('topP', 1, 0, 1);
  if (topP === 0) throw new FlashForgeError('request', 'topP must be above 0 and at most 1, got 0');
  const repetitionPenalty = number('repetitionPenalty', 1, PENALTY_MIN, 100);
  const temperature = number('temperature', 0, 0, 100);
  const maxTokens = integer('maxTokens', DEFAULT_MAX_TOKENS, 0);
  return {
    maxTokens,
    minTokens: integer('minTokens', 0, 0, maxTokens),
    temperature: temperature < TEMPERATURE_MIN ? 0 : temperature,
    topK: integer('topK', 0, 0),
    topP,
    minP: number('minP', 0, 0, 1),
    repetitionPenalty,
    presencePenalty: number('presencePenalty', 0, -2, 2),
    frequencyPenalty: number('frequencyPenalty', 0, -2, 2),
    logitBias: logitBias(options.logitBias, vocab),
    seed: options.seed === undefined ? null : integer('seed', 0, Number.MIN_SAFE_INTEGER),
    n: integer('n', 1, 1, SAMPLES_MAX),
    stop: stopStrings(options.stop),
    stopTokenIds: tokenIds(options.stopTokenIds, vocab),
    ignoreEos: flag('ignoreEos', options.ignoreEos),
    logprobs: options.logprobs === undefined ? null : integer('logprobs', 0, 0, 20),
    promptLogprobs:
      options.promptLogprobs === undefined ? null : integer('promptLogprobs', 0, 0, 20),
  };
}

function flag(name: string, value: unknown): boolean {
  if (value === undefined) return false;
  if (typeof value === 'boolean') return value;
  throw new FlashForgeError('request', `${name} must be true or false, got ${show(value)}`);
}

function stopStrings(value: unknown): string[] {
  if (value === undefined) return [];
  const list: unknown[] = Array.isArray(value) ? value : [value];
  if (list.length > STOP_STRINGS_MAX) {
    throw new FlashForgeError(
      'request',
      `stop must hold at most ${STOP_STRINGS_MAX} strings, got ${list.length}`,
    );
  }
  for (const text of list) {
    if (typeof text !== 'string' || text === '') {
      throw new FlashForgeError('request', `stop must hold non-empty strings, got ${show(text)}`);
    }
  }
  return list as string[];
}

function tokenIds(value: unknown, vocab: number): number[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) {
    throw new FlashForgeError('request', `stopTokenIds must be a list, got ${show(value)}`);
  }
  return value.map((id, i) => checkInteger('request', `stopTokenIds[${i}]`, id, 0, vocab - 1));
}

function logitBias(value: unknown, vocab: number): Map<number, number> {
  const bias = new Map<number, number>();
  if (value === undefined) return bias;
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new FlashForgeError(
      'request',
      `logitBias must be an object of token ids and numbers, got ${show(value)}`,
    );
  }
  for (const [key, amount] of Object.entries(value)) {
    const id = key.trim() === '' ? Number.NaN : Number(key);
    checkInteger('request', 'logitBias token id', Number.isNaN(id) ? key : id, 0, vocab - 1);
    bias.set(id, checkNumber('request', `logitBias[${key}]`, amount, -100, 100));
  }
  return bias;
}
