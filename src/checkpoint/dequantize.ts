/**
 * Weights of every storage type as 32-bit floats, written plainly: the oracle that the packed
 * kernels are tested against, and the reader of small vectors. Block layouts as in ggml.
 * @module
 */
import { assert } from '../base/errors.ts';
import type { TensorType } from './checkpoint.ts';
import { BLOCKS } from './tensor-types.ts';

/** Decodes the block at byte `at` into `out` from `to` on. */
type BlockDecoder = (view: DataView, at: number, out: Float32Array, to: number) => void;

/** The value of a half-precision float given by its 16 bits. */
export function halfToFloat(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 0x1f) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

const half = (view: DataView, at: number): number => halfToFloat(view.getUint16(at, true));

const decodeF32: BlockDecoder = (view, at, out, to) => {
  out[to] = view.getFloat32(at, true);
};

const decodeF16: BlockDecoder = (view, at, out, to) => {
  out[to] = half(view, at);
};

const bits = new Uint32Array(1);
const float = new Float32Array(bits.buffer);
const decodeBf16: BlockDecoder = (view, at, out, to) => {
  bits[0] = view.getUint16(at, true) << 16; // bfloat16 is the upper half of a float
  out[to] = float[0];
};

/** d, then 32 signed bytes. */
const decodeQ8_0: BlockDecoder = (view, at, out, to) => {
  const d = half(view, at);
  for (let i = 0; i < 32; i++) out[to + i] = d * view.getInt8(at + 2 + i);
};

/** The two values of nibble byte i: weight i is in the low half, weight i + 16 in the high one. */
const decodeQ4_0: BlockDecoder = (view, at, out, to) => {
  const d = half(view, at);
  for (let i = 0; i < 16; i++) {
    const byte = view.getUint8(at + 2 + i);
    out[to + i] = d * ((byte & 15) - 8);
    out[to + i + 16] = d * ((byte >> 4) - 8);
  }
};

const decodeQ4_1: BlockDecoder = (view, at, out, to) => {
  const d = half(view, at);
  const m = half(view, at + 2);
  for (let i = 0; i < 16; i++) {
    const byte = view.getUint8(at + 4 + i);
    out[to + i] = Math.fround(d * (byte & 15)) + m;
    out[to + i + 16] = Math.fround(d * (byte >> 4)) + m;
  }
};

/** As Q4_0 with a fifth bit: bit i of a 32-bit word belongs to weight i. */
const decodeQ5_0: BlockDecoder = (view, at, out, to) => {
  const d = half(view, at);
  const high = view.getUint32(at + 2, true);
  for (let i = 0; i < 16; i++) {
    const byte = view.getUint8(at + 6 + i);
    out[to + i] = d * (((byte & 15) | (((high >>> i) & 1) << 4)) - 16);
    out[to + i + 16] = d * (((byte >> 4) | (((high >>> (i + 16)) & 1) << 4)) - 16);
  }
};

const decodeQ5_1: BlockDecoder = (view, at, out, to) => {
  const d = half(view, at);
  const m = half(view, at + 2);
  const high = view.getUint32(at + 4, true);
  for (let i = 0; i < 16; i++) {
    const byte = view.getUint8(at + 8 + i);
    out[to + i] = Math.fround(d * ((byte & 15) | (((high >>> i) & 1) << 4))) + m;
    out[to + i + 16] = Math.fround(d * ((byte >> 4) | (((high >>> (i + 16)) & 1) << 4))) + m;
  }
};

/**
 * Scale and minimum of group g (of 8) in the 12 bytes of a K block, 6 bits each: the first four
 * lie in the low bits, the others are split between a nibble and the two bits left above.
 */
function scaleAndMin(view: DataView, at: number, g: number): [scale: number, min: number] {
  const byte = (i: number): number => view.getUint8(at + i);
  if (g < 4) return [byte(g) & 63, byte(g + 4) & 63];
  return [
    (byte(g + 4) & 15) | ((byte(g - 4) >> 6) << 4),
    (byte(g + 4) >> 4) | ((byte(g) >> 6) << 4),
  ];
}

/** d, dmin, 12 bytes of scales, 128 bytes of nibbles: 32 bytes hold groups 2p (low), 2p + 1. */
const decodeQ4_K: BlockDecoder = (view, at, out, to) => {
  const d = half(view, at);
  const dmin = half(view, at + 2);
  for (let g = 0; g < 8; g++) {
    const [scale, min] = scaleAndMin(view, at + 4, g);
    const [step, offset] = [Math.fround(d * scale), Math.fround(dmin * min)];
    for (let i = 0; i < 32; i++) {
      const byte = view.getUint8(at + 16 + (g >> 1) * 32 + i);
      const q = g & 1 ? byte >> 4 : byte & 15;
      out[to + g * 32 + i] = Math.fround(step * q) - offset;
    }
  }
};

/** As Q4_K with 32 bytes of fifth bits: bit g of byte i belongs to weight i of group g. */
const decodeQ5_K: BlockDecoder = (view, at, out, to) => {
  const d = half(view, at);
  const dmin = half(view, at + 2);
  for (let g = 0; g < 8; g++) {
    const [scale, min] = scaleAndMin(view, at + 4, g);
    const [step, offset] = [Math.fround(d * scale), Math.fround(dmin * min)];
    for (let i = 0; i < 32; i++) {
      const byte = view.getUint8(at + 48 + (g >> 1) * 32 + i);
      const high = (view.getUint8(at + 16 + i) >> g) & 1;
      const q = (g & 1 ? byte >> 4 : byte & 15) | (high << 4);
      out[to + g * 32 + i] = Math.fround(step * q) - offset;
    }
  }
};

/**
 * 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales (one per 16 weights), d.
 * A half of 128 weights is four quarters of 32: byte i of the pairs serves weight i of each.
 */
const decodeQ6_K: BlockDecoder = (view, at, out, to) => {
  const d = half(view, at + 208);
  for (let h = 0; h < 2; h++) {
    for (let quarter = 0; quarter < 4; quarter++) {
      for (let i = 0; i < 32; i++) {
        const low = view.getUint8(at + h * 64 + (quarter & 1) * 32 + i);
        const pair = (view.getUint8(at + 128 + h * 32 + i) >> (quarter * 2)) & 3;
        const q = (quarter < 2 ? low & 15 : low >> 4) | (pair << 4);
        const scale = view.getInt8(at + 192 + h * 8 + quarter * 2 + (i >> 4));
        out[to + h * 128 + quarter * 32 + i] = Math.fround(d * scale) * (q - 32);
      }
    }
  }
};

const DECODERS: Readonly<Record<TensorType, BlockDecoder>> = {
  F32: decodeF32,
  F16: decodeF16,
  BF16: decodeBf16,
  Q8_0: decodeQ8_0,
  Q4_0: decodeQ4_0,
  Q4_1: decodeQ4_1,
  Q5_0: decodeQ5_0,
  Q5_1: decodeQ5_1,
  Q4_K: decodeQ4_K,
  Q5_K: decodeQ5_K,
  Q6_K: decodeQ6_K,
};

/** Decodes whole blocks; the result has one float per weight, in the order of the file. */
export function dequantize(type: TensorType, blocks: Uint8Array): Float32Array {
  const { values, bytes } = BLOCKS[type];
  assert(blocks.length % bytes === 0, `${blocks.length} bytes are no whole blocks of ${type}`);
  const count = blocks.length / bytes;
  const out = new Float32Array(count * values);
  const view = new DataView(blocks.buffer, blocks.byteOffset, blocks.byteLength);
  const decode = DECODERS[type];
  for (let block = 0; block < count; block++) decode(view, block * bytes, out, block * values);
  return out;
}
