/**
 * Decode loops over workloads: in every step each leaf grows by a token, the host plans and hands
 * over the step while the device still works on the last one, and the device runs one launch a
 * layer as a graph. Shows what planning costs the host and whether the device ever waits for it.
 * @module
 */
import { median } from '../../base/math.ts';
import type { Forest } from '../../kvcache/forest.ts';
import type { Planner, ReusablePlan } from '../../plan/make-plan.ts';
import { planStillGood } from '../../plan/plan-reuse.ts';
import { timePlans } from '../../plan/plan-timing.ts';
import type { Workload } from '../../plan/workload.ts';
import { TreeAttention } from './attention.ts';
import type { BenchTools } from './bench-tools.ts';
import type { Event, Graph } from './driver.ts';
import type { KernelLoader } from './kernel-loader.ts';
import { growLeaves, scatteredForest } from './scattered-forest.ts';
import { type AttentionSpec, kvNumberBytes } from './variants.ts';

/** Launches of a step: the layers of a model of middle size. */
const LAYERS = 32;
/** Steps that are not counted: code is compiled, memory grows. */
const WARM_STEPS = 24;
/** Steps that the host may be ahead of the device. */
const AHEAD = 1;

export interface LoopOptions {
  readonly steps: number;
  /** Rows compared with float64 after the last step. */
  readonly samples: number;
  readonly spec: AttentionSpec;
  /** Makes the planner for the kernel's variant. */
  readonly planner: (attention: TreeAttention) => Planner;
}

/** One workload's loop; times in us. */
export interface LoopResult {
  readonly name: string;
  readonly requests: number;
  readonly steps: number;
  readonly layers: number;
  /** Steps that used the last step's plan, and those whose image on the device stayed as well. */
  readonly reused_share: number;
  readonly kept_share: number;
  /** Host time of a step: finding out that the plan holds or making one, and handing it over. */
  readonly plan_us: { readonly median: number; readonly most: number };
  readonly hand_over_us: { readonly median: number; readonly most: number };
  /** Device time from one step's end to the next one's, and the part without attention. */
  readonly step_us: number;
  readonly idle_us: { readonly median: number; readonly most: number };
  readonly idle_share: number;
  readonly relative_error: number;
}

/** Bytes of KV that a loop over the workload needs. */
export function loopBytes(workload: Workload, spec: AttentionSpec, steps: number): number {
  const { pages } = scatteredForest(workload, spec.pageSize, steps + WARM_STEPS);
  return pages * spec.pageSize * spec.kvHeads * spec.headDim * 2 * kvNumberBytes(spec);
}

/** Runs one workload's loop; the tools' KV memory holds at least `loopBytes`. */
export function loopAttention(
  loader: KernelLoader,
  tools: BenchTools,
  workload: Workload,
  options: LoopOptions,
): LoopResult {
  const { steps, spec } = options;
  const attention = new TreeAttention(loader, spec, tools.stream);
  const { forest } = scatteredForest(workload, spec.pageSize, steps + WARM_STEPS);
  const planner = options.planner(attention);
  // Steps reuse plans, so that the few that are made would run code not compiled yet.
  timePlans(planner, forest);
  const loop = new Loop(loader, tools, attention, planner, forest);
  try {
    for (let step = -WARM_STEPS; step < steps; step++) loop.step(step);
    attention.check(tools.stream);
    tools.poisonOutput();
    attention.launch(tools.tensors(spec), tools.stream);
    attention.check(tools.stream);
    const { relative_error } = tools.compare(spec, forest, options.samples);
    return { name: workload.name, requests: forest.rows, ...loop.result(), relative_error };
  } finally {
    loop.free();
    attention.free();
  }
}

class Loop {
  readonly #loader: KernelLoader;
  readonly #tools: BenchTools;
  readonly #attention: TreeAttention;
  readonly #planner: Planner;
  readonly #forest: Forest;
  readonly #events: { readonly begin: Event; readonly end: Event }[] = [];
  readonly #planUs: number[] = [];
  readonly #handUs: number[] = [];
  #plan: ReusablePlan | undefined;
  #graph: Graph | undefined;
  #version = -1;
  #steps = 0;
  #reused = 0;
  #kept = 0;

  constructor(
    loader: KernelLoader,
    tools: BenchTools,
    attention: TreeAttention,
    planner: Planner,
    forest: Forest,
  ) {
    this.#loader = loader;
    this.#tools = tools;
    this.#attention = attention;
    this.#planner = planner;
    this.#forest = forest;
  }

  /** A step below 0 is not counted. */
  step(step: number): void {
    const { stream } = this.#tools;
    growLeaves(this.#forest, () => 1);
    this.#events.at(-1 - AHEAD)?.end.synchronize();
    const began = performance.now();
    const reused = this.#plan !== undefined && planStillGood(this.#plan, this.#forest);
    if (!reused) this.#plan = this.#planner.plan(this.#forest);
    const planned = performance.now();
    const kept = this.#attention.setPlan(this.#plan as ReusablePlan, this.#forest, stream);
    const handed = performance.now();
    const graph = this.#graphOf();
    const cuda = this.#loader.cuda;
    const events = { begin: cuda.event(), end: cuda.event() };
    this.#events.push(events);
    events.begin.record(stream);
    graph.launch(stream);
    events.end.record(stream);
    if (step < 0) return;
    this.#steps++;
    if (reused) this.#reused++;
    if (kept) this.#kept++;
    this.#planUs.push((planned - began) * 1000);
    this.#handUs.push((handed - planned) * 1000);
  }

  /** The captured step, made again where addresses have changed. */
  #graphOf(): Graph {
    if (this.#graph !== undefined && this.#version === this.#attention.version) return this.#graph;
    this.#tools.stream.synchronize();
    this.#graph?.free();
    this.#version = this.#attention.version;
    const tensors = this.#tools.tensors(this.#attention.spec);
    this.#graph = this.#loader.cuda.capture(this.#tools.stream, () => {
      for (let layer = 0; layer < LAYERS; layer++) {
        this.#attention.launch(tensors, this.#tools.stream);
      }
    });
    return this.#graph;
  }

  result(): Omit<LoopResult, 'name' | 'requests' | 'relative_error'> {
    const cuda = this.#loader.cuda;
    const counted = this.#events.slice(-this.#steps - 1);
    const idle: number[] = [];
    for (let i = 1; i < counted.length; i++) {
      idle.push(cuda.elapsedUs(counted[i - 1].end, counted[i].begin));
    }
    const total = cuda.elapsedUs(counted[0].end, counted[counted.length - 1].end);
    const spread = (us: number[]): { median: number; most: number } => ({
      median: median(us),
      most: Math.max(...us),
    });
    return {
      steps: this.#steps,
      layers: LAYERS,
      reused_share: this.#reused / this.#steps,
      kept_share: this.#kept / this.#steps,
      plan_us: spread(this.#planUs),
      hand_over_us: spread(this.#handUs),
      step_us: total / this.#steps,
      idle_us: spread(idle),
      idle_share: idle.reduce((a, b) => a + b, 0) / total,
    };
  }

  free(): void {
    this.#graph?.free();
    for (const { begin, end } of this.#events) {
      begin.free();
      end.free();
    }
  }
}
