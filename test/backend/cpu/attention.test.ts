/**
 * Partial attention and merges against float64, native and WebAssembly: head sizes, GQA groups, KV
 * types, nodes that start inside pages, causal chunks, windows, splits, extreme scores.
 * @module
 */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import {
  type AttentionShape,
  CUT_TOKENS,
  KV_TYPES,
  type KvType,
} from '../../../src/backend/cpu/attention.ts';
import { findCompiler } from '../../../src/backend/cpu/native-compiler.ts';
import { createProvider, type Provider } from '../../../src/backend/cpu/provider.ts';
import type { Forest } from '../../../src/kvcache/forest.ts';
import { defaultProfile } from '../../../src/plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS, makePlan } from '../../../src/plan/make-plan.ts';
import type { Plan, PlanOptions } from '../../../src/plan/plan.ts';
import { AttentionCase, buildForest, type NodeSpec, randomNodes } from './attention-case.ts';

/**
 * K, V and the scaled queries are of order 1; sums are in f32. Of integers queries are rounded to
 * 15 bits of their length, probabilities to 15 bits of their sum in a page; V is up to 2.
 */
const TOLERANCE: Readonly<Record<KvType, number>> = { f32: 5e-6, f16: 5e-6, bf16: 5e-6, i16: 5e-4 };

const hasCompiler = (await findCompiler()) !== null;
const providers: Provider[] = [await createProvider({ provider: 'wasm' })];
if (hasCompiler) providers.push(await createProvider({ provider: 'native' }));

function plan(
  forest: Forest,
  shape: AttentionShape,
  workers = 2,
  options: Partial<PlanOptions> = {},
): Plan {
  const { kvHeads, groupSize, headDim } = shape;
  return makePlan(forest, {
    ...{ kvHeads, groupSize, headDim, workers, pageSize: 64, cutTokens: CUT_TOKENS },
    taskRows: Math.max(1, Math.floor(96 / groupSize)),
    profile: defaultProfile('cpu', headDim),
    options: { ...DEFAULT_PLAN_OPTIONS, ...options },
  });
}

const shapeOf = (
  headDim: number,
  groupSize: number,
  kvHeads: number,
  kvType: KvType = 'f16',
  window = 0,
): AttentionShape => ({ headDim, groupSize, kvHeads, kvType, window });

for (const provider of providers) {
  const { kind } = provider;
  const check = (shape: AttentionShape, nodes: NodeSpec[], seed = 1): void => {
    const problem = new AttentionCase(provider, shape, buildForest(nodes), { seed });
    const { forest } = problem;
    for (const options of [{}, { flat: true }, { packing: false }, { division: false }]) {
      const error = problem.error(plan(forest, shape, 2, options));
      assert.ok(
        error <= TOLERANCE[shape.kvType],
        `error ${error} with ${JSON.stringify({ options, shape })}`,
      );
    }
  };

  test(`${kind}: every head size, GQA group and KV type`, () => {
    const types: KvType[] = ['f16', 'i16', 'f32', 'i16', 'bf16'];
    let seed = 10;
    for (const headDim of [16, 48, 64, 80, 96, 128, 256]) {
      for (const [i, groupSize] of [1, 2, 3, 4, 5, 7, 8, 16].entries()) {
        const nodes = randomNodes(seed++, 4, 100);
        check(shapeOf(headDim, groupSize, 1 + (i % 2), types[seed % types.length]), nodes, seed);
      }
    }
  });

  test(`${kind}: random trees with prefill chunks`, () => {
    for (let seed = 100; seed < 106; seed++) {
      check(shapeOf(64, 3, 2, KV_TYPES[seed % 4]), randomNodes(seed, 10, 120), seed);
    }
  });

  test(`${kind}: every alignment of a short node`, () => {
    for (let firstSlot = 0; firstSlot < 64; firstSlot += 9) {
      for (const tokens of [1, 7, 63, 64, 65, 130]) {
        check(shapeOf(32, 3, 1, firstSlot % 2 === 0 ? 'f16' : 'i16'), [
          { parent: -1, tokens, firstSlot },
          { parent: 0, tokens: 3, requests: [1, 2], firstSlot: (firstSlot + tokens) % 64 },
        ]);
      }
    }
  });

  test(`${kind}: causal prefill of one request`, () => {
    for (const rows of [1, 5, 64, 100]) {
      for (const kvType of ['f16', 'i16'] as const) {
        const nodes = [{ parent: -1, tokens: 100, requests: [rows], firstSlot: 9 }];
        check(shapeOf(64, 3, 1, kvType), nodes);
      }
    }
  });

  test(`${kind}: sliding windows`, () => {
    for (const window of [1, 17, 64, 100, 1000]) {
      for (const kvType of ['f16', 'i16'] as const)
        check(shapeOf(64, 3, 1, kvType, window), randomNodes(window, 8, 180), window);
    }
  });

  test(`${kind}: long nodes split over workers and merged`, () => {
    const shape = shapeOf(64, 3, 1);
    const leaves = Array.from({ length: 6 }, () => ({ parent: 0, tokens: 20, requests: [1] }));
    const forest = buildForest([{ parent: -1, tokens: 3000, firstSlot: 5 }, ...leaves]);
    const problem = new AttentionCase(provider, shape, forest);
    const split = plan(forest, shape, 4);
    assert.ok(split.merges > 0, 'the plan splits');
    assert.ok(problem.error(split) <= TOLERANCE[shape.kvType]);
  });

  for (const kvType of KV_TYPES) {
    test(`${kind}, ${kvType}: extreme scores give no NaN and stay within V`, () => {
      const shape = shapeOf(64, 3, 1, kvType);
      const forest = buildForest(randomNodes(5, 8, 300));
      const sharp = new AttentionCase(provider, shape, forest, { queryScale: 20 });
      const error = sharp.error(plan(forest, shape));
      assert.ok(error < 1e-2, `error ${error}`);
      for (const queryScale of [0, 1e-35, 1e6, 1e20, 1e35]) {
        const problem = new AttentionCase(provider, shape, forest, { queryScale });
        const output = problem.run(plan(forest, shape, 4));
        assert.ok(
          output.every((x) => Math.abs(x) <= 2.001),
          `scale ${queryScale}`,
        );
      }
    });
  }

  test(`${kind}: rows that see nothing get zeros`, () => {
    const shape = shapeOf(64, 3, 2);
    const forest = buildForest([{ parent: -1, tokens: 70, requests: [1, 1] }]);
    const problem = new AttentionCase(provider, shape, forest);
    const made = plan(forest, shape);
    // A planner gives such rows nothing to do; the kernels must still hold.
    forest.rowPosition.fill(-1);
    assert.ok(problem.run(made).every((x) => x === 0));
  });

  test(`${kind}: a plan image grows and keeps its address`, () => {
    const shape = shapeOf(64, 3, 1);
    const forest = buildForest(randomNodes(77, 40, 60));
    const problem = new AttentionCase(provider, shape, forest);
    const { address } = problem.image;
    const small = plan(forest, shape, 1, { flat: true });
    const large = plan(forest, shape, 8, { packing: false });
    for (const each of [small, large, small])
      assert.ok(problem.error(each) <= TOLERANCE[shape.kvType]);
    assert.equal(problem.image.address, address);
  });

  test(`${kind}: every plan of a forest gives the same bits`, () => {
    const shapes = [
      ...[shapeOf(64, 3, 2), shapeOf(48, 1, 3, 'bf16', 300), shapeOf(128, 4, 1, 'f32')],
      ...[shapeOf(64, 3, 2, 'i16'), shapeOf(80, 5, 1, 'i16', 300)],
    ];
    for (let seed = 31; seed < 46; seed++) {
      const shape = shapes[seed % shapes.length];
      const nodes = randomNodes(seed, 10, seed % 2 === 0 ? 300 : 1100);
      const problem = new AttentionCase(provider, shape, buildForest(nodes), { seed });
      const { forest } = problem;
      const expected = problem.run(plan(forest, shape));
      let merges = 0;
      for (const workers of [1, 2, 5, 16]) {
        for (const options of [{}, { flat: true }, { packing: false }, { division: false }]) {
          const made = plan(forest, shape, workers, options);
          merges = Math.max(merges, made.merges);
          assert.deepEqual(problem.run(made), expected, JSON.stringify({ seed, workers, options }));
        }
      }
      assert.ok(merges > 0, 'some plan has partial results');
    }
  });
}

test('native kernels were tested', { skip: hasCompiler ? false : 'no C compiler' }, () => {
  assert.ok(providers.some((provider) => provider.kind === 'native'));
});

after(() => {
  providers.length = 0;
});
