/**
 * Encoding against the Python library's ids, round trips, streams that never cut a character.
 * @module
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { FlashForgeError } from '../../src/base/errors.ts';
import { openTokenizer } from '../../src/checkpoint/open-tokenizer.ts';
import { DEFAULT_MODEL_WHEEL, resolveModel } from '../../src/checkpoint/reference.ts';
import { ggufTokenizer } from '../../src/tokenizer/gguf-tokenizer.ts';
import { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { fixturePath } from '../helpers/fixtures.ts';
import { byteLevelMetadata, sentencePieceMetadata } from '../helpers/tiny-tokenizer.ts';

const byteLevel = new Tokenizer(ggufTokenizer(byteLevelMetadata(), 'tiny'));
const sentencePiece = new Tokenizer(ggufTokenizer(sentencePieceMetadata(), 'tiny'));

/** Well-formed texts of every script, with the marks of special tokens in between. */
const text = fc
  .array(
    fc.oneof(
      fc.string({ unit: 'grapheme' }),
      fc.string({ unit: 'binary' }),
      fc.constantFrom('hello', ' world', '<|im_end|>', '</s>', '\r\n', '   ', '👨‍👩‍👧'),
    ),
    { maxLength: 12 },
  )
  .map((parts) => Buffer.from(parts.join('')).toString());

const pieces = (tokenizer: Tokenizer, ids: readonly number[], continues = false): string[] => {
  const stream = tokenizer.stream({ skipSpecial: false, continues });
  return [...ids.map((id) => stream.push(id)), stream.end()];
};

test('byte-level texts come back as they were, whole and streamed', () => {
  fc.assert(
    fc.property(text, fc.boolean(), (text, parseSpecial) => {
      const ids = byteLevel.encode(text, { parseSpecial });
      assert.equal(byteLevel.decode(ids, { skipSpecial: false }), text);
      assert.equal(pieces(byteLevel, ids).join(''), text);
      assert.ok(ids.every((id) => id >= 0 && id < byteLevel.vocabSize));
    }),
    { numRuns: 500, seed: 1 },
  );
});

test('SentencePiece texts come back as they were, whole and streamed', () => {
  fc.assert(
    fc.property(text, (text) => {
      const ids = sentencePiece.encode(text, { addSpecial: false, parseSpecial: false });
      assert.equal(sentencePiece.decode(ids, { skipSpecial: false }), text);
      assert.equal(pieces(sentencePiece, ids).join(''), text);
    }),
    { numRuns: 500, seed: 2 },
  );
});

test('merges follow their ranks, words and digits are split first', () => {
  assert.deepEqual(
    byteLevel.encode('hello world').map((id) => Buffer.from(byteLevel.bytesOf(id)).toString()),
    ['hello', ' world'],
  );
  assert.equal(byteLevel.encode('12').length, 2);
  assert.deepEqual(
    sentencePiece.encode('hello').map((id) => Buffer.from(sentencePiece.bytesOf(id)).toString()),
    ['<s>', ' hello'],
  );
});

test('a character of several tokens arrives with its last token', () => {
  const ids = byteLevel.encode('a🙂b');
  assert.equal(ids.length, 6);
  assert.deepEqual(pieces(byteLevel, ids), ['a', '', '', '', '🙂', 'b', '']);
  assert.deepEqual(pieces(byteLevel, ids.slice(0, 3)), ['a', '', '', '\ufffd']);
});

test('the space that SentencePiece adds is taken away at the start of a text only', () => {
  const ids = sentencePiece.encode('hello', { addSpecial: false });
  assert.deepEqual(pieces(sentencePiece, ids), ['hello', '']);
  assert.deepEqual(pieces(sentencePiece, ids, true), [' hello', '']);
});

test('special tokens are parsed, added and left out as asked', () => {
  assert.deepEqual(byteLevel.encode('<|im_end|>'), [1]);
  assert.equal(byteLevel.encode('<|im_end|>', { parseSpecial: false }).length, 10);
  assert.equal(byteLevel.decode([0, 258, 1]), byteLevel.decode([258]));
  assert.equal(byteLevel.decode([0], { skipSpecial: false }), '<|im_start|>');
  assert.deepEqual(sentencePiece.encode('', {}), [1]);
  assert.deepEqual(sentencePiece.encode('', { addSpecial: false }), []);
  assert.equal(sentencePiece.encode('</s>', { parseSpecial: false }).includes(2), false);
  const withBos = byteLevelMetadata({ 'tokenizer.ggml.add_bos_token': true });
  const tokenizer = new Tokenizer(ggufTokenizer(withBos, 'tiny'));
  assert.equal(tokenizer.encode('<|im_end|>', { parseSpecial: false })[0], 0);
  assert.deepEqual([...byteLevel.stopIds], [1]);
  assert.equal(byteLevel.idOf('<|im_end|>'), 1);
  assert.equal(byteLevel.idOf('nothing'), null);
});

test('headers that are no tokenizer are refused with the key and the value', () => {
  const refused = (changes: Record<string, unknown>, message: RegExp): void => {
    for (const make of [byteLevelMetadata, sentencePieceMetadata]) {
      assert.throws(
        () => new Tokenizer(ggufTokenizer(make(changes), 'tiny.gguf')),
        (error: unknown) => error instanceof FlashForgeError && message.test(error.message),
      );
    }
  };
  refused({ 'tokenizer.ggml.model': 'bert' }, /tokenizer\.ggml\.model "bert", supported/);
  refused({ 'tokenizer.ggml.tokens': 3 }, /list of strings in tokenizer\.ggml\.tokens/);
  refused({ 'tokenizer.ggml.token_type': [1] }, /1 values in tokenizer\.ggml\.token_type/);
  assert.throws(
    () => ggufTokenizer(byteLevelMetadata({ 'tokenizer.ggml.pre': 'toString' }), 'tiny'),
    /tokenizer\.ggml\.pre is "toString", known are default, gpt-2/,
  );
  assert.throws(
    () => ggufTokenizer(byteLevelMetadata({ 'tokenizer.ggml.merges': ['ab'] }), 'tiny'),
    /merge without two parts: "ab"/,
  );
  assert.throws(
    () => ggufTokenizer(sentencePieceMetadata({ 'tokenizer.ggml.scores': [0] }), 'tiny'),
    /1 values in tokenizer\.ggml\.scores/,
  );
});

test('SmolLM2 gives the ids of the Python library', async (t) => {
  const model = await resolveModel(DEFAULT_MODEL_WHEEL).catch((error: Error) => error);
  if (model instanceof Error) {
    t.skip(model.message);
    return;
  }
  const tokenizer = new Tokenizer(openTokenizer(model.path));
  const cases = JSON.parse(readFileSync(fixturePath('tokenizer-smollm2.json'), 'utf8'));
  assert.ok(cases.length > 200);
  for (const { text, ids } of cases as { text: string; ids: number[] }[]) {
    assert.deepEqual(tokenizer.encode(text), ids, JSON.stringify(text));
    assert.equal(tokenizer.decode(ids, { skipSpecial: false }), text);
  }
  assert.deepEqual([...tokenizer.stopIds].sort(), [0, 2]);
});
