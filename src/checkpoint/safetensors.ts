/**
 * Reads the headers of safetensors files: one file, or shards named by an index file.
 * Format: 8 bytes of header length, a JSON header, then the data; offsets count from the data.
 * @module
 */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { show } from '../base/errors.ts';
import { ModelFile, modelError } from './model-file.ts';
import { bytesOf, isTensorType } from './tensor-types.ts';

/** The format's own limit on a header. */
const HEADER_BYTES_MAX = 100_000_000;
const JSON_BYTES_MAX = 64 << 20;
const SINGLE_FILE = 'model.safetensors';
const INDEX_FILE = 'model.safetensors.index.json';

export interface SafetensorsTensor {
  readonly name: string;
  /** The format's name of the type; not every one can be read. */
  readonly type: string;
  /** Sizes, the contiguous dimension last. */
  readonly shape: readonly number[];
  /** From the start of the file, in bytes. */
  readonly offset: number;
  readonly bytes: number;
  readonly file: ModelFile;
}

type Json = Readonly<Record<string, unknown>>;

/** Whether a parsed JSON value is an object, not a list or null. */
export const isJsonObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Reads a JSON object of a model folder. */
export function readJsonObject(path: string): Json {
  let value: unknown;
  try {
    const { size } = statSync(path);
    if (size > JSON_BYTES_MAX) throw new Error(`${size} bytes, at most ${JSON_BYTES_MAX} allowed`);
    value = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw modelError(path, `cannot be read as JSON (${oneLine(error)})`, error);
  }
  if (!isJsonObject(value)) throw modelError(path, `must be a JSON object, got ${show(value)}`);
  return value;
}

const oneLine = (error: unknown): string => (error as Error).message.split('\n')[0].slice(0, 200);

/**
 * Reads the header of one open file.
 * @throws FlashForgeError 'model' if the file is cut off, damaged or not safetensors.
 */
function readSafetensorsHeader(file: ModelFile): Map<string, SafetensorsTensor> {
  const fail = (problem: string): never => {
    throw modelError(file.path, `is not a valid safetensors file: ${problem}`);
  };
  if (file.size < 8) fail(`it has only ${file.size} bytes`);
  const headerBytes = new DataView(file.read(0, 8).buffer).getBigUint64(0, true);
  if (headerBytes > BigInt(Math.min(HEADER_BYTES_MAX, file.size - 8))) {
    fail(`its header says ${headerBytes} bytes, the file has ${file.size}`);
  }
  const dataStart = 8 + Number(headerBytes);
  let header: unknown;
  try {
    header = JSON.parse(Buffer.from(file.read(8, Number(headerBytes)).buffer).toString('utf8'));
  } catch (error) {
    fail(`its header is not JSON (${oneLine(error)})`);
  }
  if (!isJsonObject(header)) return fail('its header is not a JSON object');

  const tensors = new Map<string, SafetensorsTensor>();
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    tensors.set(name, readEntry(name, entry, file, dataStart, fail));
  }
  checkOverlaps([...tensors.values()], fail);
  return tensors;
}

const isSize = (value: unknown): value is number =>
  Number.isSafeInteger(value) && Number(value) >= 0;

function readEntry(
  name: string,
  entry: unknown,
  file: ModelFile,
  dataStart: number,
  fail: (problem: string) => never,
): SafetensorsTensor {
  const { dtype, shape, data_offsets: offsets } = isJsonObject(entry) ? entry : {};
  if (typeof dtype !== 'string') return fail(`tensor ${show(name)} has no dtype`);
  if (!Array.isArray(shape) || shape.length > 8 || !shape.every(isSize)) {
    return fail(`tensor ${show(name)} has the shape ${show(shape)}`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    return fail(`tensor ${show(name)} has the data_offsets ${show(offsets)}`);
  }
  const [start, end] = offsets as [number, number];
  if (start > end || dataStart + end > file.size) {
    return fail(
      `tensor ${show(name)} is at ${start} to ${end}, the data has ${file.size - dataStart} bytes`,
    );
  }
  const values = (shape as number[]).reduce((product, size) => product * size, 1);
  if (isTensorType(dtype) && bytesOf(dtype, values) !== end - start) {
    return fail(
      `tensor ${show(name)} of shape ${show(shape)} has ${end - start} bytes of ${dtype}`,
    );
  }
  return { name, type: dtype, shape, offset: dataStart + start, bytes: end - start, file };
}

function checkOverlaps(tensors: SafetensorsTensor[], fail: (problem: string) => never): void {
  const filled = tensors.filter((tensor) => tensor.bytes > 0);
  filled.sort((a, b) => a.offset - b.offset);
  for (let i = 1; i < filled.length; i++) {
    const before = filled[i - 1];
    if (before.offset + before.bytes > filled[i].offset) {
      fail(`tensors ${show(before.name)} and ${show(filled[i].name)} overlap`);
    }
  }
}

/** The shards of a model folder, in no particular order. */
function shardsOf(folder: string): readonly string[] {
  const indexPath = join(folder, INDEX_FILE);
  if (!existsSync(indexPath)) return [SINGLE_FILE];
  const { weight_map: map } = readJsonObject(indexPath);
  if (!isJsonObject(map)) throw modelError(indexPath, 'has no weight_map');
  const shards = new Set<string>();
  for (const [name, shard] of Object.entries(map)) {
    // A shard is a file of the folder itself: nothing may point out of it.
    if (typeof shard !== 'string' || shard === '' || basename(shard) !== shard) {
      throw modelError(indexPath, `weight_map puts ${show(name)} into ${show(shard)}`);
    }
    shards.add(shard);
  }
  return [...shards];
}

/** An opened folder: all tensors of all shards, and the files to close. */
export interface SafetensorsModel {
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;
  close(): void;
}

/**
 * Opens every safetensors file of a model folder.
 * @throws FlashForgeError 'model' if a shard is missing, damaged or holds a tensor twice.
 */
export function openSafetensors(folder: string): SafetensorsModel {
  const files: ModelFile[] = [];
  const close = (): void => {
    for (const file of files) file.close();
  };
  const tensors = new Map<string, SafetensorsTensor>();
  try {
    for (const shard of shardsOf(folder)) {
      const file = new ModelFile(join(folder, shard));
      files.push(file);
      for (const [name, tensor] of readSafetensorsHeader(file)) {
        const before = tensors.get(name);
        if (before) {
          throw modelError(file.path, `holds ${show(name)}, which ${before.file.path} holds too`);
        }
        tensors.set(name, tensor);
      }
    }
  } catch (error) {
    close();
    throw error;
  }
  return { tensors, close };
}
