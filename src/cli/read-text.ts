/**
 * Reads what users name as a text file, pipes included, up to a limit: a device never ends.
 * @module
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { fileReason } from '../base/file-errors.ts';

const TEXT_BYTES_MAX = 256 * 1024 * 1024;
const CHUNK_BYTES = 1 << 20;

/**
 * The file's text, without the byte order mark that some editors begin with.
 * @throws Error whose message is why the file cannot be read, as the end of a sentence.
 */
export function readTextFile(path: string, limit: number = TEXT_BYTES_MAX): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(readBytes(path, limit));
  } catch (cause) {
    const reason = cause instanceof TypeError ? 'it is not UTF-8 text' : fileReason(cause);
    throw new Error(reason, { cause });
  }
}

function readBytes(path: string, limit: number): Uint8Array {
  const descriptor = openSync(path, 'r');
  try {
    const chunks: Uint8Array[] = [];
    for (let total = 0; ; ) {
      const chunk = new Uint8Array(CHUNK_BYTES);
      const got = readSync(descriptor, chunk);
      if (got === 0) return Buffer.concat(chunks);
      total += got;
      if (total > limit) throw new Error(`it has more than ${limit} bytes`);
      chunks.push(chunk.subarray(0, got));
    }
  } finally {
    closeSync(descriptor);
  }
}
