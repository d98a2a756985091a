/**
 * What the driver's statuses and version numbers say.
 * @module
 */
import type { DriverLibrary } from './signatures.ts';

/** Statuses after which the context is unusable: faults, a lost device, one that others ended. */
export const STICKY = new Set([
  4, 46, 201, 214, 700, 702, 714, 715, 716, 717, 718, 709, 719, 720, 999,
]);

/** A status in the driver's own words. */
export function statusText(library: DriverLibrary, status: number): string {
  const text = (call: 'cuGetErrorName' | 'cuGetErrorString'): string => {
    const out = new BigUint64Array(1);
    if (library.call[call](status, out) !== 0) return '';
    const bytes = new Uint8Array(library.viewOf(out[0], 160));
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(bytes.slice(0, end < 0 ? bytes.length : end));
  };
  const name = text('cuGetErrorName');
  return name === '' ? `status ${status}` : `${name} (${text('cuGetErrorString')})`;
}

/** 12040 as 12.4. */
export const versionText = (version: number): string =>
  `${Math.floor(version / 1000)}.${Math.floor((version % 1000) / 10)}`;
