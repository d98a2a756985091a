/**
 * Properties of plans over random forests: exact cover, consistent merges, bounded makespan.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CostModel } from '../../src/plan/cost-model.ts';
import { defaultProfile } from '../../src/plan/default-profile.ts';
import { LeastWork } from '../../src/plan/lower-bound.ts';
import { DEFAULT_PLAN_OPTIONS, makePlan, Planner } from '../../src/plan/make-plan.ts';
import {
  type CostProfile,
  OPEN_END,
  type PlanOptions,
  type PlanSpec,
} from '../../src/plan/plan.ts';
import { executePlan } from '../../src/plan/reference-executor.ts';
import { RowTiler } from '../../src/plan/row-tiling.ts';
import { taskCosts } from '../../src/plan/task-cost.ts';
import { parseWorkloads, workloadForest } from '../../src/plan/workload.ts';
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
  groupRows: fc.constantFrom(1, 2, 4, 16, 32),
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

test('the makespan is what the tasks of the busiest worker cost by the model', () => {
  fc.assert(
    fc.property(
      shapes,
      specs,
      fc.constantFrom(...Object.values(OPTIONS)),
      (shape, part, options) => {
        const { forest } = randomForest(shape.seed, { ...shape, tokens: shape.tokens * 20 });
        const plan = makePlan(forest, { ...part, headDim: 64, pageSize: shape.pageSize, options });
        const cost = new CostModel(part.profile, part.groupSize, part.taskRows);
        const costs = taskCosts(plan, forest, cost);
        let most = 0;
        for (let worker = 0; worker < plan.workers; worker++) {
          const items = plan.schedule.subarray(
            plan.workerItem[worker],
            plan.workerItem[worker + 1],
          );
          const us = items.reduce((sum, item) => sum + costs[Math.floor(item / plan.kvHeads)], 0);
          if (us > most) most = us;
        }
        assert.ok(Math.abs(most - plan.makespanUs) <= 1e-6 * (1 + most));
      },
    ),
    { numRuns: 200, seed: 5 },
  );
});

test('the makespan is at most twice the lower bound and two grains', () => {
  fc.assert(
    fc.property(shapes, specs, (shape, partial) => {
      const { forest } = randomForest(shape.seed, { ...shape, tokens: shape.tokens * 20 });
      if (forest.rows === 0) return;
      const spec = { ...partial, headDim: 64, pageSize: shape.pageSize };
      const plan = makePlan(forest, { ...spec, options: DEFAULT_PLAN_OPTIONS });
      const { profile, taskRows, groupSize } = spec;
      // A grain is what cannot be divided: a page for a full tile, fixed parts, its partials.
      const page = new CostModel(profile, groupSize, taskRows).us(taskRows, shape.pageSize);
      const fixed = profile.itemUs + 4 * profile.segmentUs + taskRows * profile.partialUs;
      assert.ok(plan.makespanUs <= 2 * plan.lowerBoundUs + 2 * (page + fixed));
      assert.ok(plan.makespanUs >= plan.lowerBoundUs * 0.999);
    }),
    { numRuns: 400, seed: 3 },
  );
});

test('no plan with tasks of fewer rows goes below the bound for them', () => {
  fc.assert(
    fc.property(shapes, specs, fc.constantFrom(1, 2, 3, 8), (shape, partial, fewer) => {
      const { forest } = randomForest(shape.seed, { ...shape, tokens: shape.tokens * 20 });
      const { profile, groupSize, taskRows, kvHeads, workers } = partial;
      const rows = Math.min(fewer, taskRows);
      const cost = new CostModel(profile, groupSize, taskRows);
      const tiler = new RowTiler(cost);
      tiler.prepare(forest);
      const least = new LeastWork(cost).ofTree(forest, tiler.allSeen, rows).us;
      const spec = { ...partial, taskRows: rows, headDim: 64, pageSize: shape.pageSize };
      const plan = makePlan(forest, { ...spec, options: DEFAULT_PLAN_OPTIONS });
      assert.ok(plan.makespanUs >= ((least * kvHeads) / workers) * 0.999);
    }),
    { numRuns: 300, seed: 7 },
  );
});

test('division makes no plan longer: what is given up early would not have won', () => {
  fc.assert(
    fc.property(shapes, specs, (shape, { groupRows: _, ...partial }) => {
      const { forest } = randomForest(shape.seed, { ...shape, tokens: shape.tokens * 20 });
      const spec = { ...partial, headDim: 64, pageSize: shape.pageSize };
      const [divided, whole] = [OPTIONS.all, OPTIONS['no division']].map(
        (options) => makePlan(forest, { ...spec, options }).makespanUs,
      );
      assert.ok(divided <= whole * 1.000001);
    }),
    { numRuns: 300, seed: 8 },
  );
});

const workload = (nodes: [number, number][], requests: number[], heads = [32, 8]) =>
  parseWorkloads(
    JSON.stringify([
      {
        name: 'test',
        nodes: nodes.map(([parent, tokens]) => ({ parent, tokens })),
        requests,
        q_heads: heads[0],
        kv_heads: heads[1],
        head_dim: 128,
      },
    ]),
  )[0];

const spec = (overrides: Partial<PlanSpec>): PlanSpec => ({
  kvHeads: 8,
  groupSize: 4,
  headDim: 128,
  pageSize: 16,
  workers: 132,
  taskRows: 16,
  profile: defaultProfile('cuda', 128),
  options: DEFAULT_PLAN_OPTIONS,
  ...overrides,
});

test('a long shared document keeps all workers busy and is cut at page borders', () => {
  const leaves = Array.from({ length: 16 }, (): [number, number] => [0, 2048]);
  const tree = workload(
    [[-1, 120_000], ...leaves],
    leaves.map((_, i) => i + 1),
  );
  const { forest } = workloadForest(tree, 16);
  const plan = makePlan(forest, spec({}));
  assert.ok(plan.makespanUs < 1.05 * plan.lowerBoundUs);
  for (let s = 0; s < plan.segments; s++) {
    assert.equal(plan.segmentBegin[s] % 16, 0);
    if (plan.segmentEnd[s] !== OPEN_END) assert.equal(plan.segmentEnd[s] % 16, 0);
  }
});

test('all row tiles of a shared document run its parts at the same time', () => {
  const leaves = Array.from({ length: 64 }, (): [number, number] => [0, 128]);
  const tree = workload(
    [[-1, 500_000], ...leaves],
    leaves.map((_, i) => i + 1),
  );
  const { forest } = workloadForest(tree, 16);
  const plan = makePlan(forest, spec({}));
  // The tiles that read the document from one token on stand at one place of their workers' lists.
  const places = new Map<number, Set<number>>();
  for (let worker = 0; worker < plan.workers; worker++) {
    for (let i = plan.workerItem[worker]; i < plan.workerItem[worker + 1]; i++) {
      const segment = plan.taskSegment[Math.floor(plan.schedule[i] / plan.kvHeads)];
      const key = plan.segmentBegin[segment] + plan.segmentNode[segment] * 1e6;
      if (!places.has(key)) places.set(key, new Set());
      places.get(key)?.add(i - plan.workerItem[worker]);
    }
  }
  const shared = [...places].filter(([key]) => key < 1e6);
  assert.ok(shared.length >= 2);
  for (const [, at] of shared) assert.ok(Math.max(...at) - Math.min(...at) <= 1);
});

test('tasks keep to one group of warps where the other would have little to do', () => {
  const plans = (root: number, leaf: number): number[] => {
    const leaves = Array.from({ length: 32 }, (): [number, number] => [0, leaf]);
    const tree = workload(
      [[-1, root], ...leaves],
      leaves.map((_, i) => i + 1),
    );
    const { forest } = workloadForest(tree, 16);
    return [undefined, 8].map((groupRows) => {
      const plan = makePlan(forest, spec(groupRows === undefined ? {} : { groupRows }));
      checkPlan(plan, forest);
      const rows = Array.from(plan.taskRowEnd, (end, task) => end - plan.taskRowBegin[task]);
      return Math.max(...rows);
    });
  };
  assert.deepEqual(plans(256, 2048), [16, 8]);
  // Almost all of the work is for all rows: two groups at a time read it half as often.
  assert.deepEqual(plans(20_000, 16), [16, 16]);
});

test('rows whose path lies in one task need no merge', () => {
  const leaves = Array.from({ length: 256 }, (): [number, number] => [0, 32]);
  const tree = workload(
    [[-1, 256], ...leaves],
    leaves.map((_, i) => i + 1),
  );
  const { forest } = workloadForest(tree, 16);
  assert.equal(makePlan(forest, spec({})).merges, 0);
  const apart = { ...DEFAULT_PLAN_OPTIONS, packing: false };
  assert.equal(makePlan(forest, spec({ options: apart })).merges, 256);
});

test('a trunk is read on its own where tiles would fit badly', () => {
  // Nine rows below each child: tiles of 16 rows either cut the children or waste the root.
  const nodes: [number, number][] = [[-1, 200_000]];
  const requests: number[] = [];
  for (let child = 0; child < 16; child++) {
    const index = nodes.push([0, 200_000]) - 1;
    for (let leaf = 0; leaf < 9; leaf++) requests.push(nodes.push([index, 16]) - 1);
  }
  const { forest } = workloadForest(workload(nodes, requests), 16);
  const plan = makePlan(forest, spec({ workers: 8 }));
  checkTotals(plan, 9 * 200_000 + 16 * 200_000);

  function checkTotals(made: typeof plan, most: number): void {
    let tokens = 0;
    for (let s = 0; s < made.segments; s++) {
      const open = made.segmentEnd[s] === OPEN_END;
      tokens += (open ? 16 : made.segmentEnd[s]) - made.segmentBegin[s];
    }
    assert.ok(tokens <= most * 1.02, `${tokens} tokens read`);
  }
});

test('a prefill chunk reads no token that its rows cannot see', () => {
  const chunk = randomForest(5, {
    roots: 1,
    depth: 0,
    children: 0,
    tokens: 4000,
    pageSize: 16,
    empty: 0,
    chunk: 4000,
  }).forest;
  const plan = makePlan(chunk, spec({ workers: 2 }));
  for (let s = 0; s < plan.segments; s++) {
    const last = chunk.rowPosition[plan.segmentRowEnd[s] - 1];
    const open = plan.segmentEnd[s] === OPEN_END;
    assert.ok((open ? chunk.length[0] : plan.segmentEnd[s]) <= last + 1);
  }
});

test('a chain hundreds of nodes deep, and thousands of roots', () => {
  const chain = Array.from({ length: 600 }, (_, i): [number, number] => [i - 1, 1 + (i % 5)]);
  const deep = workloadForest(workload(chain, [599, 300, 599, 7]), 16).forest;
  checkPlan(makePlan(deep, spec({ workers: 16 })), deep);
  const roots = Array.from({ length: 2000 }, (): [number, number] => [-1, 3]);
  const wide = workloadForest(
    workload(
      roots,
      roots.map((_, i) => i),
    ),
    16,
  ).forest;
  checkPlan(makePlan(wide, spec({})), wide);
});

test('a planner can be used again for larger and smaller forests', () => {
  const planner = new Planner(spec({ workers: 7 }));
  const shape = { roots: 2, children: 3, tokens: 50, pageSize: 16, empty: 0.1, chunk: 5 };
  for (const depth of [1, 5, 2, 0, 4]) {
    const { forest } = randomForest(depth, { ...shape, depth });
    checkPlan(planner.plan(forest), forest);
  }
});

test('a wrong plan is noticed by the reference executor', () => {
  const { forest } = randomForest(11, {
    roots: 1,
    depth: 2,
    children: 3,
    tokens: 40,
    pageSize: 16,
    empty: 0,
    chunk: 1,
  });
  const plan = makePlan(forest, spec({ kvHeads: 2, groupSize: 1, profile: CUT_OFTEN }));
  assert.ok(plan.merges > 0);
  const input = randomInput(forest, 2, 1, 4, 1);
  const schedule = plan.schedule.slice();
  schedule[0] = schedule[1];
  assert.throws(() => executePlan({ ...plan, schedule }, forest, input), /runs twice/);
  const destination = plan.destination.map((slot) => Math.min(slot, 0));
  assert.throws(() => executePlan({ ...plan, destination }, forest, input), /written twice/);
  const mergeSlot = plan.mergeSlot.map((slot) => slot + 1);
  assert.throws(() => executePlan({ ...plan, mergeSlot }, forest, input), /was not written/);
});

test('a spec out of range and a broken profile are refused by name', () => {
  const profile = { ...CUT_OFTEN, tokens: [10, 5] };
  assert.throws(() => new Planner(spec({ profile })), /tokens must be ascending/);
  const us = [[1, Number.NaN], [1]];
  assert.throws(() => new Planner(spec({ profile: { ...CUT_OFTEN, us } })), /us must hold/);
  assert.throws(() => new Planner(spec({ workers: 0 })), /workers must be an integer/);
});

test('cuts inside of a node lie on multiples of cutTokens', () => {
  fc.assert(
    fc.property(shapes, specs, (shape, partial) => {
      const { forest } = randomForest(shape.seed, shape);
      const cutTokens = 4 * shape.pageSize;
      const base: PlanSpec = { ...spec({}), ...partial, headDim: 64, pageSize: shape.pageSize };
      const plan = makePlan(forest, { ...base, cutTokens });
      checkPlan(plan, forest);
      for (let s = 0; s < plan.segments; s++) {
        const node = plan.segmentNode[s];
        const begin = plan.segmentBegin[s];
        if (begin > 0) assert.equal((forest.firstSlot[node] + begin) % cutTokens, 0);
      }
    }),
    { seed: 11, numRuns: 300 },
  );
});
