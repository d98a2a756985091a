/**
 * The engine thread's side without a thread: calls in, replies out. What the library's own API
 * does not reach: public prefixes, forks under other salts, calls on what is gone.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Engine } from '../../src/engine/engine.ts';
import { PromptEncoder } from '../../src/engine/prompt-encoder.ts';
import type { Call, Reply } from '../../src/engine/rpc.ts';
import { Session } from '../../src/engine/session.ts';
import { ggufTokenizer } from '../../src/tokenizer/gguf-tokenizer.ts';
import { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { PipelinedRunner } from '../helpers/pipelined-runner.ts';
import { byteLevelMetadata } from '../helpers/tiny-tokenizer.ts';
import { FakeRunner } from './fake-runner.ts';

const VOCAB = 267;

/** A session on a fake device, and a way to make calls and wait for their answers. */
function startSession(depth: number) {
  const runner = new FakeRunner({ vocab: VOCAB, pages: 100 });
  const engine = new Engine(depth === 2 ? new PipelinedRunner(runner) : runner);
  const tokenizer = new Tokenizer(ggufTokenizer(byteLevelMetadata(), 'test'));
  const waiting = new Map<number, (reply: Reply) => void>();
  const ends: Extract<Reply, { kind: 'end' }>[] = [];
  const session = new Session(
    engine,
    new PromptEncoder(tokenizer, VOCAB),
    { vocab: VOCAB, contextLength: 300 },
    (replies) => {
      for (const reply of replies) {
        if (reply.kind === 'end') ends.push(reply);
        if (reply.kind === 'result' || reply.kind === 'error') waiting.get(reply.id)?.(reply);
      }
    },
  );
  let nextId = 1;
  const call = (make: (id: number) => Call): Promise<Reply> => {
    const id = nextId++;
    const answer = new Promise<Reply>((resolve) => waiting.set(id, resolve));
    void session.handle(make(id));
    return answer;
  };
  const prefill = (branch: number, text: string, salt?: string, isPublic = false) =>
    call((id) => ({
      kind: 'prefill',
      id,
      branch,
      prompt: { text },
      placement: { salt },
      public: isPublic,
    }));
  /** Tokens of the prompt that were in the cache, or the error. */
  const cached = async (text: string, salt?: string, branch?: number) => {
    const answer = await call((id) => ({
      kind: 'generate',
      id,
      prompts: [{ text, branch }],
      options: { maxTokens: 2, ignoreEos: true },
      placement: { salt },
    }));
    if (answer.kind === 'error') return answer.message;
    return ends.at(-1)?.end.stats.cachedTokens;
  };
  return { engine, session, call, prefill, cached };
}

const length = (reply: Reply): number =>
  reply.kind === 'result' ? (reply.value as { length: number }).length : Number.NaN;

for (const depth of [1, 2]) {
  test(`tenants share a public prefix and nothing below it, on a runner of depth ${depth}`, async () => {
    const { prefill, cached, session, engine } = startSession(depth);
    const tokens = length(await prefill(1, 'Every tenant knows this.', undefined, true));
    const own = ' But this is mine.';
    assert.equal(await cached(`Every tenant knows this.${own}`, 'alice'), tokens);
    assert.equal(await cached(`Every tenant knows this.${own}`, 'bob'), tokens);
    assert.equal(await cached(own, 'bob', 1), tokens + own.length, 'its own, from before');
    assert.equal(await cached(own, undefined, 1), tokens, 'not in the public part');
    await session.handle({ kind: 'release', branch: 1 });
    assert.equal(await cached(`Every tenant knows this.${own}`, 'carol'), 0, 'no longer public');
    assert.equal(engine.tree.availablePages, 100);
  });

  test(`forks of a public prefix may be private; those of others keep their salt, on a runner of depth ${depth}`, async () => {
    const { prefill, call, cached, session } = startSession(depth);
    const tokens = length(await prefill(1, 'Public words.', undefined, true));
    await prefill(2, 'Secret words.', 'alice');
    await session.handle({ kind: 'fork', branch: 3, of: 1, salt: 'bob' });
    const text = ' And his.';
    await call((id) => ({ kind: 'append', id, moves: [{ branch: 3, text }] }));
    assert.equal(await cached(`Public words.${text}`), tokens);
    assert.equal(await cached(`Public words.${text}`, 'bob'), tokens + text.length);
    await session.handle({ kind: 'fork', branch: 4, of: 2, salt: 'bob' });
    assert.match(String(await cached('x', undefined, 4)), /cacheSalt must be the prefix's own/);
    assert.match(String(await cached('x', 'bob', 2)), /cacheSalt must be the prefix's own/);
  });

  test(`what is wrong is told with the call, on a runner of depth ${depth}`, async () => {
    const { prefill, call, cached, session } = startSession(depth);
    const refused = await prefill(1, 'x', 'alice', true);
    assert.match(refused.kind === 'error' ? refused.message : '', /must not have a salt/);
    assert.match(String(await cached('x', undefined, 77)), /disposed/);
    const top = await call((id) => ({ kind: 'top', id, branches: [5], count: 3 }));
    assert.equal(top.kind, 'error');
    let id = 0;
    const aborting = call((given) => {
      id = given;
      return {
        kind: 'prefill',
        id,
        branch: 9,
        prompt: { text: 'never finished' },
        placement: {},
      };
    });
    void session.handle({ kind: 'abort', id });
    const aborted = await aborting;
    assert.equal(aborted.kind === 'error' && aborted.code, 'aborted');
  });

  test(`closing ends what runs, answers it, and only then is done, on a runner of depth ${depth}`, async () => {
    const { prefill, call, session, engine } = startSession(depth);
    await prefill(1, 'held');
    const running = call((id) => ({
      kind: 'generate',
      id,
      prompts: [{ text: 'long', branch: 1 }],
      options: { maxTokens: 200, ignoreEos: true },
      placement: {},
    }));
    const closing = call((id) => ({ kind: 'close', id }));
    const [end, closed] = [await running, await closing];
    assert.equal(end.kind === 'error' && end.code, 'aborted');
    assert.equal(closed.kind, 'result');
    assert.equal(session.snapshot().running, 0);
    // A runner of depth 2 complains of steps under way.
    await engine.runner.dispose();
  });
}
