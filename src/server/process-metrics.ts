/**
 * How the server process itself does: memory, and how long its event loop keeps others waiting.
 * @module
 */
import { type IntervalHistogram, monitorEventLoopDelay } from 'node:perf_hooks';
import type { Registry, Value } from './metrics.ts';

/** The monitor's own timer interval, which its values include. */
const RESOLUTION_MS = 10;
const NS = 1e9;
const QUANTILES = [0.5, 0.99, 1];

export class ProcessMetrics {
  readonly #delay: IntervalHistogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  readonly #memory: Value;
  readonly #loop: Value;

  constructor(registry: Registry) {
    this.#memory = registry.gauge('process_resident_memory_bytes', 'Memory of the process.');
    this.#loop = registry.gauge(
      'flashforge:event_loop_delay_seconds',
      'Delay of the event loop since the last look, by quantile.',
    );
    this.#delay.enable();
  }

  /** Takes the figures of now; the delays begin anew. */
  update(): void {
    this.#memory.set(process.memoryUsage.rss());
    for (const quantile of QUANTILES) {
      const ns = this.#delay.count === 0 ? 0 : this.#delay.percentile(quantile * 100);
      const seconds = Math.max(0, ns / NS - RESOLUTION_MS / 1000);
      this.#loop.set(seconds, { quantile: String(quantile) });
    }
    this.#delay.reset();
  }
}
