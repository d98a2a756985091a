/**
 * A tiny model file with weights, tokenizer and chat template: everything that `generate` needs.
 * @module
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DecoderConfig } from '../../src/checkpoint/checkpoint.ts';
import { ggufBytes, type Metadata } from './gguf-writer.ts';
import { ggufMetadata, randomTensors, TINY } from './tiny-checkpoint.ts';
import { byteLevelMetadata } from './tiny-tokenizer.ts';

/** Writes it into `folder` and returns its path. */
export function writeTinyChatModel(folder: string, changes: Partial<DecoderConfig> = {}): string {
  const tokenizer = byteLevelMetadata();
  const vocab = (tokenizer.get('tokenizer.ggml.tokens') as string[]).length;
  const config = { ...TINY, vocab, ...changes };
  const metadata = { ...ggufMetadata(config), ...asMetadata(tokenizer) };
  const path = join(folder, `chat-${config.contextLength}.gguf`);
  writeFileSync(path, ggufBytes(metadata, randomTensors(config, 'Q8_0', 'gguf')));
  return path;
}

function asMetadata(values: ReadonlyMap<string, unknown>): Record<string, Metadata> {
  const entries = [...values].map(([key, value]): [string, Metadata] => {
    if (typeof value === 'string') return [key, { type: 'string', value }];
    if (typeof value === 'number') return [key, { type: 'u32', value }];
    const list = value as readonly unknown[];
    return typeof list[0] === 'string'
      ? [key, { type: 'strings', value: list as string[] }]
      : [key, { type: 'i32s', value: list as number[] }];
  });
  return Object.fromEntries(entries);
}
