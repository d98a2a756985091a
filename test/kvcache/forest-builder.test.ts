/**
 * Forests built from random trees: every row sees exactly its path's slots, before and after
 * patching; and shapes that must or must not change the version.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { randomStream } from '../../src/base/math.ts';
import type { Forest } from '../../src/kvcache/forest.ts';
import { ForestBuilder, type ForestEntry } from '../../src/kvcache/forest-builder.ts';
import { PrefixTree } from '../../src/kvcache/prefix-tree.ts';

/** The slots that a row attends to, by the forest's arrays alone. */
function visibleSlots(forest: Forest, row: number, pageSize: number): number[] {
  const slots: number[] = [];
  for (let node = 0; node < forest.nodes; node++) {
    if (row < forest.rowBegin[node] || row >= forest.rowEnd[node]) continue;
    if (forest.start[node] > forest.rowPosition[row]) continue;
    assert.equal(forest.start[node], slots.length, 'nodes of a row follow each other');
    for (let token = 0; token < forest.length[node]; token++) {
      if (forest.start[node] + token > forest.rowPosition[row]) break;
      const slot = forest.firstSlot[node] + token;
      const page = forest.pages[forest.pageBegin[node] + Math.floor(slot / pageSize)];
      slots.push(page * pageSize + (slot % pageSize));
    }
  }
  return slots;
}

function checkForest(
  tree: PrefixTree,
  builder: ForestBuilder,
  forest: Forest,
  entries: readonly ForestEntry[],
): void {
  assert.equal(forest.requests, entries.length);
  assert.equal(
    forest.rows,
    entries.reduce((sum, { from, to }) => sum + to - from, 0),
  );
  for (let request = 0; request < forest.requests; request++) {
    const { path, from, to } = entries[builder.order[request]];
    const row = forest.requestRow[request];
    assert.equal(forest.requestRow[request + 1] - row, to - from);
    for (let at = from; at < to; at++) {
      const expected = Array.from({ length: at + 1 }, (_, position) => tree.slotOf(path, position));
      assert.deepEqual(visibleSlots(forest, row + at - from, tree.pool.pageSize), expected);
    }
  }
  for (let node = 0; node < forest.nodes; node++) {
    const parent = forest.parent[node];
    assert.ok(parent < node, 'parents first');
    assert.ok(forest.rowBegin[node] < forest.rowEnd[node], 'every node has rows');
    if (parent < 0) continue;
    assert.ok(forest.rowBegin[parent] <= forest.rowBegin[node], 'nested');
    assert.ok(forest.rowEnd[node] <= forest.rowEnd[parent], 'nested');
  }
}

const lastTokens = (path: ForestEntry['path'], count: number): ForestEntry => ({
  path,
  from: Math.max(0, path.length - count),
  to: path.length,
});

test('random trees: rows see their paths, also after leaves grew', () => {
  const shape = fc.record({
    prompts: fc.array(fc.array(fc.nat(2), { minLength: 1, maxLength: 20 }), {
      minLength: 1,
      maxLength: 8,
    }),
    rows: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 8, maxLength: 8 }),
    pageSize: fc.integer({ min: 1, max: 4 }),
    steps: fc.integer({ min: 1, max: 30 }),
  });
  fc.assert(
    fc.property(shape, ({ prompts, rows, pageSize, steps }) => {
      const tree = new PrefixTree(2000, pageSize);
      const builder = new ForestBuilder(tree);
      const paths = prompts.map((prompt) => tree.insert(prompt));
      const chunks = paths.map((path, index) => lastTokens(path, rows[index]));
      checkForest(tree, builder, builder.build(chunks), chunks);
      for (let step = 0; step < steps; step++) {
        paths.forEach((path, index) => {
          tree.append(path, (step * 7 + index) % 3);
        });
        const entries = paths.map((path) => lastTokens(path, 1));
        checkForest(tree, builder, builder.build(entries), entries);
      }
    }),
    { numRuns: 150, seed: 5 },
  );
});

test('prefill in chunks: rows move down a path that others have split', () => {
  const chunked = fc.record({
    prompts: fc.array(fc.array(fc.nat(1), { minLength: 6, maxLength: 20 }), {
      minLength: 1,
      maxLength: 4,
    }),
    chunk: fc.integer({ min: 1, max: 3 }),
    pageSize: fc.integer({ min: 1, max: 4 }),
  });
  fc.assert(
    fc.property(chunked, ({ prompts, chunk, pageSize }) => {
      const tree = new PrefixTree(2000, pageSize);
      const builder = new ForestBuilder(tree);
      const paths = prompts.map((prompt) => tree.insert(prompt));
      for (let from = 0; from < 20; from += chunk) {
        const entries = paths
          .filter((path) => from < path.length)
          .map((path) => ({ path, from, to: Math.min(path.length, from + chunk) }));
        checkForest(tree, builder, builder.build(entries), entries);
      }
    }),
    { numRuns: 200, seed: 6 },
  );
});

test('the version stays while leaves grow and changes when a path forks', () => {
  const tree = new PrefixTree(100, 4);
  const builder = new ForestBuilder(tree);
  const base = tree.insert([1, 2, 3, 4, 5]);
  const [a, b] = [tree.fork(base), tree.fork(base)];
  tree.append(a, 1);
  tree.append(b, 2);
  const step = (): number => {
    const entries = [a, b].map((path) => lastTokens(path, 1));
    checkForest(tree, builder, builder.build(entries), entries);
    tree.append(a, 3);
    tree.append(b, 3);
    return builder.version;
  };
  const first = step();
  for (let count = 0; count < 12; count++) assert.equal(step(), first);
  tree.release(tree.fork(a, 7));
  assert.notEqual(step(), first, 'a split of a held node is another shape');
});

test('a chain of nodes in one run of KV becomes one forest node', () => {
  const tree = new PrefixTree(100, 4);
  const builder = new ForestBuilder(tree);
  const path = tree.insert([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  for (const length of [2, 5, 8]) tree.release(tree.fork(path, length));
  assert.equal([...tree.nodes()].length, 4);
  const entries = [lastTokens(path, 1)];
  const forest = builder.build(entries);
  assert.equal(forest.nodes, 1);
  checkForest(tree, builder, forest, entries);
});

test('256 sequences on four levels', () => {
  const tree = new PrefixTree(4000, 64);
  const builder = new ForestBuilder(tree);
  const random = randomStream(1);
  const paths = Array.from({ length: 256 }, (_, index) => {
    const level = (salt: number, count: number): number[] =>
      Array.from({ length: count }, (_, at) => (salt * 31 + at) % 1000);
    return tree.insert([
      ...level(0, 300),
      ...level(1 + (index >> 6), 200),
      ...level(10 + (index >> 3), 100),
      ...Array.from({ length: 20 }, () => Math.floor(random() * 1000)),
    ]);
  });
  for (let step = 0; step < 3; step++) {
    const entries = paths.map((path) => lastTokens(path, 1));
    checkForest(tree, builder, builder.build(entries), entries);
    paths.forEach((path) => {
      tree.append(path, step);
    });
  }
});
