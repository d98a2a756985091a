/**
 * Launches that overlap are described as C does, and what was measured fastest is kept on disk.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { LAUNCH_CONFIG_BYTES, packOverlapping } from '../../../src/backend/cuda/launch-config.ts';
import { MeasuredChoices } from '../../../src/backend/cuda/model/measured-choices.ts';

test('an overlapping launch is laid out as CUlaunchConfig with one attribute', () => {
  const memory = new Uint8Array(LAUNCH_CONFIG_BYTES);
  packOverlapping(memory, 4096n, { blocks: 3, blocksY: 5, threads: 320, sharedBytes: 7 }, 99n);
  const view = new DataView(memory.buffer);
  const words = Array.from({ length: 7 }, (_, i) => view.getUint32(i * 4, true));
  assert.deepEqual(words, [3, 5, 1, 320, 1, 1, 7]);
  assert.equal(view.getBigUint64(32, true), 99n);
  assert.equal(view.getBigUint64(40, true), 4096n + 56n);
  assert.deepEqual([view.getUint32(48, true), view.getUint32(56, true)], [1, 6]);
  assert.equal(view.getInt32(64, true), 1);
});

test('choices last, belong to their circumstances, and a damaged file is none', () => {
  const folder = mkdtempSync(join(tmpdir(), 'flashforge-test-'));
  const path = join(folder, 'deeper', 'choices.json');
  new MeasuredChoices(path, 'one device').set('a product', 'fast');
  new MeasuredChoices(path, 'another').set('a product', 'slow');
  assert.equal(new MeasuredChoices(path, 'one device').get('a product'), 'fast');
  assert.equal(new MeasuredChoices(path, 'another').get('a product'), 'slow');
  assert.equal(new MeasuredChoices(path, 'a third').get('a product'), undefined);
  assert.equal(readdirSync(join(folder, 'deeper')).length, 1);
  for (const damaged of ['{', '[1]', 'null', '{"one device: a product":3}']) {
    writeFileSync(path, damaged);
    assert.equal(new MeasuredChoices(path, 'one device').get('a product'), undefined);
  }
});
