/**
 * What the CUDA model runner is made of, as far as it can be seen without a device: kernels
 * compile without spills, arguments have C's layout, steps are padded to buckets.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { packArguments } from '../../../src/backend/cuda/launch-arguments.ts';
import { bucketOf, GRAPH_ROWS, isGraphBucket } from '../../../src/backend/cuda/model/buckets.ts';
import { decoderDefines, ROTATE } from '../../../src/backend/cuda/model/cuda-ops.ts';
import { rowsPerPiece } from '../../../src/backend/cuda/model/weight-upload.ts';
import { compile, resourceUse } from '../../../src/backend/cuda/nvrtc.ts';
import type { NvrtcLibrary } from '../../../src/backend/cuda/signatures.ts';
import { HEAD_DIMS, kernelSources } from '../../../src/backend/cuda/variants.ts';
import { findCompiler } from '../../helpers/nvrtc.ts';

const nvrtc: NvrtcLibrary | string = await findCompiler();
const skip = typeof nvrtc === 'string' ? nvrtc : false;

for (const arch of ['sm_80', 'sm_90a']) {
  for (const headDim of HEAD_DIMS) {
    test(`decoder.cu compiles for ${arch}, head_dim ${headDim}, without spills`, { skip }, () => {
      for (const dtype of ['f16', 'bf16'] as const) {
        const defines = decoderDefines(headDim, 16, dtype);
        const library = nvrtc as NvrtcLibrary;
        const { log } = compile(library, kernelSources(), 'decoder.cu', arch, defines);
        const uses = resourceUse(log);
        assert.equal(uses.length, 6);
        for (const { kernel, registers, spillBytes } of uses) {
          assert.equal(spillBytes, 0, kernel);
          assert.ok(registers <= 64, `${kernel} takes ${registers} registers`);
        }
      }
    });
  }
}

test('arguments of ff_rotate_store end where the C struct ends', () => {
  const values = [...ROTATE].map((_, i) => i + 1);
  const bytes = packArguments(ROTATE, values);
  const view = new DataView(bytes.buffer);
  assert.equal(bytes.length, 96);
  assert.equal(view.getBigUint64(9 * 8, true), 10n);
  assert.deepEqual(
    [80, 84, 88].map((at) => view.getInt32(at, true)),
    [11, 12, 13],
  );
  assert.equal(view.getFloat32(92, true), 14);
});

test('buckets hold their steps, are few, and never exceed the runner', () => {
  for (const maxRows of [1, 5, 160, 512, 2048]) {
    const seen = new Set<number>();
    for (let rows = 1; rows <= maxRows; rows++) {
      const bucket = bucketOf(rows, maxRows);
      assert.ok(bucket >= rows && bucket <= maxRows, `${rows} of ${maxRows} into ${bucket}`);
      assert.equal(isGraphBucket(bucket), bucket <= 128);
      seen.add(bucket);
    }
    assert.ok(seen.size <= GRAPH_ROWS.length + maxRows / 64);
  }
  assert.equal(bucketOf(0, 64), 0);
  assert.equal(bucketOf(17, 512), 24);
  assert.equal(bucketOf(129, 512), 192);
});

test('rows are cut into pieces that fit, one at least', () => {
  assert.equal(rowsPerPiece(100, 1000), 10);
  assert.equal(rowsPerPiece(101, 1000), 9);
  assert.equal(rowsPerPiece(5000, 1000), 1);
});
