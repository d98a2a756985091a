/**
 * Tiny decoders that between them use every option of DecoderConfig, for the tests of runners.
 * @module
 */
import type { DecoderConfig } from '../../src/checkpoint/checkpoint.ts';
import { TINY } from './tiny-checkpoint.ts';

const BASE: DecoderConfig = { ...TINY, vocab: 300, contextLength: 1024 };

/** By what is special about each. Sizes are odd where a format allows it. */
export const TINY_CONFIGS: Readonly<Record<string, DecoderConfig>> = {
  'two KV heads': BASE,
  'one KV head, tied': { ...BASE, kvHeads: 1, heads: 5, tiedEmbeddings: true, layers: 1 },
  'no grouping, small heads': { ...BASE, heads: 3, kvHeads: 3, headDim: 32, vocab: 257 },
  'q and k norm, wide heads': { ...BASE, qkNorm: true, headDim: 128, layers: 1 },
  'qkv bias, group of 7': { ...BASE, qkvBias: true, heads: 7, kvHeads: 1, intermediate: 288 },
  'linear rope': { ...BASE, ropeScaling: { type: 'linear', factor: 4 }, layers: 1 },
  'llama3 rope': {
    ...BASE,
    layers: 1,
    ropeTheta: 500_000,
    ropeScaling: {
      type: 'llama3',
      factor: 8,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalContext: 128,
    },
  },
  'yarn rope': {
    ...BASE,
    layers: 1,
    ropeScaling: {
      type: 'yarn',
      factor: 4,
      originalContext: 256,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: null,
    },
  },
  'sliding window': { ...BASE, slidingWindow: 70, layers: 1 },
};
