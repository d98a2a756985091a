/**
 * `flashforge bench tpot`: time per output token of batches over a shared prompt, for a model or
 * for a shape with random weights.
 * @module
 */
import { randomStream } from '../base/math.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { openCheckpoint } from '../checkpoint/open-checkpoint.ts';
import { randomCheckpoint, readModelConfig } from '../checkpoint/random-checkpoint.ts';
import { Engine } from '../engine/engine.ts';
import { DEVICE_CHOICES, loadRunner, pickDevice } from '../model/load-runner.ts';
import { abortCheck, checkContext, MODE_OPTIONS, readModes } from './bench-options.ts';
import {
  type Arguments,
  type Command,
  type Context,
  DEVICE_OPTION,
  JSON_OPTION,
  MODEL_OPTION,
} from './command.ts';
import { DecodeBench, type Measurement, measurement, ownTokens } from './decode-bench.ts';
import { findModel } from './find-model.ts';
import { choiceOption, integerOption, integersOption, usageError } from './parse-arguments.ts';
import { table } from './table.ts';

const BATCH_MAX = 1024;
const STEPS_DEFAULT = 32;
/** Rows of a prefill step. */
const ROWS_DEFAULT = 1024;

/** Tokens of the text beyond the longest prompt, so that suffixes differ from one another. */
const SPARE_TOKENS = 4096;

/** A sequence gets one token a step, so that a step's median time is the time per output token. */
interface TpotResult extends Omit<Measurement, 'step_ms'> {
  readonly shared: number;
  readonly batch: number;
  readonly flat: boolean;
  readonly tpot_ms: number;
}

export const benchTpotCommand: Command = {
  name: 'bench tpot',
  summary: 'Measures time per output token of batches that share a prompt.',
  positionals: [],
  options: [
    MODEL_OPTION,
    {
      name: 'random-weights',
      value: 'FILE',
      help: 'instead of a model: random weights of the shape in this config.json',
    },
    DEVICE_OPTION,
    { name: 'shared', value: 'S', help: 'shared tokens, or a list (default 2048)' },
    { name: 'batch', value: 'B', help: 'sequences, or a list (default 1,16)' },
    { name: 'steps', value: 'N', help: 'measured steps of each case (default 32)' },
    { name: 'max-rows', value: 'N', help: 'tokens of one prefill step (default 1024)' },
    { name: 'kv-pages', value: 'N', help: 'pages of the KV cache (default: as for a model)' },
    ...MODE_OPTIONS,
    JSON_OPTION,
  ],
  examples: [
    'flashforge bench tpot --random-weights config.json --device cuda --shared 4096,65536 --both',
  ],
  run,
};

async function run(context: Context, given: Arguments): Promise<void> {
  const sharedList = integersOption(given, 'shared', [2048], 1).toSorted((a, b) => a - b);
  const batches = integersOption(given, 'batch', [1, 16], 1, BATCH_MAX);
  const steps = integerOption(given, 'steps', STEPS_DEFAULT, 1, 100_000);
  const maxRows = integerOption(given, 'max-rows', ROWS_DEFAULT, 1, 65_536);
  const kvPages = integerOption(given, 'kv-pages', undefined, 1);
  const modes = readModes(given);
  const device = await pickDevice(choiceOption(given, 'device', DEVICE_CHOICES, 'cpu'));
  const checkpoint = await openWanted(context, given);
  checkContext(sharedList, ownTokens(device, steps), checkpoint.config.contextLength);
  const runner = await loadRunner(checkpoint, { device, maxRows, kvPages, log: context.note });
  checkpoint.close();
  try {
    context.note(`${checkpoint.source} on ${runner.device}: ${runner.providerWhy}`);
    const engine = new Engine(runner, { maxSequences: BATCH_MAX });
    const longest = Math.max(...sharedList) + SPARE_TOKENS;
    const text = randomTokens(longest, checkpoint.config.vocab);
    const bench = new DecodeBench(engine, text, abortCheck(context));
    const results: TpotResult[] = [];
    const prefills: { shared: number; tokens: number; ms: number }[] = [];
    for (const shared of sharedList) {
      const tokens = shared - (prefills.at(-1)?.shared ?? 0);
      prefills.push({ shared, tokens, ...(await bench.hold(shared)) });
      for (const batch of batches) {
        const passes = await bench.measure({ shared, batch, newTokens: steps }, modes, false);
        for (const mode of modes) {
          const { step_ms, ...rest } = measurement(passes[mode]) as Measurement;
          results.push({ shared, batch, flat: mode === 'flat', tpot_ms: step_ms, ...rest });
          context.note(`S ${shared}, B ${batch}, ${mode}: ${step_ms.toFixed(2)} ms`);
        }
      }
    }
    context.print(resultTable(results));
    const weightBytes = [...checkpoint.tensors.values()].reduce((sum, t) => sum + t.bytes, 0);
    await context.report({
      model: checkpoint.source,
      random_weights: given.has('random-weights'),
      device: runner.device,
      provider: runner.providerWhy,
      weight_bytes: weightBytes,
      token_bytes: runner.tokenBytes,
      prefills,
      cases: results,
    });
  } finally {
    await runner.dispose();
  }
}

async function openWanted(context: Context, given: Arguments): Promise<Checkpoint> {
  const shape = given.text('random-weights');
  if (shape === undefined) {
    return openCheckpoint((await findModel(context, given.text('model'))).path);
  }
  if (given.has('model')) throw usageError('give --model or --random-weights, not both');
  return randomCheckpoint(readModelConfig(shape), `random weights of ${shape}`);
}

/** Text that no cache knows. */
function randomTokens(count: number, vocab: number): number[] {
  const random = randomStream(1);
  return Array.from({ length: count }, () => Math.floor(random() * vocab));
}

function resultTable(results: readonly TpotResult[]): string {
  const rows = results.map((result) => [
    String(result.shared),
    String(result.batch),
    result.flat ? 'flat' : 'tree',
    result.tpot_ms.toFixed(3),
    result.worst_ms.toFixed(3),
    result.attention_ms.toFixed(3),
    result.plan_ms.toFixed(3),
    (result.kv_bytes / 2 ** 20).toFixed(0),
  ]);
  const head = ['shared', 'batch', 'mode', 'TPOT ms', 'worst', 'attention', 'plan', 'KV MiB'];
  return table(head, rows);
}
