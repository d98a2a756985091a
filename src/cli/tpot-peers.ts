/**
 * Readings of `bench tpot` beside those of peers (bench/peers/vllm_tpot.py): one table, scenario by
 * scenario.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import { readTextFile } from './read-text.ts';
import { table } from './table.ts';

/** A reading of ours, from a report, with the model's name. */
export interface OwnReading {
  readonly shape: string;
  readonly name: string;
  readonly mode: 'tree' | 'flat';
  readonly batch: number;
  readonly unique_kv_tokens: number;
  readonly flat_kv_tokens: number;
  readonly tpot_ms: number;
  readonly bound_ms: number;
  readonly device_bound_ms?: number;
  readonly joule_per_token: number | null;
}

/** A line of a peer's file. */
export interface PeerReading {
  readonly shape: string;
  readonly name: string;
  /** Such as "vllm 0.24.0" and "cascade". */
  readonly peer: string;
  readonly tpot_ms: number;
  readonly joule_per_token: number | null;
}

/** A scenario of one model with what everybody took. */
export interface JoinedRow {
  readonly shape: string;
  readonly name: string;
  readonly batch: number;
  /** Context tokens of all requests, and how many of them are different ones. */
  readonly flat_kv_tokens: number;
  readonly unique_kv_tokens: number;
  readonly bound_ms: number;
  readonly device_bound_ms: number | null;
  readonly tpot_ms: number;
  readonly flat_ms: number | null;
  readonly joule_per_token: number | null;
  /** By peer. */
  readonly peers: Readonly<Record<string, { tpot_ms: number; joule_per_token: number | null }>>;
  /** The fastest peer's time over ours; null without a peer. */
  readonly faster: number | null;
}

/** @throws FlashForgeError 'input' naming the line that is no reading. */
export function readPeers(path: string): PeerReading[] {
  const readings: PeerReading[] = [];
  for (const [index, line] of readInput(path).split('\n').entries()) {
    if (line.trim() === '') continue;
    const where = `${path}, line ${index + 1}`;
    const { shape, name, peer, tpot_ms, joule_per_token, failed } = record(line, where);
    if (failed !== undefined) continue;
    if (typeof shape !== 'string' || typeof name !== 'string' || typeof peer !== 'string') {
      throw new FlashForgeError('input', `${where} needs the texts shape, name and peer`);
    }
    if (typeof tpot_ms !== 'number' || !(tpot_ms > 0)) {
      throw new FlashForgeError('input', `${where} needs a tpot_ms above 0`);
    }
    const joules = typeof joule_per_token === 'number' ? joule_per_token : null;
    readings.push({ shape, name, peer, tpot_ms, joule_per_token: joules });
  }
  return readings;
}

/** @throws FlashForgeError 'input' for a file that is no report of `bench tpot`. */
export function readOwn(path: string): OwnReading[] {
  const { model, cases } = record(readInput(path), path);
  if (typeof model !== 'string' || !Array.isArray(cases)) {
    throw new FlashForgeError('input', `${path} is no report of bench tpot`);
  }
  return ownReadings(model, cases);
}

/** The measured cases of a report. */
export function ownReadings(
  shape: string,
  cases: readonly (Omit<OwnReading, 'shape'> | { readonly skipped: string })[],
): OwnReading[] {
  return cases.flatMap((each) => ('skipped' in each ? [] : [{ ...each, shape }]));
}

/** Rows in the order of our readings with sharing. */
export function join(
  own: readonly OwnReading[],
  peers: readonly PeerReading[],
): readonly JoinedRow[] {
  const of = <T extends { shape: string; name: string }>(list: readonly T[], row: OwnReading) =>
    list.filter(({ shape, name }) => shape === row.shape && name === row.name);
  return own
    .filter(({ mode }) => mode === 'tree')
    .map((row) => {
      const flat = of(own, row).find(({ mode }) => mode === 'flat');
      const theirs = of(peers, row);
      const fastest = Math.min(...theirs.map(({ tpot_ms }) => tpot_ms));
      return {
        ...{ shape: row.shape, name: row.name, batch: row.batch },
        ...{ flat_kv_tokens: row.flat_kv_tokens, unique_kv_tokens: row.unique_kv_tokens },
        ...{ bound_ms: row.bound_ms, device_bound_ms: row.device_bound_ms ?? null },
        ...{ tpot_ms: row.tpot_ms, flat_ms: flat?.tpot_ms ?? null },
        joule_per_token: row.joule_per_token,
        peers: Object.fromEntries(
          theirs.map(({ peer, tpot_ms, joule_per_token }) => [peer, { tpot_ms, joule_per_token }]),
        ),
        faster: theirs.length === 0 ? null : fastest / row.tpot_ms,
      };
    });
}

export function joinedTable(rows: readonly JoinedRow[]): string {
  const names = [...new Set(rows.flatMap(({ peers }) => Object.keys(peers)))];
  const text = (value: number | null | undefined, digits = 2): string =>
    value === null || value === undefined ? '-' : value.toFixed(digits);
  const ratio = (value: number | null): string => (value === null ? '-' : `${text(value)}x`);
  const cells = rows.map((row) => [
    ...[row.shape, row.name],
    ...[row.tpot_ms, row.flat_ms].map((value) => text(value)),
    ...names.map((name) => text(row.peers[name]?.tpot_ms)),
    ratio(row.faster),
    text(row.bound_ms),
    ratio(row.tpot_ms / row.bound_ms),
    text(row.device_bound_ms),
    ratio(row.device_bound_ms && row.tpot_ms / row.device_bound_ms),
    text(row.joule_per_token, 3),
    ...names.map((name) => text(row.peers[name]?.joule_per_token, 3)),
  ]);
  const head = ['model', 'scenario', 'TPOT ms', 'flat', ...names, 'faster', 'bound', 'ratio'];
  const joules = names.map((name) => `J, ${name}`);
  return table([...head, 'own bound', 'ratio', 'J/token', ...joules], cells);
}

/** Shared cases of more context than this are named apart: there sharing decides. */
const LONG_CONTEXT = 256_000;

/** Geometric means over the rows that have what is compared. */
export function summaryLines(rows: readonly JoinedRow[]): string[] {
  const lines: string[] = [];
  for (const shape of new Set(rows.map((row) => row.shape))) {
    const own = rows.filter((row) => row.shape === shape);
    const long = own.filter(
      ({ flat_kv_tokens: flat, unique_kv_tokens: unique }) => flat > LONG_CONTEXT && flat > unique,
    );
    lines.push(meansLine(`${shape}, geometric means`, own));
    if (long.length > 0) lines.push(meansLine('  shared, over 256k tokens in all', long));
  }
  return lines;
}

function meansLine(title: string, rows: readonly JoinedRow[]): string {
  const mean = (values: readonly number[]): string =>
    `${Math.exp(values.reduce((sum, x) => sum + Math.log(x), 0) / values.length).toFixed(2)}x`;
  const faster = rows.flatMap((row) => (row.faster === null ? [] : [row.faster]));
  const device = rows.flatMap(({ tpot_ms, device_bound_ms: bound }) =>
    bound === null ? [] : [tpot_ms / bound],
  );
  const flat = rows.flatMap((row) => (row.flat_ms === null ? [] : [row.flat_ms / row.tpot_ms]));
  const parts = [`TPOT / bound ${mean(rows.map((row) => row.tpot_ms / row.bound_ms))}`];
  if (device.length > 0) parts.push(`TPOT / own bound ${mean(device)}`);
  if (flat.length > 0) parts.push(`flat / TPOT ${mean(flat)} (${flat.length})`);
  if (faster.length > 0) parts.push(`fastest peer / TPOT ${mean(faster)} (${faster.length})`);
  return `${title} of ${rows.length} scenarios: ${parts.join(', ')}`;
}

function readInput(path: string): string {
  try {
    return readTextFile(path);
  } catch (cause) {
    const message = `${path} cannot be read: ${(cause as Error).message}`;
    throw new FlashForgeError('input', message, { cause });
  }
}

function record(text: string, where: string): Readonly<Record<string, unknown>> {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new FlashForgeError('input', `${where} is not JSON`, { cause });
  }
  if (typeof json === 'object' && json !== null) return json as Readonly<Record<string, unknown>>;
  throw new FlashForgeError('input', `${where} must be a JSON object`);
}
