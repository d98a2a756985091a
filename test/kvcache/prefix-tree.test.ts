/**
 * The prefix tree against a naive model over random histories, and its rules one by one.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FlashForgeError } from '../../src/base/errors.ts';
import { PrefixTree } from '../../src/kvcache/prefix-tree.ts';
import { TreeModel } from './tree-model.ts';

const token = fc.integer({ min: 0, max: 2 });
const tokens = (maxLength: number) => fc.array(token, { minLength: 1, maxLength, size: 'max' });
const pick = fc.nat(1_000_000);
const operation = fc.oneof(
  fc.record({
    kind: fc.constant('insert' as const),
    tokens: tokens(14),
    salt: fc.constantFrom('', 'one', 'two'),
    publicTokens: fc.nat(6),
  }),
  fc.record({ kind: fc.constant('extend' as const), pick, tokens: tokens(8) }),
  fc.record({ kind: fc.constant('append' as const), pick, token }),
  fc.record({ kind: fc.constant('fork' as const), pick, at: pick }),
  fc.record({ kind: fc.constant('compute' as const), pick, count: fc.integer({ min: 1, max: 9 }) }),
  fc.record({ kind: fc.constant('computeAll' as const) }),
  fc.record({ kind: fc.constant('release' as const), pick }),
  fc.record({ kind: fc.constant('unclaim' as const), pick }),
  fc.record({ kind: fc.constant('evictAll' as const) }),
);
type Operation = typeof operation extends fc.Arbitrary<infer T> ? T : never;

function apply(model: TreeModel, step: Operation): void {
  if (step.kind === 'insert') {
    model.insert(step.tokens, { salt: step.salt, publicTokens: step.publicTokens });
  } else if (step.kind === 'evictAll') model.tree.evictAll();
  else if (step.kind === 'computeAll') {
    for (const sequence of model.sequences) model.compute(sequence, 1000);
  } else if (model.sequences.length > 0) applyToOne(model, step);
}

type OfOne = Extract<Operation, { pick: number }>;

function applyToOne(model: TreeModel, step: OfOne): void {
  const sequence = model.sequences[step.pick % model.sequences.length];
  if (step.kind === 'extend') model.extend(sequence, step.tokens);
  else if (step.kind === 'append') model.append(sequence, step.token);
  else if (step.kind === 'fork') model.fork(sequence, step.at % (sequence.tokens.length + 1));
  else if (step.kind === 'compute') model.compute(sequence, step.count);
  else if (step.kind === 'unclaim') model.tree.unclaim(sequence.path);
  else model.release(sequence);
}

test('random histories agree with plain token arrays', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 5 }),
      fc.integer({ min: 4, max: 40 }),
      fc.array(operation, { maxLength: 60, size: 'max' }),
      (pageSize, pages, history) => {
        const model = new TreeModel(pages, pageSize);
        for (const step of history) {
          apply(model, step);
          model.check();
        }
        model.finish();
      },
    ),
    { numRuns: 1500, seed: 20 },
  );
});

function computeAll(tree: PrefixTree, path: ReturnType<PrefixTree['insert']>): void {
  tree.commit(path, tree.claim(path).to);
}

test('equal cold prefixes: the second waits for the first and computes only its own rest', () => {
  const tree = new PrefixTree(16, 4);
  const first = tree.insert([1, 2, 3, 4, 5, 6]);
  assert.deepEqual(tree.claim(first), { from: 0, to: 6 });
  const second = tree.insert([1, 2, 3, 4, 9, 9]);
  assert.deepEqual(tree.claim(second), { from: 0, to: 0 });
  tree.commit(first, 3);
  assert.deepEqual(tree.claim(second), { from: 3, to: 3 });
  tree.commit(first, 6);
  assert.deepEqual(tree.claim(second), { from: 4, to: 6 });
});

test('when the computing path is released, a waiting one takes over', () => {
  const tree = new PrefixTree(16, 4);
  const first = tree.insert([1, 2, 3, 4, 5, 6]);
  const second = tree.insert([1, 2, 3, 4, 9, 9]);
  tree.claim(first);
  tree.commit(first, 2);
  tree.release(first);
  assert.deepEqual(tree.claim(second), { from: 2, to: 6 });
});

test('a fork shares pages and only one child continues the shared partial page', () => {
  const tree = new PrefixTree(16, 4);
  const base = tree.insert([1, 2, 3, 4, 5, 6]);
  computeAll(tree, base);
  const [a, b] = [tree.fork(base), tree.fork(base)];
  assert.equal(tree.pool.freePages, 14);
  tree.append(a, 7);
  assert.equal(tree.pool.freePages, 14, 'the first child continues in the page');
  tree.append(b, 8);
  assert.equal(tree.pool.freePages, 13, 'the second takes a fresh page');
  tree.release(a);
  tree.append(base, 9);
  assert.equal(tree.pool.freePages, 13, 'slots given back are used again');
});

test('siblings with the same first token: the later one is grafted at its release', () => {
  const tree = new PrefixTree(16, 4);
  const base = tree.insert([1, 2]);
  computeAll(tree, base);
  const [a, b] = [tree.fork(base), tree.fork(base)];
  for (const [path, last] of [
    [a, 7],
    [b, 8],
  ] as const) {
    tree.append(path, 5);
    tree.append(path, 6);
    tree.append(path, last);
    computeAll(tree, path);
  }
  assert.equal(tree.match([1, 2, 5, 6, 8]).length, 4, 'private tokens do not match');
  tree.release(b);
  assert.equal(tree.match([1, 2, 5, 6, 8]).length, 5, 'after the release they do');
  assert.equal(
    [...tree.nodes()].reduce((sum, node) => sum + node.length, 0),
    6,
  );
});

test('salts separate', () => {
  const tree = new PrefixTree(16, 4);
  const [alice, bob] = ['alice', 'bob'].map((salt) => ({ salt, publicTokens: 0 }));
  computeAll(tree, tree.insert([1, 2, 3], alice));
  assert.equal(tree.match([1, 2, 3], bob).length, 0);
  assert.equal(tree.match([1, 2, 3]).length, 0);
  assert.equal(tree.match([1, 2, 3], alice).computed, 3);
});

test('salts share a public prefix and nothing below it', () => {
  const tree = new PrefixTree(16, 4);
  const [alice, bob] = ['alice', 'bob'].map((salt) => ({ salt, publicTokens: 3 }));
  computeAll(tree, tree.insert([1, 2, 3]));
  const path = tree.insert([1, 2, 3, 4, 5], alice);
  assert.equal(tree.match([1, 2, 3, 4, 5]).length, 3);
  assert.equal(tree.match([1, 2, 3, 4, 5], bob).length, 3);
  assert.equal(tree.match([1, 2, 3, 4, 5], alice).length, 5);
  computeAll(tree, path);
  tree.append(tree.fork(path, 3), 4);
  assert.equal(tree.match([1, 2, 3, 4]).length, 3, 'what a fork appends is private too');
});

test('eviction takes the least recently used leaf, tail first, and never what is held', () => {
  const tree = new PrefixTree(6, 4);
  const held = tree.insert([0, 0, 0, 0]);
  computeAll(tree, held);
  for (const first of [1, 2]) {
    const path = tree.insert([first, 1, 1, 1, 1, 1, 1, 1]);
    computeAll(tree, path);
    tree.release(path);
  }
  assert.equal(tree.availablePages, 5);
  const next = tree.insert([3, 1, 1, 1, 1, 1, 1, 1]);
  assert.equal(tree.match([1, 1, 1, 1, 1, 1, 1, 1]).length, 4, 'the older leaf lost its tail');
  assert.equal(tree.match([2, 1, 1, 1, 1, 1, 1, 1]).length, 8);
  assert.throws(
    () => tree.insert(new Int32Array(16).fill(4)),
    (error) => error instanceof FlashForgeError && error.code === 'out-of-pages',
  );
  assert.equal(held.length, 4);
  assert.equal(next.length, 8);
});
