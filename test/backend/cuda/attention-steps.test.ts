/**
 * What `setPlan` asks of the driver, on a stand-in without a GPU: nothing that waits for the
 * stream, and for a plan that is used again one small kernel only.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TreeAttention } from '../../../src/backend/cuda/attention.ts';
import { Cuda } from '../../../src/backend/cuda/driver.ts';
import type { KernelLoader } from '../../../src/backend/cuda/kernel-loader.ts';
import { defaultCudaProfile } from '../../../src/backend/cuda/profile.ts';
import { growLeaves, scatteredForest } from '../../../src/backend/cuda/scattered-forest.ts';
import type { DriverLibrary } from '../../../src/backend/cuda/signatures.ts';
import { DEFAULT_PLAN_OPTIONS, Planner } from '../../../src/plan/make-plan.ts';
import { planStillGood } from '../../../src/plan/plan-reuse.ts';
import { FakeDriver } from './fake-driver.ts';

const WAITS = [
  ...['cuStreamSynchronize', 'cuCtxSynchronize', 'cuMemcpyHtoD_v2', 'cuMemcpyDtoH_v2'],
  'cuMemFreeHost',
];

/** A driver library that lists the calls made. */
function listed(library: DriverLibrary, calls: string[]): DriverLibrary {
  const call = Object.fromEntries(
    Object.entries(library.call).map(([name, run]) => [
      name,
      (...args: never[]) => {
        calls.push(name);
        return (run as (...args: never[]) => number)(...args);
      },
    ]),
  );
  return { ...library, call: call as unknown as DriverLibrary['call'] };
}

test('setPlan never waits for the stream, and a plan used again costs one small kernel', async () => {
  const fake = new FakeDriver();
  const calls: string[] = [];
  const cuda = await Cuda.open(0, listed(fake.library, calls));
  const loader = { cuda, load: () => cuda.load(new Uint8Array(1)) } as unknown as KernelLoader;
  const spec = { headDim: 128, groupSize: 4, kvHeads: 8, pageSize: 16, dtype: 'f16' } as const;
  const stream = cuda.stream();
  const attention = new TreeAttention(loader, spec, stream);
  const leaves = 40;
  const tree = {
    name: 'star',
    parent: Int32Array.from({ length: leaves + 1 }, (_, i) => (i === 0 ? -1 : 0)),
    tokens: Int32Array.from({ length: leaves + 1 }, (_, i) => (i === 0 ? 3000 : 40 + i * 3)),
    requests: Int32Array.from({ length: leaves }, (_, i) => i + 1),
    ...{ queryHeads: 32, kvHeads: 8, headDim: 128 },
  };
  const { forest } = scatteredForest(tree, spec.pageSize, 200);
  const { taskRows } = attention.variant;
  const profile = defaultCudaProfile(spec, 132, 3e6, attention.variant);
  const options = DEFAULT_PLAN_OPTIONS;
  const planner = new Planner({ ...spec, workers: 132, taskRows, profile, options });
  let plan = planner.plan(forest);
  let kept = 0;
  const versions = new Set<number>();
  for (let step = 0; step < 60; step++) {
    if (step > 0) growLeaves(forest, () => 1);
    if (!planStillGood(plan, forest)) plan = planner.plan(forest);
    calls.length = 0;
    if (attention.setPlan(plan, forest, stream)) {
      kept++;
      const once = ['cuEventSynchronize', 'cuEventCreate', 'cuMemHostAlloc'];
      const used = calls.filter((name) => !once.includes(name));
      assert.deepEqual(used, ['cuLaunchKernel', 'cuEventRecord']);
    }
    versions.add(attention.version);
    for (const name of WAITS) assert.ok(!calls.includes(name), name);
  }
  assert.ok(kept > 50, `${kept} of 60 steps kept the image`);
  assert.equal(versions.size, 1, 'captured graphs stay valid');
  attention.free();
  stream.free();
  assert.equal(fake.leaks, 0);
});
