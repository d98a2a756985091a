/**
 * How many requests may be accepted and not finished. The engine queues what is accepted; beyond
 * the limit clients are told when to come again.
 * @module
 */
import { ApiError } from './api-error.ts';

/** Weight of the newest request in the mean time of a request. */
const SMOOTHING = 0.1;
const RETRY_MIN_S = 1;
const RETRY_MAX_S = 60;

export class Admission {
  readonly limit: number;
  #open = 0;
  #meanMs = 0;
  #draining = false;

  constructor(limit: number) {
    this.limit = limit;
  }

  /** Accepted and not finished. */
  get open(): number {
    return this.#open;
  }

  /**
   * Accepts a request.
   * @returns to be called when it is finished
   * @throws ApiError 429 when the queue is full, 503 while the server ends.
   */
  enter(): () => void {
    if (this.#draining) {
      throw new ApiError(503, 'the server is shutting down', { code: 'shutting_down' });
    }
    if (this.#open >= this.limit) {
      throw new ApiError(429, `the queue is full: ${this.limit} requests are accepted at a time`, {
        code: 'queue_full',
        headers: { 'retry-after': String(this.#retrySeconds()) },
      });
    }
    this.#open++;
    const started = performance.now();
    let left = false;
    return () => {
      if (left) return;
      left = true;
      this.#open--;
      const ms = performance.now() - started;
      this.#meanMs = this.#meanMs === 0 ? ms : this.#meanMs + SMOOTHING * (ms - this.#meanMs);
    };
  }

  /** No more requests from now on. */
  drain(): void {
    this.#draining = true;
  }

  /** With a full queue, a place is free after about this time. */
  #retrySeconds(): number {
    const seconds = Math.ceil(this.#meanMs / 1000 / 4);
    return Math.min(RETRY_MAX_S, Math.max(RETRY_MIN_S, seconds));
  }
}
