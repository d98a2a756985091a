/**
 * Every family and option against transformers in float32, on tiny random models
 * (bench/fixtures/families.py); and that each option shows in the logits at all.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Checkpoint } from '../../src/checkpoint/checkpoint.ts';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.ts';
import { loadRunner } from '../../src/model/load-runner.ts';
import { FAMILY_CASES, FAMILY_TOKENS, writeFamilyCase } from '../helpers/family-cases.ts';
import { fixturePath, temporaryFolder } from '../helpers/fixtures.ts';
import { Stepper } from '../helpers/stepper.ts';

const folder = temporaryFolder();
const fixture = JSON.parse(readFileSync(fixturePath('families.json'), 'utf8')) as Record<
  string,
  { readonly every: number; readonly logits: readonly (readonly number[])[] }
>;

/** Float sums in another order, and logits kept with five decimals. */
const ERROR = 2e-4;

/** The largest difference to transformers' logits over all kept positions. */
async function largestError(checkpoint: Checkpoint, name: string): Promise<number> {
  const runner = await loadRunner(checkpoint, {
    device: 'reference',
    kvPages: 4,
    kvType: 'f32',
    maxRows: FAMILY_TOKENS.length,
  });
  const stepper = new Stepper(runner);
  const path = stepper.tree.insert([...FAMILY_TOKENS]);
  const { output } = await stepper.step([path], FAMILY_TOKENS.length, true);
  const { every, logits } = fixture[name];
  const { vocab } = checkpoint.config;
  const errors = logits.flatMap((row, i) => {
    const start = (every * (i + 1) - 1) * vocab;
    return row.map((value, j) => Math.abs(value - output.logits[start + j]));
  });
  await runner.dispose();
  return Math.max(...errors);
}

for (const family of FAMILY_CASES) {
  test(`${family.name}: logits as transformers computes them`, async () => {
    const path = mkdtempSync(join(folder, 'family-'));
    writeFamilyCase(path, family);
    const checkpoint = openCheckpoint(path);
    const error = await largestError(checkpoint, family.name);
    assert.ok(error < ERROR, `logits differ by ${error}`);
    if (family.without) {
      const config = { ...checkpoint.config, ...family.without };
      const blind = await largestError({ ...checkpoint, config }, family.name);
      assert.ok(blind > 50 * ERROR, `the option moves logits by ${blind} only`);
    }
    checkpoint.close();
  });
}
