/**
 * NVRTC for tests on machines without CUDA: its wheel is brought by pip once, into a folder of the
 * system's temporary files.
 * @module
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openNvrtc } from '../../src/backend/cuda/libraries.ts';
import type { NvrtcLibrary } from '../../src/backend/cuda/signatures.ts';

const PACKAGE = 'nvidia-cuda-nvrtc==13.0.88';
const FOLDER = join(tmpdir(), 'flashforge-test-nvrtc');

/** Puts the compiler's wheel into FOLDER; returns why that was not possible. */
function bringCompiler(): string | undefined {
  if (existsSync(FOLDER) && readdirSync(FOLDER).length > 0) return undefined;
  const draft = `${FOLDER}.${process.pid}`;
  mkdirSync(draft, { recursive: true });
  const pip = ['-m', 'pip', 'install', '--quiet', '--no-deps', '--target', draft, PACKAGE];
  const { status, stderr, error } = spawnSync('python3', pip, { encoding: 'utf8' });
  if (status === 0) {
    try {
      renameSync(draft, FOLDER);
    } catch {
      /* Another run was faster. */
      rmSync(draft, { recursive: true, force: true });
    }
    return undefined;
  }
  rmSync(draft, { recursive: true, force: true });
  return `pip cannot install ${PACKAGE}: ${error?.message ?? stderr.trim().split('\n').pop()}`;
}

/** The compiler, or why there is none. */
export async function findCompiler(): Promise<NvrtcLibrary | string> {
  try {
    return await openNvrtc();
  } catch {
    const reason = bringCompiler();
    if (reason !== undefined) return reason;
    return openNvrtc({ ...process.env, PYTHONPATH: FOLDER });
  }
}
