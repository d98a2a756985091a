/**
 * What `bench tpot` measures on: a model, or random weights of a shape.
 * @module
 */
import { assetPath } from '../base/package-files.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { openCheckpoint } from '../checkpoint/open-checkpoint.ts';
import { openTokenizer } from '../checkpoint/open-tokenizer.ts';
import { randomCheckpoint, readModelConfig } from '../checkpoint/random-checkpoint.ts';
import { Tokenizer } from '../tokenizer/tokenizer.ts';
import { type Arguments, type Context, MODEL_OPTION, type Option } from './command.ts';
import { findModel } from './find-model.ts';
import { choiceOption, usageError } from './parse-arguments.ts';

const SHAPES = ['qwen3-4b', 'llama-3.1-8b'] as const;
/** Without a tokenizer so many bytes of a text are a token. */
const BYTES_A_TOKEN = 4;

export const TPOT_MODEL_OPTIONS: readonly Option[] = [
  MODEL_OPTION,
  { name: 'shape', value: 'NAME', help: `instead: random weights of ${SHAPES.join(' or ')}` },
  {
    name: 'random-weights',
    value: 'FILE',
    help: 'instead: random weights of the shape in this config.json',
  },
];

export interface TpotModel {
  /** As in reports: the reference, the shape's name, or the file's. */
  readonly name: string;
  readonly checkpoint: Checkpoint;
  readonly randomWeights: boolean;
  /** A text's tokens; with random weights pieces of its bytes, as there is no tokenizer. */
  encode(text: string): number[];
}

/** @throws FlashForgeError 'usage' for more than one of --model, --shape, --random-weights. */
export async function openTpotModel(context: Context, given: Arguments): Promise<TpotModel> {
  const names = ['model', 'shape', 'random-weights'].filter((name) => given.has(name));
  if (names.length > 1) {
    throw usageError('give --model or --random-weights or --shape, not several');
  }
  const file = given.text('random-weights');
  if (file !== undefined) return randomModel(file, file);
  if (given.has('shape')) {
    const shape = choiceOption(given, 'shape', SHAPES, SHAPES[0]);
    return randomModel(shape, assetPath(`tpot/${shape}.json`));
  }
  const { path, reference } = await findModel(context, given.text('model'));
  const checkpoint = openCheckpoint(path);
  return {
    ...{ name: reference, checkpoint, randomWeights: false },
    encode: (text) => new Tokenizer(openTokenizer(path)).encode(text, { addSpecial: false }),
  };
}

function randomModel(name: string, path: string): TpotModel {
  const config = readModelConfig(path);
  return {
    ...{ name, randomWeights: true },
    checkpoint: randomCheckpoint(config, `random weights of ${name}`),
    encode: (text) => byteTokens(text, config.vocab),
  };
}

function byteTokens(text: string, vocab: number): number[] {
  const bytes = Buffer.from(text, 'utf8');
  const tokens: number[] = [];
  for (let at = 0; at < bytes.length; at += BYTES_A_TOKEN) {
    tokens.push(bytes.readUIntBE(at, Math.min(BYTES_A_TOKEN, bytes.length - at)) % vocab);
  }
  return tokens;
}
