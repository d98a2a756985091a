/**
 * Compiles the kernels for exactly this processor at first use and keeps the library in the
 * user's cache. The cache key is everything that can change the binary; the key's text lies
 * beside the library together with its checksum, so that a damaged file is compiled again.
 * @module
 */
import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { arch, cpus, platform } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { cacheFolder, compilerCommand } from '../../base/env.ts';
import { FlashForgeError } from '../../base/errors.ts';
import { fileReason, saysDiskFull } from '../../base/file-errors.ts';

const run = promisify(execFile);

/** Kernel sources: they lie beside this file, also after the build. */
export const KERNEL_FOLDER: string = join(import.meta.dirname, 'kernels');

export const LIBRARY_SUFFIX: string =
  platform() === 'win32' ? '.dll' : platform() === 'darwin' ? '.dylib' : '.so';

/** Flags of every build, native and prebuilt. Kernels never set errno or trap; they fuse
 * multiply-adds where they say so, that results repeat on every machine of a kind. */
export const COMMON_FLAGS: readonly string[] = [
  '-std=gnu11',
  '-O3',
  '-fno-math-errno',
  '-fno-trapping-math',
  '-ffp-contract=off',
  '-fno-stack-protector',
];

/** A compiler that answered: its command line and what it says of itself. */
export interface Compiler {
  readonly command: readonly string[];
  readonly identity: string;
}

/** The C files of the kernels, sorted. */
export const kernelSources = (): string[] =>
  readdirSync(KERNEL_FOLDER)
    .filter((file) => file.endsWith('.c'))
    .sort();

/**
 * The first compiler that answers: FLASHFORGE_CC, then cc, gcc, clang, zig cc.
 * @returns null when none is there.
 */
export async function findCompiler(): Promise<Compiler | null> {
  const set = compilerCommand();
  const candidates = set ? [set.split(' ')] : [['cc'], ['gcc'], ['clang'], ['zig', 'cc']];
  for (const command of candidates) {
    try {
      const { stdout } = await run(command[0], [...command.slice(1), '--version']);
      return { command, identity: stdout.trim() };
    } catch {
      // Not installed: the next one.
    }
  }
  return null;
}

/** Flags that make a compiler use all of this processor. */
function nativeFlags(compiler: Compiler): string[] {
  const armClang = arch() === 'arm64' && /clang|zig/i.test(compiler.identity);
  return [
    armClang || compiler.command.includes('zig') ? '-mcpu=native' : '-march=native',
    ...(platform() === 'win32' ? [] : ['-fPIC']),
  ];
}

/** What tells one processor from another as far as instruction sets go. */
function processor(): string {
  const model = cpus()[0]?.model ?? 'unknown';
  let features = '';
  try {
    const text = readFileSync('/proc/cpuinfo', 'utf8');
    features = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(text)?.[1] ?? '';
  } catch {
    // Not Linux: the model name decides.
  }
  return `${platform()} ${arch()} ${model}\n${features}`;
}

const sha256 = (data: string | Uint8Array): string =>
  createHash('sha256').update(data).digest('hex');

/** Everything that can change the binary, as text. */
function cacheKey(compiler: Compiler, flags: readonly string[]): string {
  const files = readdirSync(KERNEL_FOLDER)
    .filter((file) => /\.[ch]$/.test(file))
    .sort()
    .map((file) => `${file} ${sha256(readFileSync(join(KERNEL_FOLDER, file)))}`);
  return [compiler.command.join(' '), compiler.identity, flags.join(' '), processor(), ...files]
    .join('\n')
    .concat('\n');
}

/** True if the library is there and as it was written. */
function intact(library: string, keyFile: string, key: string): boolean {
  try {
    return readFileSync(keyFile, 'utf8') === `${key}${sha256(readFileSync(library))}\n`;
  } catch {
    return false;
  }
}

/** A library for this processor and how it came about. */
export interface CompiledLibrary {
  readonly path: string;
  readonly cached: boolean;
  readonly compiler: string;
}

/**
 * The library of all kernels for this processor, from the cache or compiled now.
 * @param log is told before the compiler runs, which takes seconds.
 * @throws FlashForgeError 'compile' with the compiler's first error, or 'io' for the cache folder.
 */
export async function compileKernels(
  compiler: Compiler,
  log: (message: string) => void = () => {},
): Promise<CompiledLibrary> {
  const flags = [...COMMON_FLAGS, ...nativeFlags(compiler)];
  const key = cacheKey(compiler, flags);
  const folder = join(cacheFolder(), 'kernels');
  const name = join(folder, `cpu-${sha256(key).slice(0, 16)}`);
  const library = name + LIBRARY_SUFFIX;
  const title = compiler.identity.split('\n')[0];
  if (intact(library, `${name}.txt`, key)) return { path: library, cached: true, compiler: title };

  log(`compiling kernels for this processor with ${compiler.command.join(' ')}`);
  const work = `${name}-${process.pid}-${randomBytes(4).toString('hex')}`;
  try {
    mkdirSync(work, { recursive: true });
    const output = join(work, `kernels${LIBRARY_SUFFIX}`);
    await build(compiler, flags, work, output);
    writeFileSync(join(work, 'key.txt'), `${key}${sha256(readFileSync(output))}\n`);
    // Whole files appear under their names or not at all; another process may do the same.
    renameSync(output, library);
    renameSync(join(work, 'key.txt'), `${name}.txt`);
  } catch (cause) {
    if (cause instanceof FlashForgeError) throw cause;
    const message = `kernel cache ${folder} cannot be written: ${fileReason(cause)}`;
    throw new FlashForgeError('io', message, { cause });
  } finally {
    if (existsSync(work)) rmSync(work, { recursive: true, force: true });
  }
  return { path: library, cached: false, compiler: title };
}

/** The first error of a compiler's many lines; all of them are in the error's cause. */
function complaint(words: string): string {
  if (saysDiskFull(words)) return 'no space is left on the disk';
  const lines = words.trim().split('\n');
  return (lines.find((line) => /error/i.test(line)) ?? lines[0]).trim();
}

/** One object per source, side by side, then the link: half the wait on two cores. */
async function build(
  compiler: Compiler,
  flags: readonly string[],
  work: string,
  output: string,
): Promise<void> {
  const [command, ...first] = compiler.command;
  const call = async (args: string[]): Promise<void> => {
    try {
      await run(command, [...first, ...args], { maxBuffer: 1 << 26 });
    } catch (cause) {
      const words = String((cause as { stderr?: string }).stderr || (cause as Error).message);
      throw new FlashForgeError(
        'compile',
        `the kernels do not compile with ${compiler.command.join(' ')}: ${complaint(words)}`,
        { cause },
      );
    }
  };
  const objects = kernelSources().map((file) => [file, join(work, `${file}.o`)]);
  await Promise.all(
    objects.map(([file, object]) =>
      call([...flags, '-c', join(KERNEL_FOLDER, file), '-o', object]),
    ),
  );
  const bare = platform() === 'linux' ? ['-nostdlib'] : [];
  await call([...flags, '-shared', ...bare, '-o', output, ...objects.map(([, object]) => object)]);
}
