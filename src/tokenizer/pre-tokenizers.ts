/**
 * How byte-level vocabularies in GGUF files split text before merging. The files only name the
 * way (`tokenizer.ggml.pre`); the expressions are those of the models' original tokenizers.
 * @module
 */
import { FlashForgeError, show } from '../base/errors.ts';
import {
  BYTE_LEVEL,
  GPT2_PATTERN,
  type Stage,
  sequenceStage,
  splitStage,
} from './tokenizer-json.ts';

export interface PreTokenizer {
  /** Expressions applied one after the other. */
  readonly patterns: readonly string[];
  readonly normalizer: Stage | null;
  /** A word that is a token is never merged from parts. */
  readonly ignoreMerges: boolean;
  /** Whether a BOS token starts a text when the file does not say. */
  readonly addBos: boolean;
}

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const UPPER = '\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}';
const LOWER = '\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}';
const BEFORE = '[^\\r\\n\\p{L}\\p{N}]?';
const SPACES = '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

/** `digits`: how many digits stand in one piece. */
const wordsPattern = (digits: string): string =>
  `${CONTRACTIONS}|${BEFORE}\\p{L}+|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|${SPACES}`;

/** Words also end where a lower-case letter is followed by an upper-case one. */
const casePattern = (suffix: string, digits: string): string =>
  `${BEFORE}[${UPPER}]*[${LOWER}]+${suffix}|${BEFORE}[${UPPER}]+[${LOWER}]*${suffix}|` +
  `\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${SPACES}`;

const plain = (...patterns: string[]): PreTokenizer => ({
  patterns,
  normalizer: null,
  ignoreMerges: false,
  addBos: false,
});

const GPT2 = plain(GPT2_PATTERN);
const DIGITS = plain('\\p{N}', GPT2_PATTERN);
const LLAMA3: PreTokenizer = { ...plain(wordsPattern('{1,3}')), ignoreMerges: true, addBos: true };
const QWEN2: PreTokenizer = { ...plain(wordsPattern('')), normalizer: { type: 'NFC' } };
const TEKKEN: PreTokenizer = { ...plain(casePattern('', '')), ignoreMerges: true, addBos: true };
const GPT4O = plain(casePattern(`${CONTRACTIONS}?`, '{1,3}'));
const DEFAULT = plain('[\\p{P}\\$\\+<=>\\^~\\|]+', GPT2_PATTERN, '\\p{N}+', '[0-9][0-9][0-9]');

/** By the name in the file. */
const PRE_TOKENIZERS: Readonly<Record<string, PreTokenizer>> = {
  default: DEFAULT,
  'gpt-2': GPT2,
  olmo: GPT2,
  'phi-2': GPT2,
  smollm: DIGITS,
  starcoder: DIGITS,
  refact: DIGITS,
  'command-r': DIGITS,
  'llama-bpe': LLAMA3,
  llama3: LLAMA3,
  'llama-v3': LLAMA3,
  falcon3: LLAMA3,
  qwen2: QWEN2,
  'deepseek-r1-qwen': QWEN2,
  tekken: TEKKEN,
  'gpt-4o': GPT4O,
};

/**
 * @param name the value of tokenizer.ggml.pre
 * @throws FlashForgeError 'model' for a name that is not known: guessing would give other tokens
 * than the model was trained with.
 */
export function preTokenizer(name: string): PreTokenizer {
  if (!Object.hasOwn(PRE_TOKENIZERS, name)) {
    throw new FlashForgeError(
      'model',
      `tokenizer.ggml.pre is ${show(name)}, known are ${Object.keys(PRE_TOKENIZERS).join(', ')}`,
    );
  }
  return PRE_TOKENIZERS[name];
}

/** The stage of a tokenizer description that does the same. */
export const preTokenizerStage = (pre: PreTokenizer): Stage =>
  sequenceStage([...pre.patterns.map(splitStage), BYTE_LEVEL]);
