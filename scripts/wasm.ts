/**
 * Compiles the C kernels to WebAssembly with LLVM that is itself WebAssembly (@yowasp/clang), so
 * that the build needs no system compiler. Two modules: plain SIMD128 and relaxed SIMD. Results
 * are kept by the hash of all that goes in, since one compilation takes several seconds.
 * @module
 */
import { createHash, randomBytes } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { KERNELS } from '../src/backend/cpu/kernel-table.ts';

const VARIANTS: Readonly<Record<string, readonly string[]>> = {
  'simd128.wasm': [],
  'relaxed.wasm': ['-mrelaxed-simd'],
};

const FLAGS: readonly string[] = [
  '--target=wasm32-unknown-unknown',
  '-std=gnu11',
  '-O3',
  '-fno-math-errno',
  '-fno-trapping-math',
  '-ffp-contract=off',
  '-msimd128',
  '-matomics',
  '-mbulk-memory',
  '-nostdlib',
  '-Wl,--no-entry',
  '-Wl,--import-memory',
  '-Wl,--shared-memory',
  '-Wl,--max-memory=4294967296',
  '-Wl,--export=__heap_base',
  '-Wl,--export=__stack_pointer',
];

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');

/** Brings both modules into `target`, from the cache when nothing changed. */
export async function buildWasm(source: string, target: string, cache: string): Promise<void> {
  const files: Record<string, string> = {};
  for (const file of readdirSync(source).sort()) {
    if (/\.[ch]$/.test(file)) files[file] = readFileSync(join(source, file), 'utf8');
  }
  mkdirSync(target, { recursive: true });
  mkdirSync(cache, { recursive: true });
  const exported = Object.keys(KERNELS).map((name) => `-Wl,--export-if-defined=${name}`);
  for (const [name, extra] of Object.entries(VARIANTS)) {
    const sources = Object.keys(files).filter((file) => file.endsWith('.c'));
    const args = [...FLAGS, ...extra, ...exported, ...sources, '-o', 'out.wasm'];
    const key = sha256(JSON.stringify([args, files])).slice(0, 24);
    const cached = join(cache, `flashforge-${key}.wasm`);
    if (!existsSync(cached)) await compile(args, files, cached);
    copyFileSync(cached, join(target, name));
  }
}

async function compile(
  args: readonly string[],
  files: Readonly<Record<string, string>>,
  output: string,
): Promise<void> {
  const { commands } = await import('@yowasp/clang');
  let result: Awaited<ReturnType<typeof commands.clang>>;
  try {
    // Brings the toolchain into memory, silently; the second call finds it there.
    await commands.clang(undefined, {}, { fetchProgress: () => {} });
    result = await commands.clang([...args], { ...files });
  } catch (cause) {
    // The error carries all files; clang has printed its own words already.
    throw new Error(`clang failed: ${(cause as Error).message}`);
  }
  const wasm = result?.['out.wasm'];
  if (!(wasm instanceof Uint8Array)) throw new Error('clang gave no WebAssembly module');
  const part = `${output}.${randomBytes(4).toString('hex')}`;
  writeFileSync(part, wasm);
  renameSync(part, output);
}
