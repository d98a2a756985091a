/**
 * PTX that ships with a release, for machines with a driver and without NVRTC: one compressed
 * archive for each kernel source and virtual architecture, with the variants of common models.
 * A variant is found by a hash of all that its PTX depends on, so that an archive made from
 * other sources is never used.
 * @module
 */
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { brotliCompressSync, brotliDecompressSync, constants } from 'node:zlib';
import { prebuiltFolder } from '../../base/env.ts';
import { compileOptions, type Sources } from './nvrtc.ts';

const SUFFIX = '.ptx.br';
/** Variants differ in few constants: a window over all of them makes copies of most of each. */
const WINDOW_BITS = 24;

/** Which archive a variant is in, and under which key. */
export interface ShippedPtx {
  readonly file: string;
  readonly key: string;
}

/** Folder of the archives. */
export const ptxFolder = (): string => join(prebuiltFolder(), 'ptx');

/**
 * The virtual architecture whose PTX a device runs: Hopper's own holds what no other device has,
 * and what was compiled for 8.0 runs on all later ones.
 */
export const ptxArch = (arch: string): string => (arch === 'sm_90a' ? 'compute_90a' : 'compute_80');

/** Where the PTX of a variant for a device of `arch` is, if it ships. */
export function shippedPtx(
  sources: Sources,
  main: string,
  arch: string,
  defines: Readonly<Record<string, number>>,
): ShippedPtx {
  const virtual = ptxArch(arch);
  const hash = createHash('sha256');
  for (const [name, text] of sources) hash.update(`${name}\0${text}\0`);
  hash.update(`${main} ${compileOptions(virtual, defines).join(' ')}`);
  const file = `${main.replace(/\.cu$/, '')}-${virtual}${SUFFIX}`;
  return { file, key: hash.digest('hex').slice(0, 32) };
}

/** Whether the package was made with PTX. */
export const hasPtx = (): boolean =>
  existsSync(ptxFolder()) && readdirSync(ptxFolder()).some((name) => name.endsWith(SUFFIX));

/** The variant's PTX; undefined if it did not ship or was made from other sources. */
export function findPtx({ file, key }: ShippedPtx): string | undefined {
  try {
    const archive = brotliDecompressSync(readFileSync(join(ptxFolder(), file)));
    return JSON.parse(archive.toString())[key];
  } catch {
    // No archive, or a damaged one, which is as good as none.
    return undefined;
  }
}

/** The bytes of an archive: PTX by key. */
export function packPtx(variants: ReadonlyMap<string, string>): Uint8Array {
  const text = Buffer.from(JSON.stringify(Object.fromEntries(variants)));
  const params = {
    [constants.BROTLI_PARAM_LGWIN]: WINDOW_BITS,
    [constants.BROTLI_PARAM_SIZE_HINT]: text.length,
  };
  return brotliCompressSync(text, { params });
}
