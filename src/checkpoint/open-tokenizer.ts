/**
 * The tokenizer that belongs to a model on disk, whichever the format.
 * @module
 */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { FlashForgeError } from '../base/errors.ts';
import { ggufTokenizer } from '../tokenizer/gguf-tokenizer.ts';
import type { TokenizerParts } from '../tokenizer/tokenizer.ts';
import { directoryTokenizer } from '../tokenizer/tokenizer-files.ts';
import { readGgufHeader } from './gguf.ts';
import { ModelFile } from './model-file.ts';

/**
 * Reads the tokenizer of the model at `path`, a .gguf file or a directory.
 * @throws FlashForgeError 'model' when there is none or it is not valid.
 */
export function openTokenizer(path: string): TokenizerParts {
  if (statSync(path).isFile()) return fromGguf(path);
  const names = readdirSync(path);
  if (names.includes('tokenizer.json')) return directoryTokenizer(path);
  const ggufs = names.filter((name) => name.endsWith('.gguf')).sort();
  if (ggufs.length > 0) return fromGguf(join(path, ggufs[0]));
  throw new FlashForgeError('model', `${path} has neither tokenizer.json nor a .gguf file`);
}

function fromGguf(path: string): TokenizerParts {
  const file = new ModelFile(path);
  try {
    return ggufTokenizer(readGgufHeader(file).metadata, path);
  } finally {
    file.close();
  }
}
