/**
 * What was measured fastest, on disk, so that the next run need not measure again. One JSON file;
 * it appears by rename, so that several processes may share it, and a damaged one is as good as
 * none.
 * @module
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';

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
    const draft = `${this.#path}.${process.pid}.${randomBytes(4).toString('hex')}`;
    try {
      mkdirSync(dirname(this.#path), { recursive: true });
      writeFileSync(draft, JSON.stringify(this.#choices));
      renameSync(draft, this.#path);
    } catch {
      // A folder that cannot be written to costs measuring again, and nothing else.
    }
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
