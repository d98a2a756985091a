/**
 * One request being served: who asks, what was sent, and how long it may take.
 * @module
 */
import type { ServerResponse } from 'node:http';
import { ApiError } from './api-error.ts';
import type { Log } from './log.ts';
import type { Parts } from './parts.ts';
import type { Tenant } from './tenants.ts';

/** Why a request was given up. */
export type StopReason = 'gone' | 'slow' | 'timeout';

export class Exchange {
  readonly id: string;
  readonly tenant: Tenant;
  readonly parts: Parts;
  readonly log: Log;
  /** Path parameters. */
  readonly params: Readonly<Record<string, string>>;
  /** The parsed and checked body; its type is the route's. */
  readonly body: unknown;
  /** The answer goes on after the handler has returned; whoever sends it calls `finish`. */
  streams = false;
  /** A stream ended with an error event. */
  failed = false;
  readonly #controller = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly #onFinish: (() => void)[] = [];
  #reason: StopReason | null = null;
  #finished = false;

  constructor(init: {
    readonly id: string;
    readonly tenant: Tenant;
    readonly parts: Parts;
    readonly params: Readonly<Record<string, string>>;
    readonly body: unknown;
    /** Aborted when the client is gone. */
    readonly client: AbortSignal;
  }) {
    this.id = init.id;
    this.tenant = init.tenant;
    this.parts = init.parts;
    this.params = init.params;
    this.body = init.body;
    this.log = init.parts.log.child({ request: init.id });
    const gone = (): void => this.stop('gone');
    if (init.client.aborted) gone();
    init.client.addEventListener('abort', gone, { once: true });
    const { requestTimeoutMs } = init.parts.settings;
    this.#timer = setTimeout(() => this.stop('timeout'), requestTimeoutMs);
    this.onFinish(() => {
      clearTimeout(this.#timer);
      init.client.removeEventListener('abort', gone);
    });
  }

  /** Aborted when nobody waits for the result any more. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  get reason(): StopReason | null {
    return this.#reason;
  }

  /** Gives the request up; only the first reason counts. */
  stop(reason: StopReason): void {
    if (this.#reason !== null || this.#finished) return;
    this.#reason = reason;
    this.#controller.abort();
  }

  /** The failure as the client should see it. */
  errorOf(error: unknown): unknown {
    if (this.#reason === 'timeout') {
      const { requestTimeoutMs } = this.parts.settings;
      return new ApiError(408, `the request took longer than ${requestTimeoutMs} ms`, {
        code: 'request_timeout',
      });
    }
    if (this.#reason !== null) return new ApiError(499, `the client is ${this.#reason}`);
    return error;
  }

  onFinish(action: () => void): void {
    this.#onFinish.push(action);
  }

  /** Everything has been said. A second call does nothing. */
  finish(): void {
    if (this.#finished) return;
    this.#finished = true;
    for (const action of this.#onFinish) action();
  }
}

/** Cuts a client off that does not read what is already sent. */
export function boundSlowClient(outgoing: ServerResponse, patienceMs: number): void {
  if (outgoing.writableFinished || outgoing.destroyed) return;
  const timer = setTimeout(() => outgoing.destroy(), patienceMs);
  timer.unref();
  outgoing.once('close', () => clearTimeout(timer));
}
