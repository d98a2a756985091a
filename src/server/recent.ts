/**
 * The last minutes in figures a second: tokens, time between tokens, time to first token. For the
 * dashboard; constant memory.
 * @module
 */

/** Seconds that are kept. */
const WINDOW_S = 300;

interface Second {
  second: number;
  tokens: number;
  gaps: number;
  gapMs: number;
  firsts: number;
  firstMs: number;
}

/** One second; a mean is null where nothing happened. */
export interface RecentSecond {
  /** Unix time in seconds. */
  readonly time: number;
  readonly tokens: number;
  readonly tpotMs: number | null;
  readonly ttftMs: number | null;
}

const mean = (sum: number, count: number): number | null => (count === 0 ? null : sum / count);

export class Recent {
  readonly #ring: Second[] = [];
  readonly #now: () => number;

  /** @param now Unix time in ms */
  constructor(now: () => number = Date.now) {
    this.#now = now;
  }

  /** @param gapMs since the sample's token before, or null for its first one */
  token(gapMs: number | null): void {
    const second = this.#second();
    second.tokens++;
    if (gapMs === null) return;
    second.gaps++;
    second.gapMs += gapMs;
  }

  ttft(ms: number): void {
    const second = this.#second();
    second.firsts++;
    second.firstMs += ms;
  }

  /** Oldest first; seconds in which nothing happened are left out. */
  seconds(): RecentSecond[] {
    this.#forget();
    return this.#ring.map(({ second, tokens, gaps, gapMs, firsts, firstMs }) => ({
      time: second,
      tokens,
      tpotMs: mean(gapMs, gaps),
      ttftMs: mean(firstMs, firsts),
    }));
  }

  #second(): Second {
    const second = Math.floor(this.#now() / 1000);
    const last = this.#ring.at(-1);
    if (last?.second === second) return last;
    const fresh = { second, tokens: 0, gaps: 0, gapMs: 0, firsts: 0, firstMs: 0 };
    this.#ring.push(fresh);
    this.#forget();
    return fresh;
  }

  #forget(): void {
    const oldest = Math.floor(this.#now() / 1000) - WINDOW_S;
    while (this.#ring.length > 0 && this.#ring[0].second <= oldest) this.#ring.shift();
  }
}
