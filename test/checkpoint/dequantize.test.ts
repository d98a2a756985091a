/**
 * The dequantiser against the gguf package's, bit for bit (bench/fixtures/dequantize.py).
 * @module
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import type { TensorType } from '../../src/checkpoint/checkpoint.ts';
import { dequantize, halfToFloat } from '../../src/checkpoint/dequantize.ts';
import { TENSOR_TYPES } from '../../src/checkpoint/tensor-types.ts';
import { fixturePath } from '../helpers/fixtures.ts';

type Fixture = Record<string, { blocks: string; values: string }>;
const fixture = JSON.parse(readFileSync(fixturePath('dequantize.json'), 'utf8')) as Fixture;

for (const type of TENSOR_TYPES.filter((name) => name !== 'F32')) {
  test(`dequantize ${type}`, () => {
    const { blocks, values } = fixture[type];
    const bytes = Uint8Array.from(Buffer.from(values, 'base64'));
    const expected = new Float32Array(bytes.buffer);
    const actual = dequantize(type as TensorType, Buffer.from(blocks, 'base64'));
    assert.deepEqual(actual, expected);
  });
}

test('dequantize F32 keeps the bits', () => {
  const values = Float32Array.of(0, -0, 1.5, -3e-40, Number.POSITIVE_INFINITY);
  assert.deepEqual(dequantize('F32', new Uint8Array(values.buffer)), values);
});

test('halfToFloat has every kind of number', () => {
  assert.equal(halfToFloat(0x3c00), 1);
  assert.equal(halfToFloat(0xc000), -2);
  assert.equal(halfToFloat(0x7bff), 65504);
  assert.equal(halfToFloat(0x0001), 2 ** -24);
  assert.ok(Object.is(halfToFloat(0x8000), -0));
  assert.equal(halfToFloat(0xfc00), Number.NEGATIVE_INFINITY);
  assert.ok(Number.isNaN(halfToFloat(0x7e00)));
});

test('dequantize refuses half a block', () => {
  assert.throws(() => dequantize('Q8_0', new Uint8Array(33)), /no whole blocks of Q8_0/);
});
