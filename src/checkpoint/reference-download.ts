/**
 * Downloads one file so that it is either whole and checked or not there: into a partial file that
 * a later attempt resumes, then an atomic rename.
 * @module
 */
import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rename, rm, stat, statfs } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { FlashForgeError } from '../base/errors.ts';
import { fileReason } from '../base/file-errors.ts';

/** The network failed or answered nonsense: another source or a later attempt may work. */
export class UnreachableError extends FlashForgeError {
  constructor(message: string, options?: ErrorOptions) {
    super('io', message, options);
  }
}

export interface Progress {
  readonly file: string;
  readonly receivedBytes: number;
  /** 0 where it is not known. */
  readonly totalBytes: number;
}

export interface Download {
  /** What the file is called in messages. */
  readonly name: string;
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly target: string;
  readonly bytes: number;
  /** Hex: SHA-256 of the content, or git's SHA-1 (of "blob <bytes>\0" and the content). */
  readonly checksum: { readonly algorithm: 'sha256' | 'git'; readonly hex: string } | null;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: (progress: Progress) => void;
}

const ATTEMPTS = 4;
const RETRY_PAUSE_MS = 400;
/** A connection that delivers nothing for this long is given up. */
const STALL_MS = 30_000;
/** Kept free beside the file. */
const DISK_MARGIN_BYTES = 16 << 20;

/**
 * Brings `download.target` into being.
 * @throws UnreachableError when the network fails (the partial file stays and is resumed later),
 * FlashForgeError 'io' for a refusal, a wrong checksum or a disk that cannot take the file,
 * 'aborted' when the signal says so.
 */
export async function downloadFile(download: Download): Promise<void> {
  await onDisk(dirname(download.target), () =>
    mkdir(dirname(download.target), { recursive: true }),
  );
  const partial = await claimPartial(download.target);
  try {
    await checkSpace(download, await sizeOf(partial));
    await receiveAll(download, partial);
    await verify(download, partial);
    await onDisk(download.target, () => rename(partial, download.target));
  } finally {
    // Whatever is left belongs to the next attempt, of this process or another.
    await rename(partial, `${download.target}.incomplete`).catch(() => undefined);
  }
}

/**
 * Two processes may want the same file: each writes a partial file with its own id in the name,
 * and takes over the one that nobody owns any more.
 */
async function claimPartial(target: string): Promise<string> {
  const mine = `${target}.${process.pid}.incomplete`;
  const stem = `${basename(target)}.`;
  for (const name of await readdir(dirname(target))) {
    if (!name.startsWith(stem) || !name.endsWith('incomplete')) continue;
    const owner = Number(name.slice(stem.length).split('.')[0]);
    if (Number.isInteger(owner) && owner !== process.pid && isRunning(owner)) continue;
    await rename(join(dirname(target), name), mine).catch(() => undefined);
  }
  return mine;
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

const sizeOf = async (path: string): Promise<number> => {
  const found = await stat(path).catch(() => null);
  return found?.size ?? 0;
};

async function checkSpace(download: Download, present: number): Promise<void> {
  const needed = download.bytes - present + DISK_MARGIN_BYTES;
  const disk = await statfs(dirname(download.target)).catch(() => null);
  if (disk === null || disk.bavail * disk.bsize >= needed) return;
  throw new FlashForgeError(
    'io',
    `${download.name} needs ${megabytes(needed)} on the disk of ${dirname(download.target)}, ` +
      `only ${megabytes(disk.bavail * disk.bsize)} are free`,
  );
}

async function receiveAll(download: Download, partial: string): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await receive(download, partial);
      return;
    } catch (error) {
      if (!(error instanceof UnreachableError) || attempt === ATTEMPTS) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_PAUSE_MS * attempt));
    }
  }
}

/** One connection: continues the partial file where it ends. */
async function receive(download: Download, partial: string): Promise<void> {
  let offset = await sizeOf(partial);
  if (offset > download.bytes) {
    await rm(partial);
    offset = 0;
  }
  if (offset === download.bytes && offset > 0) return;
  const watch = new StallWatch(download.signal);
  let file: FileHandle | null = null;
  try {
    const response = await fetch(download.url, {
      headers: offset > 0 ? { ...download.headers, Range: `bytes=${offset}-` } : download.headers,
      signal: watch.signal,
    });
    if (response.status >= 500 || response.body === null) {
      throw new UnreachableError(`the server answered ${response.status} to ${download.name}`);
    }
    if (response.status !== 200 && response.status !== 206) {
      throw new FlashForgeError(
        'io',
        `${download.name} cannot be downloaded: the server answered ${response.status}`,
      );
    }
    if (response.status === 200) offset = 0;
    file = await onDisk(partial, () => open(partial, offset > 0 ? 'r+' : 'w'));
    for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
      watch.alive();
      if (offset + chunk.length > download.bytes) {
        throw new UnreachableError(`the server sent more of ${download.name} than it announced`);
      }
      await writeAll(file, chunk, offset, partial);
      offset += chunk.length;
      const { name, bytes } = download;
      download.onProgress({ file: name, receivedBytes: offset, totalBytes: bytes });
    }
    if (offset < download.bytes) throw new Error('the connection closed early');
  } catch (cause) {
    throw asDownloadError(cause, download, offset);
  } finally {
    watch.stop();
    await file?.close();
  }
}

function asDownloadError(cause: unknown, download: Download, offset: number): FlashForgeError {
  if (cause instanceof FlashForgeError) return cause;
  if (download.signal?.aborted === true) {
    return new FlashForgeError('aborted', `the download of ${download.name} was cancelled`);
  }
  const share = `${megabytes(offset)} of ${megabytes(download.bytes)}`;
  return new UnreachableError(
    `the download of ${download.name} broke off after ${share} (${reasonOf(cause)}); ` +
      'the same command resumes it',
    { cause },
  );
}

async function writeAll(
  file: FileHandle,
  chunk: Uint8Array,
  offset: number,
  path: string,
): Promise<void> {
  let written = 0;
  while (written < chunk.length) {
    const { bytesWritten } = await onDisk(path, () =>
      file.write(chunk, written, chunk.length - written, offset + written),
    );
    written += bytesWritten;
  }
}

async function verify(download: Download, partial: string): Promise<void> {
  if (download.bytes === 0) await (await open(partial, 'w')).close();
  if (download.checksum === null) return;
  const { algorithm, hex } = download.checksum;
  const hash: Hash = createHash(algorithm === 'git' ? 'sha1' : 'sha256');
  if (algorithm === 'git') hash.update(`blob ${download.bytes}\0`);
  await pipeline(createReadStream(partial, { highWaterMark: 1 << 20 }), hash);
  const found = hash.digest('hex');
  if (found === hex) return;
  await rm(partial, { force: true });
  throw new FlashForgeError(
    'io',
    `${download.name} arrived damaged: its checksum is ${found}, expected ${hex}; ` +
      'it was removed, run the command again',
  );
}

/** Ends a connection that stays silent, or when the caller cancels. */
class StallWatch {
  readonly #controller = new AbortController();
  readonly #outer: AbortSignal | undefined;
  readonly #cancel = (): void => this.#controller.abort();
  #timer: NodeJS.Timeout;

  constructor(outer: AbortSignal | undefined) {
    this.#outer = outer;
    if (outer?.aborted === true) this.#cancel();
    outer?.addEventListener('abort', this.#cancel);
    this.#timer = this.#start();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  alive(): void {
    clearTimeout(this.#timer);
    this.#timer = this.#start();
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#outer?.removeEventListener('abort', this.#cancel);
  }

  #start(): NodeJS.Timeout {
    const stalled = new Error(`nothing arrived for ${STALL_MS / 1000} s`);
    return setTimeout(() => this.#controller.abort(stalled), STALL_MS);
  }
}

/** Runs a file operation; the system's refusal becomes one sentence. */
export async function onDisk<T>(path: string, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).syscall === undefined) throw cause;
    throw new FlashForgeError('io', `${path} cannot be written: ${fileReason(cause)}`, { cause });
  }
}

/** The innermost message of a network failure (fetch hides it in `cause`). */
export function reasonOf(cause: unknown): string {
  const inner = cause instanceof Error ? cause.cause : undefined;
  if (inner instanceof Error) return reasonOf(inner);
  if (!(cause instanceof Error)) return String(cause);
  return cause.message || ((cause as NodeJS.ErrnoException).code ?? cause.name);
}

export const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;
