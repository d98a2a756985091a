/**
 * On a CUDA device: every variant against float64 over random trees, with window and soft-cap,
 * many random plans in a row with growing leaves, and a plan broken on purpose, which must end in
 * an error. Skipped where there is no device.
 * FLASHFORGE_TEST_PLANS sets the number of random plans.
 * @module
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type AttentionOptions, TreeAttention } from '../../../src/backend/cuda/attention.ts';
import { checkAttentionCuda, ROW_ERROR_MAX } from '../../../src/backend/cuda/attention-check.ts';
import { BenchTools } from '../../../src/backend/cuda/bench-tools.ts';
import { defaultCudaProfile } from '../../../src/backend/cuda/profile.ts';
import { randomTree } from '../../../src/backend/cuda/random-trees.ts';
import { type AttentionSpec, HEAD_DIMS } from '../../../src/backend/cuda/variants.ts';
import { randomStream } from '../../../src/base/math.ts';
import { DEFAULT_PLAN_OPTIONS, Planner } from '../../../src/plan/make-plan.ts';
import { type Workload, workloadForest } from '../../../src/plan/workload.ts';
import { cudaForTests, loaderForSuite } from '../../helpers/cuda-device.ts';

const PLANS = Number(process.env.FLASHFORGE_TEST_PLANS ?? 200);
/** Of |out - exact| / |exact| of a row: rounding to 16 bits of P and of the output. */
const TOLERANCE = ROW_ERROR_MAX;

function randomWorkload(random: () => number, headDim: number, groupSize: number): Workload {
  const kvHeads = 1 + Math.floor(random() * 4);
  const queryHeads = kvHeads * groupSize;
  return { name: 'random', ...randomTree(random), queryHeads, kvHeads, headDim };
}

const { device, skip } = await cudaForTests();

describe('on a CUDA device', { skip }, () => {
  const suite = loaderForSuite(device);

  /** Runs `rounds` random trees; returns the largest relative error. */
  function worst(
    shape: Omit<AttentionSpec, 'kvHeads'>,
    rounds: number,
    portable: boolean,
    seed: number,
    terms: AttentionOptions = {},
  ): number {
    const random = randomStream(seed);
    const tools = new BenchTools(suite.loader, shape.dtype);
    let largest = 0;
    for (let round = 0; round < rounds; round++) {
      const workload = randomWorkload(random, shape.headDim, shape.groupSize);
      const spec = { ...shape, kvHeads: workload.kvHeads };
      tools.reserve([workload], spec.pageSize);
      const attention = new TreeAttention(suite.loader, spec, tools.stream, {
        portable,
        window: terms.window !== undefined,
      });
      const { forest } = workloadForest(workload, spec.pageSize);
      const { multiprocessors: workers } = device.info;
      const profile = defaultCudaProfile(spec, workers, 3e6, attention.variant);
      const { taskRows } = attention.variant;
      const options = { ...DEFAULT_PLAN_OPTIONS, packing: random() < 0.8 };
      const planner = new Planner({ ...spec, workers, taskRows, profile, options });
      attention.setPlan(planner.plan(forest), forest, tools.stream);
      tools.poisonOutput();
      for (let launch = 0; launch < 3; launch++) {
        attention.launch(tools.tensors(spec), tools.stream, terms);
      }
      attention.check(tools.stream);
      const error = tools.compare(spec, forest, forest.rows, terms).relative_error;
      if (!(error <= largest)) largest = error;
      attention.free();
    }
    tools.free();
    return largest;
  }

  for (const dtype of ['f16', 'bf16'] as const) {
    for (const headDim of HEAD_DIMS) {
      for (const groupSize of [1, 4, 5, 16]) {
        for (const portable of [false, true]) {
          const name = `${dtype} head_dim ${headDim} group ${groupSize}`;
          test(`${name}${portable ? ' portable' : ''}`, () => {
            const pageSize = groupSize === 5 ? 64 : 16;
            const error = worst({ headDim, groupSize, pageSize, dtype }, 4, portable, headDim);
            assert.ok(error < TOLERANCE[dtype], `relative error ${error}`);
          });
        }
      }
    }
  }

  for (const terms of [{ window: 50 }, { softcap: 5 }, { window: 130, softcap: 20 }]) {
    for (const [headDim, dtype, pageSize] of [
      [64, 'bf16', 32],
      [128, 'f16', 128],
      [256, 'f16', 256],
    ] as const) {
      for (const portable of [false, true]) {
        const name = `${JSON.stringify(terms)} ${dtype} head_dim ${headDim} page ${pageSize}`;
        test(`${name}${portable ? ' portable' : ''}`, () => {
          const softcap = 'softcap' in terms;
          const shape = { headDim, groupSize: 4, pageSize, dtype, softcap };
          const error = worst(shape, 4, portable, headDim + 1, terms);
          assert.ok(error < TOLERANCE[dtype], `relative error ${error}`);
        });
      }
    }
  }

  test(`${PLANS} random plans in a row, leaves growing`, async () => {
    const report = await checkAttentionCuda({ plans: PLANS, seed: 99 });
    assert.deepEqual(report.wrong, []);
    assert.ok(report.rows_compared > PLANS && report.kept_images > 0);
    assert.ok(report.reference_error < 1e-9, `the reference is off by ${report.reference_error}`);
  });

  test('a broken plan ends in an error, and the device goes on', () => {
    const random = randomStream(3);
    const workload = { ...randomWorkload(random, 128, 4), tokens: Int32Array.of(4000) };
    const one = { ...workload, parent: Int32Array.of(-1), requests: Int32Array.of(0, 0) };
    const spec: AttentionSpec = {
      headDim: 128,
      groupSize: 4,
      kvHeads: one.kvHeads,
      pageSize: 16,
      dtype: 'f16',
    };
    const tools = new BenchTools(suite.loader, 'f16');
    tools.reserve([one], 16);
    const attention = new TreeAttention(suite.loader, spec, tools.stream);
    const { forest } = workloadForest(one, 16);
    const { multiprocessors: workers } = device.info;
    const { taskRows } = attention.variant;
    const profile = defaultCudaProfile(spec, workers, 3e6, attention.variant);
    const options = DEFAULT_PLAN_OPTIONS;
    const plan = new Planner({ ...spec, workers, taskRows, profile, options }).plan(forest);
    assert.ok(plan.merges > 0);
    const broken = { ...plan, mergeCount: plan.mergeCount.map((count) => count + 1) };
    attention.setPlan(broken, forest, tools.stream);
    attention.launch(tools.tensors(spec), tools.stream);
    assert.throws(() => attention.check(tools.stream), /split row never arrived/);
    attention.setPlan(plan, forest, tools.stream);
    attention.launch(tools.tensors(spec), tools.stream);
    attention.check(tools.stream);
    assert.ok(tools.compare(spec, forest, 2).relative_error < TOLERANCE.f16);
    attention.free();
    tools.free();
  });
});
