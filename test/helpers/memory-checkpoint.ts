/**
 * Tiny decoders that never touch the disk: every option of DecoderConfig and every storage type,
 * with seeded random weights.
 * @module
 */
import { randomStream } from '../../src/base/math.ts';
import type {
  Checkpoint,
  DecoderConfig,
  TensorInfo,
  TensorType,
  WeightName,
} from '../../src/checkpoint/checkpoint.ts';
import { dequantize } from '../../src/checkpoint/dequantize.ts';
import { bytesOf } from '../../src/checkpoint/tensor-types.ts';
import { weightShapes } from '../../src/checkpoint/weights.ts';
import { randomBlocks } from './tiny-checkpoint.ts';

/** Norms near 1, biases small; both are floats in every model. */
function vector(name: string, count: number, random: () => number): Uint8Array {
  const middle = /norm$/i.test(name) ? 1 : 0;
  const values = Float32Array.from({ length: count }, () => middle + (random() - 0.5) / 2);
  return new Uint8Array(values.buffer);
}

/** Typical size of the weights of a q projection for which scores stay near 1. */
const MILD_WEIGHT = 0.04;

/**
 * Scales a layer's first norm so that its scores stay small: random blocks of some types are so
 * large that softmax picks a single key, and then the least rounding decides which.
 */
function softenAttention(
  tensors: ReadonlyMap<WeightName, TensorInfo>,
  data: Map<WeightName, Uint8Array>,
  layer: number,
): void {
  let largest = MILD_WEIGHT;
  for (const part of ['q', 'k'] as const) {
    const name: WeightName = `${layer}.${part}`;
    const weights = dequantize(tensors.get(name)!.type, data.get(name)!);
    const squares = weights.reduce((sum, x) => sum + x * x, 0);
    largest = Math.max(largest, Math.sqrt(squares / weights.length));
  }
  const norm = new Float32Array(data.get(`${layer}.attnNorm`)!.buffer);
  for (let i = 0; i < norm.length; i++) norm[i] *= MILD_WEIGHT / largest;
}

/**
 * A checkpoint with random weights.
 * @param type storage type of every matrix, or of each by name.
 */
export function memoryCheckpoint(
  config: DecoderConfig,
  type: TensorType | ((name: WeightName) => TensorType),
  seed = 1,
): Checkpoint {
  const random = randomStream(seed);
  const tensors = new Map<WeightName, TensorInfo>();
  const data = new Map<WeightName, Uint8Array>();
  for (const { name, rows, columns } of weightShapes(config)) {
    const isVector = /norm$|bias$/i.test(name);
    const stored = isVector ? 'F32' : typeof type === 'string' ? type : type(name);
    const bytes = isVector
      ? vector(name, columns, random)
      : randomBlocks(stored, rows * columns, random);
    data.set(name, bytes);
    const info = { name, type: stored, rows, columns, bytes: bytesOf(stored, rows * columns) };
    tensors.set(name, info);
  }
  for (let layer = 0; layer < config.layers; layer++) softenAttention(tensors, data, layer);
  return {
    source: 'memory',
    format: 'gguf',
    config,
    tensors,
    read: (name) => data.get(name)!.slice(),
    close: () => {},
  };
}
