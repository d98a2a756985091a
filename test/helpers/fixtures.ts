/**
 * Where test fixtures are: the compiled tests run from another folder than their sources.
 * @module
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after } from 'node:test';

function packageRoot(): string {
  let folder = import.meta.dirname;
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  return folder;
}

/** The path of a file in test/fixtures. */
export const fixturePath = (...names: string[]): string =>
  join(packageRoot(), 'test', 'fixtures', ...names);

/** A folder that is removed when the test file ends. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'flashforge-test-'));
  after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}
