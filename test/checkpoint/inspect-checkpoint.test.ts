/**
 * The figures of `inspect` against counts made by hand for a tiny model.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inspectCheckpoint } from '../../src/checkpoint/inspect-checkpoint.ts';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { TINY, writeTinyGguf } from '../helpers/tiny-checkpoint.ts';

test('inspectCheckpoint counts parameters and bytes by type', () => {
  const model = openCheckpoint(writeTinyGguf(temporaryFolder(), TINY, 'Q4_K'));
  const summary = inspectCheckpoint(model);
  model.close();

  // Embedding and output of 96 x 256; a layer has q, o, gate, up, down of 256 x 256 and k, v of
  // 128 x 256; five norms of 256.
  const matrices = 2 * 96 * 256 + 2 * (5 * 256 * 256 + 2 * 128 * 256);
  assert.equal(summary.parameters, matrices + 5 * 256);
  assert.equal(summary.quantization, 'Q4_K');
  assert.deepEqual(summary.types, [
    { type: 'Q4_K', tensors: 16, parameters: matrices, bytes: (matrices / 256) * 144 },
    { type: 'F32', tensors: 5, parameters: 5 * 256, bytes: 5 * 256 * 4 },
  ]);
  assert.equal(summary.bytes, (matrices / 256) * 144 + 5 * 256 * 4);
  // K and V, 2 layers, 2 heads of 64, 2 bytes.
  assert.equal(summary.kvBytesPerToken, 2 * 2 * 2 * 64 * 2);
  assert.equal(summary.kvBytesOfContext, summary.kvBytesPerToken * 512);
  assert.equal(summary.tensors.length, 21);
});
