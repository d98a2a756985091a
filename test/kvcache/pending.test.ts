/**
 * Places in the tree for tokens that nobody knows yet: found by nobody, filled in time, or gone
 * with their path.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import type { Path } from '../../src/kvcache/path.ts';
import { pendingToken, resolvePending } from '../../src/kvcache/pending.ts';
import { PrefixTree } from '../../src/kvcache/prefix-tree.ts';

function held(tree: PrefixTree, tokens: number[], salt = '', publicTokens = 0): Path {
  const path = tree.insert(tokens, { salt, publicTokens });
  tree.claim(path);
  tree.commit(path, tokens.length);
  return path;
}

function checkEmpty(tree: PrefixTree, paths: readonly Path[]): void {
  for (const path of paths) tree.release(path);
  for (const { tokens, length, computed } of tree.nodes()) {
    assert.equal(computed, length);
    assert.ok(tokens.subarray(0, length).every((token) => token >= 0));
  }
  tree.evictAll();
  assert.equal(tree.pool.freePages, tree.pool.pages);
  assert.deepEqual([...tree.nodes()], []);
}

test('a pending token is not found, not computed, and is gone with its path', () => {
  const tree = new PrefixTree(8, 4);
  const path = held(tree, [1, 2, 3, 4]);
  tree.append(path, pendingToken(0));
  assert.deepEqual([path.length, path.computed], [5, 4]);
  assert.equal(tree.match([1, 2, 3, 4, 5]).length, 4);
  const other = tree.insert([1, 2, 3, 4, 5]);
  assert.deepEqual(tree.claim(path), { from: 4, to: 5 }, 'it is computed in a step all the same');
  tree.release(path);
  tree.commit(other, 5);
  assert.deepEqual([...other.tokens()], [1, 2, 3, 4, 5]);
  tree.release(other);
  assert.equal([...tree.nodes()].length, 2);
  checkEmpty(tree, []);
});

test('once known it is found, below a border by its salt alone', () => {
  for (const salt of ['', 's']) {
    const tree = new PrefixTree(8, 4);
    const path = held(tree, [1, 2], salt, salt === '' ? 0 : 2);
    const fork = tree.fork(path);
    tree.append(path, pendingToken(3));
    tree.append(fork, pendingToken(4));
    resolvePending(path, 7);
    resolvePending(fork, 8);
    for (const each of [path, fork]) tree.commit(each, 3);
    const match = (token: number, of = salt) =>
      tree.match([1, 2, token], { salt: of, publicTokens: of === '' ? 0 : 2 }).computed;
    assert.deepEqual([match(7), match(8), match(9)], [3, 3, 2]);
    if (salt !== '') assert.deepEqual([match(7, ''), match(7, 't')], [2, 2]);
    checkEmpty(tree, [path, fork]);
  }
});

test('two of one token: the later one is private until its release', () => {
  const tree = new PrefixTree(8, 4);
  const path = held(tree, [1, 2]);
  const fork = tree.fork(path);
  tree.append(path, pendingToken(0));
  tree.append(fork, pendingToken(1));
  resolvePending(fork, 5);
  resolvePending(path, 5);
  for (const each of [path, fork]) tree.commit(each, 3);
  assert.equal([...tree.nodes()].filter(({ isPrivate }) => isPrivate).length, 1);
  tree.append(path, 6);
  tree.claim(path);
  tree.commit(path, 4);
  tree.release(path);
  tree.release(fork);
  assert.deepEqual(
    [...tree.nodes()].map(({ tokens, length }) => [...tokens.subarray(0, length)]),
    [[1, 2], [5], [6]],
  );
  checkEmpty(tree, []);
});

/** What a path must be: its known tokens, and whether one more is pending. */
interface Held {
  readonly path: Path;
  readonly tokens: number[];
  pending: boolean;
}

test('any order of appending, finding, filling and letting go', () => {
  const action = fc.record({
    kind: fc.constantFrom('insert', 'fork', 'pend', 'pend', 'resolve', 'resolve', 'release'),
    tokens: fc.array(fc.nat(1), { minLength: 1, maxLength: 6 }),
    pick: fc.nat(100),
  });
  fc.assert(
    fc.property(fc.array(action, { maxLength: 60, size: 'max' }), (actions) => {
      const tree = new PrefixTree(200, 3);
      const all: Held[] = [];
      let row = 0;
      for (const { kind, tokens, pick } of actions) {
        const one = all[pick % all.length];
        if (kind === 'insert') all.push({ path: held(tree, tokens), tokens, pending: false });
        else if (one === undefined) continue;
        else if (kind === 'fork' && !one.pending) {
          all.push({ path: tree.fork(one.path), tokens: [...one.tokens], pending: false });
        } else if (kind === 'pend' && !one.pending) {
          tree.append(one.path, pendingToken(row++));
          one.pending = true;
        } else if (kind === 'resolve' && one.pending) {
          resolvePending(one.path, tokens[0]);
          tree.commit(one.path, one.path.length);
          one.tokens.push(tokens[0]);
          one.pending = false;
        } else if (kind === 'release') {
          tree.release(one.path);
          all.splice(all.indexOf(one), 1);
        }
        for (const each of all) {
          const known = [...each.path.tokens()].slice(0, each.tokens.length);
          assert.deepEqual(known, each.tokens);
          assert.equal(each.path.length, each.tokens.length + Number(each.pending));
          assert.equal(each.path.computed, each.tokens.length);
        }
        for (const node of tree.nodes()) {
          const first = node.parent!.children.get(node.edge);
          assert.equal(node.edge, node.tokens[0]);
          assert.ok(first !== undefined && (node.isPrivate || first === node));
        }
      }
      checkEmpty(
        tree,
        all.map(({ path }) => path),
      );
    }),
    { numRuns: 300, seed: 5 },
  );
});
