/**
 * Embedding, RMSNorm, SwiGLU and logit statistics on every provider, against float64 and the
 * independent decoder of weight blocks; fused kernels against their two steps, byte for byte.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Memory } from '../../../src/backend/cpu/memory.ts';
import { quantizedBytes, TYPE_CODE } from '../../../src/backend/cpu/repack.ts';
import { randomStream } from '../../../src/base/math.ts';
import { dequantize } from '../../../src/checkpoint/dequantize.ts';
import {
  columnStep,
  PROVIDERS,
  providerOf,
  randomInputs,
  randomRows,
  TYPES,
} from './product-cases.ts';

const EPSILON = 1e-5;

/** Puts floats into shared memory; returns their address. */
function put(memory: Memory, values: Float32Array): number {
  const block = memory.alloc(values.byteLength);
  block.f32().set(values);
  return block.address;
}

const near = (got: number, wanted: number, tolerance: number, what: string): void =>
  assert.ok(
    Math.abs(got - wanted) <= tolerance * Math.max(1e-30, Math.abs(wanted)),
    `${what}: ${got}, not ${wanted}`,
  );

for (const [kind, skip] of PROVIDERS) {
  test(`${kind}: embedding rows are the decoded blocks exactly`, { skip }, async () => {
    const { memory, kernels } = await providerOf(kind);
    const tokens = memory.alloc(16);
    tokens.i32().set([5, 0, 11, 5]);
    for (const type of TYPES) {
      const columns = 2 * columnStep(type);
      const raw = randomRows(type, 12, columns, 9);
      const table = memory.alloc(raw.length);
      table.u8().set(raw);
      const out = memory.alloc(4 * columns * 4);
      kernels.ff_embed(TYPE_CODE[type], table.address, tokens.address, out.address, 1, 4, columns);
      const values = dequantize(type, raw);
      assert.ok(
        out
          .f32()
          .subarray(0, columns)
          .every((value) => value === 0),
      );
      for (const [row, token] of [0, 11, 5].entries()) {
        const got = out.f32().subarray((row + 1) * columns, (row + 2) * columns);
        const wanted = values.subarray(token * columns, (token + 1) * columns);
        // Plus 0: the sign of a zero is lost where a minimum of 0 is added.
        assert.deepEqual([...got], [...wanted.map((value) => value + 0)], type);
      }
    }
  });

  test(`${kind}: RMSNorm is near float64 for any width`, { skip }, async () => {
    const { memory, kernels } = await providerOf(kind);
    for (const columns of [1, 7, 64, 576, 1001]) {
      const rows = 3;
      const x = randomInputs(rows, columns, 4);
      const weight = randomInputs(1, columns, 5);
      const out = memory.alloc(rows * columns * 4);
      const [from, by] = [put(memory, x), put(memory, weight)];
      kernels.ff_rms_norm(from, by, out.address, 0, rows, columns, EPSILON);
      for (let row = 0; row < rows; row++) {
        const values = x.subarray(row * columns, (row + 1) * columns);
        const mean = values.reduce((sum, value) => sum + value * value, 0) / columns;
        const scale = 1 / Math.sqrt(mean + EPSILON);
        values.forEach((value, i) => {
          near(out.f32()[row * columns + i], value * scale * weight[i], 1e-6, `${columns}, ${i}`);
        });
      }
    }
  });

  test(`${kind}: fused quantisation writes the same bytes`, { skip }, async () => {
    const { memory, kernels } = await providerOf(kind);
    const [rows, columns] = [7, 96];
    const x = put(memory, randomInputs(rows, columns * 2, 4));
    const weight = put(memory, randomInputs(1, columns, 5));
    const plain = memory.alloc(rows * columns * 4).address;
    const bytes = quantizedBytes(rows, columns);
    const [two, one] = [memory.alloc(bytes), memory.alloc(bytes)];

    kernels.ff_rms_norm(x, weight, plain, 0, rows, columns, EPSILON);
    kernels.ff_quantize_rows(plain, two.address, 0, rows, columns);
    kernels.ff_rms_norm_quantize(x, weight, one.address, 0, 3, columns, EPSILON);
    kernels.ff_rms_norm_quantize(x, weight, one.address, 3, rows, columns, EPSILON);
    assert.ok(one.u8().some((byte) => byte !== 0));
    assert.deepEqual(one.u8(), two.u8());

    const up = x + columns * 4;
    kernels.ff_swiglu(x, up, 2 * columns, plain, 0, rows, columns);
    kernels.ff_quantize_rows(plain, two.address, 0, rows, columns);
    kernels.ff_swiglu_quantize(x, up, 2 * columns, one.address, 0, rows, columns);
    assert.deepEqual(one.u8(), two.u8());
  });

  test(`${kind}: SwiGLU is near float64, also far out`, { skip }, async () => {
    const { memory, kernels } = await providerOf(kind);
    const gate = Float32Array.from([-200, -90, -20, -3, -1e-20, 0, 1e-20, 0.5, 3, 20, 90, 3e38, 1]);
    const up = gate.map((_, i) => i - 5.5);
    const columns = gate.length;
    const out = memory.alloc(columns * 4);
    const [g, u] = [put(memory, gate), put(memory, up)];
    kernels.ff_swiglu(g, u, columns, out.address, 0, 1, columns);
    gate.forEach((value, i) => {
      const wanted = (value * up[i]) / (1 + Math.exp(-value));
      if (Math.abs(wanted) > 3e38) assert.equal(Math.abs(out.f32()[i]), Number.POSITIVE_INFINITY);
      else if (value < -80) assert.ok(Math.abs(out.f32()[i]) < 1e-30);
      else near(out.f32()[i], wanted, 3e-6, `gate ${value}`);
    });
  });

  test(`${kind}: argmax takes the first of equals, log-sum-exp is near float64`, {
    skip,
  }, async () => {
    const { memory, kernels } = await providerOf(kind);
    const random = randomStream(8);
    for (const columns of [1, 3, 16, 50, 1000, 49152]) {
      const rows = 4;
      const x = Float32Array.from({ length: rows * columns }, () => Math.floor(random() * 40) - 20);
      for (let i = columns; i < 2 * columns; i++) x[i] = -5;
      for (let i = 2 * columns; i < 3 * columns; i++) x[i] = random() * 30 - 1000;
      const [argmax, logSumExp] = [memory.alloc(rows * 4), memory.alloc(rows * 4)];
      const logits = put(memory, x);
      kernels.ff_logit_stats(logits, argmax.address, logSumExp.address, 0, rows, columns);
      for (let row = 0; row < rows; row++) {
        const values = x.subarray(row * columns, (row + 1) * columns);
        const top = values.reduce((a, b) => Math.max(a, b));
        const sum = values.reduce((total, value) => total + Math.exp(value - top), 0);
        assert.equal(argmax.i32()[row], values.indexOf(top), `${columns} columns, row ${row}`);
        near(logSumExp.f32()[row], top + Math.log(sum), 4e-7, `${columns} columns, row ${row}`);
      }
    }
  });
}
