/**
 * Where a command's output goes: people read stdout, or stderr when stdout carries JSON; remarks
 * always go to stderr; a report goes to a file in one piece or not at all.
 * @module
 */
import { accessSync, constants, existsSync, statSync } from 'node:fs';
import { realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { FlashForgeError } from '../base/errors.ts';
import { fileReason } from '../base/file-errors.ts';
import type { Context } from './command.ts';
import { usageError } from './parse-arguments.ts';

const COLUMNS_DEFAULT = 80;
/** Redrawing more lines than a terminal has would scroll it. */
const LIVE_ROWS_MIN = 18;

/**
 * @param json value of --json: undefined without it, '-' for standard output, else a file
 * @throws FlashForgeError 'usage' for a file that cannot be written, before any work is done.
 */
export function makeContext(json: string | undefined, signal: AbortSignal): Context {
  if (json === '') throw usageError('--json must be a file or -, got ""');
  const toStdout = json === '-';
  if (json !== undefined && !toStdout) checkWritable(json);
  const stream = toStdout ? process.stderr : process.stdout;
  return {
    signal,
    live: stream.isTTY === true && (stream.rows ?? 0) >= LIVE_ROWS_MIN,
    columns: stream.columns ?? COLUMNS_DEFAULT,
    wantsReport: json !== undefined,
    write: (text) => void stream.write(text),
    print: (line) => void stream.write(`${line}\n`),
    note: (line) => void process.stderr.write(`${line}\n`),
    report: async (value) => {
      if (json === undefined) return;
      const text = `${JSON.stringify(value, null, 2)}\n`;
      if (toStdout) process.stdout.write(text);
      else await writeWhole(json, text);
    },
  };
}

function checkWritable(path: string): void {
  const folder = dirname(resolve(path));
  try {
    if (!existsSync(folder)) throw new Error('the folder does not exist');
    if (statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw new Error('it is a folder');
    accessSync(folder, constants.W_OK);
  } catch (cause) {
    throw new FlashForgeError('usage', `--json cannot write ${path}: ${fileReason(cause)}`, {
      cause,
    });
  }
}

/**
 * Writes a file by rename, so that nobody ever sees half of it. A link keeps leading to it, and
 * what is no file (a pipe, /dev/null) is written to, never replaced.
 */
export async function writeWhole(path: string, text: string): Promise<void> {
  try {
    const there = await stat(path).catch(() => null);
    if (there !== null && !there.isFile()) await writeFile(path, text);
    else await replaceFile(there === null ? path : await realpath(path), text);
  } catch (cause) {
    throw new FlashForgeError('io', `${path} cannot be written: ${fileReason(cause)}`, { cause });
  }
}

async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.${process.pid}.tmp`;
  try {
    await writeFile(temporary, text);
    await rename(temporary, path);
  } catch (cause) {
    await rm(temporary, { force: true });
    throw cause;
  }
}
