/**
 * A whole tiny model on disk, tokenizer included, for tests that go through the front door.
 * @module
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DecoderConfig } from '../../src/checkpoint/checkpoint.ts';
import { ggufBytes, type Metadata } from './gguf-writer.ts';
import { ggufMetadata, randomTensors, TINY } from './tiny-checkpoint.ts';
import { byteLevelMetadata } from './tiny-tokenizer.ts';

/** The type that a metadata value is written as. */
function typed(value: unknown): Metadata {
  if (typeof value === 'string') return { type: 'string', value };
  if (typeof value === 'number') return { type: 'u32', value };
  if (Array.isArray(value) && typeof value[0] === 'string') return { type: 'strings', value };
  if (Array.isArray(value)) return { type: 'i32s', value };
  throw new Error(`no GGUF type for ${String(value)}`);
}

/** Writes a GGUF with random weights and a byte-level tokenizer; returns its path. */
export function writeTinyModel(folder: string, changes: Partial<DecoderConfig> = {}): string {
  const tokenizer = byteLevelMetadata();
  const { length } = tokenizer.get('tokenizer.ggml.tokens') as string[];
  const config = { ...TINY, vocab: length, ...changes };
  const metadata = ggufMetadata(config);
  for (const [key, value] of tokenizer) metadata[key] = typed(value);
  const path = join(folder, 'tiny-model.gguf');
  writeFileSync(path, ggufBytes(metadata, randomTensors(config, 'F32', 'gguf')));
  return path;
}
