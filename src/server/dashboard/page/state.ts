/**
 * What the server tells the page; see /openapi.json, DashboardState.
 * @module
 */
import type { TreeNode } from './tree-layout.ts';

export interface PlanItem {
  readonly worker: number;
  readonly task: number;
  readonly kv_head: number;
  readonly rows: number;
  readonly begin_us: number;
  readonly us: number;
}

export interface Plan {
  readonly workers: number;
  readonly kv_heads: number;
  readonly rows: number;
  readonly makespan_us: number;
  readonly lower_bound_us: number;
  readonly items: readonly PlanItem[];
}

export interface Second {
  /** Unix time in s. */
  readonly time: number;
  readonly tokens: number;
  readonly tpot_ms: number | null;
  readonly ttft_ms: number | null;
}

export interface State {
  /** Unix time in s. */
  readonly time: number;
  readonly model: string;
  readonly device: string;
  readonly provider: string;
  readonly running: number;
  readonly waiting: number;
  readonly open: number;
  readonly prefixes: number;
  readonly pages: {
    readonly total: number;
    readonly held: number;
    readonly cached: number;
    readonly size: number;
  };
  readonly kv: {
    readonly bytes_read: number;
    readonly bytes_flat: number;
    readonly reduction: number;
  };
  readonly tree: { readonly count: number; readonly nodes: readonly TreeNode[] };
  readonly plan: Plan | null;
  readonly recent: readonly Second[];
}
