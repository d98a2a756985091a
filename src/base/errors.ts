/**
 * Errors that users meet. Each message is one sentence that names the field, the value and what
 * is allowed; `code` is stable and may be matched on.
 * @module
 */

/** The kinds of failure a caller can tell apart. */
export type ErrorCode =
  /** Wrong command line or option: exit code 2. */
  | 'usage'
  /** A model file, reference or architecture that cannot be used. */
  | 'model'
  /** A request with a bad option or a prompt that does not fit. */
  | 'request'
  /** A workload or other input file that is not valid. */
  | 'input'
  /** The KV cache has no free page left. */
  | 'out-of-pages'
  /** The caller cancelled. */
  | 'aborted'
  /** A kernel could not be compiled or loaded. */
  | 'compile'
  /** The device or one of its workers failed. */
  | 'device'
  /** The network, the hub or the disk failed. */
  | 'io';

/** Base of every error that FlashForge throws on purpose. */
export class FlashForgeError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'FlashForgeError';
    this.code = code;
  }
}

/** The cause of an error that another process would not meet. */
export const PROCESS_LOST = 'a fault has taken the device from this process';

/** True where the same would work in a process of its own. */
export const isProcessLost = (error: unknown): boolean =>
  error instanceof FlashForgeError && error.cause === PROCESS_LOST;

/** What whoever waits for a request gets when its caller has cancelled it. */
export const requestAborted = (): FlashForgeError =>
  new FlashForgeError('aborted', 'the request was aborted');

/** True for what a full KV cache throws. */
export const isOutOfPages = (error: unknown): error is FlashForgeError =>
  error instanceof FlashForgeError && error.code === 'out-of-pages';

/** Throws an `Error` that marks a mistake of ours, never of the user's. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`internal error: ${message}`);
}

/** Renders a value for an error message: short, on one line, quoted where it is text. */
export function show(value: unknown): string {
  if (typeof value === 'string') {
    return JSON.stringify(value.length > 60 ? `${value.slice(0, 57)}...` : value);
  }
  if (typeof value === 'bigint' || typeof value === 'number') return String(value);
  if (value === undefined) return 'nothing';
  const text = asJson(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

function asJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? `a ${typeof value}`;
  } catch {
    return `a ${typeof value}`; // Cycles, and big integers inside of objects.
  }
}

/**
 * Returns `value` if it is an integer in [min, max].
 * @throws FlashForgeError with `code`, naming the field, the value and the range.
 */
export function checkInteger(
  code: ErrorCode,
  field: string,
  value: unknown,
  min: number,
  max: number = Number.MAX_SAFE_INTEGER,
): number {
  if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) {
    return value;
  }
  const range =
    max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `between ${min} and ${max}`;
  throw new FlashForgeError(code, `${field} must be an integer ${range}, got ${show(value)}`);
}

/**
 * Returns `value` if it is a finite number in [min, max].
 * @throws FlashForgeError with `code`, naming the field, the value and the range.
 */
export function checkNumber(
  code: ErrorCode,
  field: string,
  value: unknown,
  min: number,
  max: number = Number.POSITIVE_INFINITY,
): number {
  if (typeof value === 'number' && Number.isFinite(value) && value >= min && value <= max) {
    return value;
  }
  const range =
    max === Number.POSITIVE_INFINITY ? `of at least ${min}` : `between ${min} and ${max}`;
  throw new FlashForgeError(code, `${field} must be a number ${range}, got ${show(value)}`);
}
