/**
 * Workload files: prefix trees with lengths only, to plan and to measure attention with. Format:
 * a JSON list of {"name", "nodes": [{"parent": -1 or an earlier index, "tokens"}], "requests":
 * [node index, ...], "q_heads", "kv_heads", "head_dim"}; a request's context is the path from the
 * root to its node.
 * @module
 */
import { checkInteger, FlashForgeError, show } from '../base/errors.ts';
import { ceilDiv } from '../base/math.ts';
import type { Forest } from '../kvcache/forest.ts';

/** One prefix tree (or forest) with its requests and head shape. */
export interface Workload {
  readonly name: string;
  /** (nodes) index of the parent, which stands earlier, or -1. */
  readonly parent: Int32Array;
  /** (nodes) tokens of each node. */
  readonly tokens: Int32Array;
  /** (requests) node at which each request ends. */
  readonly requests: Int32Array;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Positions and page indices are 32-bit, so that a path may hold this many tokens at most. */
const PATH_TOKENS_MAX = 2 ** 30;
const NODES_MAX = 2 ** 22;
/** Page ids of one workload: half a gigabyte. */
const PAGES_MAX = 2 ** 27;
const HEADS_MAX = 1024;
const HEAD_DIM_MAX = 1024;

/**
 * Parses a workload file's text.
 * @throws FlashForgeError 'input' naming the workload's index, the field, the value and the range.
 */
export function parseWorkloads(text: string): Workload[] {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new FlashForgeError('input', `workload file is not JSON: ${(error as Error).message}`);
  }
  const list = listOf('workload file', json);
  if (list.length === 0) {
    throw new FlashForgeError('input', 'workload file must hold at least one workload, got none');
  }
  return list.map((entry, index) => parseWorkload(entry, `workload[${index}]`));
}

function parseWorkload(value: unknown, at: string): Workload {
  const entry = objectOf(at, value);
  if (entry.name !== undefined && typeof entry.name !== 'string') {
    throw new FlashForgeError('input', `${at}.name must be text, got ${show(entry.name)}`);
  }
  const nodes = listOf(`${at}.nodes`, entry.nodes);
  countIn(`${at}.nodes`, nodes.length, NODES_MAX);
  const parent = new Int32Array(nodes.length);
  const tokens = new Int32Array(nodes.length);
  const end = new Float64Array(nodes.length);
  for (let i = 0; i < nodes.length; i++) {
    const node = objectOf(`${at}.nodes[${i}]`, nodes[i]);
    parent[i] = parentOf(`${at}.nodes[${i}].parent`, node.parent, i, nodes.length);
    const field = `${at}.nodes[${i}].tokens`;
    tokens[i] = checkInteger('input', field, node.tokens, 0, PATH_TOKENS_MAX);
    end[i] = (parent[i] < 0 ? 0 : end[parent[i]]) + tokens[i];
    if (end[i] > PATH_TOKENS_MAX) {
      const most = `a path may hold ${PATH_TOKENS_MAX} tokens at most`;
      throw new FlashForgeError('input', `${field} is ${tokens[i]} and ends at ${end[i]}: ${most}`);
    }
  }
  const requests = listOf(`${at}.requests`, entry.requests);
  countIn(`${at}.requests`, requests.length, NODES_MAX);
  const queryHeads = checkInteger('input', `${at}.q_heads`, entry.q_heads, 1, HEADS_MAX);
  const kvHeads = checkInteger('input', `${at}.kv_heads`, entry.kv_heads, 1, HEADS_MAX);
  if (queryHeads % kvHeads !== 0) {
    const rule = `must be a multiple of kv_heads ${kvHeads}`;
    throw new FlashForgeError('input', `${at}.q_heads ${rule}, got ${queryHeads}`);
  }
  return {
    name: entry.name ?? at,
    parent,
    tokens,
    requests: Int32Array.from(requests, (node, i) => {
      const field = `${at}.requests[${i}]`;
      const index = checkInteger('input', field, node, 0, nodes.length - 1);
      if (end[index] > 0) return index;
      throw new FlashForgeError('input', `${field} is node ${index}, whose path holds no token`);
    }),
    queryHeads,
    kvHeads,
    headDim: checkInteger('input', `${at}.head_dim`, entry.head_dim, 1, HEAD_DIM_MAX),
  };
}

function parentOf(field: string, value: unknown, node: number, nodes: number): number {
  const parent = checkInteger('input', field, value, -1, nodes - 1);
  if (parent < node) return parent;
  const rule = 'must be -1 or the index of an earlier node (no cycles)';
  throw new FlashForgeError('input', `${field} of node ${node} ${rule}, got ${parent}`);
}

function listOf(field: string, value: unknown): unknown[] {
  if (Array.isArray(value)) return value;
  throw new FlashForgeError('input', `${field} must be a list, got ${show(value)}`);
}

function objectOf(field: string, value: unknown): Record<string, unknown> & { name?: string } {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return value as Record<string, unknown>;
  }
  throw new FlashForgeError('input', `${field} must be an object, got ${show(value)}`);
}

function countIn(field: string, count: number, most: number): void {
  if (count >= 1 && count <= most) return;
  throw new FlashForgeError('input', `${field} must have 1 to ${most} entries, got ${count}`);
}

/** A workload's forest, with what leads back to the file's numbering. */
export interface WorkloadForest {
  readonly forest: Forest;
  /** Number of KV pages that the forest uses: ids 0 to pages - 1. */
  readonly pages: number;
  /** (requests of the file) row of each request. */
  readonly requestRow: Int32Array;
  /** (nodes of the file) node index in the forest. */
  readonly nodeIndex: Int32Array;
}

/**
 * One decode step over a workload: a row a request, at the last token of its path. Nodes are put
 * into depth-first order, requests that end at a node before those below it, and every node
 * starts in a new page; page ids are consecutive.
 * @param withPages false leaves `pageBegin` and `pages` empty: plans need no page ids.
 * @throws FlashForgeError 'input' if the page ids would not fit into memory.
 */
export function workloadForest(
  workload: Workload,
  pageSize: number,
  withPages = true,
): WorkloadForest {
  const { parent, tokens, requests } = workload;
  const nodes = parent.length;
  const order = depthFirst(parent);
  const nodeIndex = new Int32Array(nodes);
  order.forEach((node, index) => {
    nodeIndex[node] = index;
  });
  const forest = {
    rows: requests.length,
    rowPosition: new Int32Array(requests.length),
    requests: requests.length,
    requestRow: Int32Array.from({ length: requests.length + 1 }, (_, i) => i),
    nodes,
    parent: new Int32Array(nodes),
    start: new Int32Array(nodes),
    length: new Int32Array(nodes),
    rowBegin: new Int32Array(nodes),
    rowEnd: new Int32Array(nodes),
    firstSlot: new Int32Array(nodes),
    pageBegin: new Int32Array(nodes + 1),
    pages: new Int32Array(0),
  };
  const requestRow = placeRows(forest, workload, order, nodeIndex);
  let pages = 0;
  for (let index = 0; index < nodes; index++) pages += ceilDiv(forest.length[index], pageSize);
  if (withPages) addPages(forest, workload.name, pages, pageSize);
  for (let i = 0; i < requests.length; i++) {
    const node = nodeIndex[requests[i]];
    forest.rowPosition[requestRow[i]] = forest.start[node] + tokens[requests[i]] - 1;
  }
  return { forest, pages, requestRow, nodeIndex };
}

function addPages(
  forest: { -readonly [field in keyof Forest]: Forest[field] },
  name: string,
  pages: number,
  pageSize: number,
): void {
  if (pages > PAGES_MAX) {
    const rule = `at most ${PAGES_MAX} are possible`;
    const message = `workload ${show(name)} needs ${pages} pages, ${rule}`;
    throw new FlashForgeError('input', message);
  }
  for (let node = 0; node < forest.nodes; node++) {
    forest.pageBegin[node + 1] = forest.pageBegin[node] + ceilDiv(forest.length[node], pageSize);
  }
  forest.pages = Int32Array.from({ length: pages }, (_, page) => page);
}

/** The nodes in depth-first order, children in the file's order. */
function depthFirst(parent: Int32Array): Int32Array {
  const nodes = parent.length;
  // Sizes of subtrees give each node its place: after its parent and its earlier siblings.
  const size = new Int32Array(nodes).fill(1);
  for (let node = nodes - 1; node >= 0; node--) {
    if (parent[node] >= 0) size[parent[node]] += size[node];
  }
  const next = new Int32Array(nodes);
  const order = new Int32Array(nodes);
  let nextRoot = 0;
  for (let node = 0; node < nodes; node++) {
    const above = parent[node];
    const place = above < 0 ? nextRoot : next[above];
    if (above < 0) nextRoot += size[node];
    else next[above] += size[node];
    next[node] = place + 1;
    order[place] = node;
  }
  return order;
}

/** Fills the nodes' arrays; returns the row of each request. */
function placeRows(
  forest: Pick<Forest, 'parent' | 'start' | 'length' | 'rowBegin' | 'rowEnd'>,
  workload: Workload,
  order: Int32Array,
  nodeIndex: Int32Array,
): Int32Array {
  const nodes = order.length;
  const ending = new Int32Array(nodes);
  for (const node of workload.requests) ending[nodeIndex[node]]++;
  const nextRow = new Int32Array(nodes);
  let row = 0;
  for (let index = 0; index < nodes; index++) {
    const above = workload.parent[order[index]];
    const parent = above < 0 ? -1 : nodeIndex[above];
    forest.parent[index] = parent;
    forest.length[index] = workload.tokens[order[index]];
    forest.start[index] = parent < 0 ? 0 : forest.start[parent] + forest.length[parent];
    forest.rowBegin[index] = row;
    nextRow[index] = row;
    row += ending[index];
    forest.rowEnd[index] = row;
  }
  for (let index = nodes - 1; index > 0; index--) {
    const parent = forest.parent[index];
    if (parent >= 0) {
      forest.rowEnd[parent] = Math.max(forest.rowEnd[parent], forest.rowEnd[index]);
    }
  }
  return Int32Array.from(workload.requests, (node) => nextRow[nodeIndex[node]]++);
}

/** KV bytes of a workload, K and V over all its KV heads, for one layer. */
export interface WorkloadBytes {
  /** Every token of a used node once. */
  readonly unique: number;
  /** Every request's whole path. */
  readonly flat: number;
  /** flat / unique. */
  readonly reduction: number;
}

/** Counts a workload's KV bytes at `elementBytes` a number. */
export function workloadBytes(workload: Workload, elementBytes = 2): WorkloadBytes {
  const { parent, tokens, requests } = workload;
  const nodes = parent.length;
  const below = new Int32Array(nodes);
  for (const node of requests) below[node]++;
  let unique = 0;
  let flat = 0;
  for (let node = nodes - 1; node >= 0; node--) {
    if (below[node] === 0) continue;
    unique += tokens[node];
    flat += tokens[node] * below[node];
    if (parent[node] >= 0) below[parent[node]] += below[node];
  }
  const bytes = 2 * workload.kvHeads * workload.headDim * elementBytes;
  return { unique: unique * bytes, flat: flat * bytes, reduction: flat / unique };
}
