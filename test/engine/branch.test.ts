/**
 * Branches and beam search on the engine itself, against plain arrays.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FlashForgeError } from '../../src/base/errors.ts';
import { beamSearch } from '../../src/engine/beam-search.ts';
import { Branch } from '../../src/engine/branch.ts';
import { Engine } from '../../src/engine/engine.ts';
import { PipelinedRunner } from '../helpers/pipelined-runner.ts';
import { FakeRunner, fakeLogits } from './fake-runner.ts';

const init = { contextLength: 200 };
const NO_EOS = new Set<number>();

/** Steps the engine for as long as `work` needs it. */
async function drive<T>(engine: Engine, work: Promise<T>): Promise<T> {
  let open = true;
  const done = work.finally(() => {
    open = false;
  });
  done.catch(() => {});
  for (let idle = 0; open && idle < 100; idle++) {
    while (await engine.step()) idle = 0;
    await new Promise((resolve) => setImmediate(resolve));
  }
  return done;
}

const create = (engine: Engine, tokens: number[]): Branch =>
  Branch.create(engine, Int32Array.from(tokens), init);

test('random searches: every branch has the logits of its own tokens', async () => {
  const move = fc.record({
    pick: fc.nat(1000),
    kind: fc.constantFrom('grow' as const, 'fork' as const, 'prune' as const),
    at: fc.nat(1000),
    tokens: fc.array(fc.nat(2), { minLength: 1, maxLength: 3 }),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(move, { maxLength: 30, size: 'max' }),
      fc.integer({ min: 1, max: 5 }),
      fc.boolean(),
      async (moves, pageSize, ahead) => {
        const runner = new FakeRunner({ pages: 300, pageSize, vocab: 4 });
        const engine = new Engine(ahead ? new PipelinedRunner(runner) : runner);
        const root = create(engine, [1, 2, 1]);
        await drive(engine, root.row());
        const alive = [{ branch: root, tokens: [1, 2, 1] }];
        for (const { pick, kind, at, tokens } of moves) {
          const chosen = alive[pick % alive.length];
          if (kind === 'grow') {
            chosen.branch.append(tokens);
            chosen.tokens.push(...tokens);
          } else if (kind === 'fork') {
            const length = 1 + (at % chosen.tokens.length);
            alive.push({
              branch: chosen.branch.fork(length),
              tokens: chosen.tokens.slice(0, length),
            });
          } else if (alive.length > 1) {
            chosen.branch.end();
            alive.splice(alive.indexOf(chosen), 1);
          }
          if (at % 3 === 0) await engine.step();
        }
        for (const { branch, tokens } of alive) {
          const row = await drive(engine, branch.row());
          assert.deepEqual([...branch.tokens()], tokens);
          assert.deepEqual(row.logits, fakeLogits(tokens, 4));
        }
        for (const { branch } of alive) branch.end();
        assert.equal(engine.tree.availablePages, 300);
      },
    ),
    { numRuns: 200, seed: 4 },
  );
});

test('branches that grow together are computed in one step', async () => {
  const runner = new FakeRunner();
  const engine = new Engine(runner);
  const root = create(engine, [1, 2, 3]);
  await drive(engine, root.row());
  const branches = Array.from({ length: 5 }, () => root.fork());
  for (const [token, branch] of branches.entries()) branch.append([token]);
  await engine.step();
  assert.equal(runner.steps.at(-1)?.rows, 5);
});

test('a branch that does not fit stays as it is; pruning another makes room', async () => {
  const engine = new Engine(new FakeRunner({ pages: 4, pageSize: 4 }));
  const root = create(engine, [1, 2, 3, 4]);
  await drive(engine, root.row());
  const [a, b] = [root.fork(), root.fork()];
  a.append([5, 5, 5, 5, 5, 5, 5, 5]);
  assert.throws(
    () => b.append([6, 6, 6, 6, 6]),
    (error) => error instanceof FlashForgeError && error.code === 'out-of-pages',
  );
  assert.equal(b.length, 4);
  a.end();
  b.append([6, 6, 6, 6, 6]);
  const row = await drive(engine, b.row());
  assert.deepEqual(row.logits, fakeLogits([1, 2, 3, 4, 6, 6, 6, 6, 6], 16));
});

test('a disposed branch says so, and those that wait for it are told', async () => {
  const engine = new Engine(new FakeRunner());
  const branch = create(engine, [1, 2]);
  const waiting = assert.rejects(branch.row(), /disposed/);
  branch.end();
  await waiting;
  assert.throws(() => branch.fork(), /disposed/);
  assert.throws(() => branch.append([1]), /disposed/);
  await assert.rejects(branch.row(), /disposed/);
});

/** All continuations by `length` tokens with their log-probabilities, best first. */
function exhaustive(prompt: number[], length: number, vocab: number) {
  let paths = [{ tokens: [] as number[], logprob: 0 }];
  for (let step = 0; step < length; step++) {
    paths = paths.flatMap(({ tokens, logprob }) => {
      const logits = fakeLogits([...prompt, ...tokens], vocab);
      const total = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
      return [...logits].map((logit, token) => ({
        tokens: [...tokens, token],
        logprob: logprob + logit - total,
      }));
    });
  }
  return paths.sort((a, b) => b.logprob - a.logprob);
}

test('a beam as wide as the tree finds the best of all paths', async () => {
  const engine = new Engine(new FakeRunner({ vocab: 4 }));
  const origin = create(engine, [3, 1]);
  const options = { beams: 64, maxTokens: 4, lengthPenalty: 0 };
  const found = await drive(engine, beamSearch(origin, options, NO_EOS, 100));
  const all = exhaustive([3, 1], 4, 4);
  assert.equal(found.length, 64);
  assert.deepEqual(found[0].tokens, all[0].tokens);
  for (const [rank, { logprob, tokens }] of found.entries()) {
    const exact = all.find((path) => path.tokens.join() === tokens.join());
    assert.ok(Math.abs((exact?.logprob ?? 0) - logprob) < 1e-4);
    if (rank > 0) assert.ok(found[rank - 1].score >= found[rank].score);
  }
  origin.end();
  assert.equal(engine.tree.availablePages, engine.tree.pool.pages);
});

test('beams end at end-of-sequence tokens, in a cache that is just large enough', async () => {
  const runner = new FakeRunner({ vocab: 6, pages: 40, pageSize: 4 });
  const engine = new Engine(runner);
  const origin = create(engine, [3, 1]);
  const found = await drive(
    engine,
    beamSearch(origin, { beams: 4, maxTokens: 30 }, new Set([5]), 198),
  );
  assert.ok(found.every(({ tokens }) => !tokens.includes(5)));
  assert.ok(found.some(({ finishReason }) => finishReason === 'stop'));
  origin.end();
  assert.equal(engine.tree.availablePages, 40);
});

test('an aborted beam search frees its beams', async () => {
  const engine = new Engine(new FakeRunner());
  const origin = create(engine, [1]);
  const controller = new AbortController();
  const search = beamSearch(origin, { maxTokens: 100 }, NO_EOS, 100, controller.signal);
  setImmediate(() => controller.abort());
  await assert.rejects(drive(engine, search), /aborted/);
  origin.end();
  assert.equal(engine.tree.availablePages, engine.tree.pool.pages);
});
