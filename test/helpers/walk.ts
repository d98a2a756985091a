/**
 * A walk over a prefix tree that every runner takes alike: a prompt in chunks, branches of which
 * one is empty and one starts inside the prompt, then decoding; and how far two walks are apart.
 * @module
 */
import assert from 'node:assert/strict';
import { randomStream } from '../../src/base/math.ts';
import type { Checkpoint } from '../../src/checkpoint/checkpoint.ts';
import { loadRunner, type RunnerOptions } from '../../src/model/load-runner.ts';
import type { PlanOptions } from '../../src/plan/plan.ts';
import { Stepper } from './stepper.ts';

export interface WalkOptions extends RunnerOptions {
  readonly planning?: Partial<PlanOptions>;
  /** Decode steps; default 3. */
  readonly turns?: number;
}

/** All the logits; checks that each turn's best tokens are those of its logits. */
export async function walk(
  checkpoint: Checkpoint,
  { planning = {}, turns = 3, ...options }: WalkOptions,
): Promise<Float32Array[]> {
  const { vocab } = checkpoint.config;
  const random = randomStream(7);
  const tokens = (count: number): number[] =>
    Array.from({ length: count }, () => Math.floor(random() * vocab));
  const runner = await loadRunner(checkpoint, { kvPages: 100, maxRows: 160, ...options });
  const stepper = new Stepper(runner, planning);
  const rows: Float32Array[] = [];
  const shared = stepper.tree.insert(tokens(131));
  while (shared.computed < shared.length) rows.push(...(await stepper.step([shared], 47)).logits);
  const paths = [3, 0, 70, 9].map((length) => {
    const path = stepper.tree.fork(shared, length === 9 ? 60 : 131);
    stepper.tree.extend(path, tokens(length));
    return path;
  });
  for (let turn = 0; turn < turns; turn++) {
    const { logits, output } = await stepper.step(paths);
    rows.push(...logits);
    const best = logits.map((row) => row.indexOf(Math.max(...row)));
    assert.deepEqual([...output.argmax].sort(), best.sort());
    for (const path of paths) stepper.tree.append(path, tokens(1)[0]);
  }
  await runner.dispose();
  return rows;
}

/** Rms of the difference, relative to the rms of the expected around each row's mean. */
export function distance(expected: readonly Float32Array[], actual: readonly Float32Array[]) {
  assert.equal(expected.length, actual.length);
  let [difference, squares] = [0, 0];
  expected.forEach((row, i) => {
    const mean = row.reduce((sum, x) => sum + x, 0) / row.length;
    row.forEach((x, j) => {
      difference += (x - actual[i][j]) ** 2;
      squares += (x - mean) ** 2;
    });
  });
  return Math.sqrt(difference / squares);
}
