/**
 * Opens a model on disk: a .gguf file (or the first of a split one), or a folder with config.json
 * and safetensors. Only headers are read here; `read` brings the weights, each once.
 * @module
 */
import { readdirSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { show } from '../base/errors.ts';
import type { Checkpoint, DecoderConfig, WeightName } from './checkpoint.ts';
import type { GgufHeader, GgufTensor } from './gguf.ts';
import { readGgufHeader } from './gguf.ts';
import { configFromGguf } from './gguf-config.ts';
import { configFromJson } from './hf-config.ts';
import { ModelFile, modelError } from './model-file.ts';
import { openSafetensors, readJsonObject } from './safetensors.ts';
import { ggufName, hfName, matchWeights } from './weights.ts';

/** The family whose GGUF files interleave the rotary pairs of each head. */
const INTERLEAVED = 'llama';
const SPLIT_NAME = /^(?<stem>.+)-(?<number>\d{5})-of-(?<count>\d{5})\.gguf$/;
const SPLITS_MAX = 1024;

/**
 * Opens the model at `path`.
 * @throws FlashForgeError 'model' naming the file and what is wrong with it.
 */
export function openCheckpoint(path: string): Checkpoint {
  if (!isFolder(path)) return openGguf(path);
  const names = readdirSync(path);
  if (names.includes('config.json')) return openFolder(path);
  const files = names.filter((name) => name.endsWith('.gguf'));
  const first = files.filter(
    (name) => (SPLIT_NAME.exec(name)?.groups?.number ?? '00001') === '00001',
  );
  if (first.length === 1) return openGguf(join(path, first[0]));
  throw modelError(
    path,
    files.length === 0
      ? 'holds neither config.json with safetensors nor a .gguf file'
      : `holds ${first.length} .gguf models, name one of them: ${first.slice(0, 4).join(', ')}`,
  );
}

function isFolder(path: string): boolean {
  try {
    return statSync(path).isDirectory();
  } catch (error) {
    throw modelError(path, `cannot be opened (${(error as Error).message})`, error);
  }
}

/** Calls `close` if `make` fails, so that a bad file leaves nothing open. */
function closingOnError<T>(close: () => void, make: () => T): T {
  try {
    return make();
  } catch (error) {
    close();
    throw error;
  }
}

function openFolder(path: string): Checkpoint {
  const config = configFromJson(
    join(path, 'config.json'),
    readJsonObject(join(path, 'config.json')),
  );
  const { tensors, close } = openSafetensors(path);
  return closingOnError(close, () => ({
    source: path,
    format: 'safetensors',
    config,
    tensors: matchWeights(path, config, tensors, hfName),
    read: (name) => {
      const tensor = tensors.get(hfName(name))!;
      return tensor.file.read(tensor.offset, tensor.bytes);
    },
    close,
  }));
}

/** A tensor with the file of the split that holds it. */
interface Located {
  readonly tensor: GgufTensor;
  readonly file: ModelFile;
}

function openGguf(path: string): Checkpoint {
  const files: ModelFile[] = [];
  const close = (): void => {
    for (const file of files) file.close();
  };
  return closingOnError(close, () => {
    files.push(new ModelFile(path));
    const header = readGgufHeader(files[0]);
    const located = locate(files[0], header);
    for (const next of otherSplits(path, header)) {
      const file = new ModelFile(next);
      files.push(file);
      for (const [name, place] of locate(file, readGgufHeader(file))) {
        if (located.has(name))
          throw modelError(next, `holds ${show(name)}, as an earlier part does`);
        located.set(name, place);
      }
    }
    const config = configFromGguf(path, header.metadata, (name) => located.get(name));
    const stored = new Map(
      [...located].map(([name, { tensor }]) => [
        name,
        { type: tensor.type, shape: trimmed(tensor.dimensions), bytes: tensor.bytes },
      ]),
    );
    return {
      source: path,
      format: 'gguf',
      config,
      tensors: matchWeights(path, config, stored, ggufName),
      read: (name) => readGgufWeight(name, config, located.get(ggufName(name))!),
      close,
    };
  });
}

const locate = (file: ModelFile, header: GgufHeader): Map<string, Located> =>
  new Map([...header.tensors].map(([name, tensor]) => [name, { tensor, file }]));

/** GGUF's sizes with the contiguous one last and no padding by ones. */
function trimmed(dimensions: readonly number[]): readonly number[] {
  const sizes = [...dimensions];
  while (sizes.length > 1 && sizes.at(-1) === 1) sizes.pop();
  return sizes.reverse();
}

/** The paths of the other parts where the file is the first of a split model. */
function otherSplits(path: string, header: GgufHeader): readonly string[] {
  const count = header.metadata.get('split.count') ?? 1;
  if (count === 0 || count === 1) return [];
  if (typeof count !== 'number' || !(count <= SPLITS_MAX)) {
    throw modelError(path, `split.count must be at most ${SPLITS_MAX}, got ${show(count)}`);
  }
  const { stem, number } = SPLIT_NAME.exec(basename(path))?.groups ?? {};
  const total = String(count).padStart(5, '0');
  if (number !== '00001') {
    throw modelError(
      path,
      `is one of ${count} parts, open the first one, named NAME-00001-of-${total}.gguf`,
    );
  }
  return Array.from({ length: count - 1 }, (_, i) =>
    join(dirname(path), `${stem}-${String(i + 2).padStart(5, '0')}-of-${total}.gguf`),
  );
}

function readGgufWeight(name: WeightName, config: DecoderConfig, place: Located): Uint8Array {
  const { tensor, file } = place;
  const bytes = file.read(tensor.offset, tensor.bytes);
  const part = name.slice(name.indexOf('.') + 1);
  const rotary = part === 'q' || part === 'k' || part === 'qBias' || part === 'kBias';
  if (!rotary || config.architecture !== INTERLEAVED) return bytes;
  const heads = part.startsWith('q') ? config.heads : config.kvHeads;
  return deinterleave(bytes, heads, config.headDim);
}

/**
 * Reorders the rows of each head from rotary pairs (2i, 2i + 1) to pairs (i, i + headDim / 2).
 * Rows move as a whole, so that this works on quantised blocks as well; a bias has rows of one
 * value.
 */
export function deinterleave(bytes: Uint8Array, heads: number, headDim: number): Uint8Array {
  const out = new Uint8Array(bytes.length);
  const rowBytes = bytes.length / (heads * headDim);
  for (let row = 0; row < heads * headDim; row++) {
    const inHead = row % headDim;
    const pair = inHead >> 1;
    const to = row - inHead + pair + (inHead & 1) * (headDim / 2);
    out.set(bytes.subarray(row * rowBytes, (row + 1) * rowBytes), to * rowBytes);
  }
  return out;
}
