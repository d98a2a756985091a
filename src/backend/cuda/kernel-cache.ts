/**
 * Compiled kernels on disk, one file each, named by everything that can change the binary. Files
 * appear by rename, so that several processes may share the folder; a file that is damaged or of
 * another version is compiled again; the oldest ones go when the folder grows too large.
 * @module
 */
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, utimesSync } from 'node:fs';
import { join } from 'node:path';
import { keepFile } from '../../base/cache-file.ts';
import { cubinOptions, type Sources } from './nvrtc.ts';

/** Bytes of a cache folder before its least recently used files are deleted. */
const CACHE_BYTES_MAX = 256 * 2 ** 20;
const SUFFIX = '.cubin';
const HASH_BYTES = 32;

/** What a binary depends on. */
export interface CacheKey {
  readonly main: string;
  readonly sources: Sources;
  readonly arch: string;
  readonly defines: Readonly<Record<string, number>>;
  /** Which compiler, and its version. */
  readonly compilerVersion: string;
  readonly driverVersion: number;
}

export class KernelCache {
  readonly folder: string;
  readonly #bytesMax: number;

  constructor(folder: string, bytesMax: number = CACHE_BYTES_MAX) {
    this.folder = folder;
    this.#bytesMax = bytesMax;
  }

  /** The binary for `key`, compiled by `compile` unless a sound copy is on disk. */
  get(key: CacheKey, compile: () => Uint8Array): Uint8Array {
    const path = join(this.folder, fileName(key));
    return readSound(path) ?? this.renew(key, compile);
  }

  /** The same compiled anew: the driver did not take what is on disk. */
  renew(key: CacheKey, compile: () => Uint8Array): Uint8Array {
    const cubin = compile();
    this.#publish(join(this.folder, fileName(key)), cubin);
    return cubin;
  }

  /** A cache that cannot be written to costs a compilation next time, and nothing else. */
  #publish(path: string, cubin: Uint8Array): void {
    try {
      mkdirSync(this.folder, { recursive: true });
      this.#makeRoom(cubin.length);
    } catch {
      return;
    }
    keepFile(path, Buffer.concat([digest(cubin), cubin]));
  }

  #makeRoom(bytes: number): void {
    const files = readdirSync(this.folder)
      .filter((name) => name.endsWith(SUFFIX))
      .map((name) => ({ path: join(this.folder, name), ...sizeAndAge(join(this.folder, name)) }))
      .sort((a, b) => a.usedMs - b.usedMs);
    let total = files.reduce((sum, file) => sum + file.bytes, bytes);
    for (const file of files) {
      if (total <= this.#bytesMax) return;
      rmSync(file.path, { force: true });
      total -= file.bytes;
    }
  }
}

const digest = (bytes: Uint8Array): Buffer => createHash('sha256').update(bytes).digest();

function fileName(key: CacheKey): string {
  const hash = createHash('sha256');
  for (const [name, text] of key.sources) hash.update(`${name}\0${text}\0`);
  hash.update(cubinOptions(key.arch, key.defines).join(' '));
  hash.update(` ${key.compilerVersion} ${key.driverVersion}`);
  const stem = key.main.replace(/\.cu$/, '');
  return `${stem}-${key.arch}-${hash.digest('hex').slice(0, 32)}${SUFFIX}`;
}

/** The file's content if its digest holds; marks it as used. */
function readSound(path: string): Uint8Array | undefined {
  try {
    const bytes = readFileSync(path);
    const content = bytes.subarray(HASH_BYTES);
    if (!bytes.subarray(0, HASH_BYTES).equals(digest(content))) return undefined;
    utimesSync(path, new Date(), new Date());
    return new Uint8Array(content);
  } catch {
    return undefined;
  }
}

function sizeAndAge(path: string): { bytes: number; usedMs: number } {
  try {
    const { size, mtimeMs } = statSync(path);
    return { bytes: size, usedMs: mtimeMs };
  } catch {
    return { bytes: 0, usedMs: 0 };
  }
}
