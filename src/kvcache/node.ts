/**
 * A node of the prefix tree: a run of tokens and the KV slots that hold them. The functions here
 * keep tokens, pages and the pool's accounts in step; the tree above them decides when.
 * @module
 */
import { assert } from '../base/errors.ts';
import { ceilDiv } from '../base/math.ts';
import type { PagePool } from './page-pool.ts';
import type { Path } from './path.ts';

let nextId = 1;

/**
 * What a child hangs on at its parent: its first token. The first node of a salted run below a
 * public prefix hangs on salt and token, so that it is found by requests with that salt alone.
 */
export type Edge = number | string;

export const saltedEdge = (salt: string, token: number): Edge => `${salt}\n${token}`;

export class TreeNode {
  /** Unique over the life of the process; for statistics and displays. */
  readonly id = nextId++;
  /** Null for a root and for a node that was removed. */
  parent: TreeNode | null;
  /** Key of this node among its parent's children. */
  edge: Edge;
  /** Children by edge; a second child with the same edge is in `privates`. */
  readonly children = new Map<Edge, TreeNode>();
  readonly privates = new Set<TreeNode>();

  /** Absolute position of the first token. */
  start: number;
  /** (length) token ids, with room to grow; a split shares the buffer between both halves. */
  tokens: Int32Array;
  length = 0;
  /** Leading tokens whose KV is written; the rest is known but not yet computed. */
  computed = 0;
  /** The path that computes the missing tokens; null = nobody yet. */
  writer: Path | null = null;

  /** Page ids; token t is in pages[floor((firstSlot + t) / pageSize)]. */
  pages: Int32Array;
  pageCount = 0;
  firstSlot = 0;

  /** Paths that end here. */
  holds = 0;
  /** Paths that pass through or end here. */
  refs = 0;
  /** The tree's clock when a path last let go of the node. */
  lastUse = 0;

  /** Fields of the forest builder: valid where `mark` is the builder's current stamp. */
  mark = 0;
  forestIndex = -1;
  forestLength = 0;
  /** Index in the forest's `pages` of the node's own first page. */
  forestPages = 0;
  firstChild: TreeNode | null = null;
  nextSibling: TreeNode | null = null;
  firstEntry = -1;

  constructor(
    parent: TreeNode | null,
    edge: Edge,
    start: number,
    tokens: Int32Array,
    pages: Int32Array,
  ) {
    this.parent = parent;
    this.edge = edge;
    this.start = start;
    this.tokens = tokens;
    this.pages = pages;
  }

  /** Absolute position after the last token. */
  get end(): number {
    return this.start + this.length;
  }

  get isLeaf(): boolean {
    return this.children.size === 0 && this.privates.size === 0;
  }

  get isPrivate(): boolean {
    return this.parent?.privates.has(this) === true;
  }

  /** Attached children first, then private ones. */
  *allChildren(): Generator<TreeNode> {
    yield* this.children.values();
    yield* this.privates;
  }
}

const EMPTY = new Int32Array(0);

export const emptyNode = (parent: TreeNode | null, edge: Edge, start: number): TreeNode =>
  new TreeNode(parent, edge, start, EMPTY, EMPTY);

/** Free slots after the node's last token that its owner (or one child) may continue into. */
export function tailRoom(node: TreeNode, pool: PagePool): number {
  const end = node.firstSlot + node.length;
  const slot = end % pool.pageSize;
  if (slot === 0 || node.pageCount === 0) return 0;
  return pool.used[node.pages[node.pageCount - 1]] === slot ? pool.pageSize - slot : 0;
}

/** True where the node itself may grow: it ends a page, or nobody continued its last page. */
export function canGrow(node: TreeNode, pool: PagePool): boolean {
  return (node.firstSlot + node.length) % pool.pageSize === 0 || tailRoom(node, pool) > 0;
}

/** Makes an empty node start where its parent's last page has room, or at a fresh page. */
export function startAfter(node: TreeNode, parent: TreeNode, pool: PagePool): void {
  if (tailRoom(parent, pool) === 0) return;
  const page = parent.pages[parent.pageCount - 1];
  node.firstSlot = (parent.firstSlot + parent.length) % pool.pageSize;
  node.pages = Int32Array.of(page);
  node.pageCount = 1;
  pool.share(page, node.refs > 0);
}

/** Adds tokens (not computed yet) at the node's end; the pool has pages enough. */
export function grow(
  node: TreeNode,
  tokens: ArrayLike<number>,
  from: number,
  pool: PagePool,
): void {
  const count = tokens.length - from;
  const length = node.length + count;
  if (length > node.tokens.length) {
    const wider = new Int32Array(Math.max(length, 2 * node.length, 16));
    wider.set(node.tokens.subarray(0, node.length));
    node.tokens = wider;
  }
  for (let index = 0; index < count; index++)
    node.tokens[node.length + index] = tokens[from + index];
  node.length = length;

  const endSlot = node.firstSlot + length;
  const pageCount = ceilDiv(endSlot, pool.pageSize);
  if (pageCount > node.pages.length) {
    const wider = new Int32Array(Math.max(pageCount, 2 * node.pageCount));
    wider.set(node.pages.subarray(0, node.pageCount));
    node.pages = wider;
  }
  if (node.pageCount > 0) markUsed(node, node.pageCount - 1, pool);
  while (node.pageCount < pageCount) {
    node.pages[node.pageCount++] = pool.take(node.refs > 0);
    markUsed(node, node.pageCount - 1, pool);
  }
}

function markUsed(node: TreeNode, index: number, pool: PagePool): void {
  const last = node.firstSlot + node.length - index * pool.pageSize;
  pool.used[node.pages[index]] = Math.min(pool.pageSize, last);
}

/** Gives up the node's claim on its page number `index`. */
function dropPage(node: TreeNode, index: number, pool: PagePool): void {
  const begin = index === 0 ? node.firstSlot : 0;
  const end = Math.min(pool.pageSize, node.firstSlot + node.length - index * pool.pageSize);
  pool.drop(node.pages[index], node.refs > 0, begin, end);
}

/** Forgets the tokens from `length` on. */
export function truncate(node: TreeNode, length: number, pool: PagePool): void {
  const keep = length === 0 ? 0 : ceilDiv(node.firstSlot + length, pool.pageSize);
  for (let index = node.pageCount - 1; index >= keep; index--) dropPage(node, index, pool);
  if (keep > 0 && keep <= node.pageCount) {
    const page = node.pages[keep - 1];
    const end = Math.min(pool.pageSize, node.firstSlot + node.length - (keep - 1) * pool.pageSize);
    const slot = node.firstSlot + length - (keep - 1) * pool.pageSize;
    if (pool.used[page] === end) pool.used[page] = slot;
  }
  node.pageCount = keep;
  node.length = length;
  node.computed = Math.min(node.computed, length);
}

/** Takes a node from among its parent's children; a private one may take its place there. */
export function detach(node: TreeNode): void {
  const parent = node.parent!;
  if (parent.privates.delete(node)) return;
  parent.children.delete(node.edge);
  for (const child of parent.privates) {
    if (child.edge !== node.edge) continue;
    parent.privates.delete(child);
    parent.children.set(child.edge, child);
    return;
  }
}

/** Hangs a node below its parent on `edge`: a private one where another hangs there. */
export function attach(node: TreeNode, edge: Edge): void {
  const parent = node.parent!;
  node.edge = edge;
  if (parent.children.has(edge)) parent.privates.add(node);
  else parent.children.set(edge, node);
}

/** Forgets the first `count` tokens (fewer than all): another node holds the same ones. */
export function dropHead(node: TreeNode, count: number, pool: PagePool): void {
  assert(count < node.length, 'dropHead would empty the node');
  const pages = Math.floor((node.firstSlot + count) / pool.pageSize);
  for (let index = 0; index < pages; index++) dropPage(node, index, pool);
  moveStart(node, count, pool.pageSize);
}

/** Makes the node begin `count` tokens later; who owns the pages before is the caller's matter. */
function moveStart(node: TreeNode, count: number, pageSize: number): void {
  const slot = node.firstSlot + count;
  const pages = Math.floor(slot / pageSize);
  node.pages = node.pages.subarray(pages);
  node.pageCount -= pages;
  node.firstSlot = slot % pageSize;
  node.tokens = node.tokens.subarray(count);
  node.start += count;
  node.length -= count;
  node.computed = Math.max(0, node.computed - count);
}

/**
 * Moves the first `count` tokens (at least one, fewer than all) into a new node between the node
 * and its parent, and returns it. No KV moves; a page that holds the cut belongs to both. The
 * node keeps its identity as the lower part, because paths that end in it end there.
 */
export function splitNode(node: TreeNode, count: number, pool: PagePool): TreeNode {
  assert(count > 0 && count < node.length, 'split outside of the node');
  const parent = node.parent;
  assert(parent !== null, 'split of a root');
  const upperPages = ceilDiv(node.firstSlot + count, pool.pageSize);
  const lowerPage = Math.floor((node.firstSlot + count) / pool.pageSize);

  const upper = new TreeNode(
    parent,
    node.edge,
    node.start,
    node.tokens.subarray(0, count),
    node.pages.slice(0, upperPages),
  );
  upper.length = count;
  upper.computed = Math.min(count, node.computed);
  upper.writer = upper.computed < count ? node.writer : null;
  upper.pageCount = upperPages;
  upper.firstSlot = node.firstSlot;
  upper.refs = node.refs;
  upper.lastUse = node.lastUse;
  if (upperPages > lowerPage) pool.share(node.pages[lowerPage], node.refs > 0);

  if (parent.privates.delete(node)) parent.privates.add(upper);
  else parent.children.set(node.edge, upper);
  node.edge = node.tokens[count];
  upper.children.set(node.edge, node);
  node.parent = upper;
  moveStart(node, count, pool.pageSize);
  return upper;
}
