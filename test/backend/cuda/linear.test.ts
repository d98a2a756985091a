/**
 * Our own products, as far as they can be seen without a device: every variant compiles without
 * spills and fits into a block's shared memory, and launches that overlap are described as C does.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { LAUNCH_CONFIG_BYTES, packOverlapping } from '../../../src/backend/cuda/launch-config.ts';
import {
  fitsLinear,
  LINEAR_ROWS_MAX,
  linearVariant,
} from '../../../src/backend/cuda/model/linear.ts';
import { MeasuredChoices } from '../../../src/backend/cuda/model/measured-choices.ts';
import { compile, resourceUse } from '../../../src/backend/cuda/nvrtc.ts';
import type { NvrtcLibrary } from '../../../src/backend/cuda/signatures.ts';
import { kernelSources } from '../../../src/backend/cuda/variants.ts';
import { findCompiler } from '../../helpers/nvrtc.ts';

const nvrtc: NvrtcLibrary | string = await findCompiler();
const skip = typeof nvrtc === 'string' ? nvrtc : false;
const HOPPER_SHARED = 227 * 1024;
const QWEN = { headDim: 128, pageSize: 16, dtype: 'bf16' } as const;

for (const rows of [1, 16, 32, 48, 64]) {
  test(`linear.cu compiles for ${rows} rows without spills`, { skip }, (t) => {
    for (const shape of [QWEN, { ...QWEN, headDim: 64, dtype: 'f16' } as const]) {
      const { defines } = linearVariant(rows, shape, HOPPER_SHARED);
      const library = nvrtc as NvrtcLibrary;
      const { log } = compile(library, kernelSources(), 'linear.cu', 'sm_90a', defines);
      const [use] = resourceUse(log);
      t.diagnostic(`${use.registers} registers`);
      assert.equal(use.spillBytes, 0);
    }
  });
}

test('every number of rows has a variant that holds it and fits into shared memory', () => {
  for (let rows = 1; rows <= LINEAR_ROWS_MAX; rows++) {
    const variant = linearVariant(rows, QWEN, HOPPER_SHARED);
    assert.ok(variant.rows >= rows);
    assert.ok(variant.sharedBytes <= HOPPER_SHARED);
    assert.ok(variant.defines.FF_STAGES >= 8, `${variant.defines.FF_STAGES} stages`);
  }
});

test('products whose tiles TMA cannot cut are left to cuBLASLt', () => {
  const matrix = { address: 0n, outputs: 6144, columns: 2560 };
  assert.ok(fitsLinear(matrix));
  assert.ok(!fitsLinear({ ...matrix, columns: 2592 }));
  assert.ok(!fitsLinear({ ...matrix, outputs: 49153 }));
});

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
