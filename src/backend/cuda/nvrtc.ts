/**
 * Compiles CUDA C++ at run time, for exactly the device and variant at hand. The compiler's log
 * is part of the error, and on success it holds the register and spill report.
 * @module
 */
import { nvrtcFlags } from '../../base/env.ts';
import { FlashForgeError } from '../../base/errors.ts';
import type { NvrtcLibrary } from './signatures.ts';

/** Sources by file name; the first argument of `compile` names the one to start from. */
export type Sources = ReadonlyMap<string, string>;

export interface Binary {
  readonly cubin: Uint8Array;
  readonly log: string;
}

/** Registers, spills and shared memory of one kernel, as ptxas reports them. */
export interface ResourceUse {
  readonly kernel: string;
  readonly registers: number;
  readonly spillBytes: number;
  readonly stackBytes: number;
}

/**
 * A C array of pointers to strings. Everything stands in one ArrayBuffer of its own: small typed
 * arrays without one may be moved by the garbage collector.
 */
class StringList {
  readonly #memory: Uint8Array;
  readonly count: number;

  constructor(library: NvrtcLibrary, values: readonly string[]) {
    const texts = values.map((value) => new TextEncoder().encode(`${value}\0`));
    const bytes = texts.reduce((sum, text) => sum + text.length, 0);
    this.count = values.length;
    this.#memory = new Uint8Array(new ArrayBuffer(Math.max(64, values.length * 8 + bytes)));
    const view = new DataView(this.#memory.buffer);
    const base = library.addressOf(this.#memory);
    let at = values.length * 8;
    for (let i = 0; i < texts.length; i++) {
      this.#memory.set(texts[i], at);
      view.setBigUint64(i * 8, base + BigInt(at), true);
      at += texts[i].length;
    }
  }

  /** Pass this as `const char **`: the whole list lives as long as the argument. */
  get pointers(): Uint8Array {
    return this.#memory;
  }
}

/** Version of the library as [major, minor]. */
export function nvrtcVersion(library: NvrtcLibrary): [number, number] {
  const major = new Int32Array(1);
  const minor = new Int32Array(1);
  library.call.nvrtcVersion(major, minor);
  return [major[0], minor[0]];
}

/**
 * Compiles `main` (a name in `sources`) for `arch` ('sm_90a') with the given macro definitions.
 * @throws FlashForgeError 'compile' with the compiler's log.
 */
export function compile(
  library: NvrtcLibrary,
  sources: Sources,
  main: string,
  arch: string,
  defines: Readonly<Record<string, number>>,
): Binary {
  const options = cubinOptions(arch, defines);
  return withProgram(library, sources, main, options, (program, log) => ({
    cubin: readResult(library, program, 'CUBIN'),
    log,
  }));
}

/**
 * The same as text that drivers compile, for the virtual architecture `arch` ('compute_90a').
 * @throws FlashForgeError 'compile' with the compiler's log.
 */
export function compileToPtx(
  library: NvrtcLibrary,
  sources: Sources,
  main: string,
  arch: string,
  defines: Readonly<Record<string, number>>,
): string {
  const options = compileOptions(arch, defines);
  const bytes = withProgram(library, sources, main, options, (program) =>
    readResult(library, program, 'PTX'),
  );
  // Without the C string's end.
  return new TextDecoder().decode(bytes.subarray(0, -1));
}

/** Hands the compiled program and its log to `use`. */
function withProgram<T>(
  library: NvrtcLibrary,
  sources: Sources,
  main: string,
  optionList: readonly string[],
  use: (program: bigint, log: string) => T,
): T {
  const { call } = library;
  const headers = [...sources.keys()].filter((name) => name !== main);
  const contents = new StringList(
    library,
    headers.map((name) => sources.get(name) ?? ''),
  );
  const names = new StringList(library, headers);
  const options = new StringList(library, optionList);
  const program = new BigUint64Array(1);
  const [count, source] = [headers.length, sources.get(main) ?? ''];
  const created = call.nvrtcCreateProgram(
    ...([program, source, main, count, contents.pointers, names.pointers] as const),
  );
  check('nvrtcCreateProgram', created);
  try {
    const status = call.nvrtcCompileProgram(program[0], options.count, options.pointers);
    const log = readText(library, program[0]);
    if (status !== 0) {
      const [, arch] = optionList[0].split('=');
      throw new FlashForgeError('compile', `${main} does not compile for ${arch}: ${log.trim()}`);
    }
    return use(program[0], log);
  } finally {
    call.nvrtcDestroyProgram(program);
  }
}

function check(name: string, status: number): void {
  if (status === 0) return;
  throw new FlashForgeError('compile', `${name} failed with status ${status}`);
}

function readResult(library: NvrtcLibrary, program: bigint, kind: 'CUBIN' | 'PTX'): Uint8Array {
  const size = new BigUint64Array(1);
  check(`nvrtcGet${kind}Size`, library.call[`nvrtcGet${kind}Size`](program, size));
  const bytes = new Uint8Array(Number(size[0]));
  check(`nvrtcGet${kind}`, library.call[`nvrtcGet${kind}`](program, bytes));
  return bytes;
}

/** The command line of a compilation, without the file's name. */
export function compileOptions(
  arch: string,
  defines: Readonly<Record<string, number>>,
): readonly string[] {
  return [
    `--gpu-architecture=${arch}`,
    '--std=c++17',
    '--device-int128',
    '--ptxas-options=-v',
    '--extra-device-vectorization',
    ...Object.entries(defines).map(([name, value]) => `-D${name}=${value}`),
  ];
}

/** The same for machine code, which stays on this machine: with the user's own options. */
export const cubinOptions = (
  arch: string,
  defines: Readonly<Record<string, number>>,
): readonly string[] => [...compileOptions(arch, defines), ...nvrtcFlags()];

function readText(library: NvrtcLibrary, program: bigint): string {
  const size = new BigUint64Array(1);
  library.call.nvrtcGetProgramLogSize(program, size);
  const bytes = new Uint8Array(Number(size[0]));
  library.call.nvrtcGetProgramLog(program, bytes);
  const end = bytes.indexOf(0);
  return new TextDecoder().decode(bytes.subarray(0, end < 0 ? bytes.length : end));
}

/** Reads ptxas' report out of a compiler log. */
export function resourceUse(log: string): ResourceUse[] {
  const uses: ResourceUse[] = [];
  const parts = log.split(/Compiling entry function '/).slice(1);
  for (const part of parts) {
    const number = (pattern: RegExp): number => Number(pattern.exec(part)?.[1] ?? Number.NaN);
    uses.push({
      kernel: part.slice(0, part.indexOf("'")),
      registers: number(/Used (\d+) registers/),
      spillBytes: number(/(\d+) bytes spill stores/) + number(/(\d+) bytes spill loads/),
      stackBytes: number(/(\d+) bytes stack frame/),
    });
  }
  return uses;
}
