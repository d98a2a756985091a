/**
 * What `bench tpot` reports of a case: times beside the bound that the hardware sets, and tables.
 * @module
 */
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { table } from './table.ts';
import type { TpotMeasurement } from './tpot-bench.ts';
import { kvTokens, type Scenario } from './tpot-scenario.ts';

/** The H100's memory and 16-bit tensor cores, as targets are stated for it. */
const H100_BYTES_PER_SECOND = 3.0e12;
const FLOPS_PER_SECOND = 600e12;

export interface TpotCase extends TpotMeasurement {
  readonly name: string;
  readonly mode: 'tree' | 'flat';
  readonly batch: number;
  readonly unique_kv_tokens: number;
  readonly flat_kv_tokens: number;
  /** With 3.0 TB/s and 600 TFLOP/s. */
  readonly bound_ms: number;
  readonly ratio: number;
  /** With this device's own read bandwidth; absent where it was not measured. */
  readonly device_bound_ms?: number;
  readonly device_ratio?: number;
}

/** A scenario that could not be measured. */
export interface SkippedCase {
  readonly name: string;
  readonly skipped: string;
}

/** What the bound depends on. */
export interface ModelCosts {
  /** Bytes of weights that a step reads: all but an embedding table of its own. */
  readonly weightBytes: number;
  readonly tokenBytes: number;
  /** Floating-point operations of attention for one token of one request's context. */
  readonly tokenFlops: number;
  readonly readBytesPerSecond: number | undefined;
}

export function modelCosts(
  { tensors, config }: Pick<Checkpoint, 'tensors' | 'config'>,
  runner: { readonly tokenBytes: number; readonly readBytesPerSecond?: number | undefined },
): ModelCosts {
  let weightBytes = 0;
  for (const { name, bytes } of tensors.values()) {
    if (name !== 'embed' || config.tiedEmbeddings) weightBytes += bytes;
  }
  return {
    weightBytes,
    tokenBytes: runner.tokenBytes,
    tokenFlops: 4 * config.heads * config.headDim * config.layers,
    readBytesPerSecond: runner.readBytesPerSecond,
  };
}

/**
 * The least time of a step, in ms: weight bytes / bandwidth + the larger of unique KV bytes /
 * bandwidth and attention's operations / 600 TFLOP/s.
 */
export function boundMs(
  { weightBytes, tokenBytes, tokenFlops }: ModelCosts,
  tokens: { readonly unique: number; readonly flat: number },
  bytesPerSecond: number,
): number {
  const read = (tokens.unique * tokenBytes) / bytesPerSecond;
  const compute = (tokens.flat * tokenFlops) / FLOPS_PER_SECOND;
  return (weightBytes / bytesPerSecond + Math.max(read, compute)) * 1000;
}

export function tpotCase(
  scenario: Scenario,
  mode: 'tree' | 'flat',
  steps: number,
  measured: TpotMeasurement,
  costs: ModelCosts,
): TpotCase {
  const tokens = kvTokens(scenario, steps);
  const bound = boundMs(costs, tokens, H100_BYTES_PER_SECOND);
  const { readBytesPerSecond } = costs;
  const own = readBytesPerSecond && boundMs(costs, tokens, readBytesPerSecond);
  return {
    ...{ name: scenario.name, mode, batch: scenario.requests.length },
    ...{ unique_kv_tokens: tokens.unique, flat_kv_tokens: tokens.flat },
    ...measured,
    ...{ bound_ms: bound, ratio: measured.tpot_ms / bound },
    ...(own ? { device_bound_ms: own, device_ratio: measured.tpot_ms / own } : {}),
  };
}

const ms = (value: number | undefined): string => (value === undefined ? '-' : value.toFixed(2));

export function caseTable(cases: readonly (TpotCase | SkippedCase)[]): string {
  const rows = cases.flatMap((each) => ('skipped' in each ? [] : [caseCells(each)]));
  const head = ['scenario', 'mode', 'TPOT ms', 'p50', 'p99', 'TTFT ms', 'host', 'idle'];
  return table(
    [...head, 'attention', 'KV MiB', 'bound', 'ratio', 'own bound', 'ratio', 'J/token'],
    rows,
  );
}

function caseCells(each: TpotCase): string[] {
  const { joule_per_token: joules } = each;
  return [
    each.name,
    each.mode,
    each.tpot_ms.toFixed(3),
    ...[each.step_p50_ms, each.step_p99_ms, each.ttft_p50_ms].map(ms),
    ...[each.host_p50_ms, each.idle_p50_ms].map((value) => value.toFixed(3)),
    ms(each.attention_ms),
    (each.kv_bytes / 2 ** 20).toFixed(0),
    ...[each.bound_ms, each.ratio, each.device_bound_ms, each.device_ratio].map(ms),
    joules === null ? '-' : joules.toPrecision(3),
  ];
}

/** One line of progress. */
export function caseLine(each: TpotCase): string {
  const all = each.tpot_all.map(ms).join(', ');
  const ttft = each.ttft_p50_ms.toFixed(0);
  return (
    `${each.name}, ${each.mode}: TPOT ${ms(each.tpot_ms)} ms (${all}; median step ` +
    `${ms(each.step_p50_ms)}), bound ${ms(each.bound_ms)}, TTFT ${ttft} ms`
  );
}
