/**
 * `flashforge bench tpot`: time per output token of batches over shared prefixes, for a model or
 * for a shape with random weights, beside the hardware's bound and beside peers.
 * @module
 */
import type { Runner } from '../backend/backend.ts';
import { FlashForgeError } from '../base/errors.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { Engine } from '../engine/engine.ts';
import { DEVICE_CHOICES, loadRunner, pickDevice } from '../model/load-runner.ts';
import { abortCheck, MODE_OPTIONS, readModes } from './bench-options.ts';
import {
  type Arguments,
  type Command,
  type Context,
  DEVICE_OPTION,
  JSON_OPTION,
} from './command.ts';
import type { Mode } from './decode-bench.ts';
import { choiceOption, integerOption, integersOption, usageError } from './parse-arguments.ts';
import { newTokensMax, TpotBench } from './tpot-bench.ts';
import { datasetScenario } from './tpot-dataset.ts';
import { openTpotModel, TPOT_MODEL_OPTIONS, type TpotModel } from './tpot-model.ts';
import { join, joinedTable, ownReadings, readOwn, readPeers, summaryLines } from './tpot-peers.ts';
import {
  caseLine,
  caseTable,
  type ModelCosts,
  modelCosts,
  type SkippedCase,
  type TpotCase,
  tpotCase,
} from './tpot-report.ts';
import {
  longestPrompt,
  Prompts,
  type Scenario,
  scenariosNamed,
  sharedScenario,
} from './tpot-scenario.ts';

const BATCH_MAX = 1024;
const STEPS_DEFAULT = 32;
const SUFFIX_DEFAULT = 128;
/** Rows of a prefill step. */
const ROWS_DEFAULT = { cpu: 1024, cuda: 2048, reference: 1024 } as const;

export const benchTpotCommand: Command = {
  name: 'bench tpot',
  summary: 'Measures time per output token of batches that share prefixes.',
  positionals: [],
  options: [
    ...TPOT_MODEL_OPTIONS,
    DEVICE_OPTION,
    { name: 'scenarios', value: 'LIST', help: 'built-in scenarios by name, or all' },
    { name: 'shared', value: 'S', help: 'instead: shared tokens, or a list (default 2048)' },
    { name: 'batch', value: 'B', help: 'requests that share them, or a list (default 1,16)' },
    { name: 'suffix', value: 'N', help: 'tokens of each after the shared ones (default 128)' },
    {
      name: 'dataset',
      value: 'FILE',
      help: 'instead: JSON lines, each a document with its questions; all are one batch',
    },
    { name: 'steps', value: 'N', help: 'TPOT is over so many steps (default 32)' },
    { name: 'max-rows', value: 'N', help: 'tokens of one prefill step (default 1024, CUDA 2048)' },
    { name: 'kv-pages', value: 'N', help: 'pages of the KV cache (default: as for a model)' },
    ...MODE_OPTIONS,
    { name: 'peers', value: 'FILE', help: "peers' readings (bench/peers/vllm_tpot.py), to join" },
    { name: 'join', value: 'FILES', help: 'measure nothing: join these reports with --peers' },
    JSON_OPTION,
  ],
  examples: [
    'flashforge bench tpot --shape qwen3-4b --device cuda --scenarios all --json tpot.json',
    'flashforge bench tpot --shape qwen3-4b --device cuda --shared 4096,65536 --batch 1,64 --both',
    'flashforge bench tpot --join tpot.json --peers vllm.jsonl',
  ],
  run,
};

async function run(context: Context, given: Arguments): Promise<void> {
  const peersPath = given.text('peers');
  const peers = peersPath === undefined ? [] : readPeers(peersPath);
  const reports = given.text('join');
  if (reports !== undefined) {
    const rows = join(reports.split(',').flatMap(readOwn), peers);
    context.print(joinedTable(rows));
    for (const line of summaryLines(rows)) context.print(line);
    await context.report({ rows });
    return;
  }
  const report = await measureModel(context, given);
  context.print(caseTable(report.cases));
  const rows = join(ownReadings(report.model, report.cases), peers);
  if (peers.length > 0) context.print(joinedTable(rows));
  for (const line of summaryLines(rows)) context.print(line);
  if (report.no_energy !== null) context.print(`no energy: ${report.no_energy}`);
  await context.report({ ...report, rows });
}

async function measureModel(context: Context, given: Arguments) {
  const steps = integerOption(given, 'steps', STEPS_DEFAULT, 1, 100_000);
  const device = await pickDevice(choiceOption(given, 'device', DEVICE_CHOICES, 'cpu'));
  const maxRows = integerOption(given, 'max-rows', ROWS_DEFAULT[device], 1, 65_536);
  const kvPages = integerOption(given, 'kv-pages', undefined, 1);
  const modes = readModes(given);
  const choose = scenarioChoice(given);
  const model = await openTpotModel(context, given);
  const { checkpoint } = model;
  const scenarios = choose(model);
  for (const each of scenarios) {
    checkContext(each, newTokensMax(device, steps), checkpoint.config.contextLength);
  }
  const runner = await loadRunner(checkpoint, { device, maxRows, kvPages, log: context.note });
  checkpoint.close();
  try {
    context.note(`${checkpoint.source} on ${runner.device}: ${runner.providerWhy}`);
    const costs = modelCosts(checkpoint, runner);
    return {
      model: model.name,
      random_weights: model.randomWeights,
      device: runner.device,
      provider: runner.providerWhy,
      steps,
      weight_bytes: costs.weightBytes,
      token_bytes: runner.tokenBytes,
      read_bytes_per_second: runner.readBytesPerSecond ?? null,
      no_energy: runner.energy === undefined ? 'only CUDA devices have it' : runner.energy.absent,
      ...(await measureScenarios(context, runner, checkpoint, scenarios, { modes, steps, costs })),
    };
  } finally {
    await runner.dispose();
  }
}

interface Measuring {
  readonly modes: readonly Mode[];
  readonly steps: number;
  readonly costs: ModelCosts;
}

async function measureScenarios(
  context: Context,
  runner: Runner,
  { config }: Checkpoint,
  scenarios: readonly Scenario[],
  { modes, steps, costs }: Measuring,
) {
  const engine = new Engine(runner, { maxSequences: BATCH_MAX });
  const bench = new TpotBench(engine, config, abortCheck(context));
  const prefills: { name: string; tokens: number; ms: number }[] = [];
  const cases: (TpotCase | SkippedCase)[] = [];
  for (const scenario of scenarios) {
    const { name } = scenario;
    const prompts = new Prompts(scenario, config.vocab);
    try {
      const prefill = await bench.hold(prompts);
      prefills.push({ name, ...prefill });
      if (prefill.tokens > 1) context.note(prefillLine(name, prefill));
      for (const mode of modes) {
        const measured = await bench.measure(scenario, prompts, mode, steps);
        cases.push(tpotCase(scenario, mode, steps, measured, costs));
        context.note(caseLine(cases.at(-1) as TpotCase));
      }
    } catch (error) {
      // What does not fit this device is left out; the others are measured.
      if (!(error instanceof FlashForgeError) || error.code !== 'out-of-pages') throw error;
      cases.push({ name, skipped: error.message });
      context.note(`${name}: not measured, ${error.message}`);
      bench.clear();
    }
  }
  bench.clear();
  return { prefills, cases };
}

const prefillLine = (name: string, { tokens, ms }: { tokens: number; ms: number }): string =>
  `${name}: ${tokens} tokens of prefixes in ${(ms / 1000).toFixed(2)} s`;

/** Checked before the model is loaded, made when its tokens are known. */
function scenarioChoice(given: Arguments): (model: TpotModel) => readonly Scenario[] {
  const names = given.text('scenarios');
  const dataset = given.text('dataset');
  const swept = ['shared', 'batch', 'suffix'].some((name) => given.has(name));
  if (Number(names !== undefined) + Number(dataset !== undefined) + Number(swept) > 1) {
    throw usageError('give --scenarios, --dataset, or --shared and --batch, not several');
  }
  if (dataset !== undefined) return ({ encode }) => [datasetScenario(dataset, encode)];
  if (names !== undefined) {
    const scenarios = scenariosNamed(names);
    return () => scenarios;
  }
  const shared = integersOption(given, 'shared', [2048], 1);
  const batches = integersOption(given, 'batch', [1, 16], 1, BATCH_MAX);
  const suffix = integerOption(given, 'suffix', SUFFIX_DEFAULT, 0);
  const scenarios = shared
    .toSorted((a, b) => a - b)
    .flatMap((tokens) => batches.map((batch) => sharedScenario(tokens, batch, suffix)));
  return () => scenarios;
}

/** @throws FlashForgeError 'request' where a prompt and its answer are longer than the context. */
function checkContext(scenario: Scenario, newTokens: number, limit: number): void {
  const prompt = longestPrompt(scenario);
  if (prompt + newTokens <= limit) return;
  throw new FlashForgeError(
    'request',
    `${scenario.name} has prompts of up to ${prompt} tokens and ${newTokens} new ones, and the ` +
      `model's context is ${limit}`,
  );
}
