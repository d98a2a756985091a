/**
 * Shared by the tests of products and elementwise kernels: every provider of this machine, random
 * weights of every type, and a float64 product to compare with.
 * @module
 */

import { findCompiler } from '../../../src/backend/cpu/native-compiler.ts';
import { createProvider, type Provider } from '../../../src/backend/cpu/provider.ts';
import {
  formCode,
  isDense,
  panelCount,
  quantizedBytes,
  repackedBytes,
  TYPE_CODE,
} from '../../../src/backend/cpu/repack.ts';
import { randomStream } from '../../../src/base/math.ts';
import type { TensorType } from '../../../src/checkpoint/checkpoint.ts';
import { dequantize } from '../../../src/checkpoint/dequantize.ts';

/** Kinds of provider to test, with the reason why one is left out. */
export const PROVIDERS: readonly (readonly ['native' | 'wasm', string | false])[] = [
  ['native', (await findCompiler()) === null ? 'no C compiler on this machine' : false],
  ['wasm', false],
];

export const TYPES = Object.keys(TYPE_CODE) as TensorType[];

/** Weights, bytes and places of float16 numbers of a block. */
const BLOCKS: Readonly<Record<TensorType, readonly [number, number, readonly number[]]>> = {
  F32: [1, 4, []],
  F16: [1, 2, [0]],
  BF16: [1, 2, []],
  Q8_0: [32, 34, [0]],
  Q4_0: [32, 18, [0]],
  Q4_1: [32, 20, [0, 2]],
  Q5_0: [32, 22, [0]],
  Q5_1: [32, 24, [0, 2]],
  Q4_K: [256, 144, [0, 2]],
  Q5_K: [256, 176, [0, 2]],
  Q6_K: [256, 210, [208]],
};

/** The fewest columns a row of this type can have. */
export const columnStep = (type: TensorType): number => Math.max(BLOCKS[type][0], 32);

/** Rows of random weights as a file holds them: every bit pattern of quants, moderate scales. */
export function randomRows(type: TensorType, rows: number, columns: number, seed: number) {
  const random = randomStream(seed);
  const [weights, bytes, halves] = BLOCKS[type];
  const out = new Uint8Array(((rows * columns) / weights) * bytes);
  const view = new DataView(out.buffer);
  for (let i = 0; i < out.length; i++) out[i] = random() * 256;
  for (let at = 0; at < out.length; at += bytes) {
    // Sign, exponent from 2^-10 to 1, mantissa.
    for (const place of halves) {
      const bits = (random() < 0.5 ? 0x8000 : 0) | ((5 + random() * 11) << 10) | (random() * 1024);
      view.setUint16(at + place, bits, true);
    }
    if (type === 'F32') view.setFloat32(at, random() - 0.5, true);
    if (type === 'BF16')
      view.setUint16(at, 0x3f00 | (random() < 0.5 ? 0x8000 : 0) | (random() * 255), true);
  }
  return out;
}

/** Random activations with rows of different magnitude. */
export function randomInputs(rows: number, columns: number, seed: number): Float32Array {
  const random = randomStream(seed);
  return Float32Array.from(
    { length: rows * columns },
    (_, i) => (random() + random() + random() - 1.5) * (1 + (Math.floor(i / columns) % 5)),
  );
}

/** What ff_quantize_rows makes of activations, as floats: nearest, ties to even, 16 a scale. */
export function quantizedInputs(x: Float32Array): Float64Array {
  const out = new Float64Array(x.length);
  for (let block = 0; block < x.length; block += 16) {
    let largest = 0;
    for (let i = 0; i < 16; i++) largest = Math.max(largest, Math.abs(x[block + i]));
    if (!(largest > 1e-36)) continue;
    const inverse = Math.fround(127 / largest);
    for (let i = 0; i < 16; i++) {
      const value = Math.fround(x[block + i] * inverse);
      const low = Math.floor(value);
      const up = value - low > 0.5 || (value - low === 0.5 && low % 2 !== 0);
      out[block + i] = (up ? low + 1 : low) * Math.fround(largest / 127);
    }
  }
  return out;
}

/** x W^T in float64, and the sum of the terms' magnitudes, which rounding errors scale with. */
export function product(
  x: Float64Array | Float32Array,
  weights: Float32Array,
  rows: number,
  columns: number,
): { y: Float64Array; size: Float64Array } {
  const outputs = weights.length / columns;
  const y = new Float64Array(rows * outputs);
  const size = new Float64Array(rows * outputs);
  for (let row = 0; row < rows; row++) {
    for (let output = 0; output < outputs; output++) {
      let sum = 0;
      let magnitude = 0;
      for (let k = 0; k < columns; k++) {
        const term = x[row * columns + k] * weights[output * columns + k];
        sum += term;
        magnitude += Math.abs(term);
      }
      y[row * outputs + output] = sum;
      size[row * outputs + output] = magnitude;
    }
  }
  return { y, size };
}

/** Which part of a product to compute, and how. */
export interface Part {
  readonly rowBegin: number;
  readonly rowEnd: number;
  readonly panelBegin?: number;
  readonly panelEnd?: number;
  readonly bias?: number;
  readonly accumulate?: boolean;
}

/** A repacked weight matrix in a provider's memory, ready to be multiplied with. */
export class Matrix {
  readonly type: TensorType;
  readonly outputs: number;
  readonly columns: number;
  readonly values: Float32Array;
  readonly #provider: Provider;
  readonly #panels: number;

  constructor(provider: Provider, type: TensorType, outputs: number, columns: number, seed = 1) {
    const raw = randomRows(type, outputs, columns, seed);
    this.type = type;
    this.outputs = outputs;
    this.columns = columns;
    this.values = dequantize(type, raw);
    this.#provider = provider;
    const source = provider.memory.alloc(raw.length);
    source.u8().set(raw);
    const panels = provider.memory.alloc(repackedBytes(type, outputs, columns, provider.kind), 64);
    this.#panels = panels.address;
    panels.u8().fill(0xff);
    // In two parts, the second from its own first row, as a loader that reads piecewise does.
    const half = panelCount(outputs) >> 1;
    const rowBytes = raw.length / outputs;
    const { ff_repack } = provider.kernels;
    const code = TYPE_CODE[type];
    ff_repack(code, source.address, panels.address, outputs, columns, 0, half);
    const rest = source.address + half * 16 * rowBytes;
    ff_repack(code, rest, panels.address, outputs, columns, half, panelCount(outputs));
  }

  /** Brings activations to where `multiply` reads them. */
  inputs(x: Float32Array): number {
    const rows = x.length / this.columns;
    const block = this.#provider.memory.alloc(x.byteLength);
    block.f32().set(x);
    if (isDense(this.type)) return block.address;
    const quantized = this.#provider.memory.alloc(quantizedBytes(rows, this.columns));
    const { ff_quantize_rows } = this.#provider.kernels;
    ff_quantize_rows(block.address, quantized.address, 0, rows, this.columns);
    return quantized.address;
  }

  /** y (rows, stride) (+)= x W^T. */
  multiply(x: number, y: number, stride: number, part: Part): void {
    const { ff_linear, ff_linear_dense } = this.#provider.kernels;
    (isDense(this.type) ? ff_linear_dense : ff_linear)(
      formCode(this.type),
      x,
      this.#panels,
      part.bias ?? 0,
      y,
      stride,
      part.rowBegin,
      part.rowEnd,
      part.panelBegin ?? 0,
      part.panelEnd ?? panelCount(this.outputs),
      this.columns,
      this.outputs,
      part.accumulate ? 1 : 0,
    );
  }
}

const opened = new Map<string, Promise<Provider>>();

/** One provider of a kind for the whole test file. */
export function providerOf(kind: 'native' | 'wasm'): Promise<Provider> {
  const provider = opened.get(kind) ?? createProvider({ provider: kind });
  opened.set(kind, provider);
  return provider;
}
