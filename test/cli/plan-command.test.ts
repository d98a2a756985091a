/**
 * `flashforge plan`: report, drawing, and one clear sentence for each wrong input.
 * @module
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, test } from 'node:test';
import { planReport, planWorkload } from '../../src/cli/plan-command.ts';
import { defaultProfile } from '../../src/plan/default-profile.ts';
import { parseWorkloads } from '../../src/plan/workload.ts';

const folder = mkdtempSync(join(tmpdir(), 'flashforge-plan-'));
after(() => rmSync(folder, { recursive: true, force: true }));

const tree = {
  name: 'a <tree> & more',
  nodes: [{ parent: -1, tokens: 1000 }, ...Array(8).fill({ parent: 0, tokens: 50 })],
  requests: [1, 2, 3, 4, 5, 6, 7, 8],
  q_heads: 8,
  kv_heads: 4,
  head_dim: 64,
};
const file = (name: string, value: unknown): string => {
  const path = join(folder, name);
  writeFileSync(path, typeof value === 'string' ? value : JSON.stringify(value));
  return path;
};
const main = resolve(import.meta.dirname, '../../src/cli/main.js');
const run = (...words: string[]) =>
  spawnSync(process.execPath, [main, 'plan', ...words], {
    encoding: 'utf8',
    env: { ...process.env, DEBUG: '' },
  });

test('bytes as computed by hand, and sums over several workloads', async () => {
  const [workload] = parseWorkloads(JSON.stringify([tree]));
  const { row } = await planWorkload(workload, 'cpu', 3);
  const token = 2 * 4 * 64 * 2;
  assert.equal(row.unique_bytes, 1400 * token);
  assert.equal(row.flat_bytes, 8 * 1050 * token);
  assert.equal(row.reduction, 6);
  assert.ok(row.makespan_us >= row.lower_bound_us && row.plan_us > 0);
  const report = planReport([row, row]);
  assert.equal(report.tasks, 2 * row.tasks);
  assert.equal(report.workers, 3);
  assert.equal(planReport([row]).plan_us, row.plan_us);
});

test('the report, the table and a drawing that is whole', () => {
  const svg = join(folder, 'out.svg');
  // Some editors begin a text with a byte order mark.
  const both = JSON.stringify([tree, { ...tree, name: 'second' }]);
  const path = file('two.json', `\uFEFF${both}`);
  const { stdout, stderr, status } = run(
    '--workload',
    path,
    '--workers',
    '5',
    '--svg',
    svg,
    '--json',
  );
  assert.equal(status, 0, stderr);
  const report = JSON.parse(stdout);
  assert.equal(report.workers, 5);
  assert.equal(report.workloads.length, 2);
  assert.match(stderr, /a <tree> & more/);
  const drawing = readFileSync(svg, 'utf8');
  assert.match(drawing, /^<svg [\s\S]*<\/svg>\n$/);
  assert.ok(!drawing.includes('<tree>'));
  const items = report.workloads.reduce(
    (sum: number, row: { items: number }) => sum + row.items,
    0,
  );
  assert.equal(drawing.match(/<rect x=/g)?.length, items);
});

test('plans of CUDA are those of the kernel, without a device', async () => {
  const [workload] = parseWorkloads(JSON.stringify([{ ...tree, head_dim: 128 }]));
  const { row, chart } = await planWorkload(workload, 'cuda', 132);
  assert.ok(row.items > row.workers / 2 && row.makespan_us < 20);
  assert.ok(chart.plan.kvHeads === 4 && row.plan_us > 0);
  const odd = { ...workload, headDim: 100 };
  await assert.rejects(planWorkload(odd, 'cuda', 132), /head_dim must be one of .* got 100/);
});

test('costs come from a profile that was measured', () => {
  const path = file('trees.json', [tree]);
  const typical = run('--workload', path);
  assert.match(typical.stdout, /^costs: typical, not measured$/m);
  const profile = { ...defaultProfile('cpu', 64), device: 'a card', kernel: 'k', itemUs: 500 };
  const given = ['--workload', path, '--profile', file('profile.json', { profile })];
  const { stdout, stderr, status } = run(...given, '--json', '-');
  assert.equal(status, 0, stderr);
  assert.match(stderr, /^costs: a card, k$/m);
  assert.ok(JSON.parse(stdout).makespan_us > 500);
});

const broken = { ...tree, nodes: [{ parent: 0, tokens: 5 }] };
const BAD: [string, string[], number, RegExp][] = [
  ['no workload', [], 2, /--workload FILE is needed/],
  [
    'no file',
    ['--workload', join(folder, 'none')],
    1,
    /none cannot be read: there is no such file or folder/,
  ],
  ['a folder', ['--workload', folder], 1, /cannot be read: it is a folder/],
  ['no JSON', ['--workload', file('text', 'abc')], 1, /is not JSON/],
  ['a cycle', ['--workload', file('cycle', [broken])], 1, /nodes\[0\]\.parent of node 0 must be/],
  [
    'a profile without costs',
    ['--workload', file('e', [tree]), '--profile', file('p', { profile: { us: [] } })],
    1,
    /cost profile cannot be used: queries, tokens and us must be lists/,
  ],
  ['workers', ['--workload', file('a', [tree]), '--workers', '0'], 2, /--workers must be.*"0"/],
  ['device', ['--workload', file('b', [tree]), '--device', 'tpu'], 2, /cpu or cuda, got "tpu"/],
  [
    'no name for the svg',
    ['--workload', file('d', [tree]), '--svg', ''],
    2,
    /--svg must be a file/,
  ],
  ['svg', ['--workload', file('c', [tree]), '--svg', join(folder, 'x/y')], 1, /cannot be written/],
];
for (const [name, words, code, message] of BAD) {
  test(`refused: ${name}`, () => {
    const { stdout, stderr, status } = run(...words);
    assert.equal(status, code);
    const line = stderr.trim();
    assert.match(line, message);
    assert.equal(line.split('\n').length, 1);
    if (name !== 'svg') assert.equal(stdout, '');
    assert.ok(!existsSync(join(folder, 'x')));
  });
}
