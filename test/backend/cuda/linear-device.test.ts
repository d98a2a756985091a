/**
 * Our own products on a CUDA device against float64 on the host: each kind by itself, and all of
 * a layer in one launch, which must give equal bits every time. Skipped where there is no device.
 * @module
 */
import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { Cuda, type DeviceMemory } from '../../../src/backend/cuda/driver.ts';
import { KernelLoader } from '../../../src/backend/cuda/kernel-loader.ts';
import type { DenseMatrix } from '../../../src/backend/cuda/model/cuda-model.ts';
import { LinearKernels, type LinearPhase } from '../../../src/backend/cuda/model/linear.ts';
import { randomStream } from '../../../src/base/math.ts';

const EPSILON = 1e-6;
/** Of the rms; what rounding inputs of products to bf16 leaves. */
const ERROR = 0.003;
const REPEATS = 10;

let cuda: Cuda | undefined;
let reason = '';
try {
  cuda = await Cuda.open();
} catch (error) {
  reason = (error as Error).message;
}
const random = randomStream(7);
const float = new Float32Array(1);
const word = new Uint32Array(float.buffer);

/** A number rounded to bf16, as its 16 bits. */
function bits(value: number): number {
  float[0] = value;
  return ((word[0] + 0x7fff + ((word[0] >>> 16) & 1)) >>> 16) & 0xffff;
}

function value(from: number): number {
  word[0] = from << 16;
  return float[0];
}

const randomBits = (count: number, scale: number): Uint16Array =>
  Uint16Array.from({ length: count }, () => bits((random() * 2 - 1) * scale));
const values = (from: Uint16Array): Float64Array => Float64Array.from(from, value);
const rounded = (from: Float64Array): Float64Array => from.map((v) => value(bits(v)));

/** x (rows, columns) times w^T, w (outputs, columns). */
function product(x: Float64Array, w: Float64Array, rows: number, columns: number): Float64Array {
  const outputs = w.length / columns;
  return Float64Array.from({ length: rows * outputs }, (_, i) => {
    const [row, output] = [Math.floor(i / outputs) * columns, (i % outputs) * columns];
    let sum = 0;
    for (let k = 0; k < columns; k++) sum += x[row + k] * w[output + k];
    return sum;
  });
}

function normed(x: Float64Array, weight: Float32Array): Float64Array {
  const hidden = weight.length;
  return x.map((v, i) => {
    const row = x.subarray(i - (i % hidden), i - (i % hidden) + hidden);
    const squares = row.reduce((sum, other) => sum + other * other, 0);
    return (v * weight[i % hidden]) / Math.sqrt(squares / hidden + EPSILON);
  });
}

const swiglu = (gateUp: Float64Array, width: number): Float64Array =>
  Float64Array.from({ length: gateUp.length / 2 }, (_, i) => {
    const at = Math.floor(i / width) * 2 * width + (i % width);
    return (gateUp[at] / (1 + Math.exp(-gateUp[at]))) * gateUp[at + width];
  });

/** |got - expected| in the rms, over the rms of what is expected. */
function error(got: ArrayLike<number>, expected: Float64Array): number {
  let [off, all] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    off += (got[i] - expected[i]) ** 2;
    all += expected[i] ** 2;
  }
  return Math.sqrt(off / all);
}

describe('products on a CUDA device', { skip: cuda === undefined ? reason : false }, () => {
  const device = cuda as Cuda;
  const memory: DeviceMemory[] = [];
  const room = (bytes: number): bigint => {
    memory.push(device.alloc(bytes));
    return memory[memory.length - 1].address;
  };
  const upload = (from: NodeJS.TypedArray): bigint => {
    const address = room(from.byteLength);
    device.upload(address, from);
    return address;
  };
  after(() => {
    for (const part of memory) part.free();
    device.close();
  });

  const SIZES = { hidden: 256, queries: 512, width: 704, next: 1000 } as const;
  for (const rows of [1, 5, 16, 31, 48, 64]) {
    test(`${rows} rows`, async () => {
      const { hidden, queries, width, next } = SIZES;
      const stream = device.stream();
      const loader = await KernelLoader.open(device);
      const abort = upload(new Int32Array(4));
      const shape = { headDim: 128, pageSize: 16, dtype: 'bf16' } as const;
      const linear = new LinearKernels(loader, shape, 2 * width, abort, stream);
      const matrix = (outputs: number, columns: number): DenseMatrix & { w: Float64Array } => {
        const w = randomBits(outputs * columns, 0.05);
        return { address: upload(w), outputs, columns, w: values(w) };
      };
      const [o, gateUp] = [matrix(hidden, queries), matrix(2 * width, hidden)];
      const [down, qkv] = [matrix(hidden, width), matrix(next, hidden)];
      const attention = randomBits(rows * queries, 1);
      const x = Float32Array.from({ length: rows * hidden }, () => random() * 2 - 1);
      const weights = [0, 1].map(() => Float32Array.from({ length: hidden }, () => 0.8 + random()));

      const x1 = product(values(attention), o.w, rows, queries).map((v, i) => v + x[i]);
      const h1 = rounded(normed(x1, weights[0]));
      const act = rounded(swiglu(product(h1, gateUp.w, rows, hidden), width));
      const x2 = product(act, down.w, rows, width).map((v, i) => v + x1[i]);
      const y = product(rounded(normed(x2, weights[1])), qkv.w, rows, hidden);

      const [xAt, input] = [upload(x), room(rows * hidden * 2)];
      const [actAt, yAt] = [room(rows * width * 2), room(rows * next * 4)];
      const residual = { kind: 'residual', out: xAt, out16: input } as const;
      const phases: LinearPhase[] = [
        { ...residual, matrix: o, input: upload(attention), norm: upload(weights[0]) },
        { kind: 'swiglu', matrix: gateUp, input, out16: actAt },
        { ...residual, matrix: down, input: actAt, norm: upload(weights[1]) },
        { kind: 'plain', matrix: qkv, input, out: yAt },
      ];
      const run = (list: readonly LinearPhase[]): void => {
        linear.launch(list, rows, EPSILON, undefined, stream);
        stream.synchronize();
      };
      const floats = (address: bigint, count: number): Float32Array => {
        const to = new Float32Array(count);
        device.download(to, address);
        return to;
      };
      const check = (what: string): void => {
        assert.ok(error(floats(xAt, x.length), x2) < ERROR, `${what}: residual stream`);
        assert.ok(error(floats(yAt, y.length), y) < ERROR, `${what}: last product`);
      };

      for (const phase of phases) run([phase]);
      check('one by one');
      let first: Float32Array | undefined;
      for (let i = 0; i < REPEATS; i++) {
        device.upload(xAt, x);
        for (const [at, bytes] of [
          [input, rows * hidden * 2],
          [actAt, rows * width * 2],
          [yAt, rows * next * 4],
        ] as const) {
          device.fill(at, 0xff, bytes, stream);
        }
        run(phases);
        check('in one launch');
        first ??= floats(yAt, y.length);
        assert.deepEqual(floats(yAt, y.length), first, 'equal bits');
      }
      const code = new Int32Array(1);
      device.download(code, abort);
      assert.equal(code[0], 0, 'no wait was given up');
      linear.free();
      stream.free();
    });
  }
});
