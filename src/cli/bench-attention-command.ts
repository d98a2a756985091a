/**
 * `flashforge bench attention`: the tree kernel against the flat one on workload files; on CUDA
 * also without parts of the planner, in a decode loop, and a long test over random trees.
 * @module
 */
import { availableParallelism } from 'node:os';
import { type AttentionBenchRow, benchAttention } from '../backend/cpu/attention-bench.ts';
import type { AttentionCheckOptions } from '../backend/cuda/attention-check.ts';
import { FlashForgeError, show } from '../base/errors.ts';
import type { PlanOptions } from '../plan/plan.ts';
import {
  type Arguments,
  type Command,
  type Context,
  JSON_OPTION,
  PROVIDER_OPTION,
  PROVIDERS,
} from './command.ts';
import { choiceOption, integerOption, usageError } from './parse-arguments.ts';
import { table } from './table.ts';
import { readWorkloadFile } from './workload-file.ts';

const WORKERS_MAX = 1024;
const PLANS_MAX = 1e9;
const STEPS_MAX = 4096;
const KV_TYPES = ['float16', 'e4m3'] as const;
/** Options that only the CUDA kernel has. */
const CUDA_OPTIONS = [
  ...['flat', 'no-packing', 'no-division', 'no-scheduling'],
  ...['kv', 'loop', 'check', 'seed', 'first'],
];

export const benchAttentionCommand: Command = {
  name: 'bench attention',
  summary: 'Measures attention of prefix trees with and without sharing, against float64.',
  positionals: [],
  options: [
    { name: 'workloads', value: 'FILE', help: 'JSON list of trees (see docs/planner.md); needed' },
    { name: 'device', value: 'NAME', help: 'cpu or cuda (default cpu)' },
    PROVIDER_OPTION,
    { name: 'workers', value: 'N', help: 'threads (default: one for each core)' },
    { name: 'memory', value: 'MIB', help: 'most memory of KV pages (default: 60% of the free)' },
    { name: 'flat', help: 'cuda: every request alone' },
    { name: 'no-packing', help: 'cuda: every node in tasks of its own' },
    { name: 'no-division', help: 'cuda: no cutting of long lists' },
    { name: 'no-scheduling', help: 'cuda: round robin instead of longest first' },
    { name: 'kv', value: 'TYPE', help: 'cuda: e4m3 for 8-bit KV (default float16)' },
    { name: 'loop', value: 'N', help: 'cuda: a decode loop of N steps instead of single calls' },
    { name: 'check', value: 'N', help: 'cuda: N random plans, every row against float64' },
    { name: 'seed', value: 'N', help: 'of --check (default 1)' },
    { name: 'first', value: 'N', help: 'number of the first plan of --check (default 0)' },
    JSON_OPTION,
  ],
  examples: [
    'flashforge bench attention --workloads workloads.json --json -',
    'flashforge bench attention --device cuda --workloads workloads.json --no-packing',
    'flashforge bench attention --device cuda --check 10000',
  ],
  run,
};

async function run(context: Context, given: Arguments): Promise<void> {
  const path = given.text('workloads');
  const device = choiceOption(given, 'device', ['cpu', 'cuda'], 'cpu');
  const check = integerOption(given, 'check', undefined, 1, PLANS_MAX);
  const loop = integerOption(given, 'loop', undefined, 1, STEPS_MAX);
  if (device === 'cpu') refuseCudaOptions(given);
  if (check !== undefined) {
    const seed = integerOption(given, 'seed', 1, 0, PLANS_MAX);
    const kv = choiceOption(given, 'kv', KV_TYPES, 'float16');
    const first = integerOption(given, 'first', 0, 0, PLANS_MAX);
    return checkCuda(context, { plans: check, seed, first, kv });
  }
  if (path === undefined) throw usageError('--workloads FILE is needed');
  if (device === 'cuda') {
    const kv = choiceOption(given, 'kv', KV_TYPES, 'float16');
    const options = { planOptions: planOptionsOf(given), kv: kv === 'e4m3' ? kv : undefined };
    return loop === undefined
      ? runCuda(context, path, options)
      : loopCuda(context, path, loop, options);
  }
  const provider = choiceOption(given, 'provider', PROVIDERS, 'auto');
  const workers = integerOption(given, 'workers', availableParallelism(), 1, WORKERS_MAX);
  const memory = integerOption(given, 'memory', undefined, 1);
  const workloads = readWorkloadFile(path);
  const report = await benchAttention(workloads, {
    provider,
    workers,
    memoryBytes: memory === undefined ? undefined : memory * 2 ** 20,
    signal: context.signal,
    log: context.note,
    onRow: (row) => context.note(rowLine(row)),
  });
  checkMeasured(path, report.rows);
  context.print(rowTable(report.rows));
  for (const { name, skipped } of report.rows) {
    if (skipped !== undefined) context.print(`${name} was not measured: ${skipped}`);
  }
  await context.report(report);
}

interface CudaOptions {
  readonly planOptions: PlanOptions;
  readonly kv: 'e4m3' | undefined;
}

function refuseCudaOptions(given: Arguments): void {
  for (const name of CUDA_OPTIONS) {
    if (given.has(name) || given.text(name) !== undefined) {
      throw usageError(`--${name} needs --device cuda`);
    }
  }
}

const planOptionsOf = (given: Arguments): PlanOptions => ({
  flat: given.has('flat'),
  packing: !given.has('no-packing'),
  division: !given.has('no-division'),
  scheduling: !given.has('no-scheduling'),
});

/** Random plans; ends with an error if a row is wrong. */
async function checkCuda(context: Context, options: AttentionCheckOptions): Promise<void> {
  const { checkAttentionCuda } = await import('../backend/cuda/attention-check.ts');
  const report = await checkAttentionCuda({
    ...options,
    signal: context.signal,
    onProgress: (done, largest) => {
      if (done % 1000 === 0) context.note(`${done} plans, largest error ${errorText(largest)}`);
    },
  });
  const { f16, bf16 } = report.largest_error;
  const { f16: most, bf16: mostBf16 } = report.error_max;
  context.print(
    `${report.plans} random plans of ${report.variants.length} variants (seed ` +
      `${options.seed}) on ${report.device.name}: ${report.launches} launches, ` +
      `${report.grown_steps} steps with grown leaves (${report.kept_images} kept the plan's ` +
      `image), ${report.rows_compared} rows compared with float64 in ` +
      `${report.seconds.toFixed(0)} s`,
  );
  context.print(
    `largest error of a row: float16 ${errorText(f16)} (at most ${errorText(most)}), ` +
      `bfloat16 ${errorText(bf16)} (at most ${errorText(mostBf16)}); the reference differs from ` +
      `the host's by ${errorText(report.reference_error)}`,
  );
  for (const { plan, variant, row, error } of report.wrong) {
    context.print(`plan ${plan}, ${variant}, row ${row}: error ${errorText(error)}`);
  }
  await context.report(report);
  if (report.wrong_rows === 0) return;
  throw new FlashForgeError(
    'device',
    `${report.wrong_rows} of ${report.rows_compared} rows are wrong`,
  );
}

async function loopCuda(
  context: Context,
  path: string,
  steps: number,
  options: CudaOptions,
): Promise<void> {
  const { loopAttentionCuda } = await import('../backend/cuda/attention-bench.ts');
  const report = await loopAttentionCuda(readWorkloadFile(path), steps, {
    ...options,
    onResult: ({ name, step_us }) => context.note(`${name}: ${step_us.toFixed(1)} us a step`),
  });
  checkMeasured(path, [...report.results, ...report.skipped]);
  const cells = report.results.map((row) => [
    row.name,
    String(row.requests),
    row.step_us.toFixed(0),
    `${us(row.plan_us.median)} / ${us(row.plan_us.most)}`,
    `${us(row.hand_over_us.median)} / ${us(row.hand_over_us.most)}`,
    `${(row.reused_share * 100).toFixed(0)}%`,
    `${(row.kept_share * 100).toFixed(0)}%`,
    `${row.idle_us.median.toFixed(1)} / ${row.idle_us.most.toFixed(1)}`,
    `${(row.idle_share * 100).toFixed(2)}%`,
    errorText(row.relative_error),
  ]);
  const head = ['workload', 'requests', 'step us', 'plan us', 'hand-over us', 'plan reused'];
  context.print(table([...head, 'image kept', 'idle us', 'idle', 'error'], cells));
  context.print(
    `${report.device.name}; ${steps} steps of ${report.results[0]?.layers ?? 0} launches; ` +
      'pairs are median / most',
  );
  await context.report(report);
}

const errorText = (error: number): string => error.toExponential(1);

/** Cold L2 cache, one launch in a CUDA graph; times are medians. */
async function runCuda(context: Context, path: string, options: CudaOptions): Promise<void> {
  const { benchAttentionCuda } = await import('../backend/cuda/attention-bench.ts');
  const report = await benchAttentionCuda(readWorkloadFile(path), {
    ...options,
    onResult: ({ name, median_us }) => context.note(`${name}: ${median_us.toFixed(1)} us`),
  });
  checkMeasured(path, [...report.results, ...report.skipped]);
  const cells = report.results.map((row) => [
    row.name,
    (row.unique_bytes / 1e6).toFixed(2),
    (row.flat_bytes / 1e6).toFixed(2),
    `${row.reduction.toFixed(2)}x`,
    row.median_us.toFixed(1),
    row.roofline_us.toFixed(1),
    (row.median_us / row.target_h100_us).toFixed(2),
    us(row.plan_us),
    row.max_error.toExponential(1),
  ]);
  const head = ['workload', 'unique MB', 'flat MB', 'saved', 'us', 'roofline us', 'x H100 target'];
  context.print(table([...head, 'plan us', 'max error'], cells));
  const { name, multiprocessors } = report.device;
  const terabytes = (report.readBytesPerUs / 1e6).toFixed(2);
  context.print(`${name}, ${multiprocessors} multiprocessors, reads ${terabytes} TB/s`);
  for (const { name, skipped } of report.skipped) {
    context.print(`${name} was not measured: ${skipped}`);
  }
  await context.report(report);
}

/** @throws FlashForgeError 'input' where every workload of the file was skipped. */
function checkMeasured(path: string, rows: readonly { name: string; skipped?: string }[]): void {
  if (rows.some(({ skipped }) => skipped === undefined)) return;
  const [{ name, skipped }] = rows;
  throw new FlashForgeError(
    'input',
    `${path}: none of the ${rows.length} workloads could be measured; the first, ${show(name)}, ` +
      `was not because ${skipped}`,
  );
}

const us = (value: number | null): string => (value === null ? '-' : value.toFixed(0));

function rowLine(row: AttentionBenchRow): string {
  if (row.skipped !== undefined) return `${row.name}: skipped, ${row.skipped}`;
  return `${row.name}: tree ${us(row.tree_us)} us, flat ${us(row.flat_us)} us`;
}

function rowTable(rows: readonly AttentionBenchRow[]): string {
  const cells = rows.map((row) => [
    row.name,
    (row.unique_bytes / 1e6).toFixed(2),
    (row.flat_bytes / 1e6).toFixed(2),
    `${row.reduction.toFixed(2)}x`,
    us(row.tree_us),
    us(row.flat_us),
    row.speedup === null ? '-' : `${row.speedup.toFixed(2)}x`,
    us(row.plan_us),
    row.max_error === null ? '-' : row.max_error.toExponential(1),
  ]);
  const head = ['workload', 'unique MB', 'flat MB', 'saved', 'tree us', 'flat us', 'faster'];
  return table([...head, 'plan us', 'max error'], cells);
}
