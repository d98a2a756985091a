/**
 * Constrained decoding: whatever a sample draws under a grammar's masks conforms to it.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { randomStream } from '../../src/base/math.ts';
import { type GrammarSource, Grammars } from '../../src/engine/grammar.ts';
import { ggufTokenizer } from '../../src/tokenizer/gguf-tokenizer.ts';
import { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { byteLevelMetadata } from '../helpers/tiny-tokenizer.ts';

const tokenizer = new Tokenizer(ggufTokenizer(byteLevelMetadata(), 'tiny'));
const grammars = new Grammars(tokenizer, tokenizer.vocabSize);

/** Draws allowed tokens at random until the grammar lets the sample end. */
async function draw(source: GrammarSource, seed: number, most = 400): Promise<string | null> {
  const constraint = await grammars.constraint(source, 1);
  const random = randomStream(seed);
  const tokens: number[] = [];
  try {
    while (tokens.length < most) {
      const mask = constraint.allowed(0, tokens);
      const allowed = [...mask.keys()].filter((id) => mask[id] === 1);
      assert.ok(allowed.length > 0);
      const stop = allowed.find((id) => tokenizer.stopIds.has(id));
      if (stop !== undefined) return tokenizer.decode(tokens);
      tokens.push(allowed[Math.floor(random() * allowed.length)]);
    }
    return null;
  } finally {
    constraint.dispose();
  }
}

const schema = (value: unknown): GrammarSource => ({ kind: 'schema', schema: value });

test('a schema is kept, whatever is drawn', async () => {
  const source = schema({
    type: 'object',
    properties: {
      kind: { enum: ['a', 'b\u00e9'] },
      list: { type: 'array', items: { type: 'integer' }, maxItems: 3 },
      ok: { type: 'boolean' },
    },
    required: ['kind', 'list', 'ok'],
    additionalProperties: false,
  });
  let whole = 0;
  for (let seed = 1; seed <= 12; seed++) {
    const text = await draw(source, seed);
    if (text === null) continue;
    whole++;
    const value = JSON.parse(text);
    assert.deepEqual(Object.keys(value), ['kind', 'list', 'ok']);
    assert.ok(['a', 'b\u00e9'].includes(value.kind) && typeof value.ok === 'boolean');
    assert.ok(value.list.length <= 3 && value.list.every(Number.isInteger));
  }
  assert.ok(whole >= 3, `${whole} whole samples`);
});

test('a regular expression, a grammar and tags', async () => {
  for (let seed = 1; seed <= 5; seed++) {
    assert.match(
      (await draw({ kind: 'regex', pattern: '[ab]{2,4}c' }, seed)) ?? '',
      /^[ab]{2,4}c$/,
    );
    const ebnf = { kind: 'ebnf', text: 'root ::= "yes" | "no"' } as const;
    assert.match((await draw(ebnf, seed)) ?? '', /^(yes|no)$/);
    const tags = [{ begin: '<c>{"n": ', schema: { enum: [1, 2] }, end: '}</c>' }];
    assert.match((await draw({ kind: 'tags', tags }, seed)) ?? '', /^<c>\{"n": [12]\}<\/c>$/);
  }
});

test('two samples go their own ways', async () => {
  const constraint = await grammars.constraint({ kind: 'ebnf', text: 'root ::= "ab" | "cd"' }, 2);
  const [a, b, c, d] = [...'abcd'].map((letter) => tokenizer.encode(letter).at(-1) as number);
  assert.equal(constraint.allowed(0, [a])[b], 1);
  assert.equal(constraint.allowed(1, [c])[d], 1);
  assert.equal(constraint.allowed(1, [c])[b], 0);
  assert.equal(constraint.allowed(0, [a])[d], 0);
  constraint.dispose();
});

test('bad grammars are refused with the reason, and the next one works', async () => {
  const deep = Array.from({ length: 100 }).reduce((inner) => ({ items: inner }), {});
  const bad: [GrammarSource, RegExp][] = [
    [schema({ type: 'nonsense' }), /Unsupported type "nonsense"/],
    [schema({ $ref: '#/nowhere' }), /nowhere/],
    [schema({ type: 'string', maxLength: 1e6 }), /maxLength of at most 4096, got 1000000/],
    [schema(deep), /at most 64 levels/],
    [{ kind: 'regex', pattern: '(((' }, /parenthesis/],
    [{ kind: 'ebnf', text: 'root ::= nothing' }, /the grammar cannot be used/],
    [{ kind: 'ebnf', text: 'x'.repeat(200_000) }, /at most 100000 characters/],
  ];
  for (const [source, message] of bad) {
    for (let turn = 0; turn < 2; turn++) {
      await assert.rejects(grammars.constraint(source, 1), { code: 'request', message });
    }
    assert.equal(await draw({ kind: 'ebnf', text: 'root ::= "ok"' }, 1), 'ok');
  }
});
