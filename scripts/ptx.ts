/**
 * Compiles the CUDA kernels of common models to PTX into prebuilt/ptx, for machines that have the
 * driver and no NVRTC. Which kernels a model takes is asked of the code that loads them, run over
 * a driver that does nothing.
 * @module
 */
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { TreeAttention } from '../src/backend/cuda/attention.ts';
import { BenchTools } from '../src/backend/cuda/bench-tools.ts';
import { Cuda } from '../src/backend/cuda/driver.ts';
import { KernelCache } from '../src/backend/cuda/kernel-cache.ts';
import { KernelLoader } from '../src/backend/cuda/kernel-loader.ts';
import { openNvrtc } from '../src/backend/cuda/libraries.ts';
import { DecoderKernels } from '../src/backend/cuda/model/cuda-ops.ts';
import { Sampler } from '../src/backend/cuda/model/sampler.ts';
import { compileToPtx, nvrtcVersion } from '../src/backend/cuda/nvrtc.ts';
import { packPtx, ptxArch, ptxFolder, shippedPtx } from '../src/backend/cuda/shipped-ptx.ts';
import type { NvrtcLibrary } from '../src/backend/cuda/signatures.ts';
import { type AttentionSpec, kernelSources } from '../src/backend/cuda/variants.ts';
import { PLAN_SHAPES } from '../src/plan/default-profile.ts';
import { workloadForest } from '../src/plan/workload.ts';
import { FakeDriver } from '../test/backend/cuda/fake-driver.ts';
import { pythonPackage } from '../test/helpers/python-package.ts';

/** The oldest compiler that takes the kernels: its PTX runs on every driver that we run on. */
const NVRTC_WHEEL = 'nvidia-cuda-nvrtc-cu12==12.4.127';
/** Llama 3, Qwen2.5, Qwen3, Mistral and SmolLM2, of all sizes. */
const HEAD_DIMS = [64, 128];
const GROUP_SIZES = [1, 2, 3, 4, 5, 6, 7, 8];
/** One device for each amount of shared memory, which decides a variant's tiles. */
const DEVICES = ['9.0', '8.0', '8.6', '10.0'];

/** One compilation. */
export interface ShippedKernel {
  readonly main: string;
  /** Of the device whose tiles it has. */
  readonly arch: string;
  readonly defines: Readonly<Record<string, number>>;
}

/** Every kernel that ships. */
export async function shippedKernels(): Promise<ShippedKernel[]> {
  const kernels: ShippedKernel[] = [];
  for (const capability of DEVICES) {
    for (const headDim of HEAD_DIMS) {
      for (const groupSize of GROUP_SIZES) {
        for (const dtype of ['f16', 'bf16'] as const) {
          const { pageSize } = PLAN_SHAPES.cuda;
          const spec = { headDim, groupSize, dtype, pageSize, kvHeads: 1 };
          kernels.push(...(await kernelsOf(spec, capability)));
        }
      }
    }
  }
  return kernels;
}

/** What is loaded for a model's shape and for the benchmark of its attention. */
async function kernelsOf(spec: AttentionSpec, capability: string): Promise<ShippedKernel[]> {
  const kernels: ShippedKernel[] = [];
  const cuda = await Cuda.open(0, new FakeDriver(capability).library);
  const { arch } = cuda.info;
  const compiler = {
    ...{ name: 'none', version: 'none', kept: true },
    code: (main: string, defines: Readonly<Record<string, number>>) => {
      kernels.push({ main, arch, defines });
      return new Uint8Array();
    },
  };
  // Below a file there can be no cache.
  const cache = new KernelCache(join(import.meta.filename, 'none'));
  const loader = new KernelLoader(cuda, compiler, cache, kernelSources());
  const stream = cuda.stream();
  new TreeAttention(loader, spec, stream);
  new DecoderKernels(loader, spec.headDim, spec.pageSize, spec.dtype);
  const nothing = cuda.alloc(0);
  new Sampler(loader, { maxRows: 1, inputs: nothing, logits: nothing }, 1, stream);
  const { headDim, groupSize, kvHeads } = spec;
  const one = {
    name: 'one',
    parent: Int32Array.of(-1),
    tokens: Int32Array.of(1),
    requests: Int32Array.of(0),
    ...{ headDim, kvHeads, queryHeads: groupSize * kvHeads },
  };
  const tools = new BenchTools(loader, spec.dtype);
  tools.reserve([one], spec.pageSize);
  tools.compare(spec, workloadForest(one, spec.pageSize).forest, 1);
  return kernels;
}

/** PTX by key, of each archive. */
export function compileShipped(
  nvrtc: NvrtcLibrary,
  kernels: readonly ShippedKernel[],
): Map<string, Map<string, string>> {
  const sources = kernelSources();
  const archives = new Map<string, Map<string, string>>();
  for (const { main, arch, defines } of kernels) {
    const { file, key } = shippedPtx(sources, main, arch, defines);
    const archive = archives.get(file) ?? new Map<string, string>();
    archives.set(file, archive);
    if (archive.has(key)) continue;
    archive.set(key, compileToPtx(nvrtc, sources, main, ptxArch(arch), defines));
  }
  return archives;
}

/** The wheel's compiler, else what this machine has. */
async function openCompiler(): Promise<NvrtcLibrary> {
  const wheel = pythonPackage(NVRTC_WHEEL);
  if ('missing' in wheel) return openNvrtc();
  const folder = join(wheel.folder, 'nvidia', 'cuda_nvrtc', 'lib');
  return openNvrtc({ FLASHFORGE_CUDA_LIBRARIES: folder });
}

async function main(): Promise<void> {
  const nvrtc = await openCompiler();
  console.log(`NVRTC ${nvrtcVersion(nvrtc).join('.')}`);
  const folder = ptxFolder();
  mkdirSync(folder, { recursive: true });
  for (const [file, variants] of compileShipped(nvrtc, await shippedKernels())) {
    const bytes = packPtx(variants);
    const draft = join(folder, `.${file}`);
    writeFileSync(draft, bytes);
    renameSync(draft, join(folder, file));
    console.log(`${file}  ${variants.size} variants, ${(bytes.length / 1024).toFixed(0)} KB`);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main();
