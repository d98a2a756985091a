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
import { bytesOf } from '../../src/checkpoint/tensor-types.ts';
import { weightShapes } from '../../src/checkpoint/weights.ts';
import { randomBlocks } from './tiny-checkpoint.ts';

/** Norms near 1, biases small; both are floats in every model. */
function vector(name: string, count: number, random: () => number): Uint8Array {
  const middle = /norm$/i.test(name) ? 1 : 0;
  const values = Float32Array.from({ length: count }, () => middle + (random() - 0.5) / 2);
  return new Uint8Array(values.buffer);
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
  return {
    source: 'memory',
    format: 'gguf',
    config,
    tensors,
    read: (name) => data.get(name)!.slice(),
    close: () => {},
  };
}
