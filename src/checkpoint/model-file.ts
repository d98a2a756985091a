/**
 * A model file opened for positioned reads: Node has no memory mapping, and a read into memory the
 * caller owns copies each weight exactly once.
 * @module
 */
import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';
import { FlashForgeError } from '../base/errors.ts';
import { fileReason } from '../base/file-errors.ts';

/** Linux reads at most 2 GiB less a page at once; smaller pieces cost nothing. */
const READ_BYTES_MAX = 1 << 30;

/** Makes the error of a model that cannot be used; `source` is the file at fault. */
export const modelError = (source: string, problem: string, cause?: unknown): FlashForgeError =>
  new FlashForgeError('model', `${source}: ${problem}`, cause === undefined ? {} : { cause });

/** An open file of known size; every offset that is read must lie inside it. */
export class ModelFile {
  readonly path: string;
  readonly size: number;
  readonly #descriptor: number;
  #open = true;

  /** @throws FlashForgeError 'model' if the path is not a readable regular file. */
  constructor(path: string) {
    this.path = path;
    try {
      // A named pipe would block the open for ever, so the kind is looked at first.
      if (!statSync(path).isFile()) throw modelError(path, 'is not a regular file');
      this.#descriptor = openSync(path, 'r');
      this.size = fstatSync(this.#descriptor).size;
    } catch (error) {
      if (error instanceof FlashForgeError) throw error;
      throw modelError(path, `cannot be opened: ${fileReason(error)}`, error);
    }
  }

  /** Fills `into` with the bytes from `offset` on. */
  readInto(into: Uint8Array, offset: number): void {
    let done = 0;
    while (done < into.length) {
      const wanted = Math.min(into.length - done, READ_BYTES_MAX);
      const got = readSync(this.#descriptor, into, done, wanted, offset + done);
      if (got === 0) throw modelError(this.path, `ends early, at byte ${offset + done}`);
      done += got;
    }
  }

  read(offset: number, bytes: number): Uint8Array {
    const into = new Uint8Array(bytes);
    this.readInto(into, offset);
    return into;
  }

  close(): void {
    if (this.#open) closeSync(this.#descriptor);
    this.#open = false;
  }
}
