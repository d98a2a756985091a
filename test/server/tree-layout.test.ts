/**
 * Where the dashboard puts the nodes of the prefix tree.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { layoutTree, type TreeNode } from '../../src/server/dashboard/page/tree-layout.ts';

/** Trees as the server sends them: parents before their children. */
const trees = fc
  .array(
    fc.record({ parent: fc.nat(), tokens: fc.integer({ min: 1, max: 9000 }), used: fc.nat(9) }),
  )
  .map((picks) => {
    const nodes: TreeNode[] = [];
    for (const [id, { parent, tokens, used }] of picks.entries()) {
      const above = parent % 4 === 0 || id === 0 ? null : nodes[parent % id];
      const start = above === null ? 0 : above.start + above.tokens;
      const sharers = above === null ? used : Math.min(used, above.sharers);
      const place = { id, parent: above?.id ?? null, start };
      nodes.push({ ...place, tokens, computed: tokens, sharers, ends: 0 });
    }
    return nodes;
  });

const EPSILON = 1e-9;

test('children lie right of their parent, within its rows, and nothing overlaps', () => {
  fc.assert(
    fc.property(trees, (nodes) => {
      const { blocks, rows } = layoutTree(nodes, true);
      assert.equal(blocks.length, nodes.length);
      const leaves = blocks.filter(({ children }) => children.length === 0);
      assert.deepEqual(
        leaves.map(({ row }) => row).sort((a, b) => a - b),
        [...leaves.keys()],
      );
      assert.equal(rows, leaves.length);
      for (const { x, width, row, rows: high, parent, children } of blocks) {
        assert.ok(x >= 0 && x + width <= 1 + EPSILON);
        assert.equal(
          children.length === 0 ? 1 : children.reduce((sum, c) => sum + c.rows, 0),
          high,
        );
        if (parent === null) continue;
        assert.ok(Math.abs(parent.x + parent.width - x) < EPSILON);
        assert.ok(row >= parent.row && row + high <= parent.row + parent.rows);
      }
    }),
    { seed: 5 },
  );
});

test('longer nodes are longer, and what nobody uses can be left out', () => {
  fc.assert(
    fc.property(trees, (nodes) => {
      const all = layoutTree(nodes, true).blocks;
      const byTokens = [...all].sort((a, b) => a.node.tokens - b.node.tokens);
      byTokens.reduce((before, block) => {
        assert.ok(block.width >= before.width - EPSILON);
        return block;
      }, byTokens[0]);
      const used = layoutTree(nodes, false).blocks.map(({ node }) => node.id);
      const expected = nodes.filter(({ sharers }) => sharers > 0).map(({ id }) => id);
      assert.deepEqual(
        used.sort((a, b) => a - b),
        expected,
      );
    }),
    { seed: 6 },
  );
});

test('a tree as deep as it has nodes needs no deep stack', () => {
  const deep = Array.from({ length: 20_000 }, (_, id) => ({
    id,
    parent: id === 0 ? null : id - 1,
    start: id,
    tokens: 1,
    computed: 1,
    sharers: 1,
    ends: 0,
  }));
  assert.equal(layoutTree(deep, true).rows, 1);
});
