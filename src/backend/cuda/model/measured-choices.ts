/**
 * What was measured fastest, on disk, so that the next run need not measure again. One JSON file; a
 * damaged one is as good as none.
 * @module
 */
import { readFileSync } from 'node:fs';
import { keepFile } from '../../../base/cache-file.ts';

/** More choices than this are of many models and versions: the file begins anew. */
const CHOICES_MAX = 5000;

export class MeasuredChoices {
  readonly #path: string;
  /** All that choices depend on besides their names: device, driver, libraries, kernels. */
  readonly #circumstances: string;
  #choices: Record<string, string>;

  constructor(path: string, circumstances: string) {
    this.#path = path;
    this.#circumstances = circumstances;
    this.#choices = readChoices(path);
  }

  get(name: string): string | undefined {
    return this.#choices[`${this.#circumstances}: ${name}`];
  }

  set(name: string, choice: string): void {
    const others = readChoices(this.#path);
    const kept = Object.keys(others).length < CHOICES_MAX ? others : {};
    this.#choices = { ...kept, ...this.#choices, [`${this.#circumstances}: ${name}`]: choice };
    keepFile(this.#path, JSON.stringify(this.#choices));
  }
}

function readChoices(path: string): Record<string, string> {
  try {
    const read: unknown = JSON.parse(readFileSync(path, 'utf8'));
    if (typeof read !== 'object' || read === null) return {};
    const entries = Object.entries(read).filter(([, choice]) => typeof choice === 'string');
    return Object.fromEntries(entries) as Record<string, string>;
  } catch {
    return {};
  }
}
