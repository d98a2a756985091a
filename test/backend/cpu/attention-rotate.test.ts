/**
 * Norm, rotation and storing of q, k and v against float64, native and WebAssembly.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type AttentionShape,
  KV_TYPES,
  kvLayout,
  PAGE_TOKENS,
  runRotate,
} from '../../../src/backend/cpu/attention.ts';
import { PlanImage } from '../../../src/backend/cpu/attention-image.ts';
import { readKvPage } from '../../../src/backend/cpu/kv-pages.ts';
import { findCompiler } from '../../../src/backend/cpu/native-compiler.ts';
import { createProvider, type Provider } from '../../../src/backend/cpu/provider.ts';
import { randomStream } from '../../../src/base/math.ts';
import { defaultProfile } from '../../../src/plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS, makePlan } from '../../../src/plan/make-plan.ts';
import { buildForest } from './attention-case.ts';

const ROWS = 5;
const LAYERS = 2;
const PAGES = 3;
const EPSILON = 1e-6;
const POSITIONS = 40;

/** What the kernel should make of one head. */
function expected(
  x: Float32Array,
  weight: Float32Array | null,
  cosine: Float32Array,
  sine: Float32Array,
): number[] {
  const mean = x.reduce((sum, value) => sum + value * value, 0) / x.length;
  const scale = weight === null ? 1 : 1 / Math.sqrt(mean + EPSILON);
  const y = Array.from(x, (value, i) => value * scale * (weight === null ? 1 : weight[i]));
  const half = x.length / 2;
  return y.map((value, i) =>
    i < half
      ? value * cosine[i] - y[i + half] * sine[i]
      : value * cosine[i - half] + y[i - half] * sine[i - half],
  );
}

function check(provider: Provider, shape: AttentionShape, norms: boolean, workers: number): void {
  const { memory, kernels } = provider;
  const { kvHeads, groupSize, headDim, kvType } = shape;
  const random = randomStream(headDim + groupSize);
  const fill = (count: number): { address: number; f32: Float32Array } => {
    const block = memory.alloc(count * 4);
    const f32 = block.f32();
    for (let i = 0; i < count; i++) f32[i] = random() * 4 - 2;
    return { address: block.address, f32 };
  };
  const queryWidth = kvHeads * groupSize * headDim;
  const keyWidth = kvHeads * headDim;
  const stride = queryWidth + 2 * keyWidth;
  const inputs = fill(ROWS * stride);
  const before = inputs.f32.slice();
  const half = headDim / 2;
  const [cosine, sine] = [fill(POSITIONS * half), fill(POSITIONS * half)];
  const [queryNorm, keyNorm] = [fill(headDim), fill(headDim)];
  const layout = kvLayout(shape, LAYERS, PAGES);
  const pages = memory.alloc(layout.totalBytes);
  const writeSlots = memory.alloc(ROWS * 4);
  const slots = [130, 0, -1, 63, 64];
  writeSlots.i32().set(slots);
  const image = new PlanImage(memory, kernels, shape, {
    ...{ query: inputs.address, key: inputs.address + queryWidth * 4, inputStride: stride },
    ...{ value: inputs.address + (queryWidth + keyWidth) * 4, output: 0, outputStride: 0 },
    ...{ pages: pages.address, layout, cosine: cosine.address, sine: sine.address },
    writeSlots: writeSlots.address,
  });
  const forest = buildForest([{ parent: -1, tokens: POSITIONS, requests: [ROWS] }]);
  image.write(
    makePlan(forest, {
      ...{ kvHeads, groupSize, headDim, workers, pageSize: 64, taskRows: 8 },
      ...{ profile: defaultProfile('cpu', headDim), options: DEFAULT_PLAN_OPTIONS },
    }),
    forest,
  );
  const addresses = {
    query: norms ? queryNorm.address : 0,
    key: norms ? keyNorm.address : 0,
    epsilon: EPSILON,
  };
  for (let worker = 0; worker < workers; worker++)
    runRotate(kernels, image.address, 1, ROWS, shape, addresses, worker, workers);

  const close = (got: number, wanted: number, precision: number): void =>
    assert.ok(
      Math.abs(got - wanted) <= precision * Math.max(1, Math.abs(wanted)),
      `${got}, expected ${wanted}`,
    );
  const precision = { f32: 2e-6, f16: 2 ** -11 + 1e-6, bf16: 2 ** -8, i16: 6e-4 }[kvType];
  let written = 0;
  for (let row = 0; row < ROWS; row++) {
    const angles = forest.rowPosition[row] * half;
    const c = cosine.f32.subarray(angles, angles + half);
    const s = sine.f32.subarray(angles, angles + half);
    for (let head = 0; head < kvHeads * groupSize; head++) {
      const at = row * stride + head * headDim;
      const x = before.subarray(at, at + headDim);
      expected(x, norms ? queryNorm.f32 : null, c, s).forEach((value, i) => {
        close(inputs.f32[at + i], value, 2e-6);
      });
    }
    if (slots[row] < 0) continue;
    const page = Math.floor(slots[row] / PAGE_TOKENS);
    const slot = slots[row] % PAGE_TOKENS;
    for (let head = 0; head < kvHeads; head++) {
      const base = layout.layerBytes + page * layout.pageBytes + head * layout.headBytes;
      const { keys, values } = readKvPage(memory, shape, pages.address + base);
      const at = row * stride + queryWidth + head * headDim;
      const x = before.subarray(at, at + headDim);
      expected(x, norms ? keyNorm.f32 : null, c, s).forEach((value, i) => {
        close(keys[i * PAGE_TOKENS + slot], value, precision);
        const v = before[at + keyWidth + i];
        close(values[slot * headDim + i], v, precision);
      });
      written += kvType === 'i16' ? 2 * headDim + 4 : 2 * headDim;
    }
  }
  let nonzero = 0;
  for (const x of kvType === 'f32' ? pages.f32() : pages.u16()) nonzero += x === 0 ? 0 : 1;
  assert.ok(nonzero <= written, 'nothing else was written');
}

for (const kind of ['native', 'wasm'] as const) {
  const skip = kind === 'native' && (await findCompiler()) === null ? 'no C compiler' : false;
  test(`${kind}: rotate and store`, { skip }, async () => {
    const provider = await createProvider({ provider: kind });
    for (const headDim of [16, 64, 80, 96, 128, 256]) {
      for (const kvType of KV_TYPES) {
        check(provider, { headDim, groupSize: 3, kvHeads: 2, kvType }, headDim % 64 === 0, 2);
        check(provider, { headDim, groupSize: 1, kvHeads: 1, kvType }, headDim % 64 !== 0, 3);
      }
    }
  });
}
