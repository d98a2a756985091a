/**
 * A thread that compiles grammars and follows samples through them.
 * @module
 */
import { setPriority } from 'node:os';
import { workerData } from 'node:worker_threads';
import { GrammarLibrary, GrammarRefused, type Matchers } from './grammar-library.ts';
import type { GrammarReply, GrammarRequest, GrammarThreadData } from './grammar-thread.ts';

const { port, vocabulary, background } = workerData as GrammarThreadData;
const library = new GrammarLibrary(vocabulary);
/** On Linux a priority is a thread's own; elsewhere it would be the process's. */
const NICENESS = 5;
if (background && process.platform === 'linux') setPriority(NICENESS);
const open = new Map<number, Matchers>();

function post(reply: GrammarReply, mask?: Int32Array): void {
  port.postMessage(reply, mask === undefined ? [] : [mask.buffer as ArrayBuffer]);
}

async function take(request: GrammarRequest): Promise<void> {
  const { id } = request;
  switch (request.kind) {
    case 'open': {
      const matchers = await library.open(request.key, request.source, request.samples);
      open.set(id, matchers);
      const mask = await matchers.mask(0);
      post({ kind: 'opened', id, mask }, mask);
      return;
    }
    case 'accept': {
      const matchers = open.get(id)!;
      matchers.accept(request.sample, request.token);
      const mask = await matchers.mask(request.sample);
      post({ kind: 'mask', id, sample: request.sample, mask }, mask);
      return;
    }
    case 'close':
      open.get(id)?.dispose();
      open.delete(id);
      return;
    default:
      request satisfies never;
  }
}

function failed({ id }: GrammarRequest, error: unknown): void {
  const reason =
    error instanceof GrammarRefused
      ? `the grammar cannot be used: ${error.message}`
      : 'constrained output is not available here: the grammar library has failed';
  post({ kind: 'failed', id, reason });
}

// One after the other, as each changes the state that the next one meets.
let last: Promise<void> = Promise.resolve();
port.on('message', (request: GrammarRequest) => {
  last = last.then(() => take(request)).catch((error: unknown) => failed(request, error));
});
