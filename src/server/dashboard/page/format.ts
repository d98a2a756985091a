/**
 * Numbers as people read them, with their units.
 * @module
 */

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** 3 significant digits, without an exponent. */
export function round(value: number): string {
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString('en', { maximumFractionDigits: digits });
}

export function bytes(value: number): string {
  let unit = 0;
  let scaled = value;
  while (scaled >= 1024 && unit < UNITS.length - 1) {
    scaled /= 1024;
    unit++;
  }
  return `${round(scaled)} ${UNITS[unit]}`;
}

export const ms = (value: number | null): string =>
  value === null ? '–' : value >= 1000 ? `${round(value / 1000)} s` : `${round(value)} ms`;

export const us = (value: number): string =>
  value >= 1000 ? `${round(value / 1000)} ms` : `${round(value)} µs`;

/** "1 token", "2 tokens". */
export const count = (value: number, one: string, many = `${one}s`): string =>
  `${value.toLocaleString('en')} ${value === 1 ? one : many}`;
