/**
 * The attention benchmark on the device: every workload with a cold L2 cache, one launch in a
 * CUDA graph, medians; beside it the roofline from the measured read bandwidth, the plan's time
 * and the error against a float64 reference that runs on the device too. Or a decode loop.
 * @module
 */
import { median } from '../../base/math.ts';
import type { Forest } from '../../kvcache/forest.ts';
import { DEFAULT_PLAN_OPTIONS, Planner } from '../../plan/make-plan.ts';
import type { CostProfile, PlanOptions } from '../../plan/plan.ts';
import { timePlans } from '../../plan/plan-timing.ts';
import { type Workload, workloadBytes, workloadForest } from '../../plan/workload.ts';
import { TreeAttention } from './attention.ts';
import { type LoopResult, loopAttention, loopBytes } from './attention-loop.ts';
import { BenchTools } from './bench-tools.ts';
import { Cuda, type DeviceInfo } from './driver.ts';
import { KernelLoader } from './kernel-loader.ts';
import { defaultCudaProfile, keptCudaProfile } from './profile.ts';
import { type AttentionSpec, kvNumberBytes, variantFor } from './variants.ts';

const PAGE_SIZE = 16;
/** What a well-written kernel reaches in practice on an H100, and what it reads from memory. */
const H100_BYTES_PER_US = 3.0e6;
const FLOPS_PER_US = 600e6;
/** Timed calls of one workload, and the time after which fewer suffice. */
const CALLS = 41;
const CALLS_MIN = 7;
const CALLS_US = 60_000;
/** Part of the free device memory that KV pages may take. */
const MEMORY_SHARE = 0.8;

export interface AttentionBenchOptions {
  readonly device?: number;
  readonly dtype?: 'f16' | 'bf16';
  /** 8-bit KV. */
  readonly kv?: 'e4m3' | undefined;
  readonly planOptions?: PlanOptions;
  /** Rows whose output is compared with float64; 0 leaves the comparison out. */
  readonly samples?: number;
  /** The portable kernel also where a faster one exists. */
  readonly portable?: boolean;
  readonly profile?: CostProfile;
  /** Called after each workload. */
  readonly onResult?: (result: AttentionBenchResult) => void;
}

type Types = Pick<AttentionBenchOptions, 'dtype' | 'kv'>;

/** One workload; times in us, sizes in bytes. */
export interface AttentionBenchResult {
  readonly name: string;
  readonly unique_bytes: number;
  readonly flat_bytes: number;
  /** flat_bytes / unique_bytes. */
  readonly reduction: number;
  readonly median_us: number;
  readonly best_us: number;
  /** The larger of bytes / measured read bandwidth and FLOPs / 600 TFLOP/s. */
  readonly roofline_us: number;
  /** The same with an H100's 3.0 TB/s, and T = roofline / 0.9 + 6 us. */
  readonly roofline_h100_us: number;
  readonly target_h100_us: number;
  readonly plan_us: number;
  readonly image_us: number;
  /** Largest absolute error, and |out - exact| / |exact|, over the sampled rows. */
  readonly max_error: number;
  readonly relative_error: number;
  readonly tasks: number;
  readonly merges: number;
  /** What the planner expected, without the launch. */
  readonly makespan_us: number;
}

/** A workload that was not measured, and why. */
export interface AttentionBenchSkip {
  readonly name: string;
  readonly skipped: string;
}

export interface AttentionBenchReport {
  readonly device: DeviceInfo;
  /** What a kernel that only reads reaches, bytes per us. */
  readonly readBytesPerUs: number;
  /** An empty kernel in a graph, timed the same way. */
  readonly emptyUs: number;
  /** The same with all of a multiprocessor's shared memory. */
  readonly emptySharedUs: number;
  readonly results: readonly AttentionBenchResult[];
  readonly skipped: readonly AttentionBenchSkip[];
}

export interface AttentionLoopReport {
  readonly device: DeviceInfo;
  readonly results: readonly LoopResult[];
  readonly skipped: readonly AttentionBenchSkip[];
}

/**
 * Runs a decode loop of so many steps over each workload.
 * @throws FlashForgeError 'device' without a usable device or memory for a workload.
 */
export async function loopAttentionCuda(
  workloads: readonly Workload[],
  steps: number,
  options: Omit<AttentionBenchOptions, 'onResult' | 'portable'> & {
    readonly onResult?: (result: LoopResult) => void;
  } = {},
): Promise<AttentionLoopReport> {
  const cuda = await Cuda.open(options.device);
  const loader = await KernelLoader.open(cuda);
  const tools = new BenchTools(loader, options.dtype ?? 'f16', options.kv);
  try {
    const { fitting, skipped } = split(cuda, workloads, options);
    const results: LoopResult[] = [];
    for (const workload of fitting) {
      const spec = specOf(workload, options);
      const { queryHeads, headDim, requests } = workload;
      const ends = requests.length * queryHeads * headDim * 2;
      tools.reserveBytes(loopBytes(workload, spec, steps), ends);
      const planner = (attention: TreeAttention): Planner =>
        plannerFor(spec, attention, H100_BYTES_PER_US, options);
      const samples = options.samples ?? 4;
      const result = loopAttention(loader, tools, workload, { steps, samples, spec, planner });
      results.push(result);
      options.onResult?.(result);
    }
    return { device: cuda.info, results, skipped };
  } finally {
    tools.free();
    cuda.close();
  }
}

/**
 * Runs the workloads on a CUDA device.
 * @throws FlashForgeError 'device' without a usable device or memory for a workload.
 */
export async function benchAttentionCuda(
  workloads: readonly Workload[],
  options: AttentionBenchOptions = {},
): Promise<AttentionBenchReport> {
  const cuda = await Cuda.open(options.device);
  const loader = await KernelLoader.open(cuda);
  const tools = new BenchTools(loader, options.dtype ?? 'f16', options.kv);
  try {
    const { fitting, skipped } = split(cuda, workloads, options);
    tools.reserve(fitting, PAGE_SIZE);
    const readBytesPerUs = tools.readBandwidth();
    const emptyUs = tools.emptyUs(0);
    const emptySharedUs = tools.emptyUs(cuda.info.sharedBytes);
    const results: AttentionBenchResult[] = [];
    for (const workload of fitting) {
      const result = benchOne(loader, tools, workload, readBytesPerUs, options);
      results.push(result);
      options.onResult?.(result);
    }
    return { device: cuda.info, readBytesPerUs, emptyUs, emptySharedUs, results, skipped };
  } finally {
    tools.free();
    cuda.close();
  }
}

/** Workloads that can run here, and those that cannot. */
function split(
  cuda: Cuda,
  workloads: readonly Workload[],
  options: Types,
): { fitting: Workload[]; skipped: AttentionBenchSkip[] } {
  const skipped: AttentionBenchSkip[] = [];
  const fitting = workloads.filter((workload) => {
    const reason = whyNot(cuda, workload, options);
    if (reason !== undefined) skipped.push({ name: workload.name, skipped: reason });
    return reason === undefined;
  });
  return { fitting, skipped };
}

/** Why a workload cannot run here, or undefined. */
function whyNot(cuda: Cuda, workload: Workload, options: Types): string | undefined {
  try {
    variantFor(specOf(workload, options), cuda.info.arch);
  } catch (error) {
    return (error as Error).message;
  }
  const [free] = cuda.memory();
  const { pages } = workloadForest(workload, PAGE_SIZE, false);
  const numberBytes = kvNumberBytes(options);
  const bytes = pages * PAGE_SIZE * workload.kvHeads * workload.headDim * 2 * numberBytes;
  if (bytes < free * MEMORY_SHARE) return undefined;
  const mib = (value: number): string => `${(value / 2 ** 20).toFixed(0)} MiB`;
  return `its KV pages take ${mib(bytes)}, and ${mib(free)} of device memory are free`;
}

function specOf(workload: Workload, { dtype = 'f16', kv }: Types): AttentionSpec {
  const { headDim, kvHeads, queryHeads } = workload;
  return {
    headDim,
    groupSize: queryHeads / kvHeads,
    kvHeads,
    pageSize: PAGE_SIZE,
    dtype,
    ...(kv ? { kv } : {}),
  };
}

function benchOne(
  loader: KernelLoader,
  tools: BenchTools,
  workload: Workload,
  readBytesPerUs: number,
  options: AttentionBenchOptions,
): AttentionBenchResult {
  const spec = specOf(workload, options);
  const attention = new TreeAttention(loader, spec, tools.stream, {
    portable: options.portable ?? false,
  });
  const { forest } = workloadForest(workload, PAGE_SIZE);
  const planner = plannerFor(spec, attention, readBytesPerUs, options);
  try {
    const { plan, planUs } = timePlans(planner, forest);
    const start = performance.now();
    attention.setPlan(plan, forest, tools.stream);
    const imageUs = (performance.now() - start) * 1000;
    const run = (): void => attention.launch(tools.tensors(spec), tools.stream);
    run();
    attention.check(tools.stream);
    const times = tools.timeCold(run, { most: CALLS, least: CALLS_MIN, totalUs: CALLS_US });
    /* The launch that is compared comes after many others, over output that is not a number. */
    tools.poisonOutput();
    run();
    attention.check(tools.stream);
    const error = tools.compare(spec, forest, options.samples ?? 4);
    return {
      name: workload.name,
      ...rooflines(workload, forest, readBytesPerUs, kvNumberBytes(spec)),
      median_us: median(times),
      best_us: Math.min(...times),
      plan_us: planUs,
      image_us: imageUs,
      ...error,
      tasks: plan.tasks,
      merges: plan.merges,
      makespan_us: plan.makespanUs,
    };
  } finally {
    attention.free();
  }
}

function plannerFor(
  spec: AttentionSpec,
  attention: TreeAttention,
  readBytesPerUs: number,
  options: Pick<AttentionBenchOptions, 'profile' | 'planOptions'>,
): Planner {
  const { multiprocessors: workers } = attention.device;
  return new Planner({
    kvHeads: spec.kvHeads,
    groupSize: spec.groupSize,
    headDim: spec.headDim,
    pageSize: PAGE_SIZE,
    workers,
    taskRows: attention.variant.taskRows,
    groupRows: attention.variant.groupRows,
    profile:
      options.profile ??
      keptCudaProfile(attention.device, spec).profile ??
      defaultCudaProfile(spec, workers, readBytesPerUs, attention.variant),
    options: options.planOptions ?? DEFAULT_PLAN_OPTIONS,
  });
}

function rooflines(
  workload: Workload,
  forest: Forest,
  readBytesPerUs: number,
  numberBytes: number,
): Pick<
  AttentionBenchResult,
  | 'unique_bytes'
  | 'flat_bytes'
  | 'reduction'
  | 'roofline_us'
  | 'roofline_h100_us'
  | 'target_h100_us'
> {
  const bytes = workloadBytes(workload, numberBytes);
  const ends = forest.rows * workload.queryHeads * workload.headDim * 2 * 2;
  let pairs = 0;
  for (let row = 0; row < forest.rows; row++) pairs += forest.rowPosition[row] + 1;
  const flops = 4 * workload.headDim * workload.queryHeads * pairs;
  const roofline = (bytesPerUs: number): number =>
    Math.max((bytes.unique + ends) / bytesPerUs, flops / FLOPS_PER_US);
  return {
    unique_bytes: bytes.unique,
    flat_bytes: bytes.flat,
    reduction: bytes.reduction,
    roofline_us: roofline(readBytesPerUs),
    roofline_h100_us: roofline(H100_BYTES_PER_US),
    target_h100_us: roofline(H100_BYTES_PER_US) / 0.9 + 6,
  };
}
