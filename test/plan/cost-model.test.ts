/**
 * The cost model: interpolation, extrapolation and the least rates behind the lower bound.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CostModel } from '../../src/plan/cost-model.ts';
import type { CostProfile } from '../../src/plan/plan.ts';

const profile: CostProfile = {
  device: 'test',
  kernel: 'test',
  queries: [4, 8],
  tokens: [100, 200],
  us: [
    [10, 16],
    [12, 24],
  ],
  itemUs: 1,
  segmentUs: 0,
  partialUs: 0,
};

const near = (a: number, b: number): void => assert.ok(Math.abs(a - b) < 1e-9, `${a} is not ${b}`);

test('grid points and the middle of a cell', () => {
  const cost = new CostModel(profile, 2, 8);
  near(cost.us(2, 100), 10);
  near(cost.us(4, 200), 24);
  near(cost.us(3, 150), (10 + 16 + 12 + 24) / 4);
});

test('beyond the grid the last slope goes on; below it tokens scale and rows are padded', () => {
  const cost = new CostModel(profile, 2, 8);
  near(cost.us(2, 300), 22);
  near(cost.us(8, 100), 12 + 8 * 0.5);
  near(cost.us(2, 50), 5);
  near(cost.us(1, 100), 10);
});

test('least rates consider every length and every way to spread rows', () => {
  const rates = new CostModel(profile, 2, 8).leastRates();
  near(rates[2], 0.06);
  // Two rows cost 0.06 a token on long lists, so that four cannot need more than 0.12.
  near(rates[4], 0.12);
});
