/**
 * The kernel's long test on a device: random trees, plans and variants one after the other, every
 * row of each compared with float64. Leaves of some trees grow over steps that keep their plan.
 * @module
 */
import { randomStream } from '../../base/math.ts';
import type { Forest } from '../../kvcache/forest.ts';
import { DEFAULT_PLAN_OPTIONS, Planner, type ReusablePlan } from '../../plan/make-plan.ts';
import { planStillGood } from '../../plan/plan-reuse.ts';
import { type AttentionOptions, TreeAttention } from './attention.ts';
import { AttentionReference } from './attention-reference.ts';
import { BenchTools } from './bench-tools.ts';
import { Cuda, type DeviceInfo } from './driver.ts';
import { hostAttention } from './host-attention.ts';
import { KernelLoader } from './kernel-loader.ts';
import { defaultCudaProfile } from './profile.ts';
import { randomTree } from './random-trees.ts';
import { growLeaves, scatteredForest } from './scattered-forest.ts';
import { type AttentionSpec, HEAD_DIMS, kvNumberBytes, variantFor } from './variants.ts';

/**
 * Largest |out - exact| / |exact| of a row that counts as right: twice what FlashAttention-2 has,
 * which rounds the same two things to 16 bits, the softmax's weights and the output.
 */
export const ROW_ERROR_MAX = { f16: 6e-4, bf16: 4.8e-3 } as const;
const KV_BYTES = 2 ** 30;
const ENDS_BYTES = 2 ** 25;
const GROUPS = [4, 1, 8, 5, 2, 16, 3, 7];
const PAGE_SIZES = [16, 64, 32, 256, 128];
const KV_HEADS = [2, 4, 1, 3];
/** Plans without packing, or flat; trees whose leaves grow, by how many steps and tokens. */
const UNPACKED = 0.15;
const FLAT = 0.05;
const GROWING = 0.3;
const GROWTH_STEPS = 24;
const GROWTH_TOKENS = 4;
const WRONG_LISTED = 20;

export interface AttentionCheckOptions {
  readonly plans: number;
  readonly seed: number;
  /** Number of the first plan; default 0. */
  readonly first?: number;
  readonly device?: number;
  /** Variants with this KV; default float16, which stands for bfloat16 as well. */
  readonly kv?: 'float16' | 'e4m3' | undefined;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, largest: number) => void;
}

/** A row that differs from float64 by more than `ROW_ERROR_MAX`. */
export interface WrongRow {
  readonly plan: number;
  readonly variant: string;
  readonly row: number;
  readonly error: number;
}

export interface AttentionCheckReport {
  readonly device: DeviceInfo;
  readonly seed: number;
  readonly first: number;
  readonly variants: readonly string[];
  readonly plans: number;
  readonly launches: number;
  /** Steps whose plan was used again with grown leaves, and those that kept its image. */
  readonly grown_steps: number;
  readonly kept_images: number;
  readonly rows_compared: number;
  readonly wrong_rows: number;
  /** The first ones. */
  readonly wrong: readonly WrongRow[];
  /** Largest error of a row. */
  readonly largest_error: { readonly f16: number; readonly bf16: number };
  readonly error_max: { readonly f16: number; readonly bf16: number };
  /** Largest error of the device's float64 reference against the host's: a row of each variant. */
  readonly reference_error: number;
  readonly seconds: number;
}

interface CheckVariant {
  readonly name: string;
  readonly spec: AttentionSpec;
  readonly portable: boolean;
  readonly options: AttentionOptions;
}

/** KV type, type of the rest, and whether by the portable kernel. */
const KINDS = [
  [undefined, 'f16', false],
  [undefined, 'bf16', false],
  [undefined, 'f16', true],
  [undefined, 'bf16', true],
  ['e4m3', 'f16', true],
  ['e4m3', 'bf16', true],
] as const;

/** Every head_dim in every type, by both kernels, with groups, pages and terms in rotation. */
function checkVariants(arch: string): CheckVariant[] {
  const variants: CheckVariant[] = [];
  let i = 0;
  for (const [kv, dtype, portable] of KINDS) {
    for (const headDim of HEAD_DIMS) {
      const softcap = i % 3 === 2 ? 5 : 0;
      const window = i % 4 === 3 ? 100 : 0;
      const spec: AttentionSpec = {
        headDim,
        dtype,
        ...(kv === undefined ? {} : { kv }),
        groupSize: GROUPS[i % GROUPS.length],
        pageSize: PAGE_SIZES[(i + Math.floor(i / 5)) % PAGE_SIZES.length],
        kvHeads: KV_HEADS[i % KV_HEADS.length],
        softcap: softcap > 0,
      };
      const name =
        `${dtype}${kv ? ` with ${kv} KV` : ''} head_dim ${headDim} group ${spec.groupSize} page ` +
        `${spec.pageSize}${softcap ? ' softcap' : ''}${window ? ' window' : ''}` +
        `${portable && !kv ? ' portable' : ''}`;
      i++;
      if (isPossible(spec, arch))
        variants.push({ name, spec, portable, options: { softcap, window } });
    }
  }
  return variants;
}

/** 8-bit KV needs a newer device than the rest. */
function isPossible(spec: AttentionSpec, arch: string): boolean {
  try {
    variantFor(spec, arch);
    return true;
  } catch {
    return false;
  }
}

/**
 * Runs the test; a wrong row is in the report, not an error.
 * @throws FlashForgeError 'device' without a usable device, or if a wait on it did not end.
 */
export async function checkAttentionCuda(
  options: AttentionCheckOptions,
): Promise<AttentionCheckReport> {
  const cuda = await Cuda.open(options.device);
  const run = new CheckRun(await KernelLoader.open(cuda), options);
  try {
    return await run.report();
  } finally {
    run.free();
    cuda.close();
  }
}

class CheckRun {
  readonly #loader: KernelLoader;
  readonly #options: AttentionCheckOptions;
  readonly #tools = new Map<string, BenchTools>();
  readonly #reference: AttentionReference;
  readonly #variants: CheckVariant[];
  readonly #attention: TreeAttention[] = [];
  readonly #largest = { f16: 0, bf16: 0 };
  readonly #wrong: WrongRow[] = [];
  #referenceError = 0;
  #counts = { launches: 0, grown: 0, kept: 0, rows: 0, wrong: 0 };

  constructor(loader: KernelLoader, options: AttentionCheckOptions) {
    this.#loader = loader;
    this.#options = options;
    this.#reference = new AttentionReference(loader);
    this.#variants = checkVariants(loader.cuda.info.arch).filter(
      ({ spec }) => (options.kv ?? 'float16') === (spec.kv ?? 'float16'),
    );
  }

  async report(): Promise<AttentionCheckReport> {
    const began = performance.now();
    const { plans, seed, first = 0, signal, onProgress } = this.#options;
    for (let plan = 0; plan < plans; plan++) {
      signal?.throwIfAborted();
      this.#onePlan(first + plan);
      if (plan % 100 === 99) {
        onProgress?.(plan + 1, Math.max(this.#largest.f16, this.#largest.bf16));
        await new Promise((resolve) => setImmediate(resolve));
      }
    }
    return {
      device: this.#loader.cuda.info,
      seed,
      first,
      variants: this.#variants.slice(0, plans).map(({ name }) => name),
      plans,
      launches: this.#counts.launches,
      grown_steps: this.#counts.grown,
      kept_images: this.#counts.kept,
      rows_compared: this.#counts.rows,
      wrong_rows: this.#counts.wrong,
      wrong: this.#wrong,
      largest_error: this.#largest,
      error_max: ROW_ERROR_MAX,
      reference_error: this.#referenceError,
      seconds: (performance.now() - began) / 1000,
    };
  }

  /** Random tensors of a variant's types. */
  #toolsOf({ dtype, kv }: AttentionSpec): BenchTools {
    const key = `${dtype} ${kv}`;
    const known = this.#tools.get(key);
    if (known !== undefined) return known;
    const tools = new BenchTools(this.#loader, dtype, kv);
    tools.reserveBytes(KV_BYTES, ENDS_BYTES);
    this.#tools.set(key, tools);
    return tools;
  }

  /** A plan depends on the seed and its number only, so that any of them can be run alone. */
  #onePlan(number: number): void {
    const index = number % this.#variants.length;
    const { spec } = this.#variants[index];
    const random = randomStream(Math.imul(this.#options.seed + 1, 0x9e3779b1) + number * 7919);
    const growing = random() < GROWING;
    const spare = growing ? GROWTH_STEPS * GROWTH_TOKENS : 0;
    const tree = this.#treeThatFits(spec, spare, random);
    const attention = this.#attentionOf(index);
    const planner = this.#planner(spec, attention, random);
    const plan = planner.plan(tree);
    attention.setPlan(plan, tree, this.#toolsOf(spec).stream);
    this.#launch(index, 1 + Math.floor(random() * 3));
    this.#compare(number, index, tree);
    if (number < this.#variants.length) this.#checkReference(index, tree, random);
    if (growing) this.#grow(number, index, planner, plan, tree, random);
  }

  /** A forest whose pages lie anywhere in the KV memory. */
  #treeThatFits(spec: AttentionSpec, spare: number, random: () => number): Forest {
    const { kvHeads, groupSize, headDim, pageSize } = spec;
    const room = Math.floor(KV_BYTES / (pageSize * kvHeads * headDim * 2 * kvNumberBytes(spec)));
    for (;;) {
      const queryHeads = kvHeads * groupSize;
      const tree = { name: 'random', ...randomTree(random), queryHeads, kvHeads, headDim };
      const { forest, pages } = scatteredForest(tree, pageSize, spare, random);
      if (pages > room || forest.rows * queryHeads * headDim * 2 > ENDS_BYTES) continue;
      const first = Math.floor(random() * (room - pages));
      return { ...forest, pages: forest.pages.map((page) => page + first) };
    }
  }

  #attentionOf(index: number): TreeAttention {
    const { spec, portable, options } = this.#variants[index];
    this.#attention[index] ??= new TreeAttention(this.#loader, spec, this.#toolsOf(spec).stream, {
      portable,
      window: (options.window ?? 0) > 0,
    });
    return this.#attention[index];
  }

  #planner(spec: AttentionSpec, attention: TreeAttention, random: () => number): Planner {
    const { multiprocessors: workers } = this.#loader.cuda.info;
    const kind = random();
    return new Planner({
      ...spec,
      workers,
      taskRows: attention.variant.taskRows,
      groupRows: attention.variant.groupRows,
      profile: defaultCudaProfile(spec, workers, 3e6, attention.variant),
      options: {
        ...DEFAULT_PLAN_OPTIONS,
        flat: kind < FLAT,
        packing: kind < FLAT || kind > FLAT + UNPACKED,
        scheduling: random() < 0.9,
        division: random() < 0.9,
      },
    });
  }

  #launch(index: number, times: number): void {
    const { spec, options } = this.#variants[index];
    const tools = this.#toolsOf(spec);
    for (let i = 0; i < times; i++) {
      tools.poisonOutput();
      this.#attention[index].launch(tools.tensors(spec), tools.stream, options);
    }
    this.#counts.launches += times;
    this.#attention[index].check(tools.stream);
  }

  #compare(plan: number, index: number, forest: Forest): void {
    const { name, spec, options } = this.#variants[index];
    const tools = this.#toolsOf(spec);
    const rows = Int32Array.from({ length: forest.rows }, (_, row) => row);
    const tensors = tools.tensors(spec);
    const errors = this.#reference.compare(spec, tensors, forest, rows, tools.stream, options);
    this.#counts.rows += errors.length;
    errors.forEach(({ relative }, row) => {
      /* Not a number is wrong, too. */
      if (!(relative <= this.#largest[spec.dtype])) this.#largest[spec.dtype] = relative;
      if (relative <= ROW_ERROR_MAX[spec.dtype]) return;
      this.#counts.wrong++;
      if (this.#wrong.length < WRONG_LISTED) {
        this.#wrong.push({ plan, variant: name, row, error: relative });
      }
    });
  }

  /** The float64 reference itself, for one row, against the host's. */
  #checkReference(index: number, forest: Forest, random: () => number): void {
    const { spec, options } = this.#variants[index];
    const tools = this.#toolsOf(spec);
    const row = Math.floor(random() * forest.rows);
    const exact = new Float64Array(spec.kvHeads * spec.groupSize * spec.headDim);
    const tensors = tools.tensors(spec);
    const rows = Int32Array.of(row);
    this.#reference.compare(spec, tensors, forest, rows, tools.stream, { ...options, exact });
    const host = hostAttention(tools, spec, forest, row, options);
    for (let i = 0; i < host.length; i++) {
      const difference = Math.abs(host[i] - exact[i]);
      if (!(difference <= this.#referenceError)) this.#referenceError = difference;
    }
  }

  /** Steps in which leaves grow, with the same plan as long as it is good. */
  #grow(
    number: number,
    index: number,
    planner: Planner,
    first: ReusablePlan,
    forest: Forest,
    random: () => number,
  ): void {
    const { stream } = this.#toolsOf(this.#variants[index].spec);
    const most = 1 + Math.floor(random() * GROWTH_TOKENS);
    let plan = first;
    for (let step = 0; step < GROWTH_STEPS; step++) {
      growLeaves(forest, () => Math.floor(random() * (most + 1)));
      if (!planStillGood(plan, forest)) plan = planner.plan(forest);
      else this.#counts.grown++;
      if (this.#attention[index].setPlan(plan, forest, stream)) this.#counts.kept++;
      if (step % 8 !== 7) continue;
      this.#launch(index, 1);
      this.#compare(number, index, forest);
    }
  }

  free(): void {
    for (const attention of this.#attention) attention?.free();
    for (const tools of this.#tools.values()) tools.free();
    this.#reference.free();
  }
}
