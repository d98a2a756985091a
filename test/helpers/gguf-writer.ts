/**
 * Writes small GGUF and safetensors files for tests; nothing is checked, so that wrong files can
 * be written too.
 * @module
 */

/** A metadata value with the type it is written as. */
export type Metadata =
  | { readonly type: 'u32' | 'i32' | 'f32' | 'u64' | 'bool'; readonly value: number }
  | { readonly type: 'string'; readonly value: string }
  | { readonly type: 'strings'; readonly value: readonly string[] }
  | { readonly type: 'i32s' | 'f32s'; readonly value: readonly number[] };

export interface TensorToWrite {
  readonly name: string;
  /** ggml's number of the type, or safetensors' name of it. */
  readonly type: number | string;
  /** Sizes, the contiguous dimension last; GGUF gets them reversed. */
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

const TYPE_NUMBERS = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, u64: 10 } as const;
const ARRAY = 9;

/** ggml's numbers of the types that can be read. */
export const GGML_NUMBERS = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q4_1: 3,
  Q5_0: 6,
  Q5_1: 7,
  Q8_0: 8,
  Q4_K: 12,
  Q5_K: 13,
  Q6_K: 14,
  BF16: 30,
} as const;

const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};

const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
};

const i32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(value);
  return bytes;
};

const f32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
};

const text = (value: string): Buffer =>
  Buffer.concat([u64(Buffer.byteLength(value)), Buffer.from(value)]);

function metadataBytes(entry: Metadata): Buffer {
  switch (entry.type) {
    case 'string':
      return Buffer.concat([u32(TYPE_NUMBERS.string), text(entry.value)]);
    case 'strings':
      return list(TYPE_NUMBERS.string, entry.value.map(text));
    case 'i32s':
      return list(TYPE_NUMBERS.i32, entry.value.map(i32));
    case 'f32s':
      return list(TYPE_NUMBERS.f32, entry.value.map(f32));
    default: {
      const write = { u32, i32, f32, u64, bool: (v: number) => Buffer.from([v]) }[entry.type];
      return Buffer.concat([u32(TYPE_NUMBERS[entry.type]), write(entry.value)]);
    }
  }
}

const list = (type: number, entries: readonly Buffer[]): Buffer =>
  Buffer.concat([u32(ARRAY), u32(type), u64(entries.length), ...entries]);

/** A GGUF file of version 3 with the default alignment. */
export function ggufBytes(
  metadata: Readonly<Record<string, Metadata>>,
  tensors: readonly TensorToWrite[],
): Buffer {
  const parts = [Buffer.from('GGUF'), u32(3), u64(tensors.length)];
  parts.push(u64(Object.keys(metadata).length));
  for (const [key, entry] of Object.entries(metadata)) {
    parts.push(text(key), metadataBytes(entry));
  }
  let offset = 0;
  for (const tensor of tensors) {
    parts.push(text(tensor.name), u32(tensor.shape.length));
    for (const size of tensor.shape.toReversed()) parts.push(u64(size));
    parts.push(u32(Number(tensor.type)), u64(offset));
    offset += padded(tensor.data.length);
  }
  const header = Buffer.concat(parts);
  const data = tensors.map(({ data }) => Buffer.concat([data], padded(data.length)));
  return Buffer.concat([Buffer.concat([header], padded(header.length)), ...data]);
}

const padded = (bytes: number): number => Math.ceil(bytes / 32) * 32;

/** A safetensors file. */
export function safetensorsBytes(tensors: readonly TensorToWrite[]): Buffer {
  const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
  let offset = 0;
  for (const { name, type, shape, data } of tensors) {
    header[name] = { dtype: type, shape, data_offsets: [offset, offset + data.length] };
    offset += data.length;
  }
  const json = Buffer.from(JSON.stringify(header));
  return Buffer.concat([u64(json.length), json, ...tensors.map(({ data }) => data)]);
}
