/**
 * The cost profile of a CUDA device without one: the fit gives back the constants of a made-up
 * device, survives noise, and trials are the plans that they say they are.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fitProfile, type TileRows } from '../../../src/backend/cuda/profile-fit.ts';
import { PLAIN, type Trial, trialPlanOf } from '../../../src/backend/cuda/profile-trials.ts';
import { CostModel, profileProblem } from '../../../src/plan/cost-model.ts';

const TILE: TileRows = { groupSize: 4, groupRows: 16, taskRows: 32 };
const COSTS = { launch: 6, item: 0.7, segment: 0.05, merge: 4, partial: 0.06, few: 0.015 };

/** us of a trial on a device whose costs are exactly those of the model. */
function exactly({ items, rows, tokens, segments, parts }: Trial): number {
  const token = rows > TILE.groupRows ? 2 * COSTS.few : COSTS.few;
  const merge = parts > 1 ? COSTS.merge + rows * COSTS.partial : 0;
  const item = COSTS.item + (segments - 1) * COSTS.segment + token * tokens;
  return COSTS.launch + items * item + merge;
}

const near = (value: number | undefined, wanted: number): void =>
  assert.ok(Math.abs((value ?? Number.NaN) - wanted) < 1e-9, `${value} is not ${wanted}`);

test('the constants of a made-up device come back', () => {
  const profile = fitProfile({ us: exactly }, TILE);
  near(profile.itemUs, COSTS.item);
  near(profile.segmentUs, COSTS.segment);
  near(profile.partialUs, COSTS.partial);
  near(profile.mergeUs, COSTS.merge);
  assert.deepEqual(profile.queries, [16, 64, 68, 128]);
  const model = new CostModel({ device: 'd', kernel: 'k', ...profile }, 4, 32);
  near(model.us(1, 512), COSTS.few * 512);
  near(model.us(16, 4096), COSTS.few * 4096);
  near(model.us(17, 512), 2 * COSTS.few * 512);
  near(model.us(32, 32), 2 * COSTS.few * 32);
});

test('noise and nonsense give a profile that can be planned with', () => {
  let seed = 1;
  const random = (): number => {
    seed = (seed * 16807) % 2147483647;
    return seed / 2147483647;
  };
  for (const tile of [TILE, { groupSize: 64, groupRows: 1, taskRows: 1 }]) {
    for (let i = 0; i < 50; i++) {
      const clock = { us: (trial: Trial) => exactly(trial) * (i < 25 ? 0.9 + 0.2 * random() : 0) };
      const profile = { device: 'd', kernel: 'k', ...fitProfile(clock, tile) };
      assert.equal(profileProblem(profile), undefined);
    }
  }
});

test('a trial keeps every worker busy with what it says', () => {
  const plan = trialPlanOf({ ...PLAIN, items: 3, rows: 2, tokens: 128, segments: 4 }, 5);
  assert.equal(plan.tasks, 15);
  assert.equal(plan.segments, 60);
  assert.equal(plan.rows, 10, 'a worker’s items are for the same rows');
  assert.equal(plan.merges, 0);
  assert.ok(plan.destination.every((to) => to === -1));
  assert.deepEqual([...plan.workerItem], [0, 3, 6, 9, 12, 15]);
  const read = new Set<number>();
  for (let s = 0; s < plan.segments; s++) {
    for (let t = plan.segmentBegin[s]; t < plan.segmentEnd[s]; t++) read.add(t);
  }
  assert.equal(read.size, 15 * 128, 'tokens of its own for each item');
  const shared = trialPlanOf({ ...PLAIN, shared: true }, 5);
  assert.ok(shared.segmentBegin.every((begin) => begin === 0));
});

test('merged trials have a slot for each part of each row', () => {
  const plan = trialPlanOf({ ...PLAIN, rows: 3, parts: 2 }, 5);
  assert.equal(plan.tasks, 4, 'the fifth worker has no partner');
  assert.equal(plan.rows, 6);
  assert.equal(plan.slots, 12);
  assert.deepEqual([...plan.mergeCount], [2, 2, 2, 2, 2, 2]);
  assert.deepEqual(
    [...plan.destination].sort((a, b) => a - b),
    Array.from({ length: 12 }, (_, i) => i),
  );
});
