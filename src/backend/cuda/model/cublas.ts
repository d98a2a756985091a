/**
 * Dense products by cuBLASLt: y (rows, outputs) = x (rows, columns) times W^T, with W (outputs,
 * columns) as models store it. Algorithms are the library's heuristic choice for each shape, asked
 * once; where several layers' weights are at hand, the best of its first choices is measured.
 * @module
 */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { FlashForgeError } from '../../../base/errors.ts';
import type { Cuda, DeviceMemory, Stream } from '../driver.ts';
import { libraryFolders } from '../libraries.ts';
import type { MeasuredChoices } from './measured-choices.ts';

/** A letter is a parameter: p pointer, handle or address; z 64-bit integer; i int. */
const FUNCTIONS = {
  cublasLtCreate: 'p',
  cublasLtDestroy: 'p',
  cublasLtMatmulDescCreate: 'pii',
  cublasLtMatmulDescSetAttribute: 'pipz',
  cublasLtMatmulDescDestroy: 'p',
  cublasLtMatrixLayoutCreate: 'pizzz',
  cublasLtMatrixLayoutDestroy: 'p',
  cublasLtMatmulPreferenceCreate: 'p',
  cublasLtMatmulPreferenceSetAttribute: 'pipz',
  cublasLtMatmulPreferenceDestroy: 'p',
  cublasLtMatmulAlgoGetHeuristic: 'pppppppipp',
  cublasLtMatmul: 'ppppppppppppppzp',
} as const;
const C_TYPES: Readonly<Record<string, string>> = { p: 'void *', z: 'int64_t', i: 'int' };

const WINDOWS = process.platform === 'win32';
const NAMES = WINDOWS
  ? ['cublasLt64_13.dll', 'cublasLt64_12.dll']
  : ['libcublasLt.so.13', 'libcublasLt.so.12', 'libcublasLt.so'];

/** Values of cuBLAS' enumerations. */
const COMPUTE_F32 = 68;
const TYPE_CODES = { f32: 0, f16: 2, bf16: 14 } as const;
const TRANSPOSE_A = 3;
const TRANSPOSED = 1;
const PREFERENCE_WORKSPACE = 1;
/** cublasLtMatmulHeuristicResult_t: 64 bytes of algorithm, workspace size, state, ... */
const RESULT_BYTES = 96;
const ALGORITHM_BYTES = 64;
const RESULTS_MAX = 8;
/** What NVIDIA advises for Hopper. */
const WORKSPACE_BYTES = 32 * 2 ** 20;

type Call = (...args: (number | bigint | NodeJS.TypedArray | null)[]) => number;
type Functions = Readonly<Record<keyof typeof FUNCTIONS, Call>>;

export type ElementType = keyof typeof TYPE_CODES;

/** What a product's algorithm depends on. */
export interface ProductShape {
  readonly rows: number;
  readonly outputs: number;
  readonly columns: number;
  readonly input: ElementType;
  readonly output: ElementType;
  /** y += instead of y =. */
  readonly accumulate: boolean;
}

/** Device addresses of a product. */
export interface ProductTensors {
  readonly x: bigint;
  readonly weight: bigint;
  readonly y: bigint;
}

interface Product {
  readonly description: bigint;
  readonly weight: bigint;
  readonly x: bigint;
  readonly y: bigint;
  algorithm: Uint8Array;
  /** Choices of the heuristic that are not measured yet; one or none needs no measuring. */
  choices: readonly Uint8Array[];
}

const shapeName = (shape: ProductShape): string => {
  const { rows, outputs, columns, input, output, accumulate } = shape;
  return `${rows} ${outputs} ${columns} ${input} ${output} ${accumulate}`;
};

/** Folders that may hold cuBLASLt: where NVRTC is looked for, and the wheels beside. */
function cublasFolders(env?: Readonly<Record<string, string | undefined>>): string[] {
  const folders = libraryFolders(env);
  const beside = folders.flatMap((folder) => [
    join(folder, '../../cublas/lib'),
    join(folder, '../../nvidia/cublas/lib'),
    join(folder, '../../nvidia/cu13/lib'),
  ]);
  return [...new Set([...folders, ...beside])].filter((folder) => existsSync(folder));
}

async function openFunctions(): Promise<{ path: string; version: number; call: Functions }> {
  const koffi = await import('koffi').then(
    (module) => module.default,
    (cause) => {
      throw new FlashForgeError('device', 'CUDA needs the npm package koffi', { cause });
    },
  );
  const tried: string[] = [];
  const paths = cublasFolders().flatMap((folder) => {
    const there = readdirSync(folder);
    return NAMES.filter((name) => there.includes(name)).map((name) => join(folder, name));
  });
  for (const path of [...paths, ...NAMES]) {
    try {
      const library = koffi.load(path);
      const entries = Object.entries(FUNCTIONS).map(([name, letters]) => [
        name,
        library.func(
          name,
          'int',
          [...letters].map((letter) => C_TYPES[letter]),
        ),
      ]);
      const version = Number(library.func('cublasLtGetVersion', 'size_t', [])());
      return { path, version, call: Object.fromEntries(entries) as Functions };
    } catch (error) {
      tried.push(`${path}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  throw new FlashForgeError(
    'device',
    'cuBLAS (libcublasLt) was not found in CUDA_HOME, the loader paths or Python packages; ' +
      'install it with "pip install nvidia-cublas" or set CUDA_HOME',
    { cause: tried.join('; ') },
  );
}

export class CublasLt {
  /** Where the library was found. */
  readonly path: string;
  readonly #version: number;
  readonly #call: Functions;
  readonly #handle: bigint;
  readonly #preference: bigint;
  readonly #workspace: DeviceMemory;
  readonly #products = new Map<string, Product>();
  readonly #out = new BigUint64Array(1);
  readonly #one = Float32Array.of(1);
  readonly #zero = Float32Array.of(0);

  private constructor(cuda: Cuda, path: string, version: number, call: Functions) {
    this.path = path;
    this.#version = version;
    this.#call = call;
    this.#handle = this.#create('cublasLtCreate');
    this.#preference = this.#create('cublasLtMatmulPreferenceCreate');
    const size = BigUint64Array.of(BigInt(WORKSPACE_BYTES));
    this.#check('cublasLtMatmulPreferenceSetAttribute', [
      ...[this.#preference, PREFERENCE_WORKSPACE, size, 8],
    ]);
    this.#workspace = cuda.alloc(WORKSPACE_BYTES);
  }

  /** @throws FlashForgeError 'device' where cuBLASLt is not installed. */
  static async open(cuda: Cuda): Promise<CublasLt> {
    const { path, version, call } = await openFunctions();
    return new CublasLt(cuda, path, version, call);
  }

  #check(name: keyof typeof FUNCTIONS, args: Parameters<Call>): void {
    const status = this.#call[name](...args);
    if (status !== 0) {
      throw new FlashForgeError('device', `${name} failed with cuBLAS status ${status}`);
    }
  }

  /** A call whose first parameter receives a handle. */
  #create(name: keyof typeof FUNCTIONS, ...args: Parameters<Call>): bigint {
    this.#check(name, [this.#out, ...args]);
    return this.#out[0];
  }

  /** Enqueues a product. */
  run(shape: ProductShape, { x, weight, y }: ProductTensors, stream: Stream): void {
    const product = this.#product(shape);
    this.#check('cublasLtMatmul', [
      this.#handle,
      product.description,
      this.#one,
      weight,
      product.weight,
      x,
      product.x,
      shape.accumulate ? this.#one : this.#zero,
      y,
      product.y,
      y,
      product.y,
      product.algorithm,
      this.#workspace.address,
      WORKSPACE_BYTES,
      stream.handle,
    ]);
  }

  /**
   * Measures the heuristic's choices for a shape and keeps the fastest, once for each shape.
   * `timeUs` runs the product as it will be used and returns its time.
   */
  tune(shape: ProductShape, measured: MeasuredChoices, timeUs: () => number): void {
    const product = this.#product(shape);
    if (product.choices.length < 2) return;
    const name = `cuBLASLt ${this.#version} ${shapeName(shape)}`;
    const known = Buffer.from(measured.get(name) ?? '', 'base64');
    if (known.length === ALGORITHM_BYTES) {
      product.algorithm = new Uint8Array(new ArrayBuffer(ALGORITHM_BYTES));
      product.algorithm.set(known);
      product.choices = [];
      return;
    }
    let [best, bestUs] = [product.algorithm, Number.POSITIVE_INFINITY];
    for (const choice of product.choices) {
      product.algorithm = choice;
      const us = timeUs();
      if (us < bestUs) [best, bestUs] = [choice, us];
    }
    product.algorithm = best;
    product.choices = [];
    measured.set(name, Buffer.from(best).toString('base64'));
  }

  #product(shape: ProductShape): Product {
    const key = shapeName(shape);
    let product = this.#products.get(key);
    if (!product) {
      product = this.#describe(shape);
      this.#products.set(key, product);
    }
    return product;
  }

  /** cuBLAS counts columns first: its A is the weight, transposed, and its B is x. */
  #describe({ rows, outputs, columns, input, output }: ProductShape): Product {
    const [from, to] = [TYPE_CODES[input], TYPE_CODES[output]];
    const description = this.#create('cublasLtMatmulDescCreate', COMPUTE_F32, TYPE_CODES.f32);
    const transposed = Int32Array.of(TRANSPOSED);
    this.#check('cublasLtMatmulDescSetAttribute', [description, TRANSPOSE_A, transposed, 4]);
    const layout = (type: number, height: number, width: number): bigint =>
      this.#create('cublasLtMatrixLayoutCreate', type, height, width, height);
    const weight = layout(from, columns, outputs);
    const x = layout(from, columns, rows);
    const y = layout(to, outputs, rows);
    const results = new Uint8Array(new ArrayBuffer(RESULT_BYTES * RESULTS_MAX));
    const count = new Int32Array(1);
    this.#check('cublasLtMatmulAlgoGetHeuristic', [
      ...[this.#handle, description, weight, x, y, y],
      ...[this.#preference, RESULTS_MAX, results, count],
    ]);
    if (count[0] === 0) {
      throw new FlashForgeError(
        'device',
        `cuBLAS has no algorithm for a product of ${rows} x ${columns} by ${outputs} in ${input}`,
      );
    }
    const choices = Array.from(
      { length: count[0] },
      (_, i) =>
        new Uint8Array(results.buffer.slice(i * RESULT_BYTES, i * RESULT_BYTES + ALGORITHM_BYTES)),
    );
    return { description, weight, x, y, algorithm: choices[0], choices };
  }

  free(): void {
    for (const { description, weight, x, y } of this.#products.values()) {
      this.#call.cublasLtMatmulDescDestroy(description);
      for (const layout of [weight, x, y]) this.#call.cublasLtMatrixLayoutDestroy(layout);
    }
    this.#products.clear();
    this.#call.cublasLtMatmulPreferenceDestroy(this.#preference);
    this.#call.cublasLtDestroy(this.#handle);
    this.#workspace.free();
  }
}
