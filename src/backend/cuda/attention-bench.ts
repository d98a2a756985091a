/**
 * The attention benchmark on the device: every workload with a cold L2 cache, one launch in a
 * CUDA graph, medians; beside it the roofline from the measured read bandwidth, the plan's time
 * and the error against a float64 reference that runs on the device too.
 * @module
 */
import { median } from '../../base/math.ts';
import type { Forest } from '../../kvcache/forest.ts';
import { DEFAULT_PLAN_OPTIONS, Planner } from '../../plan/make-plan.ts';
import type { CostProfile, Plan, PlanOptions } from '../../plan/plan.ts';
import { type Workload, workloadBytes, workloadForest } from '../../plan/workload.ts';
import { TreeAttention } from './attention.ts';
import { BenchTools } from './bench-tools.ts';
import { Cuda, type DeviceInfo } from './driver.ts';
import { KernelLoader } from './kernel-loader.ts';
import { defaultCudaProfile } from './profile.ts';
import type { AttentionSpec } from './variants.ts';

const PAGE_SIZE = 16;
/** What a well-written kernel reaches in practice on an H100, and what it reads from memory. */
const H100_BYTES_PER_US = 3.0e6;
const FLOPS_PER_US = 600e6;
/** Timed calls of one workload, and the time after which fewer suffice. */
const CALLS = 41;
const CALLS_MIN = 7;
const CALLS_US = 60_000;
const PLAN_CALLS = 5;

export interface AttentionBenchOptions {
  readonly device?: number;
  readonly dtype?: 'f16' | 'bf16';
  readonly planOptions?: PlanOptions;
  /** Rows whose output is compared with float64; 0 leaves the comparison out. */
  readonly samples?: number;
  /** The portable kernel also where a faster one exists. */
  readonly portable?: boolean;
  readonly profile?: CostProfile;
  /** Called after each workload. */
  readonly onResult?: (result: AttentionBenchResult) => void;
}

/** One workload; times in us, sizes in bytes. */
export interface AttentionBenchResult {
  readonly name: string;
  readonly uniqueBytes: number;
  readonly flatBytes: number;
  /** flatBytes / uniqueBytes. */
  readonly reduction: number;
  readonly medianUs: number;
  readonly bestUs: number;
  /** The larger of bytes / measured read bandwidth and FLOPs / 600 TFLOP/s. */
  readonly rooflineUs: number;
  /** The same with an H100's 3.0 TB/s, and T = roofline / 0.9 + 6 us. */
  readonly rooflineH100Us: number;
  readonly targetH100Us: number;
  readonly planUs: number;
  readonly imageUs: number;
  /** Largest absolute error, and |out - exact| / |exact|, over the sampled rows. */
  readonly maxError: number;
  readonly relativeError: number;
  readonly tasks: number;
  readonly merges: number;
  readonly makespanUs: number;
}

export interface AttentionBenchReport {
  readonly device: DeviceInfo;
  /** What a kernel that only reads reaches, bytes per us. */
  readonly readBytesPerUs: number;
  /** An empty kernel in a graph, timed the same way. */
  readonly emptyUs: number;
  readonly results: readonly AttentionBenchResult[];
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
  const tools = new BenchTools(loader, options.dtype ?? 'f16');
  try {
    tools.reserve(workloads, PAGE_SIZE);
    const readBytesPerUs = tools.readBandwidth();
    const emptyUs = tools.emptyUs();
    const results: AttentionBenchResult[] = [];
    for (const workload of workloads) {
      const result = benchOne(loader, tools, workload, readBytesPerUs, options);
      results.push(result);
      options.onResult?.(result);
    }
    return { device: cuda.info, readBytesPerUs, emptyUs, results };
  } finally {
    tools.free();
    cuda.close();
  }
}

function benchOne(
  loader: KernelLoader,
  tools: BenchTools,
  workload: Workload,
  readBytesPerUs: number,
  options: AttentionBenchOptions,
): AttentionBenchResult {
  const { info } = loader.cuda;
  const spec: AttentionSpec = {
    headDim: workload.headDim,
    groupSize: workload.queryHeads / workload.kvHeads,
    kvHeads: workload.kvHeads,
    pageSize: PAGE_SIZE,
    dtype: options.dtype ?? 'f16',
  };
  const attention = new TreeAttention(loader, spec, tools.stream, {
    portable: options.portable ?? false,
  });
  const { forest } = workloadForest(workload, PAGE_SIZE);
  const planner = new Planner({
    kvHeads: spec.kvHeads,
    groupSize: spec.groupSize,
    headDim: spec.headDim,
    pageSize: PAGE_SIZE,
    workers: info.multiprocessors,
    taskRows: attention.variant.taskRows,
    profile:
      options.profile ??
      defaultCudaProfile(spec, info.multiprocessors, readBytesPerUs, attention.variant),
    options: options.planOptions ?? DEFAULT_PLAN_OPTIONS,
  });
  try {
    const { plan, planUs } = timedPlan(planner, forest);
    const start = performance.now();
    attention.setPlan(plan, forest, tools.stream);
    const imageUs = (performance.now() - start) * 1000;
    const run = (): void => attention.launch(tools.tensors(spec), tools.stream);
    tools.poisonOutput();
    run();
    attention.check(tools.stream);
    const error = tools.compare(spec, forest, options.samples ?? 4);
    const times = tools.timeCold(run, { most: CALLS, least: CALLS_MIN, totalUs: CALLS_US });
    attention.check(tools.stream);
    return {
      name: workload.name,
      ...rooflines(workload, forest, readBytesPerUs),
      medianUs: median(times),
      bestUs: Math.min(...times),
      planUs,
      imageUs,
      ...error,
      tasks: plan.tasks,
      merges: plan.merges,
      makespanUs: plan.makespanUs,
    };
  } finally {
    attention.free();
  }
}

function timedPlan(planner: Planner, forest: Forest): { plan: Plan; planUs: number } {
  const times: number[] = [];
  let plan = planner.plan(forest);
  for (let i = 0; i < PLAN_CALLS; i++) {
    const start = performance.now();
    plan = planner.plan(forest);
    times.push((performance.now() - start) * 1000);
  }
  return { plan, planUs: median(times) };
}

function rooflines(
  workload: Workload,
  forest: Forest,
  readBytesPerUs: number,
): Pick<
  AttentionBenchResult,
  'uniqueBytes' | 'flatBytes' | 'reduction' | 'rooflineUs' | 'rooflineH100Us' | 'targetH100Us'
> {
  const bytes = workloadBytes(workload);
  const ends = forest.rows * workload.queryHeads * workload.headDim * 2 * 2;
  let pairs = 0;
  for (let row = 0; row < forest.rows; row++) pairs += forest.rowPosition[row] + 1;
  const flops = 4 * workload.headDim * workload.queryHeads * pairs;
  const roofline = (bytesPerUs: number): number =>
    Math.max((bytes.unique + ends) / bytesPerUs, flops / FLOPS_PER_US);
  return {
    uniqueBytes: bytes.unique,
    flatBytes: bytes.flat,
    reduction: bytes.reduction,
    rooflineUs: roofline(readBytesPerUs),
    rooflineH100Us: roofline(H100_BYTES_PER_US),
    targetH100Us: roofline(H100_BYTES_PER_US) / 0.9 + 6,
  };
}
