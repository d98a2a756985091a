/**
 * Candidates that lose are given up early, those that win are not: plans whose best candidate is
 * easily mistaken for a worse one.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Forest } from '../../src/kvcache/forest.ts';
import { CostModel } from '../../src/plan/cost-model.ts';
import { DEFAULT_PLAN_OPTIONS, makePlan } from '../../src/plan/make-plan.ts';
import type { CostProfile, PlanSpec } from '../../src/plan/plan.ts';

/** Eight rows against 64 tokens take 68 us. */
const LINEAR: CostProfile = {
  device: 'test',
  kernel: 'test',
  queries: [1, 64],
  tokens: [1, 1000],
  us: [
    [1, 1000],
    [1.5, 1500],
  ],
  itemUs: 0.5,
  segmentUs: 0.05,
  partialUs: 3,
};
/** Each token beyond the hundredth of an item takes four times as long as those before it. */
const CONVEX: CostProfile = {
  ...LINEAR,
  tokens: [100, 1000],
  us: [
    [50, 2000],
    [75, 3000],
  ],
  partialUs: 0.2,
};

const spec = (overrides: Partial<PlanSpec>): PlanSpec => ({
  kvHeads: 1,
  groupSize: 1,
  headDim: 64,
  pageSize: 16,
  workers: 8,
  taskRows: 32,
  profile: LINEAR,
  options: DEFAULT_PLAN_OPTIONS,
  ...overrides,
});

/** Prompts that share nothing: each of so many tokens, with so many rows, the first at `from`. */
function promptsOf(prompts: number, tokens: number, rows: number, from: number): Forest {
  const each = (value: (prompt: number) => number) =>
    Int32Array.from({ length: prompts }, (_, i) => value(i));
  const chunk = from < tokens - 1;
  const requests = chunk ? prompts : prompts * rows;
  return {
    rows: prompts * rows,
    rowPosition: Int32Array.from({ length: prompts * rows }, (_, row) =>
      chunk ? from + (row % rows) : from,
    ),
    requests,
    requestRow: Int32Array.from({ length: requests + 1 }, (_, i) => (chunk ? i * rows : i)),
    nodes: prompts,
    parent: each(() => -1),
    start: each(() => 0),
    length: each(() => tokens),
    rowBegin: each((prompt) => prompt * rows),
    rowEnd: each((prompt) => (prompt + 1) * rows),
    firstSlot: each(() => 0),
    pageBegin: new Int32Array(prompts + 1),
    pages: new Int32Array(0),
  };
}

test('prompts that share a tile are parted where no row needs a merge', () => {
  // Two parts of the 24 rows' list end inside of a prompt, three parts between prompts.
  const profile = { ...LINEAR, mergeUs: 5 };
  const plan = makePlan(promptsOf(6, 64, 8, 63), spec({ profile }));
  assert.equal(plan.merges, 0);
  assert.ok(plan.makespanUs < 69);
});

test('a stream is tried although equal parts left more partials', () => {
  const forest = promptsOf(2, 64, 8, 63);
  const planOf = (division: boolean) =>
    makePlan(
      forest,
      spec({ kvHeads: 2, workers: 3, taskRows: 8, options: { ...DEFAULT_PLAN_OPTIONS, division } }),
    );
  assert.ok(planOf(true).makespanUs < planOf(false).makespanUs * 0.94);
});

test('a list is cut where its parts take less than the whole', () => {
  const plan = makePlan(
    promptsOf(1, 192, 128, 64),
    spec({ groupSize: 4, workers: 3, taskRows: 16, profile: CONVEX }),
  );
  assert.ok(plan.makespanUs < 320);
});

test('no cuts make tokens cheaper than cutUs says', () => {
  const us = fc.array(fc.double({ min: 0.1, max: 100, noNaN: true }), {
    minLength: 6,
    maxLength: 6,
  });
  const parts = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 5 });
  fc.assert(
    fc.property(us, parts, fc.integer({ min: 1, max: 8 }), (times, lengths, rows) => {
      const grid = [times.slice(0, 3), times.slice(3)];
      const profile = { ...LINEAR, queries: [1, 8], tokens: [16, 64, 256], us: grid };
      const cost = new CostModel(profile, 1, 8);
      const least = cost.cutUs(
        rows,
        lengths.reduce((sum, tokens) => sum + tokens, 0),
      );
      const cut = lengths.reduce((sum, tokens) => sum + cost.us(rows, tokens), 0);
      assert.ok(cut >= least * 0.999999);
    }),
    { numRuns: 3000, seed: 3 },
  );
});
