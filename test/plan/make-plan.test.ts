/**
 * Properties of plans over random forests: exact cover, consistent merges, bounded makespan.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { defaultProfile } from '../../src/plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS, makePlan } from '../../src/plan/make-plan.ts';
import type { CostProfile, PlanOptions, PlanSpec } from '../../src/plan/plan.ts';
import { executePlan } from '../../src/plan/reference-executor.ts';
import { checkPlan, directAttention, randomInput } from '../helpers/plan-checks.ts';
import { randomForest } from '../helpers/random-forest.ts';

const OPTIONS: Record<string, PlanOptions> = {
  all: DEFAULT_PLAN_OPTIONS,
  flat: { ...DEFAULT_PLAN_OPTIONS, flat: true },
  'no packing': { ...DEFAULT_PLAN_OPTIONS, packing: false },
  'no division': { ...DEFAULT_PLAN_OPTIONS, division: false },
  'no scheduling': { ...DEFAULT_PLAN_OPTIONS, scheduling: false },
};

/** Shared tokens cost much and fixed parts little, so that small trees are cut often. */
const CUT_OFTEN: CostProfile = {
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
  partialUs: 0.02,
};

const shapes = fc.record({
  seed: fc.integer({ min: 0, max: 2 ** 31 }),
  roots: fc.integer({ min: 1, max: 3 }),
  depth: fc.integer({ min: 0, max: 4 }),
  children: fc.integer({ min: 1, max: 4 }),
  tokens: fc.constantFrom(1, 5, 40, 120),
  pageSize: fc.constantFrom(1, 4, 16, 64),
  empty: fc.constantFrom(0, 0.2),
  chunk: fc.constantFrom(1, 1, 9, 40),
});
const specs = fc.record({
  kvHeads: fc.constantFrom(1, 2, 3, 8),
  groupSize: fc.constantFrom(1, 3, 4),
  workers: fc.constantFrom(1, 2, 5, 16, 132),
  taskRows: fc.constantFrom(1, 3, 8, 32),
  profile: fc.constantFrom(CUT_OFTEN, defaultProfile('cpu', 64), defaultProfile('cuda', 128)),
});

for (const [name, options] of Object.entries(OPTIONS)) {
  test(`every visible pair of row and token is covered once: ${name}`, () => {
    fc.assert(
      fc.property(shapes, specs, (shape, partial) => {
        const { forest } = randomForest(shape.seed, shape);
        const spec: PlanSpec = { ...partial, headDim: 64, pageSize: shape.pageSize, options };
        checkPlan(makePlan(forest, spec), forest);
      }),
      { numRuns: 150, seed: 1 },
    );
  });

  test(`executing the plan equals direct attention: ${name}`, () => {
    fc.assert(
      fc.property(shapes, specs, (shape, partial) => {
        const { forest } = randomForest(shape.seed, { ...shape, depth: Math.min(3, shape.depth) });
        const kvHeads = Math.min(2, partial.kvHeads);
        const groupSize = Math.min(2, partial.groupSize);
        const spec = { ...partial, kvHeads, groupSize, pageSize: shape.pageSize, headDim: 4 };
        const input = randomInput(forest, kvHeads, groupSize, 4, shape.seed);
        const got = executePlan(makePlan(forest, { ...spec, options }), forest, input);
        const want = directAttention(forest, kvHeads, input);
        for (let i = 0; i < want.length; i++) assert.ok(Math.abs(got[i] - want[i]) < 1e-9);
      }),
      { numRuns: 40, seed: 2 },
    );
  });
}
