/**
 * `flashforge plan`: what the planner makes of prefix trees, without a model or a device.
 * @module
 */
import { availableParallelism } from 'node:os';
import { CostModel } from '../plan/cost-model.ts';
import { defaultProfile, PLAN_SHAPES } from '../plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS, Planner } from '../plan/make-plan.ts';
import type { CostProfile, PlanOptions, PlanSpec } from '../plan/plan.ts';
import { timePlans } from '../plan/plan-timing.ts';
import { taskCosts } from '../plan/task-cost.ts';
import { type Workload, workloadBytes, workloadForest } from '../plan/workload.ts';
import { type Command, JSON_OPTION } from './command.ts';
import { writeWhole } from './console.ts';
import { type Chart, ganttSvg } from './gantt.ts';
import { choiceOption, integerOption, usageError } from './parse-arguments.ts';
import { table } from './table.ts';
import { readProfileFile, readWorkloadFile } from './workload-file.ts';

const WORKERS_MAX = 65536;
const DEVICES = ['cpu', 'cuda'] as const;
/** What `--device cuda` plans for: an H200, and what a kernel that only reads reaches there. */
const H200 = { arch: 'sm_90a', multiprocessors: 132, readBytesPerUs: 4.2e6 };

export const planCommand: Command = {
  name: 'plan',
  summary: 'Plans the attention of prefix trees: tasks, makespan, lower bound and KV bytes.',
  positionals: [],
  options: [
    { name: 'workload', value: 'FILE', help: 'JSON list of trees (see docs/planner.md); needed' },
    { name: 'workers', value: 'N', help: 'workers (default: cores; with --device cuda 132)' },
    { name: 'device', value: 'NAME', help: 'cpu or cuda, an H200 (default cpu)' },
    {
      name: 'profile',
      value: 'FILE',
      help: 'measured costs, from flashforge profile --json FILE (default: typical ones)',
    },
    { name: 'svg', value: 'OUT', help: 'draw the schedule as a Gantt chart' },
    { name: 'flat', help: 'every request alone: no sharing' },
    { name: 'no-packing', help: 'every node in tasks of its own' },
    { name: 'no-division', help: 'no cutting of long lists' },
    { name: 'no-scheduling', help: 'round robin instead of longest first' },
    JSON_OPTION,
  ],
  examples: [
    'flashforge plan --workload trees.json --workers 8',
    'flashforge plan --workload trees.json --device cuda --svg plan.svg --json plan.json',
  ],
  run: async (context, given) => {
    const path = given.text('workload');
    if (path === undefined) throw usageError('--workload FILE is needed');
    const device = choiceOption(given, 'device', DEVICES, 'cpu');
    const cores = device === 'cpu' ? availableParallelism() : PLAN_SHAPES[device].workers;
    const workers = integerOption(given, 'workers', cores, 1, WORKERS_MAX);
    const svg = given.text('svg');
    if (svg === '') throw usageError('--svg must be a file, got ""');
    const options: PlanOptions = {
      flat: given.has('flat'),
      packing: !given.has('no-packing'),
      division: !given.has('no-division'),
      scheduling: !given.has('no-scheduling'),
    };
    const file = given.text('profile');
    const profile = file === undefined ? undefined : readProfileFile(file);
    const planned: PlannedWorkload[] = [];
    for (const workload of readWorkloadFile(path)) {
      // A turn of the event loop lets signals arrive.
      await new Promise((resolve) => setImmediate(resolve));
      context.signal.throwIfAborted();
      planned.push(await planWorkload(workload, device, workers, options, profile));
    }
    context.print(planTable(planned));
    context.print(
      `costs: ${profile ? `${profile.device}, ${profile.kernel}` : 'typical, not measured'}`,
    );
    if (svg !== undefined) await writeWhole(svg, ganttSvg(planned.map(({ chart }) => chart)));
    await context.report(planReport(planned.map(({ row }) => row)));
  },
};

/** One workload in the report; bytes are those of one layer at 2 bytes a number. */
export interface PlanRow {
  readonly name: string;
  readonly workers: number;
  readonly tasks: number;
  readonly items: number;
  readonly merges: number;
  readonly slots: number;
  readonly makespan_us: number;
  readonly lower_bound_us: number;
  readonly unique_bytes: number;
  readonly flat_bytes: number;
  readonly reduction: number;
  /** Median time of making the plan. */
  readonly plan_us: number;
}

/** A workload's row and drawing. */
export interface PlannedWorkload {
  readonly row: PlanRow;
  readonly chart: Chart;
}

/**
 * Plans one workload and times it.
 * @throws FlashForgeError 'device' for heads that no CUDA kernel is there for.
 */
export async function planWorkload(
  workload: Workload,
  device: (typeof DEVICES)[number],
  workers: number,
  options: PlanOptions = DEFAULT_PLAN_OPTIONS,
  profile?: CostProfile,
): Promise<PlannedWorkload> {
  const { kvHeads, headDim } = workload;
  const { pageSize } = PLAN_SHAPES[device];
  const groupSize = workload.queryHeads / kvHeads;
  const heads = { kvHeads, groupSize, headDim, pageSize };
  const tiles = device === 'cuda' ? await cudaTiles(heads) : cpuTiles(heads);
  const spec: PlanSpec = { ...heads, ...tiles, workers, options, ...(profile && { profile }) };
  const { forest } = workloadForest(workload, pageSize, false);
  const { plan, planUs } = timePlans(new Planner(spec), forest);
  const bytes = workloadBytes(workload);
  const taskUs = taskCosts(plan, forest, new CostModel(spec.profile, groupSize, spec.taskRows));
  return {
    chart: { title: workload.name, plan, taskUs },
    row: {
      name: workload.name,
      workers,
      tasks: plan.tasks,
      items: plan.items,
      merges: plan.merges,
      slots: plan.slots,
      makespan_us: plan.makespanUs,
      lower_bound_us: plan.lowerBoundUs,
      unique_bytes: bytes.unique,
      flat_bytes: bytes.flat,
      reduction: bytes.reduction,
      plan_us: planUs,
    },
  };
}

type Heads = Pick<PlanSpec, 'kvHeads' | 'groupSize' | 'headDim' | 'pageSize'>;
type Tiles = Pick<PlanSpec, 'taskRows' | 'groupRows' | 'profile'>;

function cpuTiles({ groupSize, headDim }: Heads): Tiles {
  const taskRows = Math.max(1, Math.floor(PLAN_SHAPES.cpu.taskQueries / groupSize));
  return { taskRows, profile: defaultProfile('cpu', headDim) };
}

/** The tiles of the kernel that runs there, and costs that follow from the bandwidth. */
async function cudaTiles(heads: Heads): Promise<Tiles> {
  const { variantFor } = await import('../backend/cuda/variants.ts');
  const { defaultCudaProfile } = await import('../backend/cuda/profile.ts');
  const { arch, multiprocessors, readBytesPerUs } = H200;
  const variant = variantFor({ ...heads, dtype: 'f16' }, arch);
  const { taskRows, groupRows } = variant;
  const profile = defaultCudaProfile(heads, multiprocessors, readBytesPerUs, variant);
  return { taskRows, groupRows, profile };
}

/** The report: the fields of a single workload, or their sums, and every workload by itself. */
export function planReport(rows: readonly PlanRow[]) {
  const sum = (field: Exclude<keyof PlanRow, 'name'>): number =>
    rows.reduce((total, row) => total + row[field], 0);
  return {
    workers: rows[0].workers,
    tasks: sum('tasks'),
    makespan_us: sum('makespan_us'),
    lower_bound_us: sum('lower_bound_us'),
    unique_bytes: sum('unique_bytes'),
    flat_bytes: sum('flat_bytes'),
    plan_us: sum('plan_us'),
    workloads: rows,
  };
}

function planTable(planned: readonly PlannedWorkload[]): string {
  const head = ['workload', 'workers', 'tasks', 'items', 'merged rows', 'makespan us', 'bound us'];
  const rows = planned.map(({ row }) => [
    row.name,
    String(row.workers),
    String(row.tasks),
    String(row.items),
    String(row.merges),
    row.makespan_us.toFixed(1),
    row.lower_bound_us.toFixed(1),
    (row.unique_bytes / 1e6).toFixed(2),
    (row.flat_bytes / 1e6).toFixed(2),
    `${row.reduction.toFixed(2)}x`,
    row.plan_us.toFixed(0),
  ]);
  return table([...head, 'unique MB', 'flat MB', 'saved', 'plan us'], rows);
}
