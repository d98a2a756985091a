/**
 * Workload files: what is refused and how, and the forests and bytes that come out.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FlashForgeError } from '../../src/base/errors.ts';
import { parseWorkloads, workloadBytes, workloadForest } from '../../src/plan/workload.ts';
import { pathOf } from '../helpers/plan-checks.ts';

const good = {
  name: 'good',
  nodes: [
    { parent: -1, tokens: 20 },
    { parent: 0, tokens: 7 },
    { parent: -1, tokens: 5 },
    { parent: 0, tokens: 33 },
    { parent: 1, tokens: 0 },
  ],
  requests: [3, 1, 2, 4, 1, 0],
  q_heads: 8,
  kv_heads: 2,
  head_dim: 64,
};
const parseOne = (value: unknown) => parseWorkloads(JSON.stringify([value]))[0];

const node = (value: object) => ({ ...good, nodes: [good.nodes[0], value] });
const BAD: [string, unknown, RegExp][] = [
  ['cycle', node({ parent: 1, tokens: 4 }), /nodes\[1\]\.parent.*earlier node.*got 1/],
  ['later parent', node({ parent: 2, tokens: 4 }), /nodes\[1\]\.parent.*between -1 and 1, got 2/],
  ['missing parent', node({ tokens: 4 }), /nodes\[1\]\.parent.*got nothing/],
  ['negative tokens', node({ parent: 0, tokens: -3 }), /nodes\[1\]\.tokens.*got -3/],
  ['half a token', node({ parent: 0, tokens: 1.5 }), /nodes\[1\]\.tokens.*got 1\.5/],
  ['huge tokens', node({ parent: 0, tokens: 1e18 }), /nodes\[1\]\.tokens.*1073741824/],
  ['long path', node({ parent: 0, tokens: 2 ** 30 }), /a path may hold/],
  ['no nodes', { ...good, nodes: [] }, /nodes must have 1 to/],
  ['nodes no list', { ...good, nodes: 'abc' }, /nodes must be a list, got "abc"/],
  ['node no object', { ...good, nodes: [5] }, /nodes\[0\] must be an object, got 5/],
  ['no requests', { ...good, requests: [] }, /requests must have 1 to/],
  ['request out of range', { ...good, requests: [5] }, /requests\[0\].*between 0 and 4, got 5/],
  ['request without context', { ...good, nodes: [{ parent: -1, tokens: 0 }], requests: [0] }, /no/],
  [
    'heads not divisible',
    { ...good, q_heads: 7 },
    /q_heads must be a multiple of kv_heads 2, got 7/,
  ],
  ['no heads', { ...good, kv_heads: 0 }, /kv_heads must be an integer/],
  ['head_dim', { ...good, head_dim: '128' }, /head_dim.*got "128"/],
  ['name', { ...good, name: 5 }, /name must be text, got 5/],
];

for (const [name, value, message] of BAD) {
  test(`refused: ${name}`, () => {
    assert.throws(
      () => parseOne(value),
      (error) => {
        assert.ok(error instanceof FlashForgeError && error.code === 'input');
        assert.match(error.message, message);
        assert.match(error.message, /^workload\[0\]\./);
        return true;
      },
    );
  });
}

test('refused: no JSON, no list, nothing in it', () => {
  assert.throws(() => parseWorkloads('[{'), /workload file is not JSON/);
  assert.throws(() => parseWorkloads('{}'), /must be a list/);
  assert.throws(() => parseWorkloads('[]'), /at least one workload/);
});

test('any JSON is parsed or refused with a clear error', () => {
  const shaped = fc.record(
    {
      name: fc.anything(),
      nodes: fc.oneof(
        fc.array(
          fc.record({ parent: fc.oneof(fc.integer(), fc.anything()), tokens: fc.anything() }),
        ),
        fc.anything(),
      ),
      requests: fc.oneof(fc.array(fc.integer()), fc.anything()),
      q_heads: fc.oneof(fc.nat(40), fc.anything()),
      kv_heads: fc.oneof(fc.nat(40), fc.anything()),
      head_dim: fc.oneof(fc.nat(200), fc.anything()),
    },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(fc.oneof(fc.jsonValue(), fc.array(shaped)), (value) => {
      let text: string;
      try {
        text = JSON.stringify(value) ?? '';
      } catch {
        return;
      }
      try {
        parseWorkloads(text);
      } catch (error) {
        assert.ok(error instanceof FlashForgeError, String(error));
        assert.ok(error.message.length < 300);
      }
    }),
    { numRuns: 500, seed: 4 },
  );
});

test('a forest in depth-first order with a way back to the file', () => {
  const workload = parseOne(good);
  const { forest, pages, requestRow, nodeIndex } = workloadForest(workload, 16);
  assert.deepEqual([...nodeIndex], [0, 1, 4, 3, 2]);
  assert.equal(pages, 2 + 1 + 0 + 3 + 1);
  for (let request = 0; request < good.requests.length; request++) {
    const path: number[] = [];
    for (let at = good.requests[request]; at >= 0; at = good.nodes[at].parent) {
      path.unshift(nodeIndex[at]);
    }
    assert.deepEqual(pathOf(forest, requestRow[request]), path);
    const tokens = path.reduce((sum, index) => sum + forest.length[index], 0);
    assert.equal(forest.rowPosition[requestRow[request]], tokens - 1);
  }
  assert.equal(new Set(requestRow).size, good.requests.length);
});

test('bytes by hand', () => {
  const bytes = workloadBytes(parseOne(good));
  const token = 2 * 2 * 64 * 2;
  assert.equal(bytes.unique, (20 + 7 + 33 + 5) * token);
  assert.equal(bytes.flat, (53 + 27 + 5 + 27 + 27 + 20) * token);
});

test('a million tokens a leaf cost no memory to plan', () => {
  const nodes = Array.from({ length: 1000 }, () => ({ parent: -1, tokens: 2 ** 30 }));
  const workload = parseOne({ ...good, nodes, requests: [0, 999] });
  assert.equal(workloadForest(workload, 16, false).forest.pages.length, 0);
  assert.throws(() => workloadForest(workload, 16), /pages/);
});
