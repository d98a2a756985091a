/**
 * Runs every compiled test file with Node's own runner and prints `N passed, N failed` last.
 * Arguments that are part of a test file's path select files.
 * @module
 */
import { readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { run } from 'node:test';
import { spec as Spec } from 'node:test/reporters';

const folder = resolve(import.meta.dirname, '../test');
const wanted = process.argv.slice(2);
const files = readdirSync(folder, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.test.js'))
  .filter((file) => wanted.length === 0 || wanted.some((part) => file.includes(part)))
  .sort()
  .map((file) => join(folder, file));

let passed = 0;
let failed = 0;
let skipped = 0;
const stream = run({ files, concurrency: 2, timeout: 15 * 60_000 });
stream.on('test:pass', (data) => {
  if (data.details.type === 'suite') return;
  if (data.skip !== undefined && data.skip !== false) skipped++;
  else passed++;
});
stream.on('test:fail', (data) => {
  if (data.details.type !== 'suite') failed++;
});
stream.compose(new Spec()).pipe(process.stdout);
stream.on('end', () => {
  if (passed + failed === 0) failed = 1;
  process.exitCode = failed > 0 ? 1 : 0;
  setImmediate(() =>
    console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`),
  );
});
