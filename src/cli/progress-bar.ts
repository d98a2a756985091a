/**
 * A progress bar on stderr, drawn on a terminal only; elsewhere nothing is written.
 * @module
 */

const BAR_WIDTH = 30;
/** Redrawing more often than this is only flicker. */
const REDRAW_MS = 80;

export class ProgressBar {
  readonly #terminal = process.stderr.isTTY === true;
  #drawnAt = 0;
  #visible = false;

  /**
   * @param label what is being done
   * @param done and `total` in any unit; total 0 = unknown
   * @param detail shown behind the bar
   */
  update(label: string, done: number, total: number, detail: string): void {
    const now = performance.now();
    if (!this.#terminal || (now - this.#drawnAt < REDRAW_MS && done < total)) return;
    this.#drawnAt = now;
    this.#visible = true;
    const share = total > 0 ? Math.min(1, done / total) : 0;
    const filled = Math.round(share * BAR_WIDTH);
    const bar = '█'.repeat(filled) + '░'.repeat(BAR_WIDTH - filled);
    const percent = `${Math.round(share * 100)}%`.padStart(4);
    process.stderr.write(`\r\x1b[K${label} ${bar}${percent} ${detail}`);
  }

  /** Removes the bar; what is written next starts on a clean line. */
  clear(): void {
    if (this.#visible) process.stderr.write('\r\x1b[K');
    this.#visible = false;
  }
}
