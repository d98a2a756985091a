/**
 * The attention benchmark and the cost profile: small trees are measured and right, those that do
 * not fit say so, profiles are whole, kept and survive damage.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { benchAttention } from '../../../src/backend/cpu/attention-bench.ts';
import { costProfile } from '../../../src/backend/cpu/profile.ts';
import { createProvider } from '../../../src/backend/cpu/provider.ts';
import { CostModel } from '../../../src/plan/cost-model.ts';
import { parseWorkloads } from '../../../src/plan/workload.ts';

const folder = mkdtempSync(join(tmpdir(), 'flashforge-bench-'));
before(() => {
  process.env.FLASHFORGE_CACHE = folder;
});
after(() => {
  delete process.env.FLASHFORGE_CACHE;
  rmSync(folder, { recursive: true, force: true });
});

const tree = (name: string, shared: number, own: number, batch: number, headDim: number) => ({
  name,
  nodes: [
    { parent: -1, tokens: shared },
    ...Array.from({ length: batch }, () => ({ parent: 0, tokens: own })),
  ],
  requests: Array.from({ length: batch }, (_, i) => i + 1),
  ...{ q_heads: 6, kv_heads: 2, head_dim: headDim },
});

test('trees are measured on two workers; what does not fit says so', async () => {
  const workloads = parseWorkloads(
    JSON.stringify([
      tree('small', 300, 10, 5, 64),
      tree('too large', 1_000_000, 10, 2, 64),
      tree('odd', 100, 10, 2, 72),
      tree('other shape', 100, 70, 3, 128),
    ]),
  );
  const told: string[] = [];
  const report = await benchAttention(workloads, {
    // Nothing to compile, so that the cache folder can be empty.
    ...{ provider: 'wasm', workers: 2, memoryBytes: 64 * 2 ** 20 },
    onRow: (row) => told.push(row.name),
  });
  assert.equal(report.device, 'cpu');
  assert.deepEqual(told, ['small', 'too large', 'odd', 'other shape']);
  const [small, large, odd, other] = report.rows;
  for (const row of [small, other]) {
    assert.equal(row.skipped, undefined);
    for (const field of ['tree_us', 'flat_us', 'plan_us'] as const)
      assert.ok((row[field] as number) > 0, field);
    assert.ok((row.max_error as number) < 5e-6, `error ${row.max_error}`);
    assert.ok(row.checked > 0);
  }
  // Two KV heads, K and V, f16.
  assert.equal(small.unique_bytes, (300 + 5 * 10) * 2 * 64 * 2 * 2);
  assert.equal(small.flat_bytes, 5 * 310 * 2 * 64 * 2 * 2);
  assert.match(large.skipped ?? '', /need 488 MiB and 64 MiB are allowed/);
  assert.match(odd.skipped ?? '', /head_dim .* multiple of 16 .* got 72/);
  assert.equal(large.tree_us, null);
});

test('a profile is measured once and used by the planner', async () => {
  const provider = await createProvider({ provider: 'wasm' });
  const shape = { kvHeads: 2, groupSize: 3, headDim: 32, kvType: 'f16' } as const;
  const told: string[] = [];
  const log = (message: string): void => void told.push(message);
  const first = await costProfile(provider, shape, log);
  const model = new CostModel(first, 3, 32);
  assert.ok(model.us(32, 2048) > model.us(1, 64));
  assert.deepEqual(await costProfile(provider, shape, log), first);
  assert.equal(told.length, 1, 'the second comes from the cache');

  const names = readdirSync(join(folder, 'profiles'));
  const file = names.find((name) => {
    const text = readFileSync(join(folder, 'profiles', name), 'utf8');
    return text.includes('head_dim 32');
  }) as string;
  writeFileSync(join(folder, 'profiles', file), '{"device":');
  await costProfile(provider, shape, log);
  assert.equal(told.length, 2, 'a damaged profile is measured again');
  assert.deepEqual(readdirSync(join(folder, 'profiles')), names);
});
