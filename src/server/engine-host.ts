/**
 * Keeps an engine running behind the server: loads the model while the server already answers,
 * and starts a new engine thread when one has failed.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import { openTokenizer } from '../checkpoint/open-tokenizer.ts';
import { resolveDefaultModel, resolveModel } from '../checkpoint/reference.ts';
import {
  type AnsweredCall,
  EngineClient,
  type StreamReply,
  type UnansweredCall,
} from '../engine/engine-client.ts';
import type { EngineSnapshot, ModelInfo } from '../engine/rpc.ts';
import { ApiError } from './api-error.ts';
import type { Log } from './log.ts';
import type { Settings } from './server-options.ts';
import { TokenTexts } from './token-texts.ts';

export type HostState = 'loading' | 'ready' | 'restarting' | 'failed' | 'closed';

/** What is served. */
export interface ServedModel {
  readonly info: ModelInfo;
  readonly reference: string;
  /** Names that clients may ask for; the first one stands in answers. */
  readonly names: readonly string[];
  readonly texts: TokenTexts;
}

/** More restarts than this within the window, and the engine stays down. */
const RESTARTS_MAX = 5;
const RESTART_WINDOW_MS = 60_000;
/** Clients should come again after about the time that loading takes. */
const RETRY_S = 2;

export class EngineHost {
  /** Told when an engine has ended: whatever was held in it is gone. */
  onLost: () => void = () => {};
  restarts = 0;
  readonly #settings: Settings;
  readonly #log: Log;
  readonly #controller = new AbortController();
  #state: HostState = 'loading';
  #client: EngineClient | null = null;
  #model: ServedModel | null = null;
  #path = '';
  #restartTimes: number[] = [];

  constructor(settings: Settings, log: Log) {
    this.#settings = settings;
    this.#log = log;
  }

  get state(): HostState {
    return this.#state;
  }

  /** Null until the model was loaded once. */
  get model(): ServedModel | null {
    return this.#model;
  }

  /** @throws ApiError 503 until the model is loaded. */
  get ready(): ServedModel {
    if (this.#model !== null && this.#state === 'ready') return this.#model;
    throw this.#unavailable();
  }

  get stats(): EngineSnapshot | null {
    return this.#client?.stats ?? null;
  }

  /**
   * Brings the model and starts the engine.
   * @throws FlashForgeError when it cannot be loaded, or 'aborted' after `close`.
   */
  async load(): Promise<void> {
    const { signal } = this.#controller;
    const { offline, model, servedModelNames } = this.#settings;
    const log = (line: string): void => this.#log.info(line);
    try {
      const options = { offline, signal, log };
      const found = await (model === undefined
        ? resolveDefaultModel(options)
        : resolveModel(model, options));
      this.#path = found.path;
      const info = await this.#start();
      const texts = new TokenTexts(openTokenizer(found.path));
      const names = servedModelNames?.length ? servedModelNames : [found.reference];
      this.#model = { info, reference: found.reference, names, texts };
      this.#state = 'ready';
    } catch (error) {
      if (this.#state !== 'closed') this.#state = 'failed';
      throw error;
    }
  }

  newBranch(): number {
    return this.#current().newBranch();
  }

  /**
   * Makes a call of the engine.
   * @throws FlashForgeError of the engine, ApiError 503 while there is none.
   */
  async call(
    call: AnsweredCall,
    onStream?: (reply: StreamReply) => void,
    signal?: AbortSignal,
  ): Promise<unknown> {
    const client = this.#current();
    try {
      return await client.call(call, onStream, signal);
    } catch (error) {
      if (error instanceof FlashForgeError && error.code === 'device') this.#lose(client, error);
      throw error;
    }
  }

  /** Sends a call that has no answer; without an engine it does nothing. */
  send(call: UnansweredCall): void {
    this.#client?.send(call);
  }

  /** Ends the engine and everything that runs in it. */
  async close(): Promise<void> {
    this.#state = 'closed';
    this.#controller.abort();
    await this.#client?.close();
  }

  #current(): EngineClient {
    if (this.#client === null || this.#state !== 'ready') throw this.#unavailable();
    return this.#client;
  }

  async #start(): Promise<ModelInfo> {
    const { runner = {}, engine = {} } = this.#settings;
    const start = { path: this.#path, runner, engine };
    let started: EngineClient | null = null;
    const hooks = {
      log: (line: string) => this.#log.info(line),
      onEnd: (error: FlashForgeError) => {
        if (started !== null) this.#lose(started, error);
      },
    };
    const { client, info } = await EngineClient.start(start, hooks, this.#controller.signal);
    started = client;
    // The first statistics come with the first answer.
    await client.call({ kind: 'resetStats' });
    this.#client = client;
    return info;
  }

  /** The engine is of no use any more: its requests have failed, the next ones get a new one. */
  #lose(client: EngineClient, error: FlashForgeError): void {
    if (client !== this.#client || this.#state === 'closed') return;
    this.#log.error({ reason: error.message }, 'the engine failed');
    this.#client = null;
    this.#state = 'restarting';
    this.onLost();
    void this.#restart(client);
  }

  async #restart(old: EngineClient): Promise<void> {
    const now = Date.now();
    this.#restartTimes = this.#restartTimes.filter((time) => now - time < RESTART_WINDOW_MS);
    this.#restartTimes.push(now);
    try {
      if (this.#restartTimes.length > RESTARTS_MAX) {
        throw new FlashForgeError('device', 'the engine failed too often');
      }
      await old.close();
      await this.#start();
      this.restarts++;
      if (this.#state === 'restarting') this.#state = 'ready';
      this.#log.info('the engine was restarted');
    } catch (cause) {
      if (this.#state !== 'restarting') return;
      this.#state = 'failed';
      this.#log.error({ reason: (cause as Error).message }, 'the engine stays down');
    }
  }

  #unavailable(): ApiError {
    switch (this.#state) {
      case 'closed':
        return new ApiError(503, 'the server is shutting down', { code: 'shutting_down' });
      case 'failed':
        return new ApiError(503, 'the model could not be loaded; see the server log', {
          code: 'model_failed',
        });
      default: {
        const loading = this.#state === 'loading';
        return new ApiError(503, `the ${loading ? 'model is being loaded' : 'engine restarts'}`, {
          code: loading ? 'model_loading' : 'engine_restarting',
          headers: { 'retry-after': String(RETRY_S) },
        });
      }
    }
  }
}
