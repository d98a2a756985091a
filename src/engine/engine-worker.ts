/**
 * The engine thread: loads a model and serves calls until it is closed.
 * @module
 */
import { parentPort, workerData } from 'node:worker_threads';
import { assert, FlashForgeError } from '../base/errors.ts';
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

async function serve(start: EngineStart, post: (replies: Reply[]) => void): Promise<void> {
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
  const port = parentPort;
  assert(port !== null, 'the engine worker needs a parent');
  port.on('message', async (call: Call) => {
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

const post = (replies: Reply[]): void => parentPort?.postMessage(replies);
serve(workerData as EngineStart, post).catch((error: unknown) => {
  const code = error instanceof FlashForgeError ? error.code : 'device';
  const message = error instanceof Error ? error.message : String(error);
  post([{ kind: 'error', id: LOAD_ID, code, message }]);
});
