/**
 * The engine against greedy decoding computed without it, over random trees and small caches;
 * and its promises one by one.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FlashForgeError } from '../../src/base/errors.ts';
import { randomStream } from '../../src/base/math.ts';
import { Branch } from '../../src/engine/branch.ts';
import { Engine, type EngineOptions } from '../../src/engine/engine.ts';
import type { GenerationInit, PromptToken } from '../../src/engine/generation.ts';
import { topLogprobs } from '../../src/engine/sampler.ts';
import { PipelinedRunner } from '../helpers/pipelined-runner.ts';
import { FakeRunner, fakeLogits, greedyOracle } from './fake-runner.ts';
import { checkEmpty, generate, type Outcome, runAll, slowConstraint } from './requests.ts';

/** What `promptLogprobs` must report, by teacher forcing without any engine. */
function promptOracle(prompt: readonly number[], vocab: number, count: number): PromptToken[] {
  return prompt.map((token, at) => {
    if (at === 0) return { token, logprob: null, top: null };
    const logits = fakeLogits(prompt.slice(0, at), vocab);
    const sum = Math.fround(Math.log(logits.reduce((total, logit) => total + Math.exp(logit), 0)));
    const all = topLogprobs(logits, sum, vocab);
    const { logprob } = all.find((each) => each.token === token)!;
    return { token, logprob, top: all.slice(0, count) };
  });
}

const workload = fc.record({
  requests: fc.array(
    fc.record({
      prompt: fc.array(fc.nat(1), { minLength: 1, maxLength: 12, size: 'max' }),
      maxTokens: fc.nat(14),
      scored: fc.boolean(),
      thinks: fc.nat(3),
      n: fc.integer({ min: 1, max: 3 }),
      delay: fc.nat(6),
      priority: fc.nat(1),
    }),
    { minLength: 1, maxLength: 8, size: 'max' },
  ),
  pageSize: fc.integer({ min: 1, max: 5 }),
  sparePages: fc.nat(20),
  maxRows: fc.integer({ min: 1, max: 24 }),
  flat: fc.boolean(),
});

test('random trees, small caches: every greedy output is the model own, tree or flat', async () => {
  await fc.assert(
    fc.asyncProperty(workload, async ({ requests, pageSize, sparePages, maxRows, flat }) => {
      const longest = Math.max(...requests.map((r) => r.prompt.length + r.maxTokens));
      const pages = Math.ceil(longest / pageSize) + 2 + sparePages;
      const runner = new FakeRunner({ pages, pageSize, maxRows, vocab: 3 });
      const engine = new Engine(runner, { mixedPrefillRows: 4 });
      engine.flat = flat;
      const outcomes: { outcome: Outcome; request: (typeof requests)[number] }[] = [];
      for (let step = 0; step <= 6; step++) {
        for (const request of requests.filter(({ delay }) => delay === step)) {
          const { prompt, n, maxTokens, scored, priority, thinks } = request;
          const constraint = thinks === 0 ? undefined : slowConstraint(3, thinks);
          const options = { n, maxTokens, ...(scored ? { promptLogprobs: 2 } : {}) };
          const outcome = generate(engine, prompt, options, { priority, constraint });
          outcomes.push({ outcome, request });
        }
        await engine.step();
      }
      await runAll(engine);
      for (const { outcome, request } of outcomes) {
        assert.equal(outcome.error, null);
        assert.ok(outcome.done);
        const expected = greedyOracle(request.prompt, request.maxTokens, 3);
        for (const tokens of outcome.tokens) assert.deepEqual(tokens, expected);
        if (!request.scored) assert.equal(outcome.prompt, null);
        else {
          assert.deepEqual(outcome.prompt, promptOracle(request.prompt, 3, 2));
          assert.equal(outcome.cached[0], 0, 'all of it is computed anew');
        }
      }
      checkEmpty(engine);
    }),
    { numRuns: 300, seed: 7 },
  );
});

test('no stop token and no stop string before minTokens', async () => {
  const engine = new Engine(new FakeRunner({ vocab: 3 }));
  const text = () => ({ push: (token: number) => 'abc'[token], end: () => '' });
  const init = { eosIds: new Set([0, 1]), text };
  const options = { maxTokens: 40, temperature: 1, n: 16, seed: 3, stop: 'c' };
  const early = generate(engine, [1, 2], options, init);
  const late = generate(engine, [1, 2], { ...options, minTokens: 12 }, init);
  const full = generate(engine, [1, 2], { ...options, minTokens: 40 }, init);
  await runAll(engine);
  assert.ok(early.tokens.some((tokens) => tokens.length < 12));
  for (const [index, tokens] of late.tokens.entries()) {
    assert.ok(tokens.length >= 12);
    assert.deepEqual(tokens.slice(0, 11), Array(11).fill(2), 'all others would have ended it');
    assert.equal(late.reasons[index], 'stop');
  }
  for (const tokens of full.tokens) assert.equal(tokens.length, 40);
  assert.throws(() => generate(engine, [1], { maxTokens: 4, minTokens: 5 }), /minTokens.*4.*5/);
});

test('a seed gives the same tokens alone, in a batch, and after preemption', async () => {
  const options = { temperature: 1, seed: 5, n: 3, maxTokens: 20 };
  const alone = new Engine(new FakeRunner());
  const expected = generate(alone, [1, 2, 3], options);
  await runAll(alone);
  const crowded = new Engine(new FakeRunner({ pages: 14 }));
  const others = [4, 5, 6].map((first) => generate(crowded, [first, 2, 3], { maxTokens: 20 }));
  const outcome = generate(crowded, [1, 2, 3], options);
  await runAll(crowded);
  assert.deepEqual(outcome.tokens, expected.tokens);
  assert.ok(crowded.stats.totals().preemptions > 0, 'the cache was too small for all');
  assert.ok(others.every(({ done }) => done));
  assert.notDeepEqual(outcome.tokens[0], outcome.tokens[1]);
});

test('n samples prefill the prompt once', async () => {
  const runner = new FakeRunner();
  const engine = new Engine(runner);
  const outcome = generate(engine, Array(40).fill(1), { n: 8, temperature: 1, seed: 1 });
  await engine.step();
  assert.equal(runner.steps[0].written, 40);
  assert.equal(runner.steps[0].logits, 1);
  await runAll(engine);
  assert.ok(outcome.done);
});

test('equal cold prompts that arrive together are prefilled once', async () => {
  const runner = new FakeRunner({ maxRows: 16 });
  const engine = new Engine(runner);
  const prompt = Array.from({ length: 60 }, (_, at) => at % 7);
  const outcomes = [8, 9, 10].map((last) => generate(engine, [...prompt, last], { maxTokens: 1 }));
  await runAll(engine);
  const written = runner.steps.reduce((sum, step) => sum + step.written, 0);
  assert.equal(written, 63, 'the shared tokens once, and three own ones');
  outcomes.forEach((outcome, index) => {
    assert.deepEqual(outcome.tokens[0], greedyOracle([...prompt, 8 + index], 1, 16));
  });
});

test('a prompt that is cached in full computes one row, and reports it', async () => {
  const runner = new FakeRunner();
  const engine = new Engine(runner);
  generate(engine, [1, 2, 3, 4, 5], { maxTokens: 1 });
  await runAll(engine);
  const again = generate(engine, [1, 2, 3, 4, 5], { maxTokens: 1 });
  await runAll(engine);
  assert.deepEqual(runner.steps.at(-1), { rows: 1, requests: 1, logits: 1, written: 0 });
  assert.deepEqual(again.cached, [5]);
});

test('a busy request shares what it has generated so far', async () => {
  const runner = new FakeRunner();
  const engine = new Engine(runner);
  const busy = generate(engine, [1, 2, 3], { maxTokens: 40 });
  for (let step = 0; step < 20; step++) await engine.step();
  const tokens = [1, 2, 3, ...busy.tokens[0].slice(0, 15)];
  const next = (busy.tokens[0][15] + 1) % 16;
  const other = generate(engine, [...tokens, next], { maxTokens: 5 });
  await runAll(engine);
  assert.deepEqual(other.cached, [18]);
  assert.deepEqual(other.tokens[0], greedyOracle([...tokens, next], 5, 16));
  assert.deepEqual(busy.tokens[0], greedyOracle([1, 2, 3], 40, 16));
});

test('a long prefill does not stop decoding', async () => {
  const runner = new FakeRunner({ pages: 400, maxRows: 64 });
  const engine = new Engine(runner, { mixedPrefillRows: 16 });
  const first = generate(engine, [1], { maxTokens: 100 });
  await engine.step();
  generate(engine, Array(800).fill(2), { maxTokens: 1 });
  for (let step = 0; step < 20; step++) {
    const before = first.tokens[0].length;
    await engine.step();
    assert.equal(first.tokens[0].length, before + 1);
    assert.equal(runner.steps.at(-1)?.rows, 17);
  }
});

test('the more urgent request goes first, and keeps its pages when they run out', async () => {
  const engine = new Engine(new FakeRunner({ pages: 10, pageSize: 4 }), { maxSequences: 2 });
  const start = (first: number, priority: number): Outcome =>
    generate(engine, [first, 1, 2, 3], { maxTokens: 24 }, { priority });
  const [low, late] = [start(1, 0), start(2, 0)];
  for (let step = 0; step < 3; step++) await engine.step();
  const high = start(3, 5);
  const finished: Outcome[] = [];
  for (let steps = 0; await engine.step(); steps++) {
    assert.ok(steps < 1000, 'no progress');
    for (const outcome of [low, late, high]) {
      if (outcome.done && !finished.includes(outcome)) finished.push(outcome);
    }
  }
  assert.deepEqual(finished, [low, high, late], 'two at a time: the urgent one is next');
  assert.ok(engine.stats.totals().preemptions > 0);
  for (const [index, outcome] of [low, late, high].entries()) {
    assert.deepEqual(outcome.tokens[0], greedyOracle([1 + index, 1, 2, 3], 24, 16));
  }
  checkEmpty(engine);
});

test('a sequence that can never fit is refused at once, one that can waits', async () => {
  const engine = new Engine(new FakeRunner({ pages: 10, pageSize: 4 }));
  assert.throws(
    () => generate(engine, Array(41).fill(1)),
    (error) => error instanceof FlashForgeError && error.code === 'out-of-pages',
  );
  const first = generate(engine, Array(30).fill(1), { maxTokens: 5 });
  const second = generate(engine, Array(30).fill(2), { maxTokens: 5 });
  await engine.step();
  assert.equal(engine.waiting, 1);
  await runAll(engine);
  assert.ok(first.done && second.done);
  const tooLong = generate(engine, Array(38).fill(3), { maxTokens: 100 });
  await runAll(engine);
  assert.equal(tooLong.error?.code, 'out-of-pages');
  checkEmpty(engine);
});

test('aborting frees every page, in any phase', async () => {
  for (const steps of [0, 1, 3, 6]) {
    const engine = new Engine(new FakeRunner({ maxRows: 16 }));
    const kept = generate(engine, [7, 7], { maxTokens: 4 });
    const outcome = generate(engine, Array(40).fill(1), { n: 4, maxTokens: 50 });
    for (let step = 0; step < steps; step++) await engine.step();
    outcome.generation.abort();
    outcome.generation.abort();
    await runAll(engine);
    assert.equal(outcome.error?.code, 'aborted');
    assert.ok(kept.done && !outcome.done);
    checkEmpty(engine);
  }
});

test('requests and branches come, grow and go while a step is under way', async () => {
  const action = fc.record({
    kind: fc.constantFrom('add' as const, 'abort' as const, 'fork' as const, 'grow' as const),
    prompt: fc.array(fc.nat(1), { minLength: 1, maxLength: 8 }),
    pick: fc.nat(1000),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(action, { maxLength: 40, size: 'max' }),
      fc.boolean(),
      async (actions, ahead) => {
        const runner = new FakeRunner({ pages: 60, vocab: 3, turns: 2 });
        const engine = new Engine(ahead ? new PipelinedRunner(runner) : runner);
        const root = Branch.create(engine, Int32Array.of(1, 0, 1), { contextLength: 1000 });
        root.row().catch(() => {});
        await engine.step();
        const outcomes: { outcome: Outcome; prompt: number[] }[] = [];
        const branches = [root];
        let step = engine.step();
        for (const { kind, prompt, pick } of actions) {
          if (pick % 3 === 0) {
            await step;
            step = engine.step();
          } else await new Promise((resolve) => setImmediate(resolve));
          const branch = branches[pick % branches.length];
          if (kind === 'add') {
            outcomes.push({ outcome: generate(engine, prompt, { maxTokens: 9, n: 2 }), prompt });
          } else if (kind === 'abort') outcomes[pick % outcomes.length]?.outcome.generation.abort();
          else if (kind === 'fork') branches.push(branch.fork(1 + (pick % branch.length)));
          else branch.append(prompt);
        }
        await step;
        await runAll(engine);
        for (const { outcome, prompt } of outcomes) {
          if (outcome.error !== null) assert.equal(outcome.error.code, 'aborted');
          else assert.deepEqual(outcome.tokens[0], greedyOracle(prompt, 9, 3));
        }
        for (const branch of branches) branch.end();
        checkEmpty(engine);
      },
    ),
    { numRuns: 150, seed: 11 },
  );
});

test('a failing device ends every request with one error', async () => {
  const runner = new FakeRunner();
  const engine = new Engine(runner, { maxSequences: 1 });
  const outcomes = [generate(engine, [1]), generate(engine, [2])];
  await engine.step();
  runner.broken = true;
  await assert.rejects(engine.step(), /the device is gone/);
  for (const { error } of outcomes) assert.equal(error?.code, 'device');
  checkEmpty(engine);
});

const letters = (): GenerationInit['text'] => () => ({
  push: (token: number) => String.fromCharCode(97 + token),
  end: () => '',
});

test('stop strings, stop tokens, end-of-sequence and context end a sample', async () => {
  const engine = new Engine(new FakeRunner());
  const tokens = greedyOracle([1, 2], 30, 16);
  const text = String.fromCharCode(...tokens.map((token) => 97 + token));
  const at = 9;
  const stop = text.slice(at, at + 3);
  const first = text.indexOf(stop);
  const stopped = generate(
    engine,
    [1, 2],
    { maxTokens: 30, stop: ['zzz', stop] },
    { text: letters() },
  );
  const byToken = generate(engine, [1, 2], { maxTokens: 30, stopTokenIds: [tokens[5]] });
  const byEos = generate(engine, [1, 2], { maxTokens: 30 }, { eosIds: new Set([tokens[4]]) });
  const past = generate(
    engine,
    [1, 2],
    { maxTokens: 30, ignoreEos: true },
    { eosIds: new Set([tokens[4]]) },
  );
  const byContext = generate(engine, [1, 2], { maxTokens: 30 }, { contextLength: 12 });
  await runAll(engine);
  assert.deepEqual([stopped.text[0], stopped.reasons[0]], [text.slice(0, first), 'stop']);
  assert.deepEqual(byToken.tokens[0], tokens.slice(0, tokens.indexOf(tokens[5])));
  assert.deepEqual(byEos.tokens[0], tokens.slice(0, tokens.indexOf(tokens[4])));
  assert.deepEqual([past.tokens[0], past.reasons[0]], [tokens, 'length']);
  assert.deepEqual([byContext.tokens[0], byContext.reasons[0]], [tokens.slice(0, 10), 'length']);
});

test('prompts that are empty or too long are refused', () => {
  const engine = new Engine(new FakeRunner());
  const refused = (length: number): void => {
    assert.throws(
      () => generate(engine, Array(length).fill(1), {}, { contextLength: 20 }),
      (error) => error instanceof FlashForgeError && error.code === 'request',
    );
  };
  refused(0);
  refused(20);
});

test('statistics: bytes read by the tree, by flat decoding, and plans reused', async () => {
  const bytes = async (flat: boolean, options: EngineOptions = {}) => {
    const engine = new Engine(new FakeRunner({ pages: 400 }), options);
    engine.flat = flat;
    const random = randomStream(3);
    const shared = Array.from({ length: 100 }, () => Math.floor(random() * 16));
    for (let request = 0; request < 8; request++) {
      generate(engine, [...shared, request, 1], { maxTokens: 20 });
    }
    await runAll(engine);
    return engine.stats.totals();
  };
  const tree = await bytes(false);
  const flat = await bytes(true);
  assert.equal(tree.kvBytesFlat, flat.kvBytesFlat);
  assert.ok(flat.kvBytes >= flat.kvBytesFlat, 'flat reads at least every path');
  assert.ok(tree.kvBytes < flat.kvBytes / 3, `${tree.kvBytes} against ${flat.kvBytes}`);
  assert.ok(tree.plansReused > tree.decodeSteps / 2, 'decoding reuses its plan');
});
