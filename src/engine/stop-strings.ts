/**
 * Watches streamed text for stop strings. Text that may be the beginning of one is held back, so
 * that no part of a stop string is ever emitted.
 * @module
 */

/** Text that may be passed on, and whether a stop string was found right after it. */
export interface StopResult {
  readonly text: string;
  readonly stopped: boolean;
}

export class StopStrings {
  private readonly strings: readonly string[];
  private held = '';

  constructor(strings: readonly string[]) {
    this.strings = strings;
  }

  /** Takes the next piece of text. After `stopped` no more may be pushed. */
  push(piece: string): StopResult {
    if (this.strings.length === 0) return { text: piece, stopped: false };
    const text = this.held + piece;
    let first = -1;
    for (const stop of this.strings) {
      const at = text.indexOf(stop);
      if (at >= 0 && (first < 0 || at < first)) first = at;
    }
    if (first >= 0) {
      this.held = '';
      return { text: text.slice(0, first), stopped: true };
    }
    const keep = this.possibleStart(text);
    this.held = text.slice(text.length - keep);
    return { text: text.slice(0, text.length - keep), stopped: false };
  }

  /** Text still held back, for when generation ends for another reason. */
  flush(): string {
    const text = this.held;
    this.held = '';
    return text;
  }

  /** A copy with the same held text, for a fork of the sequence. */
  fork(strings: readonly string[] = this.strings): StopStrings {
    const copy = new StopStrings(strings);
    copy.held = this.held;
    return copy;
  }

  /** Length of the longest end of `text` that a stop string begins with. */
  private possibleStart(text: string): number {
    let longest = 0;
    for (const stop of this.strings) {
      for (let n = Math.min(stop.length - 1, text.length); n > longest; n--) {
        if (text.endsWith(stop.slice(0, n))) longest = n;
      }
    }
    return longest;
  }
}
