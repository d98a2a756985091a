/**
 * Python packages that tests need: pip brings one once, into a folder of the system's temporary
 * files.
 * @module
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** The folder with the package (as `name==version`) and what it needs, or why there is none. */
export function pythonPackage(reference: string): { folder: string } | { missing: string } {
  const folder = join(tmpdir(), `flashforge-test-${reference.replace(/[^\w.-]+/g, '-')}`);
  if (existsSync(folder)) return { folder };
  const draft = `${folder}.${process.pid}`;
  mkdirSync(draft, { recursive: true });
  const pip = ['-m', 'pip', 'install', '--quiet', '--target', draft, reference];
  const { status, stderr, error } = spawnSync('python3', pip, { encoding: 'utf8' });
  if (status !== 0) {
    rmSync(draft, { recursive: true, force: true });
    const why = error?.message ?? stderr.trim().split('\n').pop();
    return { missing: `pip cannot install ${reference}: ${why}` };
  }
  try {
    renameSync(draft, folder);
  } catch {
    // Another run was faster.
    rmSync(draft, { recursive: true, force: true });
  }
  return { folder };
}
