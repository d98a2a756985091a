/**
 * The engine's side of a grammar thread: constraints that are open in it, and their masks as they
 * come back.
 * @module
 */
import { extname } from 'node:path';
import {
  MessageChannel,
  type MessagePort,
  receiveMessageOnPort,
  Worker,
} from 'node:worker_threads';
import { FlashForgeError } from '../base/errors.ts';
import type { GrammarVocabulary } from './grammar-library.ts';
import type { GrammarSource } from './grammar-source.ts';

const WORKER = new URL(`./grammar-worker${extname(import.meta.url)}`, import.meta.url);

export interface GrammarThreadData {
  readonly port: MessagePort;
  readonly vocabulary: GrammarVocabulary;
  /** Gives way to those who compute, where the platform has priorities of threads. */
  readonly background: boolean;
}

export type GrammarRequest =
  | {
      readonly kind: 'open';
      readonly id: number;
      readonly key: string;
      readonly source: GrammarSource;
      readonly samples: number;
    }
  /** Answered by the mask that follows the token. */
  | {
      readonly kind: 'accept';
      readonly id: number;
      readonly sample: number;
      readonly token: number;
    }
  | { readonly kind: 'close'; readonly id: number };

/** Masks are (vocab / 32) bits. */
export type GrammarReply =
  | { readonly kind: 'opened'; readonly id: number; readonly mask: Int32Array }
  | {
      readonly kind: 'mask';
      readonly id: number;
      readonly sample: number;
      readonly mask: Int32Array;
    }
  | { readonly kind: 'failed'; readonly id: number; readonly reason: string };

/** Told what the thread answers about one constraint. */
interface Listener {
  onOpened(mask: Int32Array): void;
  onMask(sample: number, mask: Int32Array): void;
  onFailed(error: FlashForgeError): void;
}

export class GrammarThread {
  /** Told when the thread has ended. */
  onEnd: () => void = () => {};
  readonly #worker: Worker;
  readonly #port: MessagePort;
  readonly #listeners = new Map<number, Listener>();
  #nextId = 1;
  #ended: FlashForgeError | null = null;

  constructor(vocabulary: GrammarVocabulary, background: boolean) {
    const { port1, port2 } = new MessageChannel();
    const workerData: GrammarThreadData = { port: port2, vocabulary, background };
    this.#port = port1;
    this.#worker = new Worker(WORKER, {
      workerData,
      transferList: [port2],
      name: 'flashforge-grammar',
    });
    this.#port.on('message', (reply: GrammarReply) => this.#take(reply));
    this.#worker.on('error', () => this.#end('its thread has failed'));
    this.#worker.on('exit', () => this.#end('its thread has ended'));
    this.#port.unref();
    this.#worker.unref();
  }

  /** Constraints that are open or being opened. */
  get size(): number {
    return this.#listeners.size;
  }

  get ended(): boolean {
    return this.#ended !== null;
  }

  /** Starts a constraint and returns its number. */
  open(key: string, source: GrammarSource, samples: number, listener: Listener): number {
    const id = this.#nextId++;
    this.#listeners.set(id, listener);
    this.#port.ref();
    this.#send({ kind: 'open', id, key, source, samples });
    return id;
  }

  accept(id: number, sample: number, token: number): void {
    this.#send({ kind: 'accept', id, sample, token });
  }

  close(id: number): void {
    if (!this.#listeners.delete(id)) return;
    this.#send({ kind: 'close', id });
    this.#rest();
  }

  /** Takes answers that have arrived while this thread was computing. */
  poll(): void {
    for (;;) {
      const found = receiveMessageOnPort(this.#port) as { message: GrammarReply } | undefined;
      if (found === undefined) return;
      this.#take(found.message);
    }
  }

  async terminate(reason: string): Promise<void> {
    this.#end(reason);
    await this.#worker.terminate();
  }

  #send(request: GrammarRequest): void {
    if (this.#ended === null) this.#port.postMessage(request);
    else this.#listeners.get(request.id)?.onFailed(this.#ended);
  }

  #take(reply: GrammarReply): void {
    const listener = this.#listeners.get(reply.id);
    if (listener === undefined) return;
    if (reply.kind === 'opened') listener.onOpened(reply.mask);
    else if (reply.kind === 'mask') listener.onMask(reply.sample, reply.mask);
    else {
      this.#listeners.delete(reply.id);
      this.#rest();
      listener.onFailed(new FlashForgeError('request', reply.reason));
    }
  }

  /** Keeps no process alive while nothing is open. */
  #rest(): void {
    if (this.#listeners.size === 0) this.#port.unref();
  }

  #end(reason: string): void {
    if (this.#ended !== null) return;
    this.#ended = new FlashForgeError('request', `the grammar cannot be used: ${reason}`);
    this.#port.close();
    const listeners = [...this.#listeners.values()];
    this.#listeners.clear();
    for (const listener of listeners) listener.onFailed(this.#ended);
    this.onEnd();
  }
}
