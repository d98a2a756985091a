/**
 * `flashforge serve`: the OpenAI-compatible server until a signal ends it.
 * @module
 */
import { readFileSync } from 'node:fs';
import { FlashForgeError } from '../base/errors.ts';
import { fileReason } from '../base/file-errors.ts';
import { DEVICE_CHOICES } from '../model/load-runner.ts';
import { startServer } from '../server/server.ts';
import type { ServerOptions } from '../server/server-options.ts';
import {
  type Arguments,
  type Command,
  type Context,
  DEVICE_OPTION,
  MODEL_OPTION,
  PROVIDER_OPTION,
  PROVIDERS,
} from './command.ts';
import { choiceOption, integerOption, numberOption, usageError } from './parse-arguments.ts';

const SECOND_MS = 1000;
const MIB = 2 ** 20;
const GIB = 2 ** 30;

export const serveCommand: Command = {
  name: 'serve',
  summary: 'Serves a model over HTTP, as OpenAI does, with prefix sharing.',
  positionals: [],
  options: [
    MODEL_OPTION,
    { name: 'host', value: 'ADDRESS', help: 'address to listen on (default 127.0.0.1)' },
    { name: 'port', value: 'N', help: 'port to listen on, 0 = any free one (default 8000)' },
    { name: 'served-model-name', value: 'NAMES', help: 'names of the model, comma-separated' },
    { name: 'api-key', value: 'KEYS', help: 'keys that clients must send, comma-separated' },
    { name: 'api-key-file', value: 'FILE', help: 'the same, one a line' },
    { name: 'share-across-keys', help: 'let clients with different keys share KV' },
    { name: 'cors-origin', value: 'ORIGINS', help: 'origins that browsers may call from' },
    PROVIDER_OPTION,
    DEVICE_OPTION,
    { name: 'workers', value: 'N', help: 'compute threads (default one for each core)' },
    { name: 'kv-pages', value: 'N', help: 'KV cache in pages of 64 tokens' },
    {
      name: 'host-kv-gib',
      value: 'N',
      help: 'pinned host memory for evicted KV on CUDA (default 0)',
    },
    { name: 'max-sequences', value: 'N', help: 'sequences that run at a time (default 256)' },
    { name: 'max-tokens', value: 'N', help: 'most new tokens of a sample' },
    { name: 'queue-limit', value: 'N', help: 'requests in the server; more get 429 (default 512)' },
    { name: 'timeout', value: 'SECONDS', help: 'longest time of a request (default 600)' },
    { name: 'drain', value: 'SECONDS', help: 'patience after SIGTERM (default 30)' },
    { name: 'body-mib', value: 'N', help: 'largest request body in MiB (default 4)' },
    { name: 'prefix-limit', value: 'N', help: 'prefixes held by clients (default 256)' },
    { name: 'log-level', value: 'NAME', help: 'fatal, error, warn, info, debug or silent' },
    { name: 'log-file', value: 'FILE', help: 'log there instead of standard error' },
    { name: 'offline', help: 'bring nothing over the network' },
  ],
  examples: [
    'flashforge serve',
    'flashforge serve --model hf:Qwen/Qwen2.5-0.5B-Instruct --port 8080 --api-key-file keys.txt',
  ],
  run,
  endsBySignal: true,
};

async function run(context: Context, given: Arguments): Promise<void> {
  const server = await startServer(optionsOf(given));
  const end = new Promise<void>((resolve) => {
    if (context.signal.aborted) resolve();
    context.signal.addEventListener('abort', () => resolve(), { once: true });
  });
  try {
    context.print(`listening on ${server.url}`);
    const loaded = await Promise.race([server.loaded.then(() => true), end.then(() => false)]);
    if (loaded) {
      context.print(`serving ${server.models.join(', ')}`);
      await end;
    }
  } finally {
    await server.close();
  }
}

function optionsOf(given: Arguments): ServerOptions {
  const integer = (name: string, min: number, max?: number): number | undefined =>
    integerOption(given, name, undefined, min, max);
  const scaled = (name: string, max: number, unit: number): number | undefined => {
    const value = numberOption(given, name, 0, max);
    return value === undefined ? undefined : Math.round(value * unit);
  };
  const maxSequences = integer('max-sequences', 1, 65536);
  return {
    host: given.text('host'),
    port: integer('port', 0, 65535),
    model: given.text('model'),
    servedModelNames: list(given, 'served-model-name'),
    apiKeys: apiKeys(given),
    shareAcrossKeys: given.has('share-across-keys'),
    corsOrigins: list(given, 'cors-origin'),
    bodyBytes: scaled('body-mib', 1024, MIB),
    queueLimit: integer('queue-limit', 1),
    requestTimeoutMs: scaled('timeout', 2_000_000, SECOND_MS),
    drainMs: scaled('drain', 2_000_000, SECOND_MS),
    maxTokens: integer('max-tokens', 1),
    prefixLimit: integer('prefix-limit', 0),
    logLevel: given.text('log-level'),
    logFile: given.text('log-file'),
    offline: given.has('offline'),
    runner: {
      device: choiceOption(given, 'device', DEVICE_CHOICES, 'cpu'),
      provider: choiceOption(given, 'provider', PROVIDERS, 'auto'),
      workers: integer('workers', 1, 1024),
      kvPages: integer('kv-pages', 1),
      hostKvBytes: scaled('host-kv-gib', 65536, GIB),
    },
    engine: { maxSequences },
  };
}

function list(given: Arguments, name: string): string[] | undefined {
  const items = given
    .text(name)
    ?.split(',')
    .map((each) => each.trim());
  if (items?.includes('')) throw usageError(`--${name} must hold no empty item`);
  return items;
}

function apiKeys(given: Arguments): string[] | undefined {
  const file = given.text('api-key-file');
  if (file === undefined) return list(given, 'api-key');
  if (given.has('api-key')) throw usageError('give --api-key or --api-key-file, not both');
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    const reason = fileReason(cause);
    throw new FlashForgeError('usage', `--api-key-file cannot be read: ${reason}`, { cause });
  }
  const keys = text.split('\n').map((line) => line.trim());
  const found = keys.filter((line) => line !== '' && !line.startsWith('#'));
  if (found.length === 0) throw usageError('--api-key-file must hold at least one key');
  return found;
}
