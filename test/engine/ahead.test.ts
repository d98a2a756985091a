/**
 * Steps handed in ahead: whatever the engine does on a runner of depth 2, the requests' results are
 * those of the same engine on one of depth 1, and the runner's contract and the tree's rules hold.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { Branch } from '../../src/engine/branch.ts';
import { Engine, type EngineOptions } from '../../src/engine/engine.ts';
import type { GenerationInit } from '../../src/engine/generation.ts';
import type { SamplingOptions } from '../../src/engine/sampling-params.ts';
import type { PrefixTree } from '../../src/kvcache/prefix-tree.ts';
import { treeStats } from '../../src/kvcache/tree-stats.ts';
import { PipelinedRunner, type PipelineOptions } from '../helpers/pipelined-runner.ts';
import { type FakeOptions, FakeRunner, greedyOracle } from './fake-runner.ts';
import { checkEmpty, generate, type Outcome, runAll, slowConstraint } from './requests.ts';

interface Rig {
  readonly engine: Engine;
  readonly runner: PipelinedRunner;
}

function rig(
  fake: FakeOptions = {},
  pipeline: PipelineOptions = {},
  options: EngineOptions = {},
): Rig {
  // Slower than the turns that the tests themselves take between steps.
  const runner = new PipelinedRunner(new FakeRunner(fake), { turns: () => 4, ...pipeline });
  return { runner, engine: new Engine(runner, options) };
}

/** What must hold between steps; tokens that nobody knows may only stand at ends. */
function checkTree(tree: PrefixTree): void {
  const { pool } = tree;
  const owners = new Int32Array(pool.pages);
  const busy = new Int32Array(pool.pages);
  for (const node of tree.nodes()) {
    assert.ok(node.length > 0 && node.start === node.parent!.end);
    if (!node.isPrivate) assert.equal(node.parent!.children.get(node.edge), node);
    if (typeof node.edge === 'number') assert.equal(node.edge, node.tokens[0]);
    if (node.refs === 0) assert.equal(node.computed, node.length, 'cached KV is written');
    const unknown = node.tokens.subarray(0, node.length).findIndex((token) => token < 0);
    if (unknown >= 0) {
      assert.equal(unknown, node.length - 1, 'an unknown token is the last one');
      assert.ok(node.isLeaf && node.refs === 1 && node.computed <= unknown);
    }
    for (const page of node.pages.subarray(0, node.pageCount)) {
      owners[page]++;
      if (node.refs > 0) busy[page]++;
    }
  }
  assert.deepEqual(pool.owners, owners);
  assert.deepEqual(pool.busy, busy);
}

const text: GenerationInit['text'] = () => ({ push: (token) => 'abc'[token], end: () => '' });

const sampling = fc.record({
  temperature: fc.constantFrom(0, 0, 0.7, 1.5),
  topK: fc.constantFrom(0, 2),
  topP: fc.constantFrom(1, 0.8),
  minP: fc.constantFrom(0, 0.1),
  logprobs: fc.constantFrom(undefined, undefined, 0, 2),
  minTokens: fc.constantFrom(0, 0, 3),
  repetitionPenalty: fc.constantFrom(1, 1, 1, 1.2),
  presencePenalty: fc.constantFrom(0, 0, 0, 0.8),
  frequencyPenalty: fc.constantFrom(0, 0, 0, -0.5),
  logitBias: fc.constantFrom({}, {}, {}, { 1: 1.5 }),
  promptLogprobs: fc.constantFrom(undefined, undefined, undefined, 1),
  stop: fc.constantFrom(undefined, undefined, 'ab', 'cc'),
});

const request = fc.record({
  prompt: fc.array(fc.nat(1), { minLength: 1, maxLength: 12, size: 'max' }),
  maxTokens: fc.nat(14),
  sampling,
  seed: fc.nat(3),
  n: fc.integer({ min: 1, max: 3 }),
  ends: fc.boolean(),
  thinks: fc.constantFrom(0, 0, 0, 2),
  priority: fc.nat(1),
  delay: fc.nat(8),
  abortAfter: fc.option(fc.nat(12), { freq: 4 }),
});

const workload = fc.record({
  requests: fc.array(request, { minLength: 1, maxLength: 8, size: 'max' }),
  pageSize: fc.integer({ min: 1, max: 5 }),
  sparePages: fc.nat(20),
  hostPages: fc.constantFrom(0, 4, 30, 30),
  maxRows: fc.integer({ min: 1, max: 24 }),
  turns: fc.array(fc.nat(3), { minLength: 1, maxLength: 5 }),
});

type Request = typeof request extends fc.Arbitrary<infer T> ? T : never;

function start(engine: Engine, each: Request): Outcome {
  const { prompt, maxTokens, seed, n, ends, thinks, priority } = each;
  const { minTokens, ...rest } = each.sampling;
  const set = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== undefined));
  const options = { ...set, n, seed, maxTokens, minTokens: Math.min(minTokens, maxTokens) };
  return generate(engine, prompt, options as SamplingOptions, {
    priority,
    text,
    ...(ends ? { eosIds: new Set([2]) } : {}),
    ...(thinks > 0 ? { constraint: slowConstraint(3, thinks) } : {}),
  });
}

/** The request by itself, on a runner of depth 1. */
async function alone(each: Request): Promise<Outcome> {
  const engine = new Engine(new FakeRunner({ vocab: 3 }));
  const outcome = start(engine, each);
  await runAll(engine);
  return outcome;
}

function compare(outcome: Outcome, expected: Outcome): void {
  if (outcome.error !== null) {
    assert.equal(outcome.error.code, 'aborted');
    for (const [index, tokens] of outcome.tokens.entries()) {
      assert.deepEqual(tokens, expected.tokens[index].slice(0, tokens.length));
    }
    return;
  }
  assert.ok(outcome.done);
  assert.deepEqual(outcome.tokens, expected.tokens);
  assert.deepEqual(outcome.text, expected.text);
  assert.deepEqual(outcome.reasons, expected.reasons);
  assert.deepEqual(outcome.prompt, expected.prompt);
  for (const [index, logprobs] of outcome.logprobs.entries()) {
    assert.equal(logprobs.length, expected.logprobs[index].length);
    for (const [at, logprob] of logprobs.entries()) {
      assert.ok(Math.abs(logprob - expected.logprobs[index][at]) < 1e-5);
    }
  }
}

let [ahead, preempted, restored] = [0, 0, 0];

test('random requests, aborts and small caches: results are those of a runner of depth 1', async () => {
  await fc.assert(
    fc.asyncProperty(workload, async ({ requests, sparePages, hostPages, turns, ...fake }) => {
      const longest = Math.max(...requests.map((r) => r.prompt.length + r.maxTokens));
      const pages = Math.ceil(longest / fake.pageSize) + 2 + sparePages;
      const { engine, runner } = rig(
        { ...fake, pages, vocab: 3, ...(hostPages > 0 ? { hostPages } : {}) },
        { turns: (step) => turns[step % turns.length] },
        { mixedPrefillRows: 4 },
      );
      const outcomes: { outcome: Outcome; each: Request }[] = [];
      for (let round = 0; round <= 20; round++) {
        for (const each of requests.filter(({ delay }) => delay === round)) {
          outcomes.push({ outcome: start(engine, each), each });
        }
        const step = engine.step();
        // Some go while the step is under way.
        if (round % 2 === 0) await new Promise((resolve) => setImmediate(resolve));
        for (const { outcome, each } of outcomes) {
          if (each.abortAfter !== null && each.delay + each.abortAfter === round) {
            outcome.generation.abort();
          }
        }
        await step;
        checkTree(engine.tree);
      }
      await runAll(engine);
      for (const { outcome, each } of outcomes) compare(outcome, await alone(each));
      ahead += runner.handIns.filter(({ underWay }) => underWay > 0).length;
      restored += engine.host?.stats(1).restoredTokens ?? 0;
      preempted += engine.stats.totals().preemptions;
      checkEmpty(engine);
      await runner.dispose();
    }),
    { numRuns: 400, seed: 21 },
  );
  assert.ok(ahead > 1000, `only ${ahead} steps were handed in ahead`);
  assert.ok(preempted > 50, `only ${preempted} preemptions`);
  assert.ok(restored > 20, `only ${restored} tokens came back from the host`);
});

const PROMPT = [1, 2, 3];

test('decoding: every step is handed in before the one before is over, and no logits move', async () => {
  const { engine, runner } = rig();
  const outcomes = [4, 5, 6].map((last) => generate(engine, [...PROMPT, last], { maxTokens: 30 }));
  const sampled = generate(engine, [...PROMPT, 7], { maxTokens: 30, temperature: 1, seed: 1 });
  await runAll(engine);
  assert.deepEqual(
    outcomes.map(({ tokens }) => tokens[0]),
    [4, 5, 6].map((last) => greedyOracle([...PROMPT, last], 30, 16)),
  );
  assert.equal(sampled.tokens[0].length, 30);
  const [first, ...rest] = runner.handIns;
  assert.equal(first.underWay, 0);
  // The shared beginning takes two steps: those after the first one wait for it.
  for (const step of rest) assert.equal(step.underWay, 1);
  for (const step of rest.slice(2)) {
    assert.equal(step.rows, step.requests);
    assert.equal(step.pending, step.requests, 'tokens come from the device');
  }
  assert.equal(runner.handIns.at(-1)?.draws, 1);
  assert.equal(runner.logitsRead.size, 0);
  const rows = runner.handIns.reduce((sum, step) => sum + step.rows, 0);
  assert.equal(rows, 3 + 4 + 4 * 29, 'nothing was computed in vain');
  const { idleMs, hostMs, ttftMs, tpotMs } = engine.stats.times();
  assert.deepEqual([idleMs.max, idleMs.count], [0, runner.handIns.length - 1]);
  assert.equal(hostMs.count, runner.handIns.length - 1);
  assert.deepEqual([ttftMs.count, tpotMs.count], [4, 4]);
  checkEmpty(engine);
});

test('a long prompt leaves no gap between its chunks', async () => {
  const { engine, runner } = rig({ pages: 200, maxRows: 16 });
  const outcome = generate(engine, Array(400).fill(1), { maxTokens: 1 });
  await runAll(engine);
  assert.ok(outcome.done);
  assert.equal(runner.handIns.length, 25);
  for (const step of runner.handIns.slice(1)) assert.equal(step.underWay, 1);
});

test('a request is in the next step that is built after its arrival', async () => {
  const { engine, runner } = rig();
  generate(engine, [1], { maxTokens: 40 });
  for (let step = 0; step < 3; step++) await engine.step();
  const before = runner.handIns.length;
  generate(engine, [2, 3], { maxTokens: 4 });
  await engine.step();
  const step = runner.handIns[before];
  assert.deepEqual([step.rows, step.requests, step.underWay], [3, 2, 1]);
  await runAll(engine);
  checkEmpty(engine);
});

test('what ends by length is not in the step after; what ends by a token leaves no trace of it', async () => {
  const { engine, runner } = rig();
  const tokens = greedyOracle(PROMPT, 30, 16);
  const at = tokens.findIndex((token, index) => index > 4 && tokens.indexOf(token) === index);
  const stopped = generate(engine, PROMPT, { maxTokens: 30 }, { eosIds: new Set([tokens[at]]) });
  await runAll(engine);
  assert.deepEqual([stopped.tokens[0], stopped.reasons[0]], [tokens.slice(0, at), 'stop']);
  // The token that ended it was computed for nothing, and so was what follows it.
  assert.equal(runner.handIns.length, 1 + at + 1);
  assert.equal(engine.tree.match([...PROMPT, ...tokens]).length, 3 + at);
  assert.equal(treeStats(engine.tree, 1).tokens, 3 + at);
  const again = generate(engine, [...PROMPT, ...tokens.slice(0, at + 1)], { maxTokens: 5 });
  await runAll(engine);
  assert.deepEqual(again.cached, [3 + at]);
  assert.deepEqual(again.tokens[0], greedyOracle([...PROMPT, ...tokens.slice(0, at + 1)], 5, 16));
  checkEmpty(engine);
});

test('equal samples run ahead in nodes of their own, which are one in the end', async () => {
  const { engine } = rig();
  const outcome = generate(engine, PROMPT, { maxTokens: 20, n: 4 });
  await runAll(engine);
  for (const tokens of outcome.tokens) assert.deepEqual(tokens, greedyOracle(PROMPT, 20, 16));
  assert.equal(treeStats(engine.tree, 1).tokens, 3 + 19);
  checkEmpty(engine);
});

test('owners who look at logits get them, and those beside them the same tokens as alone', async () => {
  const kinds: SamplingOptions[] = [
    { logprobs: 3 },
    { logprobs: 1, logitBias: { 3: 2 } },
    { logprobs: 1, presencePenalty: 1 },
    { logprobs: 1, repetitionPenalty: 1.3 },
    { promptLogprobs: 2 },
    { n: 2, temperature: 1, seed: 2 },
  ];
  for (const kind of kinds) {
    const options = { maxTokens: 12, ...kind };
    const single = new Engine(new FakeRunner());
    const expected = generate(single, PROMPT, options);
    await runAll(single);
    const { engine, runner } = rig();
    const plain = generate(engine, [9, 9], { maxTokens: 30 });
    const outcome = generate(engine, PROMPT, options);
    await runAll(engine);
    assert.deepEqual(outcome.tokens, expected.tokens);
    assert.deepEqual(outcome.logprobs, expected.logprobs);
    assert.deepEqual(outcome.prompt, expected.prompt);
    assert.deepEqual(plain.tokens[0], greedyOracle([9, 9], 30, 16));
    assert.ok(runner.logitsRead.size > 0);
    assert.ok(runner.handIns.at(-1)!.underWay === 1, 'ahead again once nobody looks');
    checkEmpty(engine);
  }
});

test('branches see states between steps, beside requests that run ahead', async () => {
  const { engine } = rig();
  const beside = generate(engine, [1, 2], { maxTokens: 60, temperature: 1, seed: 3 });
  const root = Branch.create(engine, Int32Array.from(PROMPT), { contextLength: 1000 });
  const wait = async (branch: Branch) => {
    let row: Awaited<ReturnType<Branch['row']>> | undefined;
    branch.row().then((found) => {
      row = found;
    });
    for (let step = 0; row === undefined; step++) {
      assert.ok(step < 20 && (await engine.step()));
    }
    return row;
  };
  const tokens: number[] = [];
  let branch = root;
  for (let step = 0; step < 8; step++) {
    const { argmax } = await wait(branch);
    tokens.push(argmax);
    const next = branch.fork();
    next.append([argmax]);
    branch.end();
    branch = next;
  }
  branch.end();
  assert.deepEqual(tokens, greedyOracle(PROMPT, 8, 16));
  await runAll(engine);
  assert.ok(beside.done);
  checkEmpty(engine);
});

test('a failing step ends everything under way once, whichever it is and however it fails', async () => {
  for (let failAt = 0; failAt < 8; failAt++) {
    for (const failAtOnce of [false, true]) {
      const { engine, runner } = rig({}, { failAt, failAtOnce });
      const errors: string[] = [];
      const onWork = [1, 2].map((first) => generate(engine, [first, 1], { maxTokens: 20, n: 2 }));
      const branch = Branch.create(engine, Int32Array.of(4, 4), { contextLength: 100 });
      branch.row().catch((error: Error) => errors.push(error.message));
      await assert.rejects(runAll(engine), /the device is gone/);
      for (const { error, done } of onWork)
        assert.deepEqual([error?.code, done], ['device', false]);
      await assert.rejects(branch.row(), /the device is gone/);
      assert.deepEqual([...engine.tree.nodes()], [], 'what was to be computed is not trusted');
      const late = generate(engine, [5], { maxTokens: 2 });
      await assert.rejects(runAll(engine), /the device is gone/);
      assert.equal(late.error?.code, 'device');
      checkEmpty(engine);
      // It throws if a step were still under way.
      await runner.dispose();
    }
  }
});

test('ended in mid-flight: nothing is delivered any more, and the steps are waited for', async () => {
  const { engine, runner } = rig({}, { turns: () => 3 });
  const outcome = generate(engine, PROMPT, { maxTokens: 50, n: 2 });
  for (let step = 0; step < 4; step++) await engine.step();
  const step = engine.step();
  outcome.generation.abort();
  const { length } = outcome.tokens[0];
  await step;
  while (await engine.step());
  assert.equal(outcome.tokens[0].length, length);
  assert.equal(outcome.error?.code, 'aborted');
  await runner.dispose();
  checkEmpty(engine);
});

test('a seed gives the same tokens on both kinds of runner, and after preemption', async () => {
  const options = { temperature: 1, topP: 0.9, seed: 5, n: 3, maxTokens: 20, logprobs: 0 };
  const single = new Engine(new FakeRunner());
  const expected = generate(single, PROMPT, options);
  await runAll(single);
  const { engine } = rig({ pages: 14 });
  const others = [4, 5, 6].map((first) => generate(engine, [first, 2, 3], { maxTokens: 20 }));
  const outcome = generate(engine, PROMPT, options);
  await runAll(engine);
  assert.deepEqual(outcome.tokens, expected.tokens);
  for (const [index, logprobs] of outcome.logprobs.entries()) {
    for (const [at, logprob] of logprobs.entries()) {
      assert.ok(Math.abs(logprob - expected.logprobs[index][at]) < 1e-5);
    }
  }
  assert.ok(engine.stats.totals().preemptions > 0);
  assert.ok(others.every(({ done }) => done));
  checkEmpty(engine);
});
