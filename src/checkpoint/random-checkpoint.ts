/**
 * A model of a given shape with random weights, for measuring shapes whose weights are not at
 * hand. What it says is noise; what it costs is what the real model costs.
 * @module
 */
import { readFileSync } from 'node:fs';
import { FlashForgeError, show } from '../base/errors.ts';
import { randomStream } from '../base/math.ts';
import type { Checkpoint, DecoderConfig, TensorInfo, WeightName } from './checkpoint.ts';
import { configFromJson } from './hf-config.ts';
import { weightShapes } from './weights.ts';

/** Random numbers are drawn once and repeated: drawing billions would take minutes. */
const POOL_VALUES = 1 << 20;
/** Standard deviation of the weights, near that of trained ones. */
const DEVIATION = 0.02;

/** Reads a config.json as Hugging Face models have it. */
export function readModelConfig(path: string): DecoderConfig {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new FlashForgeError('model', `${show(path)} cannot be read`, { cause });
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new FlashForgeError('model', `${show(path)} is not JSON`, { cause });
  }
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new FlashForgeError('model', `${show(path)} must hold a JSON object`);
  }
  return configFromJson(path, json as Record<string, unknown>);
}

/** Matrices in BF16 of mean 0, norms 1, biases 0. */
export function randomCheckpoint(config: DecoderConfig, source = 'random weights'): Checkpoint {
  const tensors = new Map<WeightName, TensorInfo>();
  for (const { name, rows, columns } of weightShapes(config)) {
    const type = isVector(name) ? 'F32' : 'BF16';
    const bytes = rows * columns * (type === 'F32' ? 4 : 2);
    tensors.set(name, { name, type, rows, columns, bytes });
  }
  const pool = randomPool();
  let offset = 0;
  return {
    source,
    format: 'safetensors',
    config,
    tensors,
    read(name) {
      const { bytes, columns } = tensors.get(name) as TensorInfo;
      if (isVector(name)) {
        const value = /norm$/i.test(name) ? 1 : 0;
        return new Uint8Array(new Float32Array(columns).fill(value).buffer);
      }
      // Odd steps, so that no two matrices and no two rows begin alike.
      offset = (offset + 2 * 99_991) % pool.length;
      return repeated(pool, offset, bytes);
    },
    close: () => {},
  };
}

const isVector = (name: WeightName): boolean => /norm$|bias$/i.test(name);

function randomPool(): Uint8Array {
  const random = randomStream(1);
  const values = new Float32Array(POOL_VALUES);
  // The sum of three uniform numbers has a variance of 1/4 about its mean of 3/2.
  for (let i = 0; i < values.length; i++) {
    values[i] = (random() + random() + random() - 1.5) * 2 * DEVIATION;
  }
  const bits = new Uint32Array(values.buffer);
  return new Uint8Array(Uint16Array.from(bits, (word) => word >>> 16).buffer);
}

function repeated(pool: Uint8Array, offset: number, bytes: number): Uint8Array {
  const out = new Uint8Array(bytes);
  let from = offset;
  for (let at = 0; at < bytes; ) {
    const count = Math.min(bytes - at, pool.length - from);
    out.set(pool.subarray(from, from + count), at);
    at += count;
    from = 0;
  }
  return out;
}
