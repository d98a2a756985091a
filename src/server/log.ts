/**
 * Structured logs: a line of JSON for each event, with the request's id. A log that cannot be
 * written (a full disk, a reader that is stuck) stops no request and does not fill the memory.
 * @module
 */
import { appendFile, appendFileSync, mkdirSync, openSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Logger, pino } from 'pino';
import { FlashForgeError } from '../base/errors.ts';
import { fileReason } from '../base/file-errors.ts';
import type { Settings } from './server-options.ts';

export type Log = Logger;

/** Characters that may wait to be written; more are dropped. */
const WAITING_MAX = 2 ** 20;
const STDERR = 2;

/** Writes lines in order, one write at a time, off the event loop's thread. */
export class LogWriter {
  readonly #file: number;
  #waiting = '';
  #writing = false;
  #failed = false;

  /** @param file an open file descriptor */
  constructor(file: number) {
    this.#file = file;
  }

  write(line: string): void {
    if (this.#waiting.length > WAITING_MAX) return;
    this.#waiting += line;
    this.#pump();
  }

  /** Writes what still waits, before the process ends. */
  flushSync(): void {
    const text = this.#waiting;
    this.#waiting = '';
    try {
      appendFileSync(this.#file, text);
    } catch (error) {
      this.#fail(error as Error);
    }
  }

  #pump(): void {
    if (this.#writing || this.#waiting === '') return;
    const text = this.#waiting;
    this.#waiting = '';
    this.#writing = true;
    appendFile(this.#file, text, (error) => {
      this.#writing = false;
      if (!error) this.#failed = false;
      else this.#fail(error);
      this.#pump();
    });
  }

  /** Said once for each time that writing begins to fail. */
  #fail({ message }: Error): void {
    if (this.#failed) return;
    this.#failed = true;
    if (this.#file !== STDERR) process.stderr.write(`flashforge: the log fails: ${message}\n`);
  }
}

/** @throws FlashForgeError 'io' for a file that cannot be opened. */
export function makeLog({ logLevel, logFile }: Settings): { log: Log; writer: LogWriter } {
  const writer = new LogWriter(logFile === undefined ? STDERR : open(logFile));
  const options = {
    level: logLevel,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  };
  return { log: pino(options, writer), writer };
}

function open(path: string): number {
  try {
    mkdirSync(dirname(path), { recursive: true });
    return openSync(path, 'a');
  } catch (cause) {
    const reason = fileReason(cause);
    throw new FlashForgeError('io', `the log ${path} cannot be written: ${reason}`, { cause });
  }
}
