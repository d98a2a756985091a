/**
 * The tokenizer inside a GGUF file, rebuilt as a `tokenizer.json` in memory, so that one library
 * runs both.
 * @module
 */
import { FlashForgeError, show } from '../base/errors.ts';
import { preTokenizer, preTokenizerStage } from './pre-tokenizers.ts';
import type { TokenizerParts } from './tokenizer.ts';
import { type AddedToken, type Stage, splitWords, type TokenizerJson } from './tokenizer-json.ts';

/** Values of tokenizer.ggml.token_type. */
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;
const UNUSED = 5;

/** Control tokens that end a turn in the supported families, wherever they stand in a file. */
const TURN_ENDS = new Set(['<|im_end|>', '<|eot_id|>', '<|eom_id|>', '<|endoftext|>', '</s>']);

/** Keys and values of the file's header. */
export type GgufMetadata = ReadonlyMap<string, unknown>;

/** What the header says, checked. */
interface Vocabulary {
  readonly tokens: readonly string[];
  readonly types: readonly number[];
  readonly field: (name: string) => unknown;
}

/**
 * @throws FlashForgeError 'model' naming the key that is missing, wrong or not supported.
 */
export function ggufTokenizer(metadata: GgufMetadata, source: string): TokenizerParts {
  const field = (name: string): unknown => metadata.get(`tokenizer.ggml.${name}`);
  const tokens = list(field('tokens'), 'tokens', 'string', source) as readonly string[];
  const types =
    field('token_type') === undefined
      ? tokens.map(() => 1)
      : (list(field('token_type'), 'token_type', 'number', source) as readonly number[]);
  if (types.length !== tokens.length) {
    throw new FlashForgeError(
      'model',
      `${source} has ${types.length} values in tokenizer.ggml.token_type for ` +
        `${tokens.length} tokens`,
    );
  }
  const vocabulary: Vocabulary = { tokens, types, field };

  const model = field('model');
  if (model !== 'gpt2' && model !== 'llama') {
    throw new FlashForgeError(
      'model',
      `${source} has tokenizer.ggml.model ${show(model)}, supported are "gpt2" (byte-level BPE) ` +
        'and "llama" (SentencePiece)',
    );
  }
  const json =
    model === 'gpt2'
      ? byteLevel(vocabulary, source)
      : splitWords(sentencePiece(vocabulary, source));
  return { source, json, ...roles(vocabulary, metadata) };
}

function byteLevel(vocabulary: Vocabulary, source: string): TokenizerJson {
  const pre = preTokenizer(String(vocabulary.field('pre') ?? 'default'));
  const merges = list(vocabulary.field('merges'), 'merges', 'string', source) as string[];
  return {
    added_tokens: addedTokens(vocabulary, (text) => text),
    normalizer: pre.normalizer,
    pre_tokenizer: preTokenizerStage(pre),
    post_processor: bosTemplate(vocabulary, pre.addBos),
    decoder: { type: 'ByteLevel' },
    model: {
      type: 'BPE',
      vocab: plainVocabulary(vocabulary),
      merges: merges.map((merge) => splitMerge(merge, source)),
      ignore_merges: pre.ignoreMerges,
    },
  };
}

/** Neither half of a merge is empty; a half may be the space itself in odd vocabularies. */
function splitMerge(merge: string, source: string): [string, string] {
  const space = merge.indexOf(' ', 1);
  if (space < 0 || space === merge.length - 1) {
    throw new FlashForgeError('model', `${source} has a merge without two parts: ${show(merge)}`);
  }
  return [merge.slice(0, space), merge.slice(space + 1)];
}

/**
 * SentencePiece merges the neighbours whose union has the best score. As ranked merges: every way
 * to make a piece from two others, best score first (what Hugging Face's converter does).
 */
function sentencePiece(vocabulary: Vocabulary, source: string): TokenizerJson {
  const { tokens, field } = vocabulary;
  const scores = list(field('scores'), 'scores', 'number', source) as readonly number[];
  if (scores.length !== tokens.length) {
    throw new FlashForgeError(
      'model',
      `${source} has ${scores.length} values in tokenizer.ggml.scores for ${tokens.length} tokens`,
    );
  }
  const prefix = field('add_space_prefix') !== false;
  const spaces: Stage = { type: 'Replace', pattern: { String: ' ' }, content: '\u2581' };
  const unknown = tokens[vocabulary.types.indexOf(UNKNOWN)];
  const vocab = plainVocabulary(vocabulary);
  return {
    added_tokens: addedTokens(vocabulary, (text) => text.replaceAll('\u2581', ' ')),
    normalizer: prefix
      ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '\u2581' }, spaces] }
      : spaces,
    pre_tokenizer: null,
    post_processor: bosTemplate(vocabulary, true),
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '\u2581' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: 'BPE',
      vocab,
      merges: rankedMerges(vocab, scores),
      byte_fallback: true,
      fuse_unk: true,
      unk_token: unknown ?? null,
    },
  };
}

function rankedMerges(
  vocab: Readonly<Record<string, number>>,
  scores: readonly number[],
): [string, string][] {
  const ids = new Map(Object.entries(vocab));
  const found: { parts: [string, string]; id: number; left: number; right: number }[] = [];
  for (const [piece, id] of ids) {
    for (let cut = 1; cut < piece.length; cut++) {
      const parts: [string, string] = [piece.slice(0, cut), piece.slice(cut)];
      const [left, right] = [ids.get(parts[0]), ids.get(parts[1])];
      if (left === undefined || right === undefined) continue;
      found.push({ parts, id, left, right });
    }
  }
  // Runs of spaces all have one score: by their ids they come out as SentencePiece merges them.
  found.sort(
    (a, b) => scores[b.id] - scores[a.id] || a.id - b.id || a.left - b.left || a.right - b.right,
  );
  return found.map((merge) => merge.parts);
}

function plainVocabulary({ tokens, types }: Vocabulary): Record<string, number> {
  const vocab: Record<string, number> = Object.create(null);
  for (let id = 0; id < tokens.length; id++) {
    if (types[id] !== UNUSED) vocab[tokens[id]] = id;
  }
  return vocab;
}

function addedTokens({ tokens, types }: Vocabulary, text: (token: string) => string): AddedToken[] {
  const added: AddedToken[] = [];
  for (let id = 0; id < tokens.length; id++) {
    const special = types[id] === CONTROL || types[id] === UNKNOWN;
    if (!special && types[id] !== USER_DEFINED) continue;
    const content = special ? tokens[id] : text(tokens[id]);
    if (content.length === 0) continue;
    const flags = { special, normalized: false, lstrip: false, rstrip: false, single_word: false };
    added.push({ id, content, ...flags });
  }
  return added;
}

/** Puts the BOS token before a text (and EOS after it) where the file asks for it. */
function bosTemplate(vocabulary: Vocabulary, byDefault: boolean): Stage | null {
  const { tokens, field } = vocabulary;
  const bos = tokens[Number(field('bos_token_id') ?? -1)];
  const eos = tokens[Number(field('eos_token_id') ?? -1)];
  const addBos = (field('add_bos_token') ?? byDefault) === true && bos !== undefined;
  const addEos = field('add_eos_token') === true && eos !== undefined;
  if (!addBos && !addEos) return null;
  const special = (id: string): object => ({ SpecialToken: { id, type_id: 0 } });
  return {
    type: 'TemplateProcessing',
    single: [
      ...(addBos ? [special(bos)] : []),
      { Sequence: { id: 'A', type_id: 0 } },
      ...(addEos ? [special(eos)] : []),
    ],
  };
}

function roles(
  { tokens, types, field }: Vocabulary,
  metadata: GgufMetadata,
): Pick<TokenizerParts, 'bosId' | 'stopIds' | 'chatTemplate' | 'roles'> {
  const byRole: Record<string, string> = {};
  const idOf = (key: string, role: string | null): number | null => {
    const id = Number(field(key) ?? -1);
    if (tokens[id] === undefined) return null;
    if (role !== null) byRole[role] = tokens[id];
    return id;
  };
  const bosId = idOf('bos_token_id', 'bos_token');
  idOf('unknown_token_id', 'unk_token');
  idOf('padding_token_id', 'pad_token');
  const ends = [
    idOf('eos_token_id', 'eos_token'),
    idOf('eot_token_id', null),
    idOf('eom_token_id', null),
  ];
  const stopIds = new Set(ends.filter((id) => id !== null));
  for (let id = 0; id < tokens.length; id++) {
    if (types[id] === CONTROL && TURN_ENDS.has(tokens[id])) stopIds.add(id);
  }
  const template = metadata.get('tokenizer.chat_template');
  const chatTemplate = typeof template === 'string' ? template : null;
  return { bosId, stopIds: [...stopIds], chatTemplate, roles: byRole };
}

function list(
  value: unknown,
  key: string,
  type: 'string' | 'number',
  source: string,
): readonly unknown[] {
  const values =
    type === 'number' && ArrayBuffer.isView(value)
      ? Array.from(value as unknown as Iterable<number>)
      : value;
  if (!Array.isArray(values) || !values.every((item) => typeof item === type)) {
    throw new FlashForgeError(
      'model',
      `${source} must have a list of ${type}s in tokenizer.ggml.${key}`,
    );
  }
  return values;
}
