/**
 * SmolLM2-135M with its real weights on a CUDA device: greedy output as that of the processor,
 * token for token, unless the two best logits are nearer to each other than 16 bits can tell
 * apart. Skipped where there is no device or no way to the weights.
 * @module
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import type { Checkpoint, WeightName } from '../../src/checkpoint/checkpoint.ts';
import { dequantize } from '../../src/checkpoint/dequantize.ts';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.ts';
import { loadRunner, pickDevice, type RunnerOptions } from '../../src/model/load-runner.ts';
import { defaultModel } from '../helpers/default-model.ts';
import { fixturePath } from '../helpers/fixtures.ts';
import { Stepper } from '../helpers/stepper.ts';

const device = await pickDevice('auto');
const model = device === 'cuda' ? await defaultModel() : { missing: 'no CUDA device' };
const skip = 'missing' in model ? model.missing : false;
const NEW_TOKENS = 64;
/** Rows of one prompt in a prefill step: all prompts' together are within a runner's 512. */
const CHUNK = 48;
/**
 * Where the better of two tokens leads by less than this, another choice is rounding. Of weights
 * that are the same on both sides, so that only activations and KV are rounded: the best logits
 * of this model, which are about 20, differed by at most 0.05 in f16 and 0.52 in bf16.
 */
const ROUNDING = { f16: 0.1, bf16: 1 } as const;
/** The processor's own products round their inputs to 8 bits. */
const INTEGER_ROUNDING = 0.85;

interface Played {
  readonly tokens: readonly number[][];
  /** By prompt and token. */
  readonly logits: readonly Float32Array[][];
}

/** The same weights as 32-bit floats, which no runner rounds on the processor. */
function widened(checkpoint: Checkpoint): Checkpoint {
  const tensors = new Map(
    [...checkpoint.tensors].map(([name, info]) => [
      name,
      { ...info, type: 'F32' as const, bytes: info.rows * info.columns * 4 },
    ]),
  );
  const read = (name: WeightName): Uint8Array => {
    const type = checkpoint.tensors.get(name)?.type ?? 'F32';
    const values = dequantize(type, checkpoint.read(name));
    return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  };
  return { ...checkpoint, tensors, read };
}

/** The fixtures' texts, and two more questions about the longest one, which share its beginning. */
function readPrompts(): { name: string; ids: readonly number[] }[] {
  const folder = fixturePath('smollm2');
  const prompts = readdirSync(folder).map((file) => {
    const { ids } = JSON.parse(readFileSync(join(folder, file), 'utf8')) as { ids: number[] };
    return { name: file.replace('.json', ''), ids };
  });
  const longest = prompts.reduce((a, b) => (b.ids.length > a.ids.length ? b : a));
  const branches = [400, 900].map((tokens) => ({
    name: `${longest.name}, ${tokens} tokens and a list`,
    ids: [...longest.ids.slice(0, tokens), ...prompts[2].ids.slice(0, 40)],
  }));
  return [...prompts, ...branches];
}

/** Greedy continuations of all prompts, decoded together. */
async function play(
  checkpoint: Checkpoint,
  prompts: readonly { ids: readonly number[] }[],
  options: RunnerOptions,
): Promise<Played> {
  const runner = await loadRunner(checkpoint, { kvPages: 500, ...options });
  try {
    const stepper = new Stepper(runner);
    const paths = prompts.map(({ ids }) => stepper.tree.insert([...ids]));
    while (paths.some((path) => path.computed < path.length)) await stepper.step(paths, CHUNK);
    const tokens: number[][] = paths.map(() => []);
    const logits: Float32Array[][] = paths.map(() => []);
    for (let turn = 0; turn < NEW_TOKENS; turn++) {
      const step = await stepper.step(paths);
      for (const [i, path] of paths.entries()) {
        const row = step.logits[i];
        logits[i].push(row);
        tokens[i].push(best(row));
        stepper.tree.append(path, best(row));
      }
    }
    return { tokens, logits };
  } finally {
    await runner.dispose();
  }
}

const best = (row: Float32Array): number =>
  row.reduce((top, value, token) => (value > row[top] ? token : top), 0);

interface Comparison {
  readonly text: string;
  /** How far the expected token leads the chosen one where they part; 0 if they do not. */
  readonly lead: number;
}

/** One prompt's tokens against the expected ones; differences up to where they part. */
function compare(name: string, i: number, expected: Played, actual: Played): Comparison {
  const at = expected.tokens[i].findIndex((token, k) => token !== actual.tokens[i][k]);
  const steps = at < 0 ? NEW_TOKENS : at + 1;
  let worst = 0;
  for (let k = 0; k < steps; k++) {
    const token = expected.tokens[i][k];
    const difference = Math.abs(expected.logits[i][k][token] - actual.logits[i][k][token]);
    if (!(difference <= worst)) worst = difference;
  }
  const said = `best logits differ by at most ${worst.toFixed(3)}`;
  if (at < 0) return { text: `${name}: ${NEW_TOKENS} tokens equal, ${said}`, lead: 0 };
  const row = expected.logits[i][at];
  const lead = row[expected.tokens[i][at]] - row[actual.tokens[i][at]];
  const text = `${name}: apart at token ${at}, where the best leads by ${lead.toFixed(4)}, ${said}`;
  return { text, lead };
}

describe('SmolLM2 on CUDA', { skip, concurrency: false }, () => {
  const prompts = readPrompts();
  let checkpoint: Checkpoint;
  let [exact, integers]: (Played | undefined)[] = [];
  before(async () => {
    checkpoint = openCheckpoint((model as { path: string }).path);
    exact = await play(widened(checkpoint), prompts, { device: 'cpu', kvType: 'f32' });
    integers = await play(checkpoint, prompts, { device: 'cpu' });
  });

  for (const kvType of ['f16', 'bf16'] as const) {
    test(`${kvType}: greedy output as on the processor`, async (t) => {
      const actual = await play(checkpoint, prompts, { device: 'cuda', kvType });
      for (const [other, what, allowed] of [
        [exact, 'in 32-bit floats', ROUNDING[kvType]],
        [integers, 'as it is by default', ROUNDING[kvType] + INTEGER_ROUNDING],
      ] as const) {
        const all = prompts.map(({ name }, i) => compare(name, i, other as Played, actual));
        t.diagnostic(`against the processor ${what}`);
        for (const { text } of all) t.diagnostic(text);
        for (const { text, lead } of all) assert.ok(lead < allowed, `${what}: ${text}`);
      }
    });
  }
});
