/**
 * The reference runner agrees with itself: chunked, shared and flat runs of one sequence give the
 * same logits, since they compute the same sums.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { randomStream } from '../../src/base/math.ts';
import { loadRunner } from '../../src/model/load-runner.ts';
import { memoryCheckpoint } from '../helpers/memory-checkpoint.ts';
import { Stepper } from '../helpers/stepper.ts';
import { TINY_CONFIGS } from '../helpers/tiny-configs.ts';

const config = { ...TINY_CONFIGS['two KV heads'], hidden: 64, intermediate: 96, headDim: 16 };

function randomTokens(count: number, seed: number): number[] {
  const random = randomStream(seed);
  return Array.from({ length: count }, () => Math.floor(random() * config.vocab));
}

test('chunks, forks and one pass give the same logits', async () => {
  const checkpoint = memoryCheckpoint(config, 'F32');
  const runner = await loadRunner(checkpoint, { device: 'reference', kvPages: 16 });
  const stepper = new Stepper(runner);
  const shared = randomTokens(90, 1);
  const branches = [randomTokens(3, 2), randomTokens(5, 3), []];

  const expected: Float32Array[] = [];
  for (const branch of branches) {
    const path = stepper.tree.insert([...shared, ...branch]);
    const { logits } = await stepper.step([path]);
    expected.push(logits[0]);
    stepper.tree.release(path);
    stepper.tree.evictAll();
  }

  const paths = branches.map((branch) => stepper.tree.insert([...shared, ...branch]));
  let logits: Float32Array[] = [];
  while (paths.some((path) => path.computed < path.length)) {
    await stepper.step(paths, 17);
  }
  ({ logits } = await stepper.step(paths));
  logits.forEach((row, i) => {
    const most = Math.max(...row.map((x, at) => Math.abs(x - expected[i][at])));
    assert.ok(most < 1e-5, `branch ${i} differs by ${most}`);
  });
});

test('argmax and log-sum-exp are those of the logits', async () => {
  const runner = await loadRunner(memoryCheckpoint(config, 'Q8_0'), { device: 'reference' });
  const stepper = new Stepper(runner);
  const { output } = await stepper.step([stepper.tree.insert(randomTokens(7, 5))]);
  const row = [...output.logits];
  assert.equal(output.argmax[0], row.indexOf(Math.max(...row)));
  const sum = Math.log(row.reduce((total, x) => total + Math.exp(x), 0));
  assert.ok(Math.abs(output.logSumExp[0] - sum) < 1e-5);
});
