/**
 * Pinned memory through which the host hands words to the device: two buffers in turn, so that
 * the host fills one while the stream may still read the other.
 * @module
 */
import { assert } from '../../base/errors.ts';
import type { Cuda, Event, PinnedMemory, Stream } from './driver.ts';

const WORDS_MIN = 1024;

interface Buffer {
  memory: PinnedMemory | undefined;
  words: Int32Array;
  /** Reached once the device has read what was sent last. */
  event: Event | undefined;
  sent: boolean;
}

const emptyBuffer = (): Buffer => ({
  memory: undefined,
  words: new Int32Array(0),
  event: undefined,
  sent: false,
});

export class Staging {
  readonly #cuda: Cuda;
  readonly #buffers = [emptyBuffer(), emptyBuffer()];
  #current = 0;

  constructor(cuda: Cuda) {
    this.#cuda = cuda;
  }

  /** So many words to fill; waits only if what was sent two calls ago has not been read yet. */
  take(count: number): Int32Array {
    this.#current ^= 1;
    const buffer = this.#buffers[this.#current];
    if (buffer.sent) buffer.event?.synchronize();
    buffer.sent = false;
    if (buffer.words.length < count) {
      buffer.memory?.free();
      const words = Math.max(WORDS_MIN, Math.ceil(count * 1.5));
      buffer.memory = this.#cuda.pinned(words * 4);
      buffer.words = new Int32Array(buffer.memory.buffer, 0, words);
    }
    return buffer.words;
  }

  /** Address of the words of the last `take`, for the host and the device. */
  get address(): bigint {
    const { memory } = this.#buffers[this.#current];
    assert(memory !== undefined, 'nothing was taken yet');
    return memory.address;
  }

  /** Enqueues the copy of the first `count` words of the last `take`. */
  upload(to: bigint, count: number, stream: Stream): void {
    const { memory } = this.#buffers[this.#current];
    assert(memory !== undefined, 'nothing was taken yet');
    this.#cuda.uploadAsync(to, memory, count * 4, stream);
    this.sent(stream);
  }

  /** What was enqueued so far reads the words; they are not reused before it has. */
  sent(stream: Stream): void {
    const buffer = this.#buffers[this.#current];
    buffer.event ??= this.#cuda.event();
    buffer.event.record(stream);
    buffer.sent = true;
  }

  free(): void {
    for (const { memory, event } of this.#buffers) {
      memory?.free();
      event?.free();
    }
  }
}
