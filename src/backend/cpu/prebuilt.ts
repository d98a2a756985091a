/**
 * Libraries that were compiled for common processors when the package was made, so that a user
 * needs no compiler: which files exist and which one suits this machine.
 * @module
 */
import { existsSync, readFileSync } from 'node:fs';
import { arch, platform } from 'node:os';
import { join } from 'node:path';
import { prebuiltFolder } from '../../base/env.ts';

/** One library of the package: where it runs and what it is compiled with. */
export interface PrebuiltTarget {
  /** File name without suffix: platform-arch[-level]. */
  readonly name: string;
  readonly platform: NodeJS.Platform;
  readonly arch: NodeJS.Architecture;
  /** Bits of ff_cpu_features that the processor must have (kernels/cpu.c). */
  readonly features: number;
  /** Linux arm64 only: words that /proc/cpuinfo must list. */
  readonly cpuinfo?: readonly string[];
  /** Target and processor flags for zig cc. */
  readonly zig: readonly string[];
}

const HAS_AVX2 = 1;
const HAS_AVX_VNNI = 2;
const HAS_AVX512_VNNI = 4;

/** x86-64 levels, the best first. A processor with none of them runs WebAssembly. */
const X64_LEVELS: readonly { level: string; features: number; cpu: string }[] = [
  {
    level: 'avx512vnni',
    features: HAS_AVX512_VNNI,
    cpu: 'x86_64_v4+avx512vnni',
  },
  { level: 'avxvnni', features: HAS_AVX_VNNI, cpu: 'x86_64_v3+avxvnni' },
  { level: 'avx2', features: HAS_AVX2, cpu: 'x86_64_v3' },
];

const x64 = (system: NodeJS.Platform, name: string, triple: string): PrebuiltTarget[] =>
  X64_LEVELS.map(({ level, features, cpu }) => ({
    name: `${name}-x64-${level}`,
    platform: system,
    arch: 'x64',
    features,
    zig: ['-target', triple, `-mcpu=${cpu}`],
  }));

/** Every library, within a platform the best first. They use no libc: glibc and musl both load. */
export const PREBUILT_TARGETS: readonly PrebuiltTarget[] = [
  ...x64('linux', 'linux', 'x86_64-linux-gnu'),
  {
    name: 'linux-arm64-dotprod',
    platform: 'linux',
    arch: 'arm64',
    features: 0,
    cpuinfo: ['asimddp', 'asimdhp'],
    zig: ['-target', 'aarch64-linux-gnu', '-mcpu=generic+v8_2a+dotprod+fullfp16'],
  },
  {
    name: 'linux-arm64',
    platform: 'linux',
    arch: 'arm64',
    features: 0,
    zig: ['-target', 'aarch64-linux-gnu', '-mcpu=generic'],
  },
  {
    name: 'darwin-arm64',
    platform: 'darwin',
    arch: 'arm64',
    features: 0,
    zig: ['-target', 'aarch64-macos', '-mcpu=apple_m1'],
  },
  ...x64('darwin', 'darwin', 'x86_64-macos').filter(({ name }) => name.endsWith('avx2')),
  ...x64('win32', 'win32', 'x86_64-windows-gnu'),
];

export const suffixOf = (system: NodeJS.Platform): string =>
  system === 'win32' ? '.dll' : system === 'darwin' ? '.dylib' : '.so';

/** The libraries that are there for this system and architecture, the best first. */
export function prebuiltCandidates(): { target: PrebuiltTarget; path: string }[] {
  const folder = prebuiltFolder();
  const words = cpuinfoWords();
  return PREBUILT_TARGETS.filter((target) => target.platform === platform())
    .filter((target) => target.arch === arch())
    .filter((target) => (target.cpuinfo ?? []).every((word) => words.has(word)))
    .map((target) => ({ target, path: join(folder, target.name + suffixOf(target.platform)) }))
    .filter(({ path }) => existsSync(path));
}

function cpuinfoWords(): Set<string> {
  try {
    return new Set(readFileSync('/proc/cpuinfo', 'utf8').split(/\s+/));
  } catch {
    return new Set();
  }
}
