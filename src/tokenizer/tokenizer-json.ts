/**
 * The description of a tokenizer (the format of `tokenizer.json`) and the corrections that make
 * the JavaScript library agree with the original on it.
 * @module
 */
import { FlashForgeError, show } from '../base/errors.ts';

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  readonly normalized: boolean;
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  readonly single_word: boolean;
}

/** One stage of the pipeline: `type` and its own fields. */
export interface Stage {
  readonly type: string;
  readonly [field: string]: unknown;
}

/** `tokenizer.json`, as far as it is read here. */
export interface TokenizerJson {
  readonly added_tokens: readonly AddedToken[];
  readonly normalizer: Stage | null;
  readonly pre_tokenizer: Stage | null;
  readonly post_processor: Stage | null;
  readonly decoder: Stage | null;
  readonly model: {
    readonly type?: string;
    readonly vocab: Readonly<Record<string, number>> | readonly (readonly [string, number])[];
    readonly merges?: readonly (string | readonly [string, string])[];
    readonly [field: string]: unknown;
  };
}

/** Splits words, numbers, punctuation and white space as GPT-2 did. */
export const GPT2_PATTERN =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

export const splitStage = (pattern: string): Stage => ({
  type: 'Split',
  pattern: { Regex: pattern },
  behavior: 'Isolated',
  invert: false,
});

export const sequenceStage = (pretokenizers: readonly Stage[]): Stage => ({
  type: 'Sequence',
  pretokenizers,
});

export const BYTE_LEVEL: Stage = {
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: false,
  use_regex: false,
};

/**
 * Checks that `value` is a tokenizer description and returns it with the corrections applied.
 * @throws FlashForgeError 'model' when it is not one.
 */
export function readTokenizerJson(value: unknown, source: string): TokenizerJson {
  const json = value as Partial<TokenizerJson> | null;
  const model = json?.model;
  if (typeof json !== 'object' || json === null || typeof model !== 'object' || model === null) {
    throw new FlashForgeError(
      'model',
      `${source} must be an object with "model", got ${show(value)}`,
    );
  }
  const bpe = model.type === 'BPE' || (model.type === undefined && model.merges !== undefined);
  if (!bpe && model.type !== 'Unigram') {
    throw new FlashForgeError(
      'model',
      `${source} has a tokenizer model of type ${show(model.type)}, supported are BPE and Unigram`,
    );
  }
  if (typeof model.vocab !== 'object' || model.vocab === null) {
    throw new FlashForgeError('model', `${source} has no vocabulary in model.vocab`);
  }
  return splitWords({
    added_tokens: readAddedTokens(json.added_tokens, source),
    normalizer: json.normalizer ?? null,
    pre_tokenizer: correct(json.pre_tokenizer ?? null),
    post_processor: json.post_processor ?? null,
    decoder: json.decoder ?? null,
    model: { ...model, type: model.type ?? 'BPE' },
  });
}

/**
 * SentencePiece vocabularies come without a pre-tokenizer: the whole text is one word, whose
 * merging takes seconds for a book. Where no piece has a space (U+2581) after another character,
 * no merge crosses a word's start, and words can be merged one by one with the same result.
 */
export function splitWords(json: TokenizerJson): TokenizerJson {
  const stage = json.pre_tokenizer;
  const whole = stage === null || (stage.type === 'Metaspace' && stage.split !== true);
  const { vocab } = json.model;
  if (!whole || json.model.byte_fallback !== true || Array.isArray(vocab)) return json;
  if (Object.keys(vocab).some((piece) => /[^\u2581]\u2581/.test(piece))) return json;
  const words = splitStage('\u2581+[^\u2581]*|[^\u2581]+');
  return { ...json, pre_tokenizer: stage === null ? words : sequenceStage([stage, words]) };
}

function readAddedTokens(value: unknown, source: string): AddedToken[] {
  if (value === undefined || value === null) return [];
  if (!Array.isArray(value)) {
    throw new FlashForgeError('model', `${source} must have a list in added_tokens`);
  }
  return value.map((token: Partial<AddedToken>) => {
    const { id, content } = token;
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || typeof content !== 'string') {
      throw new FlashForgeError(
        'model',
        `${source} has an added token without a valid id and content: ${show(token)}`,
      );
    }
    const special = token.special ?? false;
    return {
      id,
      content,
      special,
      normalized: token.normalized ?? !special,
      lstrip: token.lstrip ?? false,
      rstrip: token.rstrip ?? false,
      single_word: token.single_word ?? false,
    };
  });
}

/**
 * In the library `Digits` knows ASCII digits only and the expression inside `ByteLevel` uses
 * JavaScript's white space (which has U+FEFF and lacks U+0085); its `Split` stage translates
 * expressions exactly, so both are spelled as `Split`.
 */
function correct(stage: Stage | null): Stage | null {
  if (stage === null) return null;
  switch (stage.type) {
    case 'Sequence': {
      const stages = (stage.pretokenizers ?? []) as readonly Stage[];
      return sequenceStage(stages.map((inner) => correct(inner) as Stage));
    }
    case 'Digits':
      return splitStage(stage.individual_digits === true ? '\\p{N}' : '\\p{N}+');
    case 'ByteLevel':
      if (stage.use_regex === false || stage.add_prefix_space === true) return stage;
      return sequenceStage([splitStage(GPT2_PATTERN), { ...stage, use_regex: false }]);
    default:
      return stage;
  }
}
