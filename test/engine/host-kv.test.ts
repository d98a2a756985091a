/**
 * KV on the host behind the engine: small caches with host memory answer as large ones do, and
 * what comes back is not computed again.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Runner } from '../../src/backend/backend.ts';
import { Branch } from '../../src/engine/branch.ts';
import { Engine } from '../../src/engine/engine.ts';
import { loadRunner } from '../../src/model/load-runner.ts';
import { memoryCheckpoint } from '../helpers/memory-checkpoint.ts';
import { PipelinedRunner } from '../helpers/pipelined-runner.ts';
import { TINY_CONFIGS } from '../helpers/tiny-configs.ts';
import { type FakeOptions, FakeRunner, greedyOracle } from './fake-runner.ts';
import { checkEmpty, generate, type Outcome, runAll } from './requests.ts';

const greedy = (maxTokens: number) => ({ temperature: 0, maxTokens }) as const;

/** Prompts of few pieces, so that evicted ones are asked for again. */
const PIECES = [
  [1, 2, 3, 4, 5],
  [6, 7, 8],
  [9, 10, 11, 12, 13, 14, 15],
];

const wave = fc.array(
  fc.record({
    pieces: fc.array(fc.constantFrom(...PIECES), { minLength: 1, maxLength: 3, size: 'max' }),
    maxTokens: fc.integer({ min: 1, max: 6 }),
    salt: fc.constantFrom('', '', 'one'),
    publicTokens: fc.constantFrom(0, 5, 8),
  }),
  { minLength: 1, maxLength: 4, size: 'max' },
);

test('random waves of requests on few pages: greedy decoding as without any cache', async () => {
  let restored = 0;
  const property = fc.asyncProperty(
    fc.array(wave, { minLength: 4, maxLength: 10, size: 'max' }),
    fc.record({
      pageSize: fc.integer({ min: 1, max: 5 }),
      pages: fc.integer({ min: 30, max: 60 }),
      hostPages: fc.integer({ min: 1, max: 40 }),
      maxRows: fc.constantFrom(8, 64),
      turns: fc.nat(2),
    }),
    fc.boolean(),
    async (waves, { pages, ...options }, ahead) => {
      const { pageSize } = options;
      const fake: FakeOptions = { ...options, pages: Math.ceil(pages / pageSize) };
      const inner = new FakeRunner(fake);
      const engine = new Engine(ahead ? new PipelinedRunner(inner) : inner);
      for (const requests of waves) {
        const answers = requests.map(({ pieces, maxTokens, ...namespace }) => {
          const prompt = pieces.flat();
          const outcome = generate(engine, prompt, greedy(maxTokens), { namespace });
          return { outcome, expected: greedyOracle(prompt, maxTokens, inner.vocab) };
        });
        await runAll(engine);
        for (const { outcome, expected } of answers) {
          assert.equal(outcome.error, null);
          assert.deepEqual(outcome.tokens[0], expected);
        }
        const stats = engine.host!.stats(1);
        assert.ok(stats.pagesUsed <= options.hostPages);
      }
      restored += engine.host!.stats(1).restoredTokens;
      checkEmpty(engine);
    },
  );
  await fc.assert(property, { numRuns: 120, seed: 6 });
  assert.ok(restored > 1000, `${restored} tokens came back`);
});

/** Rows that the runner computed since the last call. */
function rowsOf(runner: FakeRunner): number {
  const rows = runner.steps.reduce((sum, step) => sum + step.rows, 0);
  runner.steps.length = 0;
  return rows;
}

const range = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, index) => (from + index) % 16);

async function ask(engine: Engine, prompt: number[], salt = ''): Promise<Outcome> {
  const namespace = { salt, publicTokens: 0 };
  const outcome = generate(engine, prompt, greedy(2), { namespace });
  await runAll(engine);
  return outcome;
}

test('a prompt that was evicted is not computed again, and counts as cached', async () => {
  const runner = new FakeRunner({ pages: 12, pageSize: 4, hostPages: 30 });
  const engine = new Engine(runner);
  const [first, second] = [range(0, 40), range(3, 40)];
  await ask(engine, first);
  await ask(engine, second);
  rowsOf(runner);
  const again = await ask(engine, first);
  assert.deepEqual(again.tokens[0], greedyOracle(first, 2, 16));
  assert.deepEqual(again.cached, [40]);
  assert.equal(rowsOf(runner), 2, 'the last row for its logits, and one new token');
  const other = await ask(engine, second, 'somebody');
  assert.deepEqual(other.cached, [0], 'another salt finds nothing');
});

test('cleared caches have nothing on the host either', async () => {
  const runner = new FakeRunner({ pages: 12, pageSize: 4, hostPages: 30 });
  const engine = new Engine(runner);
  await ask(engine, range(0, 40));
  await ask(engine, range(3, 40));
  assert.ok(engine.host!.stats(1).pagesUsed > 0);
  engine.host!.evictAll();
  assert.equal(engine.host!.stats(1).pagesUsed, 0);
  assert.equal(engine.tree.pool.freePages, 12);
  assert.deepEqual((await ask(engine, range(0, 40))).cached, [0]);
});

test('what a preempted sequence lost comes back', async () => {
  const runner = new FakeRunner({ pages: 14, pageSize: 4, hostPages: 40 });
  const engine = new Engine(runner);
  const prompts = [range(0, 16), range(5, 16), range(9, 16)];
  const outcomes = prompts.map((prompt) => generate(engine, prompt, greedy(20)));
  await runAll(engine);
  for (const [index, prompt] of prompts.entries()) {
    assert.deepEqual(outcomes[index].tokens[0], greedyOracle(prompt, 20, 16));
  }
  assert.ok(engine.stats.totals().preemptions > 0);
  assert.ok(engine.host!.stats(1).restoredTokens > 0);
  checkEmpty(engine);
});

test('what a branch appends comes back too', async () => {
  const runner = new FakeRunner({ pages: 14, pageSize: 4, hostPages: 40 });
  const engine = new Engine(runner);
  await ask(engine, range(0, 40));
  await ask(engine, range(3, 48));
  const branch = Branch.create(engine, Int32Array.from(range(0, 6)), { contextLength: 1000 });
  await runAll(engine);
  assert.ok(engine.tree.match(range(0, 40)).computed < 16, 'the rest was evicted');
  rowsOf(runner);
  branch.append(range(6, 34));
  await runAll(engine);
  assert.equal(rowsOf(runner), 1, 'the last row for its logits');
  branch.end();
  checkEmpty(engine);
});

test('the reference model answers alike with few pages and host memory', async () => {
  const config = TINY_CONFIGS['two KV heads'];
  const load = (options: object): Promise<Runner> =>
    loadRunner(memoryCheckpoint(config, 'F32'), { device: 'reference', ...options });
  const prompts = [11, 60, 200].map((from) => range(from, 130).map((token) => token + from));
  const answersOf = async (runner: Runner): Promise<{ tokens: number[][]; engine: Engine }> => {
    const engine = new Engine(Object.assign(runner, { vocab: config.vocab }));
    const tokens: number[][] = [];
    for (const prompt of [...prompts, ...prompts])
      tokens.push((await ask(engine, prompt)).tokens[0]);
    await runner.dispose();
    return { tokens, engine };
  };
  const large = await answersOf(await load({ kvPages: 32 }));
  const small = await answersOf(await load({ kvPages: 3, hostKvBytes: 2 ** 24 }));
  assert.deepEqual(small.tokens, large.tokens);
  assert.equal(large.engine.host, null);
  assert.equal(small.engine.host!.stats(1).restoredTokens, 3 * 128);
});
