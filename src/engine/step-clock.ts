/**
 * What a step costs besides the device's own time: how long the host was busy with it, and how
 * long the device had nothing to do because of that. Seen from the host: a device that reports its
 * idle time itself knows better.
 * @module
 */

/** Times around one step, in ms. */
export interface HostTimes {
  /** From the end of the wait for the step before to the begin of the wait for this one. */
  readonly hostMs: number;
  /** From the end of the step before to the hand-in of the next; 0 if that was handed in ahead. */
  readonly idleMs: number;
}

export class StepClock {
  /** When the host's work began; null while it waits, and while there is none. */
  #workMs: number | null = null;
  /** When the device ran out of steps; null while it has one, and while there is no work. */
  #idleMs: number | null = null;
  #times: HostTimes | null = null;
  #hostMs: number | null = null;
  /** Idle times of the steps under way, in order. */
  readonly #idle: (number | null)[] = [];

  /** The step that landed last; null if nothing was there before it to measure from. */
  get times(): HostTimes | null {
    return this.#times;
  }

  handedIn(): void {
    const now = performance.now();
    const isAhead = this.#idle.length > 0;
    this.#idle.push(isAhead ? 0 : this.#idleMs === null ? null : now - this.#idleMs);
    this.#idleMs = null;
  }

  /** Waiting already, it only goes on. */
  waits(): void {
    if (this.#workMs === null) return;
    this.#hostMs = performance.now() - this.#workMs;
    this.#workMs = null;
  }

  /** @param left steps still under way */
  landed(left: number): void {
    const now = performance.now();
    this.#workMs = now;
    if (left === 0) this.#idleMs = now;
    const idleMs = this.#idle.shift() ?? null;
    const hostMs = this.#hostMs;
    this.#hostMs = null;
    this.#times = hostMs === null || idleMs === null ? null : { hostMs, idleMs };
  }

  /** There is nothing to do: what follows is not the host's slowness. */
  rest(): void {
    this.#workMs = null;
    this.#hostMs = null;
    this.#idleMs = null;
    this.#idle.length = 0;
  }
}
