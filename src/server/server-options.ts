/**
 * What an operator may set, each with its default and bound. Checked once at the start.
 * @module
 */
import { checkInteger, FlashForgeError, show } from '../base/errors.ts';
import type { EngineOptions } from '../engine/engine.ts';
import type { RunnerOptions } from '../model/load-runner.ts';

export interface ServerOptions {
  /** Name or address to listen on; default 127.0.0.1: only this machine. */
  readonly host?: string | undefined;
  /** Default 8000; 0 = any free one. */
  readonly port?: number | undefined;
  /** A directory, a .gguf file, hf:... or pip:...; default: the default model. */
  readonly model?: string | undefined;
  /** Names under which clients ask for the model; default: its reference. */
  readonly servedModelNames?: readonly string[] | undefined;
  /** Keys that clients must send; none = no key is asked for. */
  readonly apiKeys?: readonly string[] | undefined;
  /** Let clients with different keys share KV; default false: what one asks, none can time. */
  readonly shareAcrossKeys?: boolean | undefined;
  /** May make prefixes public for all keys; default: the first key. */
  readonly operatorKeys?: readonly string[] | undefined;
  /** Origins that browsers may call from; default none. */
  readonly corsOrigins?: readonly string[] | undefined;
  /** Largest request body in bytes; default 4 MiB. */
  readonly bodyBytes?: number | undefined;
  /** Requests that are accepted and not finished; more get 429. Default 512. */
  readonly queueLimit?: number | undefined;
  /** Longest time of a request in ms; default 10 minutes. */
  readonly requestTimeoutMs?: number | undefined;
  /** Most new tokens of one sample; default: what the context leaves. */
  readonly maxTokens?: number | undefined;
  /** Bytes that may wait for a client that reads slowly; default 1 MiB. */
  readonly slowReaderBytes?: number | undefined;
  /** How long running requests may take after SIGTERM, in ms; default 30 s. */
  readonly drainMs?: number | undefined;
  /** Most prefixes held by clients, and the largest share of the KV pages that they may hold. */
  readonly prefixLimit?: number | undefined;
  readonly prefixPagesShare?: number | undefined;
  /** fatal, error, warn, info (default), debug or silent. */
  readonly logLevel?: string | undefined;
  /** A file for the log; default: standard error. */
  readonly logFile?: string | undefined;
  /** Bring nothing over the network. */
  readonly offline?: boolean | undefined;
  readonly runner?: Omit<RunnerOptions, 'onProgress' | 'log'> | undefined;
  readonly engine?: EngineOptions | undefined;
}

type Defaulted =
  | 'host'
  | 'port'
  | 'apiKeys'
  | 'shareAcrossKeys'
  | 'operatorKeys'
  | 'corsOrigins'
  | 'bodyBytes'
  | 'queueLimit'
  | 'requestTimeoutMs'
  | 'slowReaderBytes'
  | 'drainMs'
  | 'prefixLimit'
  | 'prefixPagesShare'
  | 'logLevel'
  | 'offline';

/** Options with every default filled in. */
export type Settings = Omit<ServerOptions, Defaulted> & {
  readonly [K in Defaulted]-?: Exclude<ServerOptions[K], undefined>;
};

const LOG_LEVELS = ['fatal', 'error', 'warn', 'info', 'debug', 'silent'];
/** The longest delay a timer takes. */
const TIMER_MAX_MS = 2 ** 31 - 1;

/** @throws FlashForgeError 'usage' naming the option, the value and what is allowed. */
export function settingsOf(options: ServerOptions): Settings {
  const integer = (name: keyof ServerOptions, fallback: number, min: number, max?: number) =>
    options[name] === undefined ? fallback : checkInteger('usage', name, options[name], min, max);
  const apiKeys = options.apiKeys ?? [];
  if (apiKeys.some((key) => key.trim() === '')) {
    throw new FlashForgeError('usage', 'apiKeys must hold no empty key');
  }
  const logLevel = options.logLevel ?? 'info';
  if (!LOG_LEVELS.includes(logLevel)) {
    throw new FlashForgeError(
      'usage',
      `logLevel must be one of ${LOG_LEVELS.join(', ')}, got ${show(logLevel)}`,
    );
  }
  const prefixPagesShare = options.prefixPagesShare ?? 0.5;
  if (!(prefixPagesShare >= 0 && prefixPagesShare <= 1)) {
    throw new FlashForgeError(
      'usage',
      `prefixPagesShare must be a number between 0 and 1, got ${show(prefixPagesShare)}`,
    );
  }
  if (options.maxTokens !== undefined) checkInteger('usage', 'maxTokens', options.maxTokens, 1);
  return {
    ...options,
    host: options.host ?? '127.0.0.1',
    port: integer('port', 8000, 0, 65535),
    apiKeys,
    shareAcrossKeys: options.shareAcrossKeys ?? false,
    operatorKeys: options.operatorKeys ?? apiKeys.slice(0, 1),
    corsOrigins: options.corsOrigins ?? [],
    bodyBytes: integer('bodyBytes', 4 * 2 ** 20, 1024),
    queueLimit: integer('queueLimit', 512, 1),
    requestTimeoutMs: integer('requestTimeoutMs', 600_000, 1, TIMER_MAX_MS),
    slowReaderBytes: integer('slowReaderBytes', 2 ** 20, 1024),
    drainMs: integer('drainMs', 30_000, 0, TIMER_MAX_MS),
    prefixLimit: integer('prefixLimit', 256, 0),
    prefixPagesShare,
    logLevel,
    offline: options.offline ?? false,
  };
}
