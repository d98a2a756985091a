/**
 * Reads the header of a GGUF file: metadata and the table of tensors, not their data.
 * An own reader, because a header may be hostile: every count is held against the bytes that are
 * left in the file before anything is allocated, and the file is read once, front to back.
 * Format: the GGUF specification of ggml, versions 2 and 3, little-endian.
 * @module
 */
import { show } from '../base/errors.ts';
import { type ModelFile, modelError } from './model-file.ts';
import { BLOCKS, bytesOf, GGML_TYPES, isTensorType } from './tensor-types.ts';

const MAGIC = 0x46554747; // "GGUF", little-endian
const ALIGNMENT_DEFAULT = 32;
const DIMENSIONS_MAX = 4; // ggml's own limit
/** Real headers are below 50 MB (the vocabulary); more is an attack or damage. */
const HEADER_BYTES_MAX = 256 << 20;
const STRING_BYTES_MAX = 16 << 20;
/** Real files have tens of metadata entries and a few thousand tensors. */
const ENTRIES_MAX = 65_536;
const WINDOW_BYTES = 1 << 20;
/** Least bytes of an entry: an empty name, its type, and a value of one byte. */
const METADATA_BYTES_MIN = 8 + 4 + 1;
const TENSOR_BYTES_MIN = 8 + 4 + 4 + 8;

/** An array of numbers in the file's own width. */
export type GgufNumbers =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array;

/** A metadata value; 64-bit integers are numbers where they are exact. */
export type GgufValue = number | bigint | boolean | string | readonly string[] | GgufNumbers;

export interface GgufTensor {
  readonly name: string;
  /** ggml's name of the type; not every one can be read. */
  readonly type: string;
  /** Sizes, the contiguous dimension first. */
  readonly dimensions: readonly number[];
  /** From the start of the file, in bytes. */
  readonly offset: number;
  /** 0 where the type is one that cannot be read. */
  readonly bytes: number;
}

export interface GgufHeader {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

const STRING = 8;
const ARRAY = 9;
type NumberReader = (view: DataView, offset: number) => number | bigint | boolean;
interface NumberType {
  readonly bytes: number;
  readonly read: NumberReader;
  /** Makes an array from its own copy of the bytes. */
  readonly array: (bytes: ArrayBuffer) => GgufNumbers;
}

const exact = (value: bigint): number | bigint =>
  value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER ? Number(value) : value;

/** The numeric value types by their number in the file. */
const NUMBERS: Readonly<Record<number, NumberType>> = {
  0: { bytes: 1, read: (v, o) => v.getUint8(o), array: (b) => new Uint8Array(b) },
  1: { bytes: 1, read: (v, o) => v.getInt8(o), array: (b) => new Int8Array(b) },
  2: { bytes: 2, read: (v, o) => v.getUint16(o, true), array: (b) => new Uint16Array(b) },
  3: { bytes: 2, read: (v, o) => v.getInt16(o, true), array: (b) => new Int16Array(b) },
  4: { bytes: 4, read: (v, o) => v.getUint32(o, true), array: (b) => new Uint32Array(b) },
  5: { bytes: 4, read: (v, o) => v.getInt32(o, true), array: (b) => new Int32Array(b) },
  6: { bytes: 4, read: (v, o) => v.getFloat32(o, true), array: (b) => new Float32Array(b) },
  7: { bytes: 1, read: (v, o) => v.getUint8(o) !== 0, array: (b) => new Uint8Array(b) },
  10: {
    bytes: 8,
    read: (v, o) => exact(v.getBigUint64(o, true)),
    array: (b) => new BigUint64Array(b),
  },
  11: {
    bytes: 8,
    read: (v, o) => exact(v.getBigInt64(o, true)),
    array: (b) => new BigInt64Array(b),
  },
  12: { bytes: 8, read: (v, o) => v.getFloat64(o, true), array: (b) => new Float64Array(b) },
};

/** Reads a header front to back through a window; never past the file's end. */
class HeaderReader {
  readonly #file: ModelFile;
  readonly #end: number;
  #window: Buffer = Buffer.alloc(0);
  #view: DataView = new DataView(new ArrayBuffer(0));
  #windowStart = 0;
  /** Where the next value starts in the file. */
  position = 0;

  constructor(file: ModelFile) {
    this.#file = file;
    this.#end = Math.min(file.size, HEADER_BYTES_MAX);
  }

  get left(): number {
    return this.#end - this.position;
  }

  fail(problem: string): never {
    throw modelError(this.#file.path, `is not a valid GGUF file: ${problem}`);
  }

  /** Moves `bytes` forward and returns where they start in the window. */
  #take(bytes: number): number {
    if (bytes > this.left) {
      if (this.#end < this.#file.size) this.fail(`its header exceeds ${HEADER_BYTES_MAX} bytes`);
      this.fail(`it is cut off, ${bytes} more bytes wanted at byte ${this.position}`);
    }
    if (this.position + bytes > this.#windowStart + this.#window.length) {
      const size = Math.min(Math.max(bytes, WINDOW_BYTES), this.left);
      this.#window = Buffer.from(this.#file.read(this.position, size).buffer);
      this.#view = new DataView(this.#window.buffer);
      this.#windowStart = this.position;
    }
    const start = this.position - this.#windowStart;
    this.position += bytes;
    return start;
  }

  u32(): number {
    const start = this.#take(4); // may replace the view, so it comes first
    return this.#view.getUint32(start, true);
  }

  /** A count or size of at most `max`. */
  size(what: string, max: number): number {
    const start = this.#take(8);
    const value = this.#view.getBigUint64(start, true);
    if (value > BigInt(Math.max(0, Math.floor(max)))) {
      this.fail(`${what} is ${value}, at most ${Math.max(0, Math.floor(max))} can be there`);
    }
    return Number(value);
  }

  string(what: string): string {
    const bytes = this.size(`the length of ${what}`, Math.min(STRING_BYTES_MAX, this.left - 8));
    const start = this.#take(bytes);
    return this.#window.toString('utf8', start, start + bytes);
  }

  value(key: string): GgufValue {
    const type = this.u32();
    if (type === STRING) return this.string(show(key));
    if (type === ARRAY) return this.#array(key);
    const kind = this.#number(type, key);
    const start = this.#take(kind.bytes);
    return kind.read(this.#view, start);
  }

  #number(type: number, key: string): NumberType {
    return NUMBERS[type] ?? this.fail(`${show(key)} has the unknown value type ${type}`);
  }

  #array(key: string): GgufValue {
    const type = this.u32();
    const what = `the length of ${show(key)}`;
    if (type === STRING) {
      const strings: string[] = [];
      for (let left = this.size(what, (this.left - 8) / 8); left > 0; left--) {
        strings.push(this.string(`an entry of ${show(key)}`));
      }
      return strings;
    }
    const kind = this.#number(type, key);
    const bytes = this.size(what, (this.left - 8) / kind.bytes) * kind.bytes;
    const start = this.#take(bytes);
    // A copy, so that the array is aligned and does not keep the window alive.
    return kind.array(Uint8Array.from(this.#window.subarray(start, start + bytes)).buffer);
  }
}

/**
 * Reads the header of an open GGUF file.
 * @throws FlashForgeError 'model' if the file is cut off, damaged or not GGUF.
 */
export function readGgufHeader(file: ModelFile): GgufHeader {
  const reader = new HeaderReader(file);
  if (reader.left < 8 || reader.u32() !== MAGIC) reader.fail('it does not start with "GGUF"');
  const version = reader.u32();
  if (version !== 2 && version !== 3) {
    const swapped = version !== 0 && version % 0x10000 === 0;
    reader.fail(
      swapped
        ? 'it is big-endian, only little-endian files can be read'
        : `its version is ${version}, versions 2 and 3 can be read`,
    );
  }
  const tensorCount = reader.size(
    'the number of tensors',
    Math.min(ENTRIES_MAX, reader.left / TENSOR_BYTES_MIN),
  );
  const metadataCount = reader.size(
    'the number of metadata entries',
    Math.min(ENTRIES_MAX, reader.left / METADATA_BYTES_MIN),
  );

  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < metadataCount; i++) {
    const key = reader.string('a metadata key');
    if (metadata.has(key)) reader.fail(`metadata ${show(key)} is there twice`);
    metadata.set(key, reader.value(key));
  }
  return { metadata, tensors: readTensors(reader, file, tensorCount, alignment(reader, metadata)) };
}

function alignment(reader: HeaderReader, metadata: ReadonlyMap<string, GgufValue>): number {
  const value = metadata.get('general.alignment') ?? ALIGNMENT_DEFAULT;
  const valid = typeof value === 'number' && value >= 1 && value <= 1 << 20;
  if (valid && Number.isInteger(Math.log2(value))) return value;
  return reader.fail(`general.alignment must be a power of two up to 2^20, got ${show(value)}`);
}

/** A tensor as it stands in the table, its offset still relative to the data. */
function readTensor(reader: HeaderReader): GgufTensor {
  const name = reader.string('a tensor name');
  const count = reader.u32();
  if (count < 1 || count > DIMENSIONS_MAX) {
    reader.fail(`tensor ${show(name)} has ${count} dimensions, 1 to ${DIMENSIONS_MAX} are allowed`);
  }
  const dimensions = Array.from({ length: count }, () =>
    reader.size(`a dimension of tensor ${show(name)}`, Number.MAX_SAFE_INTEGER),
  );
  const values = dimensions.reduce((product, size) => product * size, 1);
  if (values < 1 || values > Number.MAX_SAFE_INTEGER) {
    reader.fail(`tensor ${show(name)} has the impossible shape ${show(dimensions)}`);
  }
  const number = reader.u32();
  const offset = reader.size(`the offset of tensor ${show(name)}`, Number.MAX_SAFE_INTEGER);
  const type = GGML_TYPES[number] ?? `type ${number}`;
  if (!isTensorType(type)) return { name, type, dimensions, offset, bytes: 0 };

  const block = BLOCKS[type].values;
  if (dimensions[0] % block !== 0) {
    reader.fail(
      `tensor ${show(name)} has rows of ${dimensions[0]}, ${type} needs multiples of ${block}`,
    );
  }
  return { name, type, dimensions, offset, bytes: bytesOf(type, values) };
}

function readTensors(
  reader: HeaderReader,
  file: ModelFile,
  count: number,
  align: number,
): Map<string, GgufTensor> {
  const tensors = new Map<string, GgufTensor>();
  for (let i = 0; i < count; i++) {
    const tensor = readTensor(reader);
    if (tensors.has(tensor.name)) reader.fail(`tensor ${show(tensor.name)} is there twice`);
    if (tensor.offset % align !== 0) {
      reader.fail(
        `tensor ${show(tensor.name)} starts at ${tensor.offset}, not at a multiple of ${align}`,
      );
    }
    tensors.set(tensor.name, tensor);
  }

  const data = Math.ceil(reader.position / align) * align;
  for (const [name, tensor] of tensors) {
    const offset = data + tensor.offset;
    const end = offset + tensor.bytes;
    if (end > file.size) {
      throw modelError(
        file.path,
        `is cut off: tensor ${show(name)} ends at byte ${end}, the file has ${file.size}`,
      );
    }
    tensors.set(name, { ...tensor, offset });
  }
  checkOverlaps(reader, [...tensors.values()]);
  return tensors;
}

function checkOverlaps(reader: HeaderReader, tensors: GgufTensor[]): void {
  tensors.sort((a, b) => a.offset - b.offset);
  for (let i = 1; i < tensors.length; i++) {
    const before = tensors[i - 1];
    if (before.offset + before.bytes > tensors[i].offset) {
      reader.fail(`tensors ${show(before.name)} and ${show(tensors[i].name)} overlap`);
    }
  }
}
