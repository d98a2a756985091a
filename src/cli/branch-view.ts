/**
 * Branches of a tree as they grow: on a terminal one line a branch, redrawn in place; elsewhere
 * each branch as a plain line when it is finished.
 * @module
 */
import type { Context } from './command.ts';

const REDRAW_MS = 60;

export class BranchView {
  readonly #context: Context;
  readonly #labels: readonly string[];
  readonly #texts: string[];
  readonly #finished: boolean[];
  #drawnAt = 0;
  #drawn = false;

  /** @param labels one for each branch */
  constructor(context: Context, labels: readonly string[]) {
    this.#context = context;
    this.#labels = labels;
    this.#texts = labels.map(() => '');
    this.#finished = labels.map(() => false);
  }

  append(branch: number, text: string): void {
    this.#texts[branch] += text;
    if (this.#context.live && performance.now() - this.#drawnAt > REDRAW_MS) this.#draw();
  }

  finish(branch: number): void {
    this.#finished[branch] = true;
    if (this.#context.live) this.#draw();
    else this.#context.print(`${this.#labels[branch]} ${oneLine(this.#texts[branch])}`);
  }

  #draw(): void {
    const up = this.#drawn ? `\x1b[${this.#labels.length}A` : '';
    const lines = this.#labels.map((label, branch) => `\x1b[K${this.#line(label, branch)}\n`);
    this.#context.write(up + lines.join(''));
    this.#drawn = true;
    this.#drawnAt = performance.now();
  }

  /** The end of what is there, because that is where something happens. */
  #line(label: string, branch: number): string {
    const room = Math.max(10, this.#context.columns - label.length - 4);
    const text = [...oneLine(this.#texts[branch])];
    const shown = text.length > room ? `…${text.slice(1 - room).join('')}` : text.join('');
    return `${label} ${this.#finished[branch] ? '✓' : '·'} ${shown}`;
  }
}

/** Model output must not move the cursor: control characters become spaces. */
const oneLine = (text: string): string => text.replace(/[\s\p{Cc}]+/gu, ' ').trim();
