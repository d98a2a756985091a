/**
 * Cross-compiles the kernels for the platforms of a release into prebuilt/, with the C compiler
 * of zig (`pip install ziglang`). The libraries use no libc, so that glibc and musl both load them.
 * Arguments that are part of a target's name select targets.
 * @module
 */
import { execFile } from 'node:child_process';
import { mkdirSync, renameSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { COMMON_FLAGS, KERNEL_FOLDER, kernelSources } from '../src/backend/cpu/native-compiler.ts';
import { PREBUILT_TARGETS, type PrebuiltTarget, suffixOf } from '../src/backend/cpu/prebuilt.ts';
import { prebuiltFolder } from '../src/base/env.ts';

const run = promisify(execFile);

/** How zig may be reached: itself, or the Python package that brings it. */
const ZIG_COMMANDS = [['zig'], ['python3', '-m', 'ziglang'], ['python', '-m', 'ziglang']];

async function findZig(): Promise<readonly string[]> {
  for (const command of ZIG_COMMANDS) {
    try {
      await run(command[0], [...command.slice(1), 'version']);
      return command;
    } catch {
      // Not there: the next way.
    }
  }
  throw new Error('zig is needed: pip install ziglang');
}

/** Compiles one library; it appears whole or not at all. @returns its size in bytes. */
async function buildTarget(
  zig: readonly string[],
  target: PrebuiltTarget,
  folder: string,
): Promise<number> {
  const output = join(folder, target.name + suffixOf(target.platform));
  // The work folder keeps side products (import libraries, debug symbols) out of the package.
  const work = join(folder, `.${target.name}`);
  mkdirSync(work, { recursive: true });
  try {
    const part = join(work, 'kernels');
    const args = [
      'cc',
      ...target.zig,
      ...COMMON_FLAGS,
      '-shared',
      '-s',
      ...(target.platform === 'win32' ? [] : ['-fPIC']),
      ...(target.platform === 'linux' ? ['-nostdlib'] : []),
      '-o',
      part,
      ...kernelSources().map((file) => join(KERNEL_FOLDER, file)),
    ];
    await run(zig[0], [...zig.slice(1), ...args], { maxBuffer: 1 << 26 });
    renameSync(part, output);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return statSync(output).size;
}

const wanted = process.argv.slice(2);
const targets = PREBUILT_TARGETS.filter(
  ({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)),
);
const zig = await findZig();
const folder = prebuiltFolder();
mkdirSync(folder, { recursive: true });
for (const target of targets) {
  const bytes = await buildTarget(zig, target, folder);
  console.log(`${target.name}${suffixOf(target.platform)}  ${(bytes / 1024).toFixed(0)} KB`);
}
