/**
 * Products with every weight type on every provider: near a float64 product, and the same bits for
 * any batch size and any division among workers.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { isDense, panelCount } from '../../../src/backend/cpu/repack.ts';
import type { TensorType } from '../../../src/checkpoint/checkpoint.ts';
import {
  columnStep,
  Matrix,
  PROVIDERS,
  product,
  providerOf,
  quantizedInputs,
  randomInputs,
  TYPES,
} from './product-cases.ts';

/** Shapes with whole and partial panels, fewer columns than a vector, several blocks. */
const shapes = (type: TensorType): [number, number][] => {
  const step = columnStep(type);
  return [
    [1, step],
    [16, step],
    [37, 2 * step],
    [100, step === 32 ? 192 : 512],
  ];
};

const rms = (values: Float64Array): number =>
  Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);

for (const [kind, skip] of PROVIDERS) {
  for (const type of TYPES) {
    test(`${kind} ${type}: near float64`, { skip }, async () => {
      const { memory } = (await providerOf(kind)) ?? {};
      const rows = 19;
      for (const [outputs, columns] of shapes(type)) {
        const matrix = new Matrix(await providerOf(kind), type, outputs, columns);
        const x = randomInputs(rows, columns, 7);
        const y = memory.alloc(rows * outputs * 4);
        matrix.multiply(matrix.inputs(x), y.address, outputs, { rowBegin: 0, rowEnd: rows });
        const got = y.f32();

        // With the activations as they were quantised only float32 rounding is left.
        const used = isDense(type) ? x : quantizedInputs(x);
        const exact = product(used, matrix.values, rows, columns);
        for (let i = 0; i < got.length; i++) {
          const error = Math.abs(got[i] - exact.y[i]) / exact.size[i];
          assert.ok(error < 3e-6, `${outputs}x${columns} at ${i}: ${got[i]} for ${exact.y[i]}`);
        }
        // Quantising them costs less than 1% of the outputs' size.
        const wanted = product(x, matrix.values, rows, columns).y;
        const distance = rms(wanted.map((value, i) => got[i] - value)) / rms(wanted);
        assert.ok(distance < (isDense(type) ? 1e-6 : 0.01), `distance ${distance}`);
      }
    });

    test(`${kind} ${type}: same bits for any batch and any division`, { skip }, async () => {
      const provider = await providerOf(kind);
      const { memory } = provider;
      const [rows, outputs, columns] = [67, 53, columnStep(type) * 2];
      const matrix = new Matrix(provider, type, outputs, columns, 3);
      const x = matrix.inputs(randomInputs(rows, columns, 11));
      const whole = memory.alloc(rows * outputs * 4);
      const parts = memory.alloc(rows * outputs * 4);
      matrix.multiply(x, whole.address, outputs, { rowBegin: 0, rowEnd: rows });
      for (let batch = 1; batch <= rows; batch++) {
        parts.u8().fill(0xff);
        matrix.multiply(x, parts.address, outputs, { rowBegin: 0, rowEnd: batch });
        const bytes = batch * outputs * 4;
        assert.deepEqual(parts.u8().subarray(0, bytes), whole.u8().subarray(0, bytes));
        assert.ok(
          parts
            .u8()
            .subarray(bytes)
            .every((byte) => byte === 0xff),
          `batch ${batch}`,
        );
      }
      const panels = panelCount(outputs);
      const cuts = fc.tuple(fc.nat(rows), fc.nat(rows), fc.nat(panels));
      const check = fc.property(cuts, ([a, b, panelCut]) => {
        parts.u8().fill(0xff);
        const rowCuts = [0, Math.min(a, b), Math.max(a, b), rows];
        for (let i = 0; i < 3; i++) {
          const part = { rowBegin: rowCuts[i], rowEnd: rowCuts[i + 1] };
          matrix.multiply(x, parts.address, outputs, { ...part, panelEnd: panelCut });
          matrix.multiply(x, parts.address, outputs, { ...part, panelBegin: panelCut });
        }
        assert.deepEqual(parts.u8(), whole.u8());
      });
      fc.assert(check, { seed: 5, numRuns: 30 });
    });
  }

  for (const type of ['F32', 'Q8_0', 'Q4_K'] as const) {
    test(`${kind} ${type}: bias, adding to y, and a stride`, { skip }, async () => {
      const provider = await providerOf(kind);
      const { memory } = provider;
      const [rows, outputs, columns, stride] = [5, 21, 256, 30];
      const matrix = new Matrix(provider, type, outputs, columns);
      const x = matrix.inputs(randomInputs(rows, columns, 2));
      const bias = memory.alloc(outputs * 4);
      bias.f32().set(Float32Array.from({ length: outputs }, (_, i) => i - 3.5));
      const plain = memory.alloc(rows * stride * 4);
      const full = memory.alloc(rows * stride * 4);
      const all = { rowBegin: 0, rowEnd: rows };
      matrix.multiply(x, plain.address, stride, all);
      const start = Float32Array.from({ length: rows * stride }, (_, i) => (i % 17) - 8);
      full.f32().set(start);
      matrix.multiply(x, full.address, stride, { ...all, bias: bias.address, accumulate: true });
      for (let i = 0; i < rows * stride; i++) {
        const column = i % stride;
        const sum = Math.fround(plain.f32()[i] + bias.f32()[column]);
        const wanted = column < outputs ? Math.fround(start[i] + sum) : start[i];
        assert.equal(full.f32()[i], wanted);
      }
    });

    test(`${kind} ${type}: extreme rows stay finite and alone`, { skip }, async () => {
      const provider = await providerOf(kind);
      const { memory } = provider;
      const [rows, outputs, columns] = [8, 32, 256];
      const matrix = new Matrix(provider, type, outputs, columns);
      const x = randomInputs(rows, columns, 2);
      const before = memory.alloc(rows * outputs * 4);
      matrix.multiply(matrix.inputs(x), before.address, outputs, { rowBegin: 0, rowEnd: rows });
      x.fill(0, columns, 2 * columns);
      for (let i = 3 * columns; i < 4 * columns; i++) x[i] *= 1e32;
      for (let i = 4 * columns; i < 5 * columns; i++) x[i] *= 1e-40;
      const y = memory.alloc(rows * outputs * 4);
      matrix.multiply(matrix.inputs(x), y.address, outputs, { rowBegin: 0, rowEnd: rows });
      const wanted = product(x, matrix.values, rows, columns);
      for (let i = 0; i < rows * outputs; i++) {
        const row = Math.floor(i / outputs);
        if (row === 1) assert.equal(y.f32()[i], 0);
        else if (row === 3) assert.ok(Math.abs(y.f32()[i] - wanted.y[i]) < 0.005 * wanted.size[i]);
        else if (row === 4) assert.ok(Math.abs(y.f32()[i]) < 1e-30);
        else assert.equal(y.f32()[i], before.f32()[i]);
      }
    });
  }
}
