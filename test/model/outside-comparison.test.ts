/**
 * The real default model against outside implementations: Hugging Face transformers in float32 on
 * the dequantised weights, and llama.cpp on the same GGUF file (bench/fixtures/README.md says how
 * the fixtures were made).
 * @module
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Runner } from '../../src/backend/backend.ts';
import { findCompiler } from '../../src/backend/cpu/native-compiler.ts';
import { FlashForgeError } from '../../src/base/errors.ts';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.ts';
import { openTokenizer } from '../../src/checkpoint/open-tokenizer.ts';
import { DEFAULT_MODEL_WHEEL, resolveModel } from '../../src/checkpoint/reference.ts';
import { loadRunner } from '../../src/model/load-runner.ts';
import { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { fixturePath } from '../helpers/fixtures.ts';
import { type ChosenLogits, logitDistance } from '../helpers/logit-distance.ts';
import { Stepper } from '../helpers/stepper.ts';

interface Fixture {
  readonly text: string;
  readonly ids: readonly number[];
  readonly float32: {
    /** (ids) the most likely next token of every position, and how far it leads the second. */
    readonly top1: readonly number[];
    readonly gaps: readonly number[];
    /** Where logits were kept, of the most likely tokens there. */
    readonly positions: readonly number[];
    readonly topIds: readonly (readonly number[])[];
    readonly topLogits: readonly (readonly number[])[];
    readonly logSumExp: readonly number[];
    /** The greedy continuation, and the leads of its tokens. */
    readonly greedy: readonly number[];
    readonly greedyGaps: readonly number[];
  };
  readonly llamaCpp: {
    readonly top1: readonly number[];
    readonly logits: readonly (readonly number[])[];
    readonly logSumExp: readonly number[];
  };
}

/** What we compute for a fixture's tokens. */
interface Computed {
  readonly top1: number[];
  readonly logits: number[][];
  readonly logSumExp: number[];
  readonly greedy: number[];
}

/** Rows of a step whose logits are all kept: 128 of them are 25 MB. */
const CHUNK = 128;
/** The longest prompt and its continuation. */
const KV_PAGES = 24;

async function compute(runner: Runner, { ids, float32 }: Fixture): Promise<Computed> {
  const stepper = new Stepper(runner);
  const path = stepper.tree.insert([...ids]);
  const result: Computed = { top1: [], logits: [], logSumExp: [], greedy: [] };
  while (path.computed < path.length) {
    const start = path.computed;
    const { output } = await stepper.step([path], CHUNK, true);
    const rows = output.argmax.length;
    const vocab = output.logits.length / rows;
    result.top1.push(...output.argmax);
    float32.positions.forEach((position, i) => {
      const row = position - start;
      if (row < 0 || row >= rows) return;
      result.logits[i] = float32.topIds[i].map((id) => output.logits[row * vocab + id]);
      result.logSumExp[i] = output.logSumExp[row];
    });
  }
  let next = result.top1.at(-1)!;
  while (result.greedy.push(next) < float32.greedy.length) {
    stepper.tree.append(path, next);
    next = (await stepper.step([path])).output.argmax[0];
  }
  return result;
}

/**
 * Where the best two logits of float32 are nearer than this, another order is rounding: both round
 * the inputs of each product to 8 bits, we with a scale per 16 inputs and llama.cpp per 32. The
 * rms error of a log-probability is 0.085 for us and the tail is long (0.8 in 3,000 positions), so
 * this is ten times: other instruction sets round elsewhere, and no luck may decide.
 */
const NUMERICAL_ERROR = 0.85;

const folder = fixturePath('smollm2');
const fixtures = readdirSync(folder).map((file) => ({
  name: file.replace('.json', ''),
  ...(JSON.parse(readFileSync(join(folder, file), 'utf8')) as Fixture),
}));

/** The model file, or why there is none. */
async function modelFile(): Promise<{ path: string; skip: false } | { path: ''; skip: string }> {
  try {
    return { path: (await resolveModel(DEFAULT_MODEL_WHEEL)).path, skip: false };
  } catch (error) {
    if (!(error instanceof FlashForgeError) || error.code !== 'io') throw error;
    return { path: '', skip: error.message };
  }
}

const model = await modelFile();
const noCompiler = (await findCompiler()) === null ? 'no C compiler on this machine' : false;

test('the tokenizer gives the same tokens', { skip: model.skip }, () => {
  const tokenizer = new Tokenizer(openTokenizer(model.path));
  for (const { name, text, ids } of fixtures) {
    assert.deepEqual([...tokenizer.encode(text, { addSpecial: false })], ids, name);
  }
});

const count = (list: readonly number[], other: readonly number[]): number =>
  list.filter((value, i) => value === other[i]).length;

/** Every other order than float32's must be one that rounding explains. */
function checkOrder(what: string, ids: readonly number[], { float32 }: Fixture): void {
  ids.forEach((id, at) => {
    if (id === float32.top1[at]) return;
    const gap = float32.gaps[at];
    assert.ok(gap < NUMERICAL_ERROR, `${what}, position ${at}: not the best token by ${gap}`);
  });
}

/** The greedy continuation may leave float32's where its best two tokens are near each other. */
function checkGreedy(what: string, greedy: readonly number[], { float32 }: Fixture): void {
  const at = greedy.findIndex((id, i) => id !== float32.greedy[i]);
  if (at < 0) return;
  const gap = float32.greedyGaps[at];
  assert.ok(gap < NUMERICAL_ERROR, `${what}, greedy token ${at}: not the best by ${gap}`);
}

const pooled = (lists: readonly ChosenLogits[]): ChosenLogits => ({
  logits: lists.flatMap(({ logits }) => logits),
  logSumExp: lists.flatMap(({ logSumExp }) => logSumExp),
});

/** WebAssembly has the shorter prompts only, to be done in seconds. */
const PROVIDERS = [
  { provider: 'native', tokensMax: 1500, skip: noCompiler },
  { provider: 'wasm', tokensMax: 300, skip: false },
] as const;

for (const { provider, tokensMax, skip } of PROVIDERS) {
  test(`${provider}: no farther from float32 than llama.cpp`, {
    skip: model.skip || skip,
  }, async (t) => {
    const checkpoint = openCheckpoint(model.path);
    const runner = await loadRunner(checkpoint, { provider, kvPages: KV_PAGES, maxRows: CHUNK });
    checkpoint.close();
    const chosen = fixtures.filter(({ ids }) => ids.length <= tokensMax);
    const results: Computed[] = [];
    try {
      for (const fixture of chosen) results.push(await compute(runner, fixture));
    } finally {
      await runner.dispose();
    }

    chosen.forEach((fixture, i) => {
      checkOrder(fixture.name, results[i].top1, fixture);
      checkGreedy(fixture.name, results[i].greedy, fixture);
    });
    const same = (ids: (i: number) => readonly number[]): number =>
      chosen.reduce((sum, { float32 }, i) => sum + count(ids(i), float32.top1), 0);
    const [ours, theirs] = [same((i) => results[i].top1), same((i) => chosen[i].llamaCpp.top1)];
    const positions = chosen.reduce((sum, { ids }) => sum + ids.length, 0);
    const oracle = pooled(chosen.map((f) => ({ ...f.float32, logits: f.float32.topLogits })));
    const distance = logitDistance(oracle, pooled(results));
    const peer = logitDistance(oracle, pooled(chosen.map(({ llamaCpp }) => llamaCpp)));
    t.diagnostic(
      `of ${positions} positions the best token of float32: ${ours} ours, ${theirs} llama.cpp's; ` +
        `rms ${distance.rms.toFixed(4)} and ${peer.rms.toFixed(4)}, ` +
        `KL ${distance.kl.toFixed(5)} and ${peer.kl.toFixed(5)}`,
    );
    // Two standard deviations of the number of positions where the order is rounding.
    const noise = 2 * Math.sqrt(positions - theirs);
    assert.ok(ours >= theirs - noise, `${ours} best tokens, llama.cpp has ${theirs}`);
    assert.ok(distance.rms <= peer.rms, `rms ${distance.rms}, llama.cpp has ${peer.rms}`);
    assert.ok(distance.kl <= peer.kl, `KL ${distance.kl}, llama.cpp has ${peer.kl}`);
  });
}
