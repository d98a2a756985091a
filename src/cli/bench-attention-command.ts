/**
 * `flashforge bench attention`: the tree kernel against the flat one on workload files.
 * @module
 */
import { availableParallelism } from 'node:os';
import { type AttentionBenchRow, benchAttention } from '../backend/cpu/attention-bench.ts';
import { FlashForgeError, show } from '../base/errors.ts';
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
    JSON_OPTION,
  ],
  examples: ['flashforge bench attention --workloads workloads.json --json -'],
  run,
};

async function run(context: Context, given: Arguments): Promise<void> {
  const path = given.text('workloads');
  if (path === undefined) throw usageError('--workloads FILE is needed');
  const device = choiceOption(given, 'device', ['cpu', 'cuda'], 'cpu');
  if (device === 'cuda') return runCuda(context, path);
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

/** Cold L2 cache, one launch in a CUDA graph; times are medians. */
async function runCuda(context: Context, path: string): Promise<void> {
  const { benchAttentionCuda } = await import('../backend/cuda/attention-bench.ts');
  const report = await benchAttentionCuda(readWorkloadFile(path), {
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
