/**
 * The engine's thread, or process: loads a model and serves calls until it is closed.
 * @module
 */
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import { FlashForgeError, isProcessLost } from '../base/errors.ts';
import { openCheckpoint } from '../checkpoint/open-checkpoint.ts';
import { openTokenizer } from '../checkpoint/open-tokenizer.ts';
import { loadRunner } from '../model/load-runner.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { Engine } from './engine.ts';
import { Grammars } from './grammar.ts';
import { PromptEncoder } from './prompt-encoder.ts';
import type { Call, EngineStart, Reply } from './rpc.ts';
import { Session } from './session.ts';

/** Identifies the answer to loading: calls are numbered from 1. */
const LOAD_ID = 0;

/** The way to the caller. */
interface Port {
  post(replies: Reply[]): void;
  onCall(handle: (call: Call) => void): void;
  close(): void;
}

async function serve(start: EngineStart, port: Port): Promise<void> {
  const post = (replies: Reply[]): void => port.post(replies);
  const parts = openTokenizer(start.path);
  const checkpoint = openCheckpoint(start.path);
  const { config, format, source } = checkpoint;
  const runner = await loadRunner(checkpoint, {
    ...start.runner,
    onProgress: (share) => post([{ kind: 'progress', share }]),
    log: (line) => post([{ kind: 'log', line }]),
  }).finally(() => checkpoint.close());
  const engine = new Engine(runner, start.engine);
  const tokenizer = new Tokenizer(parts);
  const encoder = new PromptEncoder(tokenizer, config.vocab);
  const grammars = new Grammars(tokenizer, config.vocab);
  const session = new Session(engine, encoder, config, post, grammars);
  port.onCall(async (call) => {
    await session.handle(call);
    if (call.kind !== 'close') return;
    await Promise.all([runner.dispose(), grammars.close()]);
    port.close();
  });
  const { device, provider, providerWhy, pages, pageSize, tokenBytes, planSpec } = runner;
  post([
    {
      kind: 'ready',
      info: {
        source,
        format,
        config,
        hasChatTemplate: parts.chatTemplate !== null,
        device,
        provider,
        providerWhy,
        workers: planSpec.workers,
        pages,
        pageSize,
        tokenBytes,
      },
    },
  ]);
}

function threadPort(parent: MessagePort): Port {
  return {
    post: (replies) => parent.postMessage(replies),
    onCall: (handle) => parent.on('message', handle),
    close: () => parent.close(),
  };
}

/** Requests end when the parent says so, not by the terminal's signal, and always with it. */
function processPort(): Port {
  process.on('SIGINT', () => {});
  process.on('disconnect', () => process.exit());
  return {
    post: (replies) => process.send?.(replies),
    onCall: (handle) => process.on('message', (call) => handle(call as Call)),
    close: () => process.disconnect(),
  };
}

function run(start: EngineStart, port: Port): void {
  serve(start, port).catch((error: unknown) => {
    const code = error instanceof FlashForgeError ? error.code : 'device';
    const message = error instanceof Error ? error.message : String(error);
    port.post([{ kind: 'error', id: LOAD_ID, code, message, elsewhere: isProcessLost(error) }]);
  });
}

if (parentPort !== null) run(workerData as EngineStart, threadPort(parentPort));
else process.once('message', (start) => run(start as EngineStart, processPort()));
