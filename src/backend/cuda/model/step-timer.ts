/**
 * Times on the device by events: of captured work, and of attention within a step.
 * @module
 */
import type { Cuda, Event, Stream } from '../driver.ts';

export class StepTimer {
  readonly #cuda: Cuda;
  readonly #stream: Stream;
  readonly #events: Event[] = [];
  #used = 0;

  constructor(cuda: Cuda, stream: Stream) {
    this.#cuda = cuda;
    this.#stream = stream;
  }

  /** Forgets all marks. */
  begin(): void {
    this.#used = 0;
  }

  /** Marks the stream here; an even number of marks makes pairs. */
  mark(): void {
    this.#next().record(this.#stream);
  }

  /** Within a capture: each replay marks the stream here. */
  markInGraph(): void {
    this.#next().recordInGraph(this.#stream);
  }

  #next(): Event {
    if (this.#used === this.#events.length) this.#events.push(this.#cuda.event());
    return this.#events[this.#used++];
  }

  /** Sum of the time within the pairs of marks, us; the stream must have passed them. */
  pairsUs(): number {
    let sum = 0;
    for (let i = 0; i + 1 < this.#used; i += 2) {
      sum += this.#cuda.elapsedUs(this.#events[i], this.#events[i + 1]);
    }
    return sum;
  }

  /** Time of `work` as one graph, us: the second of two replays. */
  graphUs(work: () => void): number {
    const graph = this.#cuda.capture(this.#stream, work);
    try {
      graph.launch(this.#stream);
      this.begin();
      this.mark();
      graph.launch(this.#stream);
      this.mark();
      this.#stream.synchronize();
      return this.pairsUs();
    } finally {
      graph.free();
    }
  }

  free(): void {
    for (const event of this.#events) event.free();
  }
}
