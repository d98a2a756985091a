/**
 * Percentiles, and the times around steps.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Latency } from '../../src/engine/latency.ts';
import { StepClock } from '../../src/engine/step-clock.ts';

test('percentiles hold to three digits, with zeros, from nothing to hours', () => {
  const latency = new Latency();
  assert.deepEqual(latency.percentiles(), { count: 0, mean: 0, p50: 0, p90: 0, p99: 0, max: 0 });
  for (let ms = 1; ms <= 1000; ms++) latency.record(ms / 10);
  const { count, ...found } = latency.percentiles();
  assert.equal(count, 1000);
  const expected = { mean: 50.05, p50: 50, p90: 90, p99: 99, max: 100 };
  for (const [name, value] of Object.entries(expected)) {
    const error = Math.abs(found[name as keyof typeof found] / value - 1);
    assert.ok(error < 2e-3, `${name}: ${found[name as keyof typeof found]}`);
  }
  latency.reset();
  for (const ms of [0, 0, 0, 1e9]) latency.record(ms);
  const { p50, max } = latency.percentiles();
  assert.equal(p50, 0);
  assert.ok(Math.abs(max / 3.6e6 - 1) < 2e-3, 'from an hour on it is an hour');
});

test('a step has times if the one before went straight over into it', () => {
  const clock = new StepClock();
  const step = (left: number) => {
    clock.waits();
    clock.landed(left);
    return clock.times;
  };
  clock.handedIn();
  assert.equal(step(0), null, 'nothing to measure from');
  clock.handedIn();
  const inTurn = step(0);
  assert.ok(inTurn !== null && inTurn.hostMs >= inTurn.idleMs && inTurn.idleMs > 0);
  clock.handedIn();
  clock.handedIn();
  assert.ok(step(1) !== null);
  assert.equal(step(0)?.idleMs, 0, 'handed in ahead');
  clock.rest();
  clock.handedIn();
  assert.equal(step(0), null, 'it rested');
});
