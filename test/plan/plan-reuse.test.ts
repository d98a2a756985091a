/**
 * Reuse of plans: they hold while leaves grow, and not otherwise.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Forest } from '../../src/kvcache/forest.ts';
import { defaultProfile } from '../../src/plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS, makePlan } from '../../src/plan/make-plan.ts';
import type { PlanSpec } from '../../src/plan/plan.ts';
import { planStillGood } from '../../src/plan/plan-reuse.ts';
import { executePlan } from '../../src/plan/reference-executor.ts';
import { checkPlan, directAttention, randomInput } from '../helpers/plan-checks.ts';
import { randomForest } from '../helpers/random-forest.ts';

const spec: PlanSpec = {
  kvHeads: 2,
  groupSize: 2,
  headDim: 4,
  pageSize: 16,
  workers: 6,
  taskRows: 8,
  profile: defaultProfile('cpu', 64),
  options: DEFAULT_PLAN_OPTIONS,
};
const shape = { roots: 2, depth: 3, children: 3, tokens: 60, pageSize: 16, empty: 0.1 };

const copyOf = (forest: Forest): Forest => ({
  ...forest,
  length: forest.length.slice(),
  rowPosition: forest.rowPosition.slice(),
  rowEnd: forest.rowEnd.slice(),
});

/** Nodes without children that have rows and tokens. */
const leavesOf = (forest: Forest): number[] =>
  Array.from({ length: forest.nodes }, (_, node) => node).filter(
    (node) =>
      !forest.parent.subarray(0, forest.nodes).includes(node) &&
      forest.rowEnd[node] > forest.rowBegin[node] &&
      forest.length[node] > 0,
  );

function grow(forest: Forest, leaves: number[], tokens: number): Forest {
  const grown = copyOf(forest);
  for (const leaf of leaves) {
    grown.length[leaf] += tokens;
    for (let row = forest.rowBegin[leaf]; row < forest.rowEnd[leaf]; row++) {
      grown.rowPosition[row] += tokens;
    }
  }
  return grown;
}

test('the plan of before covers a forest whose leaves have grown', () => {
  for (let seed = 0; seed < 40; seed++) {
    const { forest } = randomForest(seed, { ...shape, chunk: 1 });
    const plan = makePlan(forest, spec);
    const grown = grow(forest, leavesOf(forest), 1 + (seed % 5));
    assert.ok(planStillGood(plan, forest));
    assert.ok(planStillGood(plan, grown, 10));
    checkPlan(plan, grown);
    const input = randomInput(grown, 2, 2, 4, seed);
    const [got, want] = [executePlan(plan, grown, input), directAttention(grown, 2, input)];
    for (let i = 0; i < want.length; i++) assert.ok(Math.abs(got[i] - want[i]) < 1e-9);
  }
});

test('any other change needs a new plan', () => {
  const { forest } = randomForest(3, { ...shape, chunk: 1 });
  const plan = makePlan(forest, spec);
  const leaf = leavesOf(forest)[0];
  const inner = Math.max(0, forest.parent[leaf]);
  const change = (edit: (copy: Forest) => void): Forest => {
    const copy = copyOf(forest);
    edit(copy);
    return copy;
  };
  const cases: Record<string, Forest> = {
    shorter: grow(forest, [leaf], -1),
    'inner node grew': change((copy) => {
      copy.length[inner]++;
    }),
    'length without position': change((copy) => {
      copy.length[leaf]++;
    }),
    'position without length': change((copy) => {
      copy.rowPosition[0]++;
    }),
    'rows moved': change((copy) => {
      copy.rowEnd[leaf]--;
    }),
    'fewer rows': { ...forest, rows: forest.rows - 1 },
    'fewer nodes': { ...forest, nodes: forest.nodes - 1 },
  };
  for (const [name, other] of Object.entries(cases)) {
    assert.equal(planStillGood(plan, other), false, name);
  }
});

test('prefill chunks match themselves only', () => {
  const { forest } = randomForest(8, { ...shape, chunk: 30 });
  assert.ok(forest.rows > forest.requests);
  const plan = makePlan(forest, spec);
  assert.ok(planStillGood(plan, forest));
  assert.equal(planStillGood(plan, grow(forest, leavesOf(forest).slice(0, 1), 1)), false);
});

test('growth of one leaf alone spoils the balance in the end', () => {
  const { forest } = randomForest(4, { ...shape, tokens: 4000, chunk: 1 });
  const plan = makePlan(forest, spec);
  const [leaf] = leavesOf(forest);
  assert.ok(planStillGood(plan, grow(forest, [leaf], 1)));
  assert.equal(planStillGood(plan, grow(forest, [leaf], 200_000)), false);
});
