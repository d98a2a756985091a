/**
 * Percentiles of times, by a histogram of bounded size (Node's HDR histogram, three digits).
 * @module
 */
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';

/** How times are spread, in ms; all 0 where there are none. */
export interface Percentiles {
  readonly count: number;
  readonly mean: number;
  readonly p50: number;
  readonly p90: number;
  readonly p99: number;
  readonly max: number;
}

const NS = 1e6;
/** Times from one hour on are counted as one hour. */
const MOST_NS = 3.6e12;

export class Latency {
  readonly #histogram: RecordableHistogram = createHistogram({ highest: MOST_NS, figures: 3 });

  record(ms: number): void {
    // The histogram begins at 1: that is what stands for 0.
    this.#histogram.record(Math.min(MOST_NS, Math.max(1, Math.round(ms * NS))));
  }

  percentiles(): Percentiles {
    const histogram = this.#histogram;
    const { count } = histogram;
    if (count === 0) return { count, mean: 0, p50: 0, p90: 0, p99: 0, max: 0 };
    const ms = (ns: number): number => (ns <= 1 ? 0 : ns / NS);
    const at = (share: number): number => ms(histogram.percentile(share));
    return {
      count,
      mean: ms(histogram.mean),
      p50: at(50),
      p90: at(90),
      p99: at(99),
      max: ms(histogram.max),
    };
  }

  reset(): void {
    this.#histogram.reset();
  }
}
