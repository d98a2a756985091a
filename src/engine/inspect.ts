/**
 * Views of the engine's inside for displays: the prefix tree and the last step's schedule, as
 * plain data. They hold numbers only, never a token or a text of anybody's.
 * @module
 */
import type { Path } from '../kvcache/path.ts';
import type { PrefixTree } from '../kvcache/prefix-tree.ts';
import { taskCosts } from '../plan/task-cost.ts';
import type { PlannedStep } from './batch.ts';

/** A node of the prefix tree. */
export interface NodeView {
  readonly id: number;
  /** Id of the parent; null at the top. */
  readonly parent: number | null;
  /** Absolute position of the first token. */
  readonly start: number;
  readonly tokens: number;
  /** Tokens whose KV is written. */
  readonly computed: number;
  /** Sequences and held prefixes that pass through or end here; 0 = only cached. */
  readonly sharers: number;
  /** Those that end here. */
  readonly ends: number;
}

/** A work item as the plan has it: one task for one KV head. */
export interface ItemView {
  readonly worker: number;
  readonly task: number;
  readonly kvHead: number;
  /** Estimated start and duration, in us. */
  readonly beginUs: number;
  readonly us: number;
  /** Query rows of the task. */
  readonly rows: number;
}

export interface PlanView {
  readonly workers: number;
  readonly kvHeads: number;
  readonly rows: number;
  readonly makespanUs: number;
  readonly lowerBoundUs: number;
  readonly items: readonly ItemView[];
}

export interface EngineView {
  readonly nodes: readonly NodeView[];
  /** Nodes beyond the limit are left out; this many in all. */
  readonly nodeCount: number;
  /** Null before the first step. */
  readonly plan: PlanView | null;
}

/** A held path, as its owner may see it. */
export interface PathView {
  readonly tokens: number;
  /** Pages that hold its tokens; shared ones count in full. */
  readonly pages: number;
  /** Sequences and held prefixes that share all of it, itself included. */
  readonly sharers: number;
}

export function viewPath(path: Path): PathView {
  const pages = new Set<number>();
  for (let node = path.tip; node !== null; node = node.parent) {
    for (let page = 0; page < node.pageCount; page++) pages.add(node.pages[page]);
  }
  return { tokens: path.length, pages: pages.size, sharers: path.tip?.refs ?? 0 };
}

/** The tree's nodes, parents first, at most `limit` of them. */
export function viewTree(tree: PrefixTree, limit: number): Pick<EngineView, 'nodes' | 'nodeCount'> {
  const nodes: NodeView[] = [];
  let nodeCount = 0;
  for (const node of tree.nodes()) {
    if (nodeCount++ >= limit) continue;
    const parent = node.parent!;
    nodes.push({
      id: node.id,
      parent: parent.parent === null ? null : parent.id,
      start: node.start,
      tokens: node.length,
      computed: node.computed,
      sharers: node.refs,
      ends: node.holds,
    });
  }
  return { nodes, nodeCount };
}

/** The schedule of a step, each worker's items in order. */
export function viewPlan({ plan, forest }: PlannedStep): PlanView {
  const costs = taskCosts(plan, forest, plan.basis.cost);
  const items: ItemView[] = [];
  for (let worker = 0; worker < plan.workers; worker++) {
    let beginUs = 0;
    for (let at = plan.workerItem[worker]; at < plan.workerItem[worker + 1]; at++) {
      const task = Math.floor(plan.schedule[at] / plan.kvHeads);
      const kvHead = plan.schedule[at] % plan.kvHeads;
      const rows = plan.taskRowEnd[task] - plan.taskRowBegin[task];
      items.push({ worker, task, kvHead, beginUs, us: costs[task], rows });
      beginUs += costs[task];
    }
  }
  const { workers, kvHeads, makespanUs, lowerBoundUs } = plan;
  return { workers, kvHeads, rows: plan.rows, makespanUs, lowerBoundUs, items };
}
