/**
 * KV pages read back as numbers: for checks, far from any hot path.
 * @module
 */
import { type AttentionShape, type KvType, kvLayout, PAGE_TOKENS } from './attention.ts';
import type { Memory } from './memory.ts';

/** One KV head's page: keys (headDim, 64) and values (64, headDim). */
export interface KvNumbers {
  readonly keys: Float64Array;
  readonly values: Float64Array;
}

/** The value of every f16 bit pattern. */
let halves: Float64Array | null = null;

function halfTable(): Float64Array {
  halves ??= Float64Array.from({ length: 65536 }, (_, bits) => {
    const exponent = (bits >> 10) & 31;
    const fraction = (bits & 1023) / 1024;
    const size = exponent === 0 ? fraction * 2 ** -14 : (1 + fraction) * 2 ** (exponent - 15);
    return bits & 0x8000 ? -size : size;
  });
  return halves;
}

/** The numbers of one plane (K or V), in the order in which they lie. */
function plane(memory: Memory, type: KvType, at: number, count: number): Float64Array {
  if (type === 'f32') return new Float64Array(memory.f32(at, count));
  const bits = memory.u16(at, count);
  if (type === 'i16') return new Float64Array(new Int16Array(bits));
  if (type === 'bf16') {
    const words = new Uint32Array(bits);
    for (let i = 0; i < count; i++) words[i] <<= 16;
    return new Float64Array(new Float32Array(words.buffer));
  }
  const [table, numbers] = [halfTable(), new Float64Array(count)];
  for (let i = 0; i < count; i++) numbers[i] = table[bits[i]];
  return numbers;
}

/** Reads the page of one layer and KV head that begins at `at`. */
export function readKvPage(memory: Memory, shape: AttentionShape, at: number): KvNumbers {
  const { headDim, kvType } = shape;
  const count = headDim * PAGE_TOKENS;
  const valuesAt = at + kvLayout(shape, 1, 1).valueOffset;
  const [keys, values] = [at, valuesAt].map((from) => plane(memory, kvType, from, count));
  if (kvType !== 'i16') return { keys, values };
  const [keyScale, valueScale] = [at, valuesAt].map((from) =>
    memory.f32(from + count * 2, PAGE_TOKENS),
  );
  const numbers = { keys: new Float64Array(count), values: new Float64Array(count) };
  for (let slot = 0; slot < PAGE_TOKENS; slot++) {
    for (let d = 0; d < headDim; d++) {
      const key = keys[((d >> 1) * PAGE_TOKENS + slot) * 2 + (d & 1)];
      const value = values[((slot >> 1) * headDim + d) * 2 + (slot & 1)];
      numbers.keys[d * PAGE_TOKENS + slot] = key * keyScale[slot];
      numbers.values[slot * headDim + d] = value * valueScale[slot];
    }
  }
  return numbers;
}
