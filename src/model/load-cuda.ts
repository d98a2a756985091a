/**
 * The CUDA runner for a checkpoint: kernels, weights in 16 bits, a KV pool that takes a share of
 * the device's memory.
 * @module
 */
import type { Runner } from '../backend/backend.ts';
import { TreeAttention } from '../backend/cuda/attention.ts';
import { BenchTools } from '../backend/cuda/bench-tools.ts';
import { Cuda } from '../backend/cuda/driver.ts';
import { KernelLoader } from '../backend/cuda/kernel-loader.ts';
import { CublasLt } from '../backend/cuda/model/cublas.ts';
import { allocateBuffers, type HalfType } from '../backend/cuda/model/cuda-model.ts';
import { DecoderKernels } from '../backend/cuda/model/cuda-ops.ts';
import { CudaRunner } from '../backend/cuda/model/cuda-runner.ts';
import { CudaHostKv, type HostMemory, pinHostMemory } from '../backend/cuda/model/kv-offload.ts';
import { Sampler } from '../backend/cuda/model/sampler.ts';
import { openChoices } from '../backend/cuda/model/tune.ts';
import { WeightUpload } from '../backend/cuda/model/weight-upload.ts';
import { openEnergyMeter } from '../backend/cuda/nvml.ts';
import { defaultCudaProfile, keptCudaProfile } from '../backend/cuda/profile.ts';
import type { AttentionSpec } from '../backend/cuda/variants.ts';
import { checkInteger, FlashForgeError, isProcessLost } from '../base/errors.ts';
import type { Checkpoint } from '../checkpoint/checkpoint.ts';
import { PLAN_SHAPES } from '../plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS } from '../plan/make-plan.ts';
import { forward } from './decoder.ts';
import type { RunnerOptions } from './load-runner.ts';
import { ropeTables } from './rope.ts';

const DEFAULT_ROWS = 512;
/** What the KV pool takes of the memory that weights and buffers leave free. */
const KV_SHARE = 0.9;
const PAGE_TOKENS = PLAN_SHAPES.cuda.pageSize;

/** Whether this machine has a CUDA device that can be used. */
export async function hasCuda(): Promise<boolean> {
  try {
    (await Cuda.open()).close();
    return true;
  } catch (error) {
    // It is there, for a process that has not lost it.
    return isProcessLost(error);
  }
}

/** @throws FlashForgeError as loadRunner. */
export async function loadCudaRunner(
  checkpoint: Checkpoint,
  options: RunnerOptions,
): Promise<Runner> {
  const maxRows = checkInteger('usage', 'maxRows', options.maxRows ?? DEFAULT_ROWS, 1);
  const dtype = halfType(checkpoint, options);
  const cuda = await Cuda.open();
  try {
    return await load(cuda, checkpoint, dtype, maxRows, options);
  } catch (error) {
    // The context takes with it whatever had been allocated.
    cuda.close();
    throw error;
  }
}

/** The type that is kept for weights, activations and KV: that of the file where it can be. */
function halfType({ tensors }: Checkpoint, { kvType }: RunnerOptions): HalfType {
  if (kvType === 'f32' || kvType === 'i16') {
    throw new FlashForgeError('usage', `kvType must be f16 or bf16 on CUDA, got "${kvType}"`);
  }
  return kvType ?? (tensors.get('0.q')?.type === 'BF16' ? 'bf16' : 'f16');
}

async function load(
  cuda: Cuda,
  checkpoint: Checkpoint,
  dtype: HalfType,
  maxRows: number,
  options: RunnerOptions,
): Promise<Runner> {
  const { config } = checkpoint;
  const { heads, kvHeads, headDim, slidingWindow } = config;
  const spec: AttentionSpec = {
    ...{ headDim, kvHeads, dtype },
    groupSize: heads / kvHeads,
    pageSize: PAGE_TOKENS,
  };
  const loader = await KernelLoader.open(cuda);
  const cublas = await CublasLt.open(cuda);
  const stream = cuda.stream();
  const by = loader.compiler.name;
  options.log?.(`CUDA kernels for ${cuda.info.name}, by ${by} or from the cache`);
  const attention = new TreeAttention(loader, spec, stream, { window: slidingWindow !== null });
  const kernels = new DecoderKernels(loader, headDim, PAGE_TOKENS, dtype);
  const bytesPerUs = readBytesPerUs(loader, dtype);
  const profile =
    options.profile ??
    keptCudaProfile(cuda.info, spec).profile ??
    defaultCudaProfile(spec, cuda.info.multiprocessors, bytesPerUs, attention.variant);
  const upload = new WeightUpload(
    ...([cuda, stream, kernels.get('ff_round'), dtype, options.onProgress] as const),
  );
  const model = upload.load(checkpoint, ropeTables(config, config.contextLength));
  upload.close();
  const buffers = allocateBuffers(cuda, config, maxRows, stream);
  const sampler = new Sampler(loader, buffers, config.vocab, stream);

  const tokenBytes = config.layers * kvHeads * headDim * 4;
  const pages = kvPages(cuda, tokenBytes * PAGE_TOKENS, options);
  const kv = cuda.alloc(pages * PAGE_TOKENS * tokenBytes);
  // Slots that nobody has written are multiplied by zero: they must not hold infinities.
  cuda.fill(kv.address, 0, kv.bytes, stream);
  stream.synchronize();
  const kvLayerBytes = pages * attention.pageBytes;
  const parts = {
    ...{ cuda, stream, kernels, cublas, attention, model, buffers, kvLayerBytes },
    choices: openChoices(loader),
    kv: kv.address,
  };
  const host = hostMemory(cuda, tokenBytes * PAGE_TOKENS, options);
  return new CudaRunner({
    parts,
    sampler,
    forward,
    planSpec: {
      ...{ kvHeads, headDim, profile },
      groupSize: spec.groupSize,
      pageSize: PAGE_TOKENS,
      workers: cuda.info.multiprocessors,
      taskRows: attention.variant.taskRows,
      groupRows: attention.variant.groupRows,
      options: DEFAULT_PLAN_OPTIONS,
    },
    pages,
    tokenBytes,
    owned: [...upload.memory, kv, ...(host?.blocks ?? [])],
    hostKv: host && new CudaHostKv(parts, host),
    readBytesPerSecond: bytesPerUs * 1e6,
    energy: await openEnergyMeter(0),
    providerWhy: `${cuda.info.name}, ${dtype}, kernels by ${by}, products by cuBLASLt`,
  });
}

/** @throws FlashForgeError 'usage' for a size that is no positive integer, 'device' for no room. */
function kvPages(cuda: Cuda, pageBytes: number, options: RunnerOptions): number {
  const [free] = cuda.memory();
  const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
  const pages = askedPages(pageBytes, options) ?? Math.floor((free * KV_SHARE) / pageBytes);
  if (pages === 0) {
    throw new FlashForgeError(
      'device',
      `the model leaves ${mib(free)} MiB of the device's memory free, too little for a page of ` +
        'KV cache: use a smaller model or --device cpu',
    );
  }
  if (pages * pageBytes <= free) return pages;
  throw new FlashForgeError(
    'device',
    `a KV cache of ${pages} pages takes ${mib(pages * pageBytes)} MiB, and the model leaves ` +
      `${mib(free)} MiB of the device's memory free: give kvPages of at most ` +
      `${Math.floor(free / pageBytes)}, or none`,
  );
}

function askedPages(pageBytes: number, { kvPages, kvBytes }: RunnerOptions): number | undefined {
  if (kvPages !== undefined) return checkInteger('usage', 'kvPages', kvPages, 1);
  if (kvBytes === undefined) return undefined;
  return Math.floor(checkInteger('usage', 'kvBytes', kvBytes, pageBytes) / pageBytes);
}

/** @throws FlashForgeError 'usage' for a size that does not hold a page. */
function hostMemory(
  cuda: Cuda,
  pageBytes: number,
  { hostKvBytes = 0, log }: RunnerOptions,
): HostMemory | undefined {
  if (hostKvBytes === 0) return undefined;
  checkInteger('usage', 'hostKvBytes', hostKvBytes, pageBytes);
  const memory = pinHostMemory(cuda, hostKvBytes, pageBytes, log ?? (() => {}));
  return memory.pages > 0 ? memory : undefined;
}

/** The device's read bandwidth, which the planner's costs follow from. */
function readBytesPerUs(loader: KernelLoader, dtype: HalfType): number {
  const tools = new BenchTools(loader, dtype);
  try {
    return tools.readBandwidth();
  } finally {
    tools.free();
  }
}
