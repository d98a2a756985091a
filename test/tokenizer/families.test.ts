/**
 * Each family's tokenizer, from a tokenizer.json and from GGUF metadata, against the Python
 * libraries tokenizers and sentencepiece (bench/fixtures/tokenizer_families.py).
 * @module
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { ggufTokenizer } from '../../src/tokenizer/gguf-tokenizer.ts';
import { Tokenizer, type TokenizerParts } from '../../src/tokenizer/tokenizer.ts';
import { readTokenizerJson, type Stage } from '../../src/tokenizer/tokenizer-json.ts';
import { fixturePath } from '../helpers/fixtures.ts';

const CONTROL = 3;
const NORMAL = 1;

interface Fixture {
  readonly texts: readonly string[];
  readonly byteLevel: {
    readonly tokens: readonly string[];
    readonly types: readonly number[];
    readonly merges: readonly string[];
    /** By the name that GGUF files give to the way a text is split. */
    readonly families: Readonly<
      Record<
        string,
        {
          readonly normalizer: Stage | null;
          readonly pre_tokenizer: Stage;
          readonly ignore_merges: boolean;
          readonly ids: readonly (readonly number[])[];
        }
      >
    >;
  };
  readonly sentencePiece: {
    readonly tokens: readonly string[];
    readonly scores: readonly number[];
    readonly types: readonly number[];
    readonly ids: readonly (readonly number[])[];
  };
}

const fixture: Fixture = JSON.parse(readFileSync(fixturePath('tokenizer-families.json'), 'utf8'));
const { texts, byteLevel, sentencePiece } = fixture;

function compare(parts: TokenizerParts, ids: Fixture['sentencePiece']['ids'], special: boolean) {
  const tokenizer = new Tokenizer(parts);
  const options = { addSpecial: false, parseSpecial: special };
  texts.forEach((text, i) => {
    assert.deepEqual(tokenizer.encode(text, options), ids[i], JSON.stringify(text));
    const back = tokenizer.decode(ids[i], { skipSpecial: false });
    const normalized = parts.json.normalizer?.type === 'NFC' ? text.normalize('NFC') : text;
    assert.equal(back, normalized, JSON.stringify(text));
  });
}

const metadata = (model: string, fields: Readonly<Record<string, unknown>>): Map<string, unknown> =>
  new Map(
    Object.entries({ model, ...fields }).map(([name, value]) => [`tokenizer.ggml.${name}`, value]),
  );

for (const [pre, { ids, ...family }] of Object.entries(byteLevel.families)) {
  const { tokens, types, merges } = byteLevel;
  test(`${pre}: the tokens of the Python library, from GGUF metadata`, () =>
    compare(
      ggufTokenizer(metadata('gpt2', { pre, tokens, token_type: types, merges }), pre),
      ids,
      true,
    ));

  test(`${pre}: the tokens of the Python library, from tokenizer.json`, () => {
    const added_tokens = tokens.flatMap((content, id) =>
      types[id] === NORMAL
        ? []
        : [{ id, content, special: types[id] === CONTROL, normalized: false }],
    );
    const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
    const json = readTokenizerJson(
      {
        ...family,
        added_tokens,
        decoder: { type: 'ByteLevel' },
        model: { type: 'BPE', vocab, merges, ignore_merges: family.ignore_merges },
      },
      pre,
    );
    compare(
      { source: pre, json, bosId: null, stopIds: [], chatTemplate: null, roles: {} },
      ids,
      true,
    );
  });
}

test('SentencePiece: the tokens of the original, with runs of spaces of one score', () => {
  const { tokens, scores, types: token_type, ids } = sentencePiece;
  compare(ggufTokenizer(metadata('llama', { tokens, scores, token_type }), 'spm'), ids, false);
});
