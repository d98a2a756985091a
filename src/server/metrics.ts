/**
 * A small exporter of Prometheus' text format: counters, gauges and histograms with fixed labels.
 * @module
 */
import { assert } from '../base/errors.ts';

type Labels = Readonly<Record<string, string>>;

const labelText = (labels: Labels): string =>
  Object.entries(labels)
    .map(
      ([name, value]) =>
        `${name}="${value.replace(/[\\"\n]/g, (c) => (c === '\n' ? '\\n' : `\\${c}`))}"`,
    )
    .join(',');

const numberText = (value: number): string =>
  Number.isFinite(value) ? String(value) : value > 0 ? '+Inf' : value < 0 ? '-Inf' : 'NaN';

/** One family: its name, its kind and its lines. */
interface Family {
  readonly name: string;
  readonly type: 'counter' | 'gauge' | 'histogram';
  readonly help: string;
  lines(common: Labels): Iterable<string>;
}

const line = (name: string, labels: Labels, value: number): string =>
  `${name}{${labelText(labels)}} ${numberText(value)}`;

/** A value for each set of labels; the exporter knows neither what it counts nor when. */
export class Value implements Family {
  readonly #values = new Map<string, { labels: Labels; value: number }>();
  readonly name: string;
  readonly type: 'counter' | 'gauge';
  readonly help: string;

  constructor(type: 'counter' | 'gauge', name: string, help: string) {
    this.type = type;
    this.name = name;
    this.help = help;
  }

  add(value = 1, labels: Labels = {}): void {
    this.#entry(labels).value += value;
  }

  set(value: number, labels: Labels = {}): void {
    this.#entry(labels).value = value;
  }

  get(labels: Labels = {}): number {
    return this.#values.get(labelText(labels))?.value ?? 0;
  }

  #entry(labels: Labels): { value: number } {
    const key = labelText(labels);
    let entry = this.#values.get(key);
    if (entry === undefined) {
      entry = { labels, value: 0 };
      this.#values.set(key, entry);
    }
    return entry;
  }

  *lines(common: Labels): Generator<string> {
    for (const { labels, value } of this.#values.values()) {
      yield line(this.name, { ...common, ...labels }, value);
    }
  }
}

/** Counts of values up to each of ascending bounds. */
export class Histogram implements Family {
  readonly type = 'histogram';
  readonly name: string;
  readonly help: string;
  readonly #bounds: readonly number[];
  readonly #counts: number[];
  #sum = 0;

  constructor(name: string, help: string, bounds: readonly number[]) {
    this.name = name;
    this.help = help;
    this.#bounds = bounds;
    this.#counts = Array(bounds.length + 1).fill(0);
  }

  observe(value: number): void {
    const at = this.#bounds.findIndex((bound) => value <= bound);
    this.#counts[at < 0 ? this.#bounds.length : at]++;
    this.#sum += value;
  }

  *lines(common: Labels): Generator<string> {
    let total = 0;
    for (const [index, count] of this.#counts.entries()) {
      total += count;
      const bound = this.#bounds[index] ?? Number.POSITIVE_INFINITY;
      yield line(`${this.name}_bucket`, { ...common, le: numberText(bound) }, total);
    }
    yield line(`${this.name}_sum`, common, this.#sum);
    yield line(`${this.name}_count`, common, total);
  }
}

/** A page of metrics in Prometheus' text format 0.0.4. */
export class Registry {
  readonly #families = new Map<string, Family>();

  counter(name: string, help: string): Value {
    return this.#add(new Value('counter', name, help));
  }

  gauge(name: string, help: string): Value {
    return this.#add(new Value('gauge', name, help));
  }

  histogram(name: string, help: string, bounds: readonly number[]): Histogram {
    return this.#add(new Histogram(name, help, bounds));
  }

  #add<T extends Family>(family: T): T {
    assert(!this.#families.has(family.name), `metric ${family.name} is there twice`);
    this.#families.set(family.name, family);
    return family;
  }

  /** @param common labels of every line */
  text(common: Labels = {}): string {
    const parts: string[] = [];
    for (const family of this.#families.values()) {
      parts.push(`# HELP ${family.name} ${family.help}\n# TYPE ${family.name} ${family.type}\n`);
      for (const each of family.lines(common)) parts.push(`${each}\n`);
    }
    return parts.join('');
  }
}
