/**
 * The README's chart, drawn from made-up readings.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chartPoints, drawChart } from '../../scripts/chart.ts';
import type { JoinedRow } from '../../src/cli/tpot-peers.ts';

const row = (shared: number, batch: number, ours: number, theirs: number): JoinedRow => ({
  shape: 'qwen3-4b',
  name: `shared-${shared}-B${batch}`,
  batch,
  flat_kv_tokens: batch * shared,
  unique_kv_tokens: shared,
  bound_ms: 1,
  device_bound_ms: 1,
  tpot_ms: ours,
  flat_ms: null,
  joule_per_token: null,
  peers: {
    'other 1.0': { tpot_ms: theirs, joule_per_token: null },
    'other 1.0, cascade': { tpot_ms: theirs * 2, joule_per_token: null },
  },
  faster: theirs / ours,
});

test('lines of ours and of the fastest peer, with their batches, in colours for both schemes', async () => {
  const rows = [row(4096, 16, 3, 4), row(65536, 16, 5, 7), row(4096, 64, 4, 10)];
  const points = chartPoints([...rows, row(65536, 64, 8, 90), row(65536, 32, 6, 50)]);
  assert.equal(points.length, 8);
  assert.deepEqual(
    points.filter(({ shared, batch }) => shared === 65536 && batch === 'batch 64'),
    [
      { model: 'Qwen3-4B', shared: 65536, ms: 8, engine: 'FlashForge', batch: 'batch 64' },
      { model: 'Qwen3-4B', shared: 65536, ms: 90, engine: 'other 1.0', batch: 'batch 64' },
    ].map((point) => ({ ...point, line: point.engine + point.batch })),
  );
  const svg = await drawChart(points);
  assert.match(svg, /^<svg[^>]*><style>.*prefers-color-scheme:dark/);
  for (const text of ['FlashForge', 'other 1.0', 'Qwen3-4B', 'batch 64', '65,536']) {
    assert.ok(svg.includes(`>${text}</text>`), text);
  }
  // Four lines and eight points.
  assert.equal(svg.match(/class="mark-line[^"]*"[^>]*>(.*?)<\/g>/g)?.length, 4);
  assert.equal(svg.match(/aria-roledescription="point"/g)?.length, 8);
});

test('nothing to draw is an error and no empty picture', async () => {
  const alone = { ...row(4096, 1, 3, 4), peers: {}, faster: null };
  assert.deepEqual(chartPoints([alone, { ...row(1, 1, 1, 1), name: 'tree' }]), []);
  await assert.rejects(drawChart([]), /no scenario/);
});
