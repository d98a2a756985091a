/**
 * Checks on the code itself: the dependency rule between folders, size limits and file headers.
 * @module
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { test } from 'node:test';

const ROOT = findRoot(import.meta.dirname);
const SRC = join(ROOT, 'src');

/** A folder may import from itself and from folders to its left; nothing else. */
const LAYERS = [
  'base',
  'tokenizer',
  'checkpoint',
  'kvcache',
  'plan',
  'backend',
  'model',
  'engine',
  'server',
  'cli',
];
/** Public entries: they re-export and stand between `server` and `cli`. */
const ENTRIES = ['index.ts', 'attention.ts', 'server.ts'];
/** Device backends never import each other. */
const DEVICES = ['reference', 'cpu', 'cuda'];

const LINES_MAX = 400;
const COLUMNS_MAX = 100;

const IMPORT = /(?:from|import)\s*\(?\s*'(\.[^']+)'/g;

function findRoot(from: string): string {
  let folder = from;
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

const layerOf = (file: string): number =>
  file.includes('/')
    ? LAYERS.indexOf(file.split('/')[0])
    : ENTRIES.includes(file)
      ? LAYERS.indexOf('server') + 0.5
      : -1;

const deviceOf = (file: string): string | undefined =>
  file.startsWith('backend/') ? DEVICES.find((name) => file.split('/')[1] === name) : undefined;

const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((file) =>
  /\.(ts|c|h|cu|cuh)$/.test(file),
);

for (const file of files) {
  test(`tidy ${file}`, () => {
    const text = readFileSync(join(SRC, file), 'utf8');
    const lines = text.split('\n');

    assert.ok(layerOf(file) >= 0, 'file is in no known layer');
    assert.ok(lines.length <= LINES_MAX, `${lines.length} lines, at most ${LINES_MAX}`);
    const long = lines.findIndex((line) => line.length > COLUMNS_MAX);
    assert.equal(long, -1, `line ${long + 1} is longer than ${COLUMNS_MAX} columns`);
    assert.match(
      text,
      /^(#!.*\n)?\/(\*\*|\*|\/)/,
      'file must open with a comment that says what it is for',
    );

    for (const [, path] of text.matchAll(IMPORT)) {
      const target = relative(SRC, resolve(SRC, dirname(file), path));
      assert.ok(layerOf(target) <= layerOf(file), `${file} imports rightwards: ${target}`);
      const [from, to] = [deviceOf(file), deviceOf(target)];
      assert.ok(!from || !to || from === to, `${file} imports another device: ${target}`);
    }
  });
}

test('every folder of the source has tests', () => {
  for (const layer of LAYERS) {
    if (existsSync(join(SRC, layer)))
      assert.ok(existsSync(join(ROOT, 'test', layer)), `test/${layer} is missing`);
  }
});
