/**
 * Reuse: a plan holds over steps while the tree only grows at its leaves, as open segments follow
 * the leaf's length. It is made again when anything else changes or when the growth has spoilt
 * the balance.
 * @module
 */
import type { Forest } from '../kvcache/forest.ts';
import type { CostModel } from './cost-model.ts';
import { IntBlock } from './int-block.ts';
import type { ReusablePlan } from './make-plan.ts';
import { OPEN_END } from './plan.ts';

/** A plan is made again once makespan / lower bound has grown by more than this factor. */
export const BALANCE_DECAY = 1.1;

/** Copy of the forest that a plan was made for, and the estimates needed to judge its balance. */
export interface PlanBasis
  extends Pick<
    Forest,
    | 'requests'
    | 'nodes'
    | 'rowPosition'
    | 'parent'
    | 'start'
    | 'length'
    | 'rowBegin'
    | 'rowEnd'
    | 'firstSlot'
  > {
  readonly cost: CostModel;
  /** (workers) estimated load when the plan was made, us. */
  readonly load: Float64Array;
}

/** Copies what `planStillGood` needs. */
export function planBasis(forest: Forest, cost: CostModel, load: Float64Array): PlanBasis {
  const { nodes, rows } = forest;
  const ints = new IntBlock(6 * nodes + rows);
  return {
    requests: forest.requests,
    nodes,
    rowPosition: ints.copy(forest.rowPosition, rows),
    parent: ints.copy(forest.parent, nodes),
    start: ints.copy(forest.start, nodes),
    length: ints.copy(forest.length, nodes),
    rowBegin: ints.copy(forest.rowBegin, nodes),
    rowEnd: ints.copy(forest.rowEnd, nodes),
    firstSlot: ints.copy(forest.firstSlot, nodes),
    cost,
    load: load.slice(),
  };
}

/**
 * True if `plan` still covers `forest` exactly and its predicted makespan over the lower bound is
 * at most `decay` times what it was. Same rows, nodes and page offsets; only nodes without
 * children may have grown, and with them the positions of all of their rows (page ids may
 * differ: plans hold none). Steps with several rows a request only match themselves.
 */
export function planStillGood(plan: ReusablePlan, forest: Forest, decay = BALANCE_DECAY): boolean {
  const { basis } = plan;
  if (plan.rows !== forest.rows || basis.requests !== forest.requests) return false;
  if (basis.nodes !== forest.nodes) return false;
  const growth = leafGrowth(basis, forest);
  if (growth === undefined) return false;
  return growth === 0 || balanceHolds(plan, forest, decay);
}

/** Tokens by which leaves grew, or undefined if anything else changed. */
function leafGrowth(basis: PlanBasis, forest: Forest): number | undefined {
  const { nodes, rows, rowPosition } = forest;
  let grown = 0;
  let movedRows = 0;
  for (let node = 0; node < nodes; node++) {
    const [begin, end] = [forest.rowBegin[node], forest.rowEnd[node]];
    if (
      forest.parent[node] !== basis.parent[node] ||
      forest.start[node] !== basis.start[node] ||
      begin !== basis.rowBegin[node] ||
      end !== basis.rowEnd[node] ||
      forest.firstSlot[node] !== basis.firstSlot[node]
    ) {
      return undefined;
    }
    const more = forest.length[node] - basis.length[node];
    if (more === 0) continue;
    const hasChild = node + 1 < nodes && forest.parent[node + 1] === node;
    if (more < 0 || hasChild || basis.length[node] === 0) return undefined;
    for (let row = begin; row < end; row++) {
      if (rowPosition[row] - basis.rowPosition[row] !== more) return undefined;
    }
    grown += more;
    movedRows += end - begin;
  }
  if (grown > 0 && rows !== forest.requests) return undefined;
  let moved = 0;
  for (let row = 0; row < rows; row++) if (rowPosition[row] !== basis.rowPosition[row]) moved++;
  return moved === movedRows ? grown : undefined;
}

/** Adds each task's growth to its workers and compares the largest load with the mean. */
function balanceHolds(plan: ReusablePlan, forest: Forest, decay: number): boolean {
  const { basis, kvHeads, workers } = plan as ReusablePlan & { basis: PlanBasis };
  const taskUs = new Float64Array(plan.tasks);
  let added = 0;
  for (let task = 0; task < plan.tasks; task++) {
    for (let s = plan.taskSegment[task]; s < plan.taskSegment[task + 1]; s++) {
      if (plan.segmentEnd[s] !== OPEN_END) continue;
      const node = plan.segmentNode[s];
      const rows = plan.segmentRowEnd[s] - plan.segmentRowBegin[s];
      const before = basis.length[node] - plan.segmentBegin[s];
      const after = forest.length[node] - plan.segmentBegin[s];
      taskUs[task] += basis.cost.us(rows, after) - basis.cost.us(rows, before);
    }
    added += taskUs[task];
  }
  let largest = 0;
  for (let worker = 0; worker < workers; worker++) {
    let load = basis.load[worker];
    for (let i = plan.workerItem[worker]; i < plan.workerItem[worker + 1]; i++) {
      load += taskUs[Math.floor(plan.schedule[i] / kvHeads)];
    }
    if (load > largest) largest = load;
  }
  const bound = plan.lowerBoundUs + (added * kvHeads) / workers;
  return largest / bound <= (decay * plan.makespanUs) / plan.lowerBoundUs;
}
