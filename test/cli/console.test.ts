/**
 * Where reports go: whole files under their names, links and devices as they are.
 * @module
 */
import assert from 'node:assert/strict';
import {
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { devNull, platform } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeContext, writeWhole } from '../../src/cli/console.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';

const folder = temporaryFolder();
const { signal } = new AbortController();

test('a report replaces a file in one piece and leaves nothing beside it', async () => {
  const path = join(folder, 'report.json');
  writeFileSync(path, 'old');
  await makeContext(path, signal).report({ a: 1 });
  assert.deepEqual(JSON.parse(readFileSync(path, 'utf8')), { a: 1 });
  assert.deepEqual(readdirSync(folder), ['report.json']);
});

test('a link stays a link, and a device a device', { skip: platform() === 'win32' }, async () => {
  const target = join(folder, 'target.json');
  const link = join(folder, 'link.json');
  writeFileSync(target, 'old');
  symlinkSync(target, link);
  await writeWhole(link, 'new');
  assert.ok(lstatSync(link).isSymbolicLink());
  assert.equal(readFileSync(target, 'utf8'), 'new');
  await writeWhole(devNull, 'gone');
  assert.ok(statSync(devNull).isCharacterDevice());
});

test('what cannot be written is refused in words', async () => {
  const inner = join(folder, 'inner');
  mkdirSync(inner);
  assert.throws(() => makeContext(inner, signal), /--json cannot write .*inner: it is a folder/);
  const nowhere = join(folder, 'none', 'r.json');
  assert.throws(() => makeContext(nowhere, signal), { code: 'usage', message: /folder does not/ });
  await assert.rejects(writeWhole(nowhere, 'x'), { code: 'io', message: /no such file or folder/ });
  const full = '/dev/full';
  if (platform() !== 'linux') return;
  await assert.rejects(writeWhole(full, 'x'), { message: /no space is left on the disk/ });
});
