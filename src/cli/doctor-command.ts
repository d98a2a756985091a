/**
 * `flashforge doctor`: what this machine offers, and what is missing for more. Each check says
 * what it found; a missing optional part is no failure.
 * @module
 */
import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, freemem, totalmem } from 'node:os';
import { findCompiler } from '../backend/cpu/native-compiler.ts';
import { createProvider, type ProviderChoice } from '../backend/cpu/provider.ts';
import { Cuda } from '../backend/cuda/driver.ts';
import { findCompilation } from '../backend/cuda/kernel-loader.ts';
import { nvrtcVersion } from '../backend/cuda/nvrtc.ts';
import { cacheFolder } from '../base/env.ts';
import { FlashForgeError } from '../base/errors.ts';
import { DEFAULT_MODEL, resolveDefaultModel } from '../checkpoint/reference.ts';
import { keptProfiles } from '../plan/profile-store.ts';
import { type Command, JSON_OPTION } from './command.ts';

/** `ok` false = this machine does without. */
interface Finding {
  readonly what: string;
  readonly ok: boolean;
  readonly found: string;
}

export const doctorCommand: Command = {
  name: 'doctor',
  summary: 'Shows what this machine offers: Node, processor, memory, kernels, GPU libraries.',
  positionals: [],
  options: [JSON_OPTION],
  examples: ['flashforge doctor', 'flashforge doctor --json doctor.json'],
  run: async (context) => {
    const findings: Finding[] = [
      {
        what: 'Node.js',
        ok: true,
        found: `${process.version} on ${process.platform} ${process.arch}`,
      },
      { what: 'processor', ok: true, found: processorText() },
      { what: 'SIMD', ok: true, found: simdText() },
      { what: 'memory', ok: true, found: `${gigabytes(totalmem())}, ${gigabytes(freemem())} free` },
      await compilerFinding(),
      await providerFinding('native'),
      await providerFinding('wasm'),
      await providerFinding('auto'),
      await attempt('CUDA device', gpuText),
      await attempt('CUDA compiler', nvrtcText),
      await attempt('default model', async () => {
        const { path } = await resolveDefaultModel({ offline: true });
        return path;
      }),
      { what: 'cost profiles', ok: true, found: profilesText() },
      { what: 'cache', ok: true, found: cacheFolder() },
    ];
    const width = Math.max(...findings.map(({ what }) => what.length));
    for (const { what, ok, found } of findings) {
      context.print(`${ok ? '+' : '-'} ${what.padEnd(width)}  ${found}`);
    }
    await context.report({ node: process.version, findings });
  },
};

/** Threads that may run here, which containers make fewer than the machine has. */
function processorText(): string {
  const model = cpus()[0]?.model.trim() ?? 'unknown processor';
  return `${model}, ${availableParallelism()} of ${cpus().length} threads`;
}

/** Instruction sets that the kernels have code for. */
const FEATURES = [
  'avx2',
  'fma',
  'f16c',
  'avx_vnni',
  'avx512f',
  'avx512_vnni',
  'avx512_fp16',
  'amx_int8',
  'asimd',
  'asimddp',
  'i8mm',
  'sve',
];

function simdText(): string {
  if (!existsSync('/proc/cpuinfo')) {
    return process.arch === 'arm64' ? 'NEON' : 'not visible here; the compiler finds out';
  }
  const line = /^(?:flags|Features)\s*:(.*)$/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1];
  const flags = new Set((line ?? '').trim().split(/\s+/));
  return FEATURES.filter((name) => flags.has(name)).join(' ') || 'none that the kernels use';
}

async function compilerFinding(): Promise<Finding> {
  const compiler = await findCompiler();
  const found =
    compiler === null
      ? 'none of cc, gcc, clang, zig (FLASHFORGE_CC names another)'
      : `${compiler.command.join(' ')}: ${compiler.identity.split('\n', 1)[0]}`;
  return { what: 'C compiler', ok: compiler !== null, found };
}

/** Compiles the kernels if that was not done before. */
const providerFinding = (provider: ProviderChoice): Promise<Finding> =>
  attempt(`kernels (${provider})`, async () => {
    const { kind, why } = await createProvider({ provider });
    return `${kind}: ${why}`;
  });

/** What plans are made with here: measured costs that are kept. */
function profilesText(): string {
  const kept = keptProfiles().map(({ device, kernel }) => `${device} (${kernel})`);
  if (kept.length === 0) return 'none yet: flashforge profile measures them';
  return `measured for ${kept.sort().join('; ')}`;
}

async function gpuText(): Promise<string> {
  const { info } = await Cuda.open();
  return `${info.name}, ${info.arch}, ${gigabytes(info.memoryBytes)}`;
}

/** Which way CUDA kernels are made. */
async function nvrtcText(): Promise<string> {
  const way = await findCompilation();
  if (way.nvrtc) return `NVRTC ${nvrtcVersion(way.nvrtc).join('.')}, ${way.nvrtc.path}`;
  return `the package's PTX of common models, compiled by the driver: ${way.reason}`;
}

/** What cannot be had is a finding with the reason. */
async function attempt(what: string, check: () => Promise<string>): Promise<Finding> {
  try {
    return { what, ok: true, found: await check() };
  } catch (error) {
    if (!(error instanceof FlashForgeError)) throw error;
    const found =
      what === 'default model' ? `not here yet: flashforge pull ${DEFAULT_MODEL}` : error.message;
    return { what, ok: false, found };
  }
}

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
