/**
 * The caller's side of the engine thread: numbered calls, their answers, and what happens to all
 * of them when the thread ends. The process stays alive while calls are open, and only then.
 * @module
 */
import { extname } from 'node:path';
import { Worker } from 'node:worker_threads';
import { FlashForgeError, requestAborted } from '../base/errors.ts';
import { EngineProcess } from './engine-process.ts';
import type { Call, EngineSnapshot, EngineStart, ModelInfo, Reply } from './rpc.ts';

const WORKER = new URL(`./engine-worker${extname(import.meta.url)}`, import.meta.url);

export type StreamReply = Extract<Reply, { kind: 'prompt' | 'token' | 'end' }>;

/** A call without its number; distributes over the union. */
type Unnumbered<T> = T extends { readonly id: number } ? Omit<T, 'id'> : never;
export type AnsweredCall = Unnumbered<Exclude<Call, { kind: 'abort' }>>;
export type UnansweredCall = Exclude<Call, { readonly id: number }>;

interface Pending {
  resolve(value: unknown): void;
  reject(error: FlashForgeError): void;
  onStream: ((reply: StreamReply) => void) | undefined;
}

export interface LoadHooks {
  readonly onProgress?: ((share: number) => void) | undefined;
  readonly log?: ((line: string) => void) | undefined;
  /** Told once when the thread has ended, whatever the reason. */
  readonly onEnd?: ((error: FlashForgeError) => void) | undefined;
}

const LOAD_ID = 0;
/** A fault has ended the use of CUDA for this process. */
let processLost = false;
/** How long an engine thread may take to end by itself, in ms. */
const CLOSE_PATIENCE_MS = 5000;

export class EngineClient {
  readonly #worker: Worker | EngineProcess;
  readonly #hooks: LoadHooks;
  readonly #pending = new Map<number, Pending>();
  #closing = false;
  #nextId = LOAD_ID + 1;
  #nextBranch = 1;
  #ended: FlashForgeError | null = null;
  #stats: EngineSnapshot | null = null;

  private constructor(start: EngineStart, hooks: LoadHooks, apart: boolean) {
    this.#hooks = hooks;
    this.#worker = apart
      ? new EngineProcess(WORKER, start)
      : new Worker(WORKER, { workerData: start, name: 'flashforge-engine' });
    this.#worker.on('message', (replies: Reply[]) => {
      for (const reply of replies) this.#take(reply);
    });
    this.#worker.on('error', (error) => {
      this.#end(
        new FlashForgeError('device', `the engine thread failed: ${error.message}`, {
          cause: error,
        }),
      );
    });
    this.#worker.on('exit', () => {
      const why = this.#closing ? 'the model was disposed' : 'the engine thread has ended';
      this.#end(new FlashForgeError('device', why));
    });
  }

  /**
   * Starts an engine thread and waits until its model is loaded; a process of its own where this
   * one has lost the device.
   * @throws FlashForgeError 'model', 'compile', 'device' or 'aborted'.
   */
  static async start(
    start: EngineStart,
    hooks: LoadHooks,
    signal?: AbortSignal,
    apart = processLost && start.runner.device !== 'cpu',
  ): Promise<{ client: EngineClient; info: ModelInfo }> {
    const client = new EngineClient(start, hooks, apart);
    const abort = (): void =>
      client.#end(new FlashForgeError('aborted', 'loading the model was aborted'));
    if (signal?.aborted) abort();
    signal?.addEventListener('abort', abort, { once: true });
    try {
      const info = await client.#open(LOAD_ID, undefined);
      return { client, info: info as ModelInfo };
    } catch (error) {
      await client.#worker.terminate();
      const elsewhere = processLost && start.runner.device !== 'cpu' && !apart;
      if (elsewhere) return await EngineClient.start(start, hooks, signal, true);
      throw error;
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  /** The last statistics that the engine sent; it sends them with every answer. */
  get stats(): EngineSnapshot | null {
    return this.#stats;
  }

  /** A new handle for a branch. */
  newBranch(): number {
    return this.#nextBranch++;
  }

  /**
   * Makes a call and waits for its answer.
   * @param onStream gets the tokens of a generation
   */
  call(
    call: AnsweredCall,
    onStream?: (reply: StreamReply) => void,
    signal?: AbortSignal,
  ): Promise<unknown> {
    const id = this.#nextId++;
    const answer = this.#open(id, onStream);
    if (this.#ended !== null) return answer;
    if (signal?.aborted) {
      const { code, message } = requestAborted();
      this.#take({ kind: 'error', id, code, message });
      return answer;
    }
    this.#worker.postMessage({ ...call, id });
    if (signal === undefined) return answer;
    const abort = (): void => this.#worker.postMessage({ kind: 'abort', id } satisfies Call);
    signal.addEventListener('abort', abort, { once: true });
    return answer.finally(() => signal.removeEventListener('abort', abort));
  }

  /** Sends a call that is not answered; after the end it does nothing. */
  send(call: UnansweredCall): void {
    if (this.#ended === null) this.#worker.postMessage(call);
  }

  /** Ends all requests and the thread. A second call does nothing. */
  async close(): Promise<void> {
    if (this.#ended !== null) return;
    this.#closing = true;
    const exited = new Promise((resolve) => this.#worker.once('exit', resolve));
    await this.call({ kind: 'close' }).catch(() => undefined);
    this.#worker.ref();
    const timer = setTimeout(() => void this.#worker.terminate(), CLOSE_PATIENCE_MS);
    await exited;
    clearTimeout(timer);
  }

  #open(id: number, onStream: Pending['onStream']): Promise<unknown> {
    if (this.#ended !== null) return Promise.reject(this.#ended);
    this.#worker.ref();
    return new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject, onStream });
    });
  }

  #take(reply: Reply): void {
    switch (reply.kind) {
      case 'stats':
        this.#stats = reply.stats;
        return;
      case 'progress':
        this.#hooks.onProgress?.(reply.share);
        return;
      case 'log':
        this.#hooks.log?.(reply.line);
        return;
      case 'ready':
        this.#settle(LOAD_ID, (pending) => pending.resolve(reply.info));
        return;
      case 'prompt':
      case 'token':
      case 'end':
        this.#pending.get(reply.id)?.onStream?.(reply);
        return;
      case 'result':
        this.#settle(reply.id, (pending) => pending.resolve(reply.value));
        return;
      case 'error':
        processLost ||= reply.elsewhere === true;
        this.#settle(reply.id, (pending) =>
          pending.reject(new FlashForgeError(reply.code, reply.message)),
        );
        return;
      default:
        reply satisfies never;
    }
  }

  #settle(id: number, how: (pending: Pending) => void): void {
    const pending = this.#pending.get(id);
    if (pending === undefined) return;
    this.#pending.delete(id);
    if (this.#pending.size === 0) this.#worker.unref();
    how(pending);
  }

  #end(error: FlashForgeError): void {
    if (this.#ended !== null) return;
    this.#ended = error;
    for (const id of [...this.#pending.keys()]) this.#settle(id, ({ reject }) => reject(error));
    this.#hooks.onEnd?.(error);
  }
}
