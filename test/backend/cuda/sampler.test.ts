/**
 * The device's sampler: it compiles without spills; on a device, its statistics and draws are those
 * of the host's engine/draw.ts over random, flat, peaked and tied logits.
 * @module
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { LogitChanges, RowDraw } from '../../../src/backend/backend.ts';
import { DRAW_WORDS } from '../../../src/backend/cuda/model/cuda-model.ts';
import { packDraw } from '../../../src/backend/cuda/model/pack-draws.ts';
import { compile, resourceUse } from '../../../src/backend/cuda/nvrtc.ts';
import type { NvrtcLibrary } from '../../../src/backend/cuda/signatures.ts';
import { kernelSources } from '../../../src/backend/cuda/variants.ts';
import { randomStream } from '../../../src/base/math.ts';
import { drawToken } from '../../../src/engine/draw.ts';
import { changeLogits } from '../../helpers/change-logits.ts';
import { cudaForTests, loaderForSuite } from '../../helpers/cuda-device.ts';
import { findCompiler } from '../../helpers/nvrtc.ts';
import { SamplerBed } from '../../helpers/sampler-bed.ts';

const nvrtc: NvrtcLibrary | string = await findCompiler();
const skip = typeof nvrtc === 'string' ? nvrtc : false;
/** Share of the probability by which a device's and the host's sums may differ. */
const BORDER = 2e-5;

for (const arch of ['sm_80', 'sm_90a']) {
  test(`sampler.cu compiles for ${arch} without spills`, { skip }, () => {
    const { log } = compile(nvrtc as NvrtcLibrary, kernelSources(), 'sampler.cu', arch, {});
    const uses = resourceUse(log);
    assert.equal(uses.length, 4);
    for (const { kernel, spillBytes } of uses) assert.equal(spillBytes, 0, kernel);
  });
}

test('a draw is packed as the kernel reads it', () => {
  const words = new Int32Array(3 * DRAW_WORDS).fill(7);
  const uniform = 1 - 1e-12;
  packDraw({ temperature: 0.5, topK: 40, topP: 0.3, minP: 0, uniform }, 0, words, DRAW_WORDS);
  packDraw(null, 0, words, 2 * DRAW_WORDS);
  const packed = words.slice(DRAW_WORDS, 2 * DRAW_WORDS);
  assert.deepEqual([...new Float32Array(packed.buffer, 0, 2)], [2, 24]);
  assert.deepEqual([packed[2], packed[3]], [40, -1]);
  assert.deepEqual([...new Float64Array(packed.buffer, 16, 2)], [0.3, uniform]);
  assert.deepEqual([words[2 * DRAW_WORDS], words[2 * DRAW_WORDS + 3]], [0, -1]);
});

/** Ways to make logits; with many equals, sums of many parts, or few that matter. */
const KINDS: Readonly<Record<string, (random: () => number, vocab: number) => Float32Array>> = {
  usual: (random, vocab) => normal(random, vocab, 3),
  flat: (random, vocab) => normal(random, vocab, 0.05),
  ties: (random, vocab) => normal(random, vocab, 2).map((x) => Math.round(x * 2) / 2),
  equal: (_, vocab) => new Float32Array(vocab).fill(-1.5),
  peaked: (random, vocab) => {
    const logits = normal(random, vocab, 1);
    logits[Math.floor(random() * vocab)] = 30;
    return logits;
  },
};

const normal = (random: () => number, count: number, scale: number): Float32Array =>
  Float32Array.from({ length: count }, () => {
    const sum = random() + random() + random() + random() + random() + random();
    return (sum - 3) * Math.SQRT2 * scale;
  });

const CHOICES: readonly Omit<RowDraw, 'uniform'>[] = [
  { temperature: 1, topK: 0, topP: 1, minP: 0 },
  { temperature: 0.6, topK: 0, topP: 1, minP: 0.05 },
  { temperature: 0.7, topK: 50, topP: 1, minP: 0 },
  { temperature: 1.5, topK: 1, topP: 1, minP: 0 },
  { temperature: 1, topK: 20, topP: 0.8, minP: 0.01 },
  { temperature: 1, topK: 0, topP: 0.9, minP: 0 },
  { temperature: 0.8, topK: 0, topP: 0.3, minP: 0.1 },
  { temperature: 2, topK: 0, topP: 0.999, minP: 0 },
  { temperature: 1, topK: 700, topP: 1, minP: 0 },
  { temperature: 1.2, topK: 30_000, topP: 0.95, minP: 0 },
];

/** Changes of the best tokens, and of the one that the row's own token is in every other list. */
function randomChanges(
  random: () => number,
  logits: Float32Array,
  count: number,
  pending: number,
): LogitChanges {
  const ids = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a]);
  const tokens = ids.filter((id) => id !== pending).slice(0, count);
  if (count % 2 === 1) tokens[0] = pending;
  return {
    tokens: Int32Array.from(tokens),
    bias: Float32Array.from(tokens, () => Math.round(random() * 4) - 2),
    counts: Int32Array.from(tokens, () => Math.floor(random() * 3)),
    inPrompt: Uint8Array.from(tokens, () => Math.round(random())),
    pending: count % 3 !== 0,
    ...{ repetitionPenalty: 1.5, presencePenalty: 0.5, frequencyPenalty: 0.25 },
  };
}

/** How far `uniform` is from the part of [0, 1) in which `token` is drawn, by float64 sums. */
function distanceToDraw(logits: Float32Array, draw: RowDraw, token: number): number {
  const best = logits.reduce((a, b) => Math.max(a, b));
  const range = draw.minP > 0 ? Math.min(24, -Math.log(draw.minP)) : 24;
  const far = (id: number): number => (best - logits[id]) / draw.temperature;
  let ids = Array.from(logits.keys()).filter((id) => far(id) <= range);
  const hasCut = draw.topK > 0 || draw.topP < 1;
  if (hasCut) ids.sort((a, b) => logits[b] - logits[a] || a - b);
  if (draw.topK > 0) ids = ids.slice(0, draw.topK);
  const weights = ids.map((id) => Math.exp(-far(id)));
  const whole = weights.reduce((a, b) => a + b, 0);
  let [mass, kept] = [0, 0];
  while (kept < ids.length && (!hasCut || mass < draw.topP * whole)) mass += weights[kept++];
  const place = ids.indexOf(token);
  // One token may be kept or not for rounding's sake.
  if (place < 0 || place > kept) return 1;
  let from = 0;
  for (let at = 0; at < place; at++) from += weights[at];
  const [low, high] = [from / mass, (from + weights[place]) / mass];
  return Math.max(0, low - draw.uniform, draw.uniform - high);
}

const { device, skip: noDevice } = await cudaForTests();

describe('on a CUDA device', { skip: noDevice }, () => {
  const suite = loaderForSuite(device);

  for (const vocab of [257, 1000, 32_000, 151_936]) {
    test(`vocabulary of ${vocab}: as the host draws`, () => {
      const random = randomStream(vocab);
      const rows = CHOICES.length + 1;
      const bed = new SamplerBed(suite.loader, vocab, rows);
      const logits = new Float32Array(rows * vocab);
      let equal = 0;
      for (const [kind, make] of Object.entries(KINDS)) {
        for (let row = 0; row < rows; row++) logits.set(make(random, vocab), row * vocab);
        bed.upload(logits);
        const draws = CHOICES.map((choice) => ({ ...choice, uniform: random() }));
        bed.draw([...draws, null]);
        for (let row = 0; row < rows; row++) {
          const values = logits.subarray(row * vocab, (row + 1) * vocab);
          const label = `${kind} row ${row} ${JSON.stringify(draws[row])}`;
          const best = values.reduce((a, b) => Math.max(a, b));
          assert.equal(bed.slot.argmax[row], values.indexOf(best), `${label}: argmax`);
          const sum = values.reduce((all, x) => all + Math.exp(x - best), 0);
          const off = Math.abs(bed.slot.logSumExp[row] - best - Math.log(sum));
          assert.ok(off < 2e-5 * Math.max(1, Math.abs(best)), `${label}: LSE off by ${off}`);
          const token = bed.slot.drawn[row];
          assert.equal(bed.slot.drawnLogit[row], values[token], `${label}: logit of ${token}`);
          if (row === CHOICES.length) {
            assert.equal(token, values.indexOf(best), `${label}: without a draw`);
            continue;
          }
          const { uniform, ...choice } = draws[row];
          const expected = drawToken(values, best, choice, uniform);
          if (token === expected) equal++;
          else {
            const far = distanceToDraw(values, draws[row], token);
            assert.ok(far < BORDER, `${label}: ${token} for ${expected}, ${far} off`);
          }
        }
      }
      bed.free();
      const share = equal / (CHOICES.length * Object.keys(KINDS).length);
      assert.ok(share > 0.8, `${share} of all draws are the host's`);
    });
  }

  test('logits are changed for a draw, and back', () => {
    const [vocab, rows] = [5000, 12];
    const random = randomStream(3);
    const bed = new SamplerBed(suite.loader, vocab, rows);
    const logits = normal(random, vocab * rows, 2);
    bed.upload(logits);
    const pending = Int32Array.from({ length: rows }, () => Math.floor(random() * vocab));
    const draws = Array.from({ length: rows }, (_, row): RowDraw | null => {
      if (row === 5) return null;
      const values = logits.subarray(row * vocab, (row + 1) * vocab);
      const changes = randomChanges(random, values, row === 4 ? 0 : 1 + row * 90, pending[row]);
      const temperature = row % 3 === 0 ? 0 : 0.8;
      return {
        temperature,
        topK: row % 2 === 0 ? 0 : 30,
        topP: 1,
        minP: 0,
        uniform: random(),
        changes,
      };
    });
    bed.draw(draws, pending);
    for (let row = 0; row < rows; row++) {
      const values = logits.subarray(row * vocab, (row + 1) * vocab);
      const wanted = values.slice();
      const draw = draws[row];
      if (draw?.changes) changeLogits(wanted, draw.changes, pending[row]);
      const best = wanted.reduce((a, b) => Math.max(a, b));
      const token = bed.slot.drawn[row];
      const label = `row ${row}`;
      assert.equal(bed.slot.drawnLogit[row], values[token], label);
      assert.equal(bed.slot.argmax[row], values.indexOf(values.reduce((a, b) => Math.max(a, b))));
      if (draw === null || draw.temperature === 0) assert.equal(token, wanted.indexOf(best), label);
      else if (token !== drawToken(wanted, best, draw, draw.uniform)) {
        assert.ok(distanceToDraw(wanted, draw, token) < BORDER, label);
      }
    }
    bed.draw(new Array(rows).fill(null));
    for (let row = 0; row < rows; row++) {
      const values = logits.subarray(row * vocab, (row + 1) * vocab);
      assert.equal(
        bed.slot.drawnLogit[row],
        values.reduce((a, b) => Math.max(a, b)),
      );
    }
    bed.free();
  });

  test('drawn tokens become the inputs of the next step', () => {
    const bed = new SamplerBed(suite.loader, 1000, 4);
    const logits = new Float32Array(4000);
    [11, 22, 33, 44].forEach((token, row) => {
      logits[row * 1000 + token] = 5;
    });
    bed.upload(logits);
    bed.draw([null, null, null, null]);
    assert.deepEqual([...bed.enter(Int32Array.of(-4, 7, -1, -2), [])], [44, 7, 11, 22]);
    bed.free();
  });
});
