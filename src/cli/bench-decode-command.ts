/**
 * `flashforge bench decode`: decode steps of a model over a shared prompt, with and without
 * sharing, in one process.
 * @module
 */
import { readFileSync } from 'node:fs';
import { assetPath } from '../base/package-files.ts';
import { openCheckpoint } from '../checkpoint/open-checkpoint.ts';
import { openTokenizer } from '../checkpoint/open-tokenizer.ts';
import { Engine } from '../engine/engine.ts';
import { DEVICE_CHOICES, loadRunner, pickDevice } from '../model/load-runner.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { abortCheck, checkContext, MODE_OPTIONS, readModes } from './bench-options.ts';
import {
  type Arguments,
  type Command,
  type Context,
  DEVICE_OPTION,
  JSON_OPTION,
  MODEL_OPTION,
  PROVIDER_OPTION,
  PROVIDERS,
} from './command.ts';
import {
  type CaseResult,
  DecodeBench,
  LOGIT_ERROR,
  measureCase,
  ownTokens,
  pagesFor,
} from './decode-bench.ts';
import { findModel } from './find-model.ts';
import { choiceOption, integersOption, usageError } from './parse-arguments.ts';
import { table } from './table.ts';

const SHARED_DEFAULT = 2048;
const BATCH_DEFAULT = 32;
const NEW_DEFAULT = 32;
/** What one sequence of the batch may have at most; larger is a slip of the keyboard. */
const BATCH_MAX = 4096;
/** Pages that are not on a GPU, where the KV cache is no smaller than the device's free memory. */
const PAGE_TOKENS = 64;

export const benchDecodeCommand: Command = {
  name: 'bench decode',
  summary: 'Measures decode steps of a batch over one shared prompt, as a tree and flat.',
  positionals: [],
  options: [
    MODEL_OPTION,
    DEVICE_OPTION,
    PROVIDER_OPTION,
    { name: 'shared', value: 'S', help: 'shared tokens, or a list: 512,2048 (default 2048)' },
    { name: 'batch', value: 'B', help: 'sequences, or a list: 1,8,32 (default 32)' },
    { name: 'new', value: 'T', help: 'new tokens of each sequence (default 32)' },
    ...MODE_OPTIONS,
    JSON_OPTION,
  ],
  examples: ['flashforge bench decode --shared 2048 --batch 1,8,32 --new 32 --both --json -'],
  run,
};

async function run(context: Context, given: Arguments): Promise<void> {
  const shared = integersOption(given, 'shared', [SHARED_DEFAULT], 1);
  const batch = integersOption(given, 'batch', [BATCH_DEFAULT], 1, BATCH_MAX);
  const [newTokens, ...more] = integersOption(given, 'new', [NEW_DEFAULT], 1);
  if (more.length > 0) throw usageError('--new takes one number, not a list');
  const cases = shared.flatMap((s) => batch.map((b) => ({ shared: s, batch: b, newTokens })));
  const modes = readModes(given);
  const device = await pickDevice(choiceOption(given, 'device', DEVICE_CHOICES, 'cpu'));
  const provider = choiceOption(given, 'provider', PROVIDERS, 'auto');
  const model = await findModel(context, given.text('model'));
  const checkpoint = openCheckpoint(model.path);
  const runner = await (async () => {
    try {
      checkContext(shared, ownTokens(device, newTokens), checkpoint.config.contextLength);
      const kvPages =
        device === 'cuda'
          ? undefined
          : Math.max(...cases.map((wanted) => pagesFor(wanted, PAGE_TOKENS)));
      return await loadRunner(checkpoint, { device, provider, kvPages, log: context.note });
    } finally {
      checkpoint.close();
    }
  })();
  try {
    context.note(`${runner.device}, ${runner.provider}: ${runner.providerWhy}`);
    const tokenizer = new Tokenizer(openTokenizer(model.path));
    const text = tokenizer.encode(readFileSync(assetPath('document.txt'), 'utf8'));
    const engine = new Engine(runner, { maxSequences: BATCH_MAX });
    const bench = new DecodeBench(engine, text, abortCheck(context));
    const results: CaseResult[] = [];
    for (const wanted of cases) {
      results.push(await measureCase(bench, wanted, modes));
      context.note(caseLine(results.at(-1) as CaseResult));
    }
    context.print(resultTable(results));
    if (modes.length === 2) context.print(comparisonText(results));
    await context.report({
      device: runner.device,
      provider: runner.provider,
      model: model.reference,
      logit_error: LOGIT_ERROR[runner.device],
      token_bytes: runner.tokenBytes,
      cases: results,
    });
  } finally {
    await runner.dispose();
  }
}

const ms = (value: number | undefined): string => (value === undefined ? '-' : value.toFixed(2));
const times = (value: number | undefined): string =>
  value === undefined ? '-' : `${value.toFixed(2)}x`;

function caseLine({ shared, batch, tree, flat }: CaseResult): string {
  const [a, b] = [ms(tree?.step_ms), ms(flat?.step_ms)];
  return `S ${shared}, B ${batch}: tree ${a} ms, flat ${b} ms a step`;
}

function resultTable(results: readonly CaseResult[]): string {
  const rows = results.map((result) => [
    String(result.shared),
    String(result.batch),
    ms(result.tree?.step_ms),
    ms(result.flat?.step_ms),
    times(result.step_ratio),
    ms(result.tree?.attention_ms),
    ms(result.flat?.attention_ms),
    times(result.attention_ratio),
    times(result.kv_reduction),
  ]);
  const head = ['shared', 'batch', 'tree ms', 'flat ms', 'ratio'];
  return table([...head, 'tree attn', 'flat attn', 'ratio', 'KV bytes'], rows);
}

function comparisonText(results: readonly CaseResult[]): string {
  const sequences = results.reduce((total, { batch }) => total + batch, 0);
  const diverged = results.reduce((total, result) => total + (result.diverged ?? 0), 0);
  if (diverged === 0) return `greedy outputs: identical in all ${sequences} sequences`;
  const gap = Math.max(...results.map(({ largest_gap }) => largest_gap ?? 0));
  return (
    `greedy outputs: ${diverged} of ${sequences} sequences differ, ` +
    `where the two best logits were at most ${gap.toFixed(2)} apart`
  );
}
