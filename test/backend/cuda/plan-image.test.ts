/**
 * The plan image: what the kernel would read is walked here as the kernel walks it, and every row
 * must meet every position of its path exactly once.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PlanGrowth } from '../../../src/backend/cuda/plan-growth.ts';
import { PlanImageBuilder } from '../../../src/backend/cuda/plan-image.ts';
import { defaultCudaProfile } from '../../../src/backend/cuda/profile.ts';
import { growLeaves, scatteredForest } from '../../../src/backend/cuda/scattered-forest.ts';
import { variantFor } from '../../../src/backend/cuda/variants.ts';
import { randomStream } from '../../../src/base/math.ts';
import type { Forest } from '../../../src/kvcache/forest.ts';
import { DEFAULT_PLAN_OPTIONS, Planner, type ReusablePlan } from '../../../src/plan/make-plan.ts';
import type { PlanOptions } from '../../../src/plan/plan.ts';
import { planStillGood } from '../../../src/plan/plan-reuse.ts';
import { type Workload, workloadForest } from '../../../src/plan/workload.ts';

const PAGE_SIZES = [16, 32, 64];

function randomWorkload(random: () => number): Workload {
  const nodes = 1 + Math.floor(random() * 40);
  const below = (n: number): number => Math.floor(random() * n);
  const kvHeads = 1 + below(4);
  return {
    name: 'random',
    parent: Int32Array.from({ length: nodes }, (_, i) => (i === 0 ? -1 : below(i + 1) - 1)),
    tokens: Int32Array.from({ length: nodes }, () => 1 + below(random() < 0.2 ? 3000 : 90)),
    requests: Int32Array.from({ length: 1 + below(60) }, () => below(nodes)),
    queryHeads: kvHeads * (1 + below(8)),
    kvHeads,
    headDim: 128,
  };
}

function planOf(
  workload: Workload,
  forest: Forest,
  pageSize: number,
  options: PlanOptions,
): ReusablePlan {
  const groupSize = workload.queryHeads / workload.kvHeads;
  const { kvHeads, headDim } = workload;
  const variant = variantFor({ headDim, groupSize, kvHeads, pageSize, dtype: 'f16' }, 'sm_90a');
  return new Planner({
    kvHeads,
    groupSize,
    headDim,
    pageSize,
    workers: 132,
    taskRows: variant.taskRows,
    profile: defaultCudaProfile({ headDim, groupSize }, 132, 3e6, variant),
    options,
  }).plan(forest);
}

/** Walks the image; (row, head) -> positions seen, and arrivals of each merge counter. */
function walk(
  words: Int32Array,
  workers: number,
  rowPosition: Int32Array,
  window = Number.POSITIVE_INFINITY,
): {
  seen: Map<string, number[]>;
  unit: Map<string, number>;
  arrivals: Map<number, number>;
  merges: Map<number, { row: number; count: number }>;
  written: Map<string, number>;
} {
  const seen = new Map<string, number[]>();
  const unit = new Map<string, number>();
  const arrivals = new Map<number, number>();
  const merges = new Map<number, { row: number; count: number }>();
  const written = new Map<string, number>();
  let heads = 0;
  for (let w = 0; w < workers; w++) {
    for (let i = 0; i < words[w * 144 + 1]; i++) {
      heads = Math.max(heads, words[(words[w * 144] + i) * 8 + 4] + 1);
    }
  }
  for (let w = 0; w < workers; w++) {
    const base = w * 144;
    for (let i = 0; i < words[base + 1]; i++) {
      const at = i === 0 ? base + 8 : (words[base] + i) * 8;
      const [first, count, rowBegin, rows, head, record] = words.subarray(at, at + 6);
      for (let e = 0; e < count; e++) {
        const from = i === 0 && e < 32 ? base + 16 + e * 4 : (first + e) * 4;
        const [page, position, range, tokens] = words.subarray(from, from + 4);
        const [low, high] = [range & 0xffff, range >>> 16];
        for (let r = low; r < high; r++) {
          assert.ok(r < rows);
          const key = `${rowBegin + r} ${head}`;
          const list = seen.get(key) ?? [];
          const causal = (tokens & (1 << 16)) !== 0;
          for (let t = tokens & 255; t < ((tokens >> 8) & 255); t++) {
            const behind = rowPosition[rowBegin + r] - position - t;
            if (causal && (behind < 0 || behind >= window)) continue;
            list.push(position + t);
            unit.set(`${rowBegin + r} ${position + t}`, page * 16 + t);
          }
          seen.set(key, list);
        }
      }
      for (let r = 0; r < rows; r++) {
        const [slot, merge] = words.subarray((record + r) * 2, (record + r) * 2 + 2);
        const key = `${rowBegin + r} ${head}`;
        if (slot === -1) written.set(key, (written.get(key) ?? 0) + 1);
        if (slot >= 0) {
          const counter = merge * heads + head;
          arrivals.set(counter, (arrivals.get(counter) ?? 0) + 1);
        }
      }
    }
    for (let m = 0; m < words[base + 3]; m++) {
      const [row, , count, counter] = words.subarray(
        (words[base + 4] + words[base + 2] + m) * 4,
        (words[base + 4] + words[base + 2] + m) * 4 + 4,
      );
      assert.ok(!merges.has(counter), 'a merge has one owner');
      merges.set(counter, { row, count });
      const key = `${row} ${counter % heads}`;
      written.set(key, (written.get(key) ?? 0) + 1);
    }
  }
  return { seen, unit, arrivals, merges, written };
}

for (const options of [
  DEFAULT_PLAN_OPTIONS,
  { ...DEFAULT_PLAN_OPTIONS, packing: false },
  { ...DEFAULT_PLAN_OPTIONS, flat: true },
]) {
  test(`every row meets every position once: ${JSON.stringify(options)}`, () => {
    const random = randomStream(7);
    const builders = PAGE_SIZES.map(
      (pageSize, i) =>
        new PlanImageBuilder({ pageSize, groupSize: 1, groupRows: 9, narrow: i !== 1 }),
    );
    for (let round = 0; round < 60; round++) {
      const workload = randomWorkload(random);
      const pageSize = PAGE_SIZES[round % 3];
      const { forest } = workloadForest(workload, pageSize);
      const plan = planOf(workload, forest, pageSize, options);
      const { words, merges } = builders[round % 3].build(plan, forest);
      assert.equal(merges, plan.merges);
      const walked = walk(words, plan.workers, forest.rowPosition);
      for (let row = 0; row < forest.rows; row++) {
        const want = Array.from({ length: forest.rowPosition[row] + 1 }, (_, i) => i);
        for (let head = 0; head < workload.kvHeads; head++) {
          const key = `${row} ${head}`;
          const got = (walked.seen.get(key) ?? []).sort((a, b) => a - b);
          assert.deepEqual(got, want);
          assert.equal(walked.written.get(key), 1, 'a row is written once');
        }
        for (let node = 0; node < forest.nodes; node++) {
          if (row < forest.rowBegin[node] || row >= forest.rowEnd[node]) continue;
          if (forest.length[node] === 0) continue;
          const page = forest.pages[forest.pageBegin[node]];
          const slot = page * pageSize + forest.firstSlot[node];
          assert.equal(walked.unit.get(`${row} ${forest.start[node]}`), slot);
        }
      }
      for (const [counter, merge] of walked.merges) {
        assert.equal(walked.arrivals.get(counter), merge.count);
      }
      assert.equal(walked.arrivals.size, walked.merges.size);
    }
  });
}

/** Every row of the image sees positions 0 to its own, each in the slot of its node's page. */
function checkRows(words: Int32Array, workers: number, forest: Forest, pageSize: number): void {
  const { seen, unit } = walk(words, workers, forest.rowPosition);
  const { pages, pageBegin, firstSlot, start, length } = forest;
  for (let row = 0; row < forest.rows; row++) {
    const want = Array.from({ length: forest.rowPosition[row] + 1 }, (_, i) => i);
    const got = (seen.get(`${row} 0`) ?? []).sort((a, b) => a - b);
    assert.deepEqual(got, want, `row ${row}`);
  }
  for (let node = 0; node < forest.nodes; node++) {
    const row = forest.rowBegin[node];
    if (row === forest.rowEnd[node]) continue;
    for (let token = 0; token < length[node]; token++) {
      const position = start[node] + token;
      if (position > forest.rowPosition[row]) break;
      const slot = firstSlot[node] + token;
      const page = pages[pageBegin[node] + Math.floor(slot / pageSize)];
      assert.equal(unit.get(`${row} ${position}`), page * pageSize + (slot % pageSize));
    }
  }
}

test('an image follows leaves that grow, by the words that change', () => {
  const random = randomStream(11);
  let [kept, built] = [0, 0];
  for (let round = 0; round < 24; round++) {
    const pageSize = PAGE_SIZES[round % 3];
    const workload = { ...randomWorkload(random), kvHeads: 1 + (round % 2), queryHeads: 4 };
    const { forest } = scatteredForest(workload, pageSize, 200, random);
    const shape = { pageSize, groupSize: 1, groupRows: 9, narrow: round % 4 !== 1 };
    const builder = new PlanImageBuilder(shape);
    const growth = new PlanGrowth(builder, pageSize);
    const most = round % 5 === 0 ? 20 : 3;
    let plan = planOf(workload, forest, pageSize, DEFAULT_PLAN_OPTIONS);
    let device = new Int32Array(0);
    for (let step = 0; step < 40; step++) {
      if (step > 0) growLeaves(forest, () => Math.floor(random() * most));
      if (
        forest.length.some((tokens, n) => tokens + forest.firstSlot[n] > room(forest, n, pageSize))
      )
        break;
      if (!planStillGood(plan, forest)) {
        plan = planOf(workload, forest, pageSize, DEFAULT_PLAN_OPTIONS);
      }
      const patches = growth.follow(plan, forest);
      if (patches < 0) {
        const image = builder.build(plan, forest);
        growth.begin(plan, forest, image);
        device = image.words.slice();
        built++;
      } else {
        kept++;
        for (let i = 0; i < patches; i++) {
          device[growth.patches[i * 2]] = growth.patches[i * 2 + 1];
        }
      }
      if (step % 4 === 3) checkRows(device, plan.workers, forest, pageSize);
    }
  }
  assert.ok(kept > 3 * built, `${kept} steps kept an image that was built ${built} times`);
});

const room = (forest: Forest, node: number, pageSize: number): number =>
  (forest.pageBegin[node + 1] - forest.pageBegin[node]) * pageSize;

test('an image is built anew where more than leaves has changed', () => {
  const random = randomStream(5);
  const workload = { ...randomWorkload(random), tokens: new Int32Array(8).fill(100) };
  const tree = { ...workload, parent: Int32Array.of(-1, 0, 0, 1, 1, 2, 2, 0) };
  const requests = Int32Array.of(3, 4, 5, 6, 7);
  const changes: ((forest: Forest) => void)[] = [
    (forest) => (forest.pages[3] = 1000),
    (forest) => forest.length[0]++,
    (forest) => forest.rowPosition[0]--,
    (forest) => forest.rowPosition[0]++,
    (forest) => forest.firstSlot[2]++,
    (forest) => growLeaves(forest, () => 90),
  ];
  for (const change of changes) {
    const { forest } = scatteredForest({ ...tree, requests }, 16, 200, random);
    const builder = new PlanImageBuilder({
      pageSize: 16,
      groupSize: 1,
      groupRows: 9,
      narrow: true,
    });
    const growth = new PlanGrowth(builder, 16);
    const plan = planOf(workload, forest, 16, DEFAULT_PLAN_OPTIONS);
    growth.begin(plan, forest, builder.build(plan, forest));
    assert.equal(growth.follow(plan, forest), 0, 'nothing has changed');
    growLeaves(forest, () => 2);
    assert.ok(growth.follow(plan, forest) >= 0, 'leaves have grown');
    assert.equal(growth.follow({ ...plan }, forest), -1, 'another plan');
    growth.begin(plan, forest, builder.build(plan, forest));
    change(forest);
    assert.equal(growth.follow(plan, forest), -1);
  }
});

test('with a sliding window no row sees more than the window', () => {
  const random = randomStream(17);
  const builder = new PlanImageBuilder({
    ...{ pageSize: 16, groupSize: 1, groupRows: 9, narrow: true, window: true },
  });
  for (let round = 0; round < 60; round++) {
    /* Nodes of one token at the first slot of a page are the ones that are easily forgotten. */
    const workload = randomWorkload(random);
    workload.tokens.forEach((_, node) => {
      if (random() < 0.5) workload.tokens[node] = 1;
    });
    const { forest } = workloadForest(workload, 16);
    const plan = planOf(workload, forest, 16, DEFAULT_PLAN_OPTIONS);
    const { words } = builder.build(plan, forest);
    const { seen } = walk(words, plan.workers, forest.rowPosition, 50);
    for (let row = 0; row < forest.rows; row++) {
      const position = forest.rowPosition[row];
      const from = Math.max(0, position - 49);
      const want = Array.from({ length: position - from + 1 }, (_, i) => from + i);
      assert.deepEqual(
        (seen.get(`${row} 0`) ?? []).sort((a, b) => a - b),
        want,
      );
    }
  }
});
