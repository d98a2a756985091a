/**
 * What both formats share in describing a decoder: reading fields with limits, and the checks that
 * a description makes sense. Limits are far above real models and keep hostile sizes out.
 * @module
 */
import { checkInteger, checkNumber, type FlashForgeError, show } from '../base/errors.ts';
import type { DecoderConfig } from './checkpoint.ts';
import { modelError } from './model-file.ts';

export const LIMITS = {
  layers: 1024,
  width: 1 << 20,
  heads: 4096,
  headDim: 1024,
  vocab: 1 << 24,
  context: 1 << 30,
} as const;

/** The fields of one description, read with their source named in every error. */
export class Fields {
  readonly source: string;
  readonly #get: (key: string) => unknown;
  readonly #prefix: string;

  /** @param prefix of the names in messages, such as "llama." in GGUF. */
  constructor(source: string, get: (key: string) => unknown, prefix = '') {
    this.source = source;
    this.#get = get;
    this.#prefix = prefix;
  }

  /** The raw value; null counts as not there, as in Hugging Face's files. */
  value(key: string): unknown {
    return this.#get(key) ?? undefined;
  }

  has(key: string): boolean {
    return this.value(key) !== undefined;
  }

  integer(key: string, max: number, fallback?: number): number {
    const value = this.value(key) ?? fallback;
    return checkInteger('model', this.#name(key), value, 1, max);
  }

  /** A finite number of at least `min`, at most 2^60. */
  number(key: string, min: number, fallback?: number): number {
    return checkNumber('model', this.#name(key), this.value(key) ?? fallback, min, 2 ** 60);
  }

  boolean(key: string, fallback: boolean): boolean {
    const value = this.value(key) ?? fallback;
    if (typeof value !== 'boolean') {
      throw this.error(`${key} must be true or false, got ${show(value)}`);
    }
    return value;
  }

  /**
   * Refuses a feature that would silently change the output: the value must be one of `allowed`
   * (or absent).
   */
  only(key: string, ...allowed: readonly unknown[]): void {
    const value = this.value(key);
    if (value === undefined || allowed.includes(value)) return;
    throw this.error(`${key} is ${show(value)}, supported is only ${allowed.map(show).join(', ')}`);
  }

  error(problem: string): FlashForgeError {
    return modelError(this.source, `${this.#prefix}${problem}`);
  }

  #name(key: string): string {
    return `${this.source}: ${this.#prefix}${key}`;
  }
}

/** Values of one head: as the file says under `key`, else the width shared among the heads. */
export function headDimension(fields: Fields, key: string, hidden: number, heads: number): number {
  if (!fields.has(key) && hidden % heads !== 0) {
    throw modelError(fields.source, `its width ${hidden} is no multiple of its ${heads} heads`);
  }
  return fields.integer(key, LIMITS.headDim, hidden / heads);
}

/** The error for a family that cannot be run. */
export const unknownArchitecture = (
  source: string,
  found: unknown,
  supported: readonly string[],
): FlashForgeError =>
  modelError(source, `the architecture must be ${supported.join(', ')}, got ${show(found)}`);

/**
 * Checks what no single field shows, and drops a window that is never reached.
 * @throws FlashForgeError 'model' if the description contradicts itself.
 */
export function checkedConfig(source: string, config: DecoderConfig): DecoderConfig {
  const { heads, kvHeads, headDim, slidingWindow } = config;
  if (heads % kvHeads !== 0) {
    throw modelError(source, `${heads} attention heads are no multiple of ${kvHeads} KV heads`);
  }
  if (headDim % 2 !== 0) {
    throw modelError(source, `the head dimension ${headDim} is odd, rotary pairs need an even one`);
  }
  const reached = slidingWindow !== null && slidingWindow < config.contextLength;
  return reached ? config : { ...config, slidingWindow: null };
}
