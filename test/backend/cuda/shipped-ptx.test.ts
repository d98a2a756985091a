/**
 * The package's PTX: which kernels it holds, that it is found by a variant's own constants, and
 * that nothing made from other sources is used. The driver is a fake; test/backend/cuda/device
 * runs what it compiles.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, before, describe, test } from 'node:test';
import { compileShipped, shippedKernels } from '../../../scripts/ptx.ts';
import { Cuda } from '../../../src/backend/cuda/driver.ts';
import { KernelLoader } from '../../../src/backend/cuda/kernel-loader.ts';
import { decoderDefines } from '../../../src/backend/cuda/model/cuda-ops.ts';
import { findPtx, hasPtx, packPtx, shippedPtx } from '../../../src/backend/cuda/shipped-ptx.ts';
import { kernelSources, variantFor } from '../../../src/backend/cuda/variants.ts';
import { temporaryFolder } from '../../helpers/fixtures.ts';
import { findCompiler } from '../../helpers/nvrtc.ts';
import { FakeDriver } from './fake-driver.ts';

/** Query heads, KV heads and head_dim as the models' configurations have them. */
const MODELS: Readonly<Record<string, readonly [number, number, number]>> = {
  'Llama-3.2-1B': [32, 8, 64],
  'Llama-3.2-3B': [24, 8, 128],
  'Llama-3.1-8B': [32, 8, 128],
  'Llama-3.3-70B': [64, 8, 128],
  'Qwen2.5-0.5B': [14, 2, 64],
  'Qwen2.5-1.5B': [12, 2, 128],
  'Qwen2.5-3B': [16, 2, 128],
  'Qwen2.5-7B': [28, 4, 128],
  'Qwen2.5-14B': [40, 8, 128],
  'Qwen3-0.6B': [16, 8, 128],
  'Qwen3-4B': [32, 8, 128],
  'Qwen3-14B': [40, 8, 128],
  'Qwen3-32B': [64, 8, 128],
  'Mistral-7B': [32, 8, 128],
  'SmolLM2-135M': [9, 3, 64],
  'SmolLM2-360M': [15, 5, 64],
  'SmolLM2-1.7B': [32, 32, 64],
};
const ARCHES = ['sm_80', 'sm_86', 'sm_89', 'sm_90a', 'sm_100', 'sm_120'];

const sources = kernelSources();
const kernels = await shippedKernels();
const nvrtc = await findCompiler();
const skip = typeof nvrtc === 'string' ? nvrtc : false;
const folder = temporaryFolder();
const EMPTY = join(folder, 'empty');
const prebuilt = join(folder, 'prebuilt');

/** Writes what ships of one head_dim and group for Hopper. */
function writeArchives(): void {
  if (typeof nvrtc === 'string') return;
  const few = kernels.filter(
    ({ arch, defines }) =>
      arch === 'sm_90a' && defines.FF_HEAD_DIM === 64 && (defines.FF_GROUP ?? 3) === 3,
  );
  mkdirSync(join(prebuilt, 'ptx'), { recursive: true });
  for (const [file, variants] of compileShipped(nvrtc, few)) {
    writeFileSync(join(prebuilt, 'ptx', file), packPtx(variants));
  }
}

/** A loader that has PTX alone; loaded modules are in `fake.modules`. */
async function openLoader(from: string): Promise<{ loader: KernelLoader; fake: FakeDriver }> {
  process.env.FLASHFORGE_PREBUILT = from;
  process.env.FLASHFORGE_NVRTC = 'off';
  const fake = new FakeDriver();
  const cuda = await Cuda.open(0, fake.library);
  return { loader: await KernelLoader.open(cuda, mkdtempSync(join(folder, 'cache-'))), fake };
}

const variantOf = (headDim: number, groupSize: number, arch = 'sm_90a') =>
  variantFor({ headDim, groupSize, kvHeads: 1, pageSize: 16, dtype: 'bf16' }, arch).defines;

describe('PTX of the package', () => {
  before(writeArchives);
  afterEach(() => {
    delete process.env.FLASHFORGE_PREBUILT;
    delete process.env.FLASHFORGE_NVRTC;
  });

  test('every common model is covered, on every device', () => {
    const ships = new Set(
      kernels.map(({ main, arch, defines }) => shippedPtx(sources, main, arch, defines).key),
    );
    for (const [name, [heads, kvHeads, headDim]] of Object.entries(MODELS)) {
      const shape = { headDim, kvHeads, groupSize: heads / kvHeads, pageSize: 16 };
      for (const arch of ARCHES) {
        for (const dtype of ['f16', 'bf16'] as const) {
          const { defines } = variantFor({ ...shape, dtype }, arch);
          const attention = shippedPtx(sources, 'tree-attention.cu', arch, defines);
          assert.ok(ships.has(attention.key), `attention of ${name} for ${arch} ${dtype}`);
          const constants = decoderDefines(headDim, 16, dtype);
          const decoder = shippedPtx(sources, 'decoder.cu', arch, constants);
          assert.ok(ships.has(decoder.key), `decoder of ${name} for ${arch} ${dtype}`);
        }
      }
    }
  });

  test('every kernel file ships', () => {
    const files = [...sources.keys()].filter((name) => name.endsWith('.cu'));
    assert.deepEqual([...new Set(kernels.map(({ main }) => main))].sort(), files);
  });

  test('a variant is found, unless its sources have changed', { skip }, () => {
    process.env.FLASHFORGE_PREBUILT = prebuilt;
    assert.ok(hasPtx());
    const wanted = shippedPtx(sources, 'tree-attention.cu', 'sm_90a', variantOf(64, 3));
    assert.match(findPtx(wanted) ?? '', /\.target sm_90a[\s\S]*\.entry ff_tree_attention/);
    const edited = new Map(sources).set('merge.cuh', `${sources.get('merge.cuh')}\n`);
    const other = shippedPtx(edited, 'tree-attention.cu', 'sm_90a', variantOf(64, 3));
    assert.equal(findPtx(other), undefined);
    const damaged = join(folder, 'damaged');
    mkdirSync(join(damaged, 'ptx'), { recursive: true });
    writeFileSync(join(damaged, 'ptx', wanted.file), 'damaged');
    process.env.FLASHFORGE_PREBUILT = damaged;
    assert.equal(findPtx(wanted), undefined);
  });

  test('the loader hands it to the driver as it is', { skip }, async () => {
    const { loader } = await openLoader(prebuilt);
    assert.match(loader.compiler.name, /PTX/);
    const code = loader.compiler.code('tree-attention.cu', variantOf(64, 3));
    assert.equal(code.at(-1), 0, "a C string's end");
    assert.match(new TextDecoder().decode(code), /\.entry ff_tree_attention/);
    loader.load('tree-attention.cu', variantOf(64, 3)).free();
  });

  test('a driver older than the PTX is told so', { skip }, async () => {
    const { loader, fake } = await openLoader(prebuilt);
    fake.failures.set('cuModuleLoadData', 222);
    assert.throws(() => loader.load('decoder.cu', decoderDefines(64, 16, 'f16')), {
      code: 'compile',
      message: /the driver does not compile .* decoder\.cu .*pip install nvidia-cuda-nvrtc/,
    });
  });

  test('a shape that does not ship names the kernel and the way out', { skip }, async () => {
    const { loader } = await openLoader(prebuilt);
    assert.throws(() => loader.load('tree-attention.cu', variantOf(256, 16)), {
      code: 'compile',
      message: /no PTX of tree-attention\.cu for this model's shape on sm_90a.*FLASHFORGE_NVRTC/,
    });
  });

  test('without PTX and NVRTC, one sentence', async () => {
    await assert.rejects(openLoader(EMPTY), {
      code: 'compile',
      message: /this package was made without PTX/,
    });
  });
});
