/**
 * What the dashboard reads: numbers only, never a token or a text of anybody's.
 * @module
 */
import { z } from 'zod';
import type { EngineView } from '../engine/inspect.ts';
import type { Exchange } from './exchange.ts';
import type { Route } from './route.ts';

/** Nodes and work items beyond these would be thinner than a pixel. */
const NODES_MAX = 500;
const ITEMS_MAX = 2000;

const state = z.object({
  time: z.number().describe('Unix time in s.'),
  model: z.string(),
  device: z.string(),
  provider: z.string(),
  running: z.int(),
  waiting: z.int(),
  open: z.int().describe('Requests accepted and not finished.'),
  prefixes: z.int(),
  pages: z.object({ total: z.int(), held: z.int(), cached: z.int(), size: z.int() }),
  kv: z.object({ bytes_read: z.number(), bytes_flat: z.number(), reduction: z.number() }),
  tree: z.object({
    count: z.int(),
    nodes: z.array(
      z.object({
        id: z.int(),
        parent: z.int().nullable(),
        start: z.int(),
        tokens: z.int(),
        computed: z.int(),
        sharers: z.int(),
        ends: z.int(),
      }),
    ),
  }),
  plan: z
    .object({
      workers: z.int(),
      kv_heads: z.int(),
      rows: z.int(),
      makespan_us: z.number(),
      lower_bound_us: z.number(),
      items: z.array(
        z.object({
          worker: z.int(),
          task: z.int(),
          kv_head: z.int(),
          rows: z.int(),
          begin_us: z.number(),
          us: z.number(),
        }),
      ),
    })
    .nullable()
    .describe("The last step's schedule."),
  recent: z.array(
    z.object({
      time: z.int(),
      tokens: z.int(),
      tpot_ms: z.number().nullable(),
      ttft_ms: z.number().nullable(),
    }),
  ),
});
type State = z.output<typeof state>;

async function dashboardState(exchange: Exchange): Promise<Response> {
  const { host, admission, prefixes, recent } = exchange.parts;
  const { info, names } = host.ready;
  const view = (await host.call({ kind: 'inspect', nodes: NODES_MAX })) as EngineView;
  const stats = host.stats;
  const [read, flat] = [stats?.steps.kvBytes ?? 0, stats?.steps.kvBytesFlat ?? 0];
  const cached = stats?.tree.pagesEvictable ?? 0;
  const body: State = {
    time: Date.now() / 1000,
    model: names[0],
    device: info.device,
    provider: info.provider,
    running: stats?.running ?? 0,
    waiting: stats?.waiting ?? 0,
    open: admission.open,
    prefixes: prefixes.size,
    pages: {
      total: info.pages,
      held: (stats?.tree.pagesUsed ?? 0) - cached,
      cached,
      size: info.pageSize,
    },
    kv: { bytes_read: read, bytes_flat: flat, reduction: read === 0 ? 1 : flat / read },
    tree: { count: view.nodeCount, nodes: [...view.nodes] },
    plan: planBody(view),
    recent: recent.seconds().map(({ time, tokens, tpotMs, ttftMs }) => ({
      time,
      tokens,
      tpot_ms: tpotMs,
      ttft_ms: ttftMs,
    })),
  };
  return Response.json(body);
}

function planBody({ plan }: EngineView): State['plan'] {
  if (plan === null) return null;
  return {
    workers: plan.workers,
    kv_heads: plan.kvHeads,
    rows: plan.rows,
    makespan_us: plan.makespanUs,
    lower_bound_us: plan.lowerBoundUs,
    items: plan.items.slice(0, ITEMS_MAX).map(({ worker, task, kvHead, rows, beginUs, us }) => ({
      worker,
      task,
      kv_head: kvHead,
      rows,
      begin_us: beginUs,
      us,
    })),
  };
}

export const dashboardRoutes: readonly Route[] = [
  {
    method: 'GET',
    path: '/dashboard/state',
    operation: 'dashboardState',
    summary: "The live tree, the last step's schedule and the last minutes in figures",
    tag: 'operation',
    status: 200,
    answer: { name: 'DashboardState', schema: state },
    access: 'key',
    handle: dashboardState,
  },
];
