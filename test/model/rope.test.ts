/**
 * Rotary frequencies against numbers computed by hand from the formulas of the papers.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DecoderConfig } from '../../src/checkpoint/checkpoint.ts';
import { inverseFrequencies, ropeMagnitude, ropeTables } from '../../src/model/rope.ts';
import { TINY_CONFIGS } from '../helpers/tiny-configs.ts';

const base = TINY_CONFIGS['two KV heads'];
const near = (actual: number, expected: number): void =>
  assert.ok(Math.abs(actual - expected) <= 1e-6 * Math.abs(expected), `${actual} ${expected}`);

test('plain frequencies fall geometrically from 1', () => {
  const frequencies = inverseFrequencies({ ...base, headDim: 8, ropeTheta: 10_000 });
  for (let i = 0; i < 4; i++) near(frequencies[i], 10 ** -i);
});

test('linear and factors divide', () => {
  const small: DecoderConfig = { ...base, headDim: 4, ropeTheta: 100 };
  const linear = inverseFrequencies({ ...small, ropeScaling: { type: 'linear', factor: 4 } });
  near(linear[1], 0.1 / 4);
  const scaling = { type: 'factors', factors: [2, 5] } as const;
  const factors = inverseFrequencies({ ...small, ropeScaling: scaling });
  near(factors[0], 0.5);
  near(factors[1], 0.02);
});

test('llama3 keeps short waves, slows long ones, and blends between', () => {
  const config = TINY_CONFIGS['llama3 rope'];
  const plain = inverseFrequencies({ ...config, ropeScaling: null });
  const scaled = inverseFrequencies(config);
  near(scaled[0], plain[0]); // wavelength 6.3 is below 128 / 4
  const last = plain.length - 1;
  near(scaled[last], plain[last] / 8); // far above 128 / 1
  // Wavelength 2 pi / f = 74.3 for pair 6 of headDim 64: turns 128 / 74.3 = 1.723.
  const turns = (128 * plain[6]) / (2 * Math.PI);
  const keep = (turns - 1) / 3;
  assert.ok(keep > 0 && keep < 1);
  near(scaled[6], (1 - keep) * (plain[6] / 8) + keep * plain[6]);
});

test('yarn keeps the first pairs, divides the last, and sharpens attention', () => {
  const config = TINY_CONFIGS['yarn rope'];
  const plain = inverseFrequencies({ ...config, ropeScaling: null });
  const scaled = inverseFrequencies(config);
  // Correction dimensions for 32 and 1 turns in 256 tokens: 64 ln(256 / (2 pi n)) / (2 ln 10^4).
  assert.ok((64 * Math.log(256 / (64 * Math.PI))) / (2 * Math.log(10_000)) < 1);
  near(scaled[0], plain[0]);
  near(scaled[31], plain[31] / 4);
  const slow = 5 / 13; // ramp from 0 to ceil(12.88)
  near(scaled[5], plain[5] * (1 - slow) + (plain[5] / 4) * slow);
  near(ropeMagnitude(config.ropeScaling), 0.1 * Math.log(4) + 1);
});

test('tables hold cosines and sines of position times frequency', () => {
  const config: DecoderConfig = { ...base, headDim: 4, ropeTheta: 100 };
  const { cosine, sine, positions } = ropeTables(config, 3);
  assert.equal(positions, 3);
  near(cosine[2 * 2 + 1], Math.cos(0.2));
  near(sine[2 * 2 + 0], Math.sin(2));
});
