/**
 * Constrained decoding: whatever a sample draws under a grammar's masks conforms to it.
 * @module
 */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { randomStream } from '../../src/base/math.ts';
import { type Constraint, Grammars } from '../../src/engine/grammar.ts';
import type { GrammarSource } from '../../src/engine/grammar-source.ts';
import { ggufTokenizer } from '../../src/tokenizer/gguf-tokenizer.ts';
import { Tokenizer } from '../../src/tokenizer/tokenizer.ts';
import { byteLevelMetadata } from '../helpers/tiny-tokenizer.ts';

const tokenizer = new Tokenizer(ggufTokenizer(byteLevelMetadata(), 'tiny'));
const grammars = new Grammars(tokenizer, tokenizer.vocabSize);
after(() => grammars.close());

/** Draws allowed tokens at random until the grammar lets the sample end. */
async function draw(source: GrammarSource, seed: number, most = 400): Promise<string | null> {
  const constraint = await grammars.constraint(source, 1);
  const random = randomStream(seed);
  const tokens: number[] = [];
  try {
    while (tokens.length < most) {
      const mask = await constraint.allowed(0);
      const allowed = [...mask.keys()].filter((id) => mask[id] === 1);
      assert.ok(allowed.length > 0);
      const stop = allowed.find((id) => tokenizer.stopIds.has(id));
      if (stop !== undefined) return tokenizer.decode(tokens);
      tokens.push(allowed[Math.floor(random() * allowed.length)]);
      constraint.accept(0, tokens[tokens.length - 1]);
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
  constraint.accept(0, a);
  constraint.accept(1, c);
  const first = (await constraint.allowed(0)).slice();
  const second = await constraint.allowed(1);
  assert.deepEqual([first[b], first[d], second[b], second[d]], [1, 0, 0, 1]);
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

/** Its characters are counted: with the tiny vocabulary it takes some 100 ms to compile. */
const counted = (maxLength: number, fields = 8): GrammarSource =>
  schema({
    type: 'object',
    properties: Object.fromEntries(
      Array.from({ length: fields }, (_, at) => [`f${at}`, { type: 'string', maxLength }]),
    ),
  });

test('while a grammar is compiled, this thread goes on and other grammars are followed', async () => {
  const other = await grammars.constraint({ kind: 'json' }, 1);
  const slow = new Grammars(tokenizer, tokenizer.vocabSize);
  let done = false;
  const compiling = slow.constraint(counted(4000, 64), 1).finally(() => {
    done = true;
  });
  let masks = 0;
  const brace = tokenizer.encode('{').at(-1) as number;
  other.accept(0, brace);
  while (!done) {
    await other.allowed(0);
    masks++;
    other.accept(0, tokenizer.encode(' ').at(-1) as number);
  }
  assert.ok(masks > 5, `${masks} masks`);
  (await compiling).dispose();
  other.dispose();
  await slow.close();
});

test('more grammars than threads, each several times: all are compiled, one after the other', async () => {
  const many = new Grammars(tokenizer, tokenizer.vocabSize);
  const use = async (maxLength: number): Promise<number> => {
    const constraint = await many.constraint(counted(maxLength, 2), 2);
    const mask = await constraint.allowed(1);
    constraint.dispose();
    return mask.reduce((sum, each) => sum + each, 0);
  };
  const lengths = [20, 30, 40, 50, 60, 70];
  const allowed = await Promise.all([...lengths, ...lengths].map(use));
  assert.ok(allowed.every((count) => count > 0 && count === allowed[0]));
  await many.close();
  await assert.rejects(many.constraint(counted(9), 1), { code: 'aborted' });
});

test('who gives up waits for no grammar; those who go on get it', async () => {
  const many = new Grammars(tokenizer, tokenizer.vocabSize);
  const controller = new AbortController();
  const source = counted(2000, 16);
  const given: Promise<Constraint>[] = [1, 2].map(() =>
    many.constraint(source, 1, controller.signal),
  );
  const kept = many.constraint(source, 1);
  controller.abort();
  for (const each of given) await assert.rejects(each, { code: 'aborted' });
  (await kept).dispose();
  await assert.rejects(many.constraint(source, 1, AbortSignal.abort()), { code: 'aborted' });
  await many.close();
});

test('a grammar that takes too long is refused, at once the second time', async () => {
  const hasty = new Grammars(tokenizer, tokenizer.vocabSize, { compileMaxMs: 100 });
  const message = /the grammar cannot be used: it takes more than 0.1 s to compile/;
  const rejected = { code: 'request', message };
  await assert.rejects(hasty.constraint(counted(4096, 200), 1), rejected);
  await assert.rejects(hasty.constraint(counted(4096, 200), 1), rejected);
  await hasty.close();
});
