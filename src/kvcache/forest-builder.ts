/**
 * From the paths that take part in a step to the step's Forest: rows sorted depth-first, so that
 * every node is an interval of rows. Buffers live over steps; while the same paths only grow at
 * their leaves, the last forest is patched instead of rebuilt.
 * @module
 */
import { assert } from '../base/errors.ts';
import { ceilDiv } from '../base/math.ts';
import type { Forest } from './forest.ts';
import type { TreeNode } from './node.ts';
import type { Path } from './path.ts';
import type { PrefixTree } from './prefix-tree.ts';

/** A path's share of a step: its tokens from position `from` to, not including, `to` are rows. */
export interface ForestEntry {
  readonly path: Path;
  readonly from: number;
  readonly to: number;
}

/** Free page entries behind a leaf, so that it can grow without moving its neighbours' pages. */
const SPARE_PAGES = 4;

/** Distinguishes builds over all trees and builders: nodes carry the stamp of the last one. */
let nextStamp = 0;

type Writable<T> = { -readonly [K in keyof T]: T[K] };

export class ForestBuilder {
  /** Changes when the last forest's shape did: a plan with open leaf ends is valid until then. */
  version = 0;
  /** (requests) index of each forest request in the entries of the last `build`. */
  order = new Int32Array(64);

  readonly #tree: PrefixTree;
  readonly #forest: Writable<Forest>;
  /** Tree nodes of the last forest, depth-first; the first `#nodeCount` are valid. */
  readonly #nodes: TreeNode[] = [];
  /** (entries) what the last build saw: path, node of the last row, number of rows. */
  readonly #paths: Path[] = [];
  readonly #tips: TreeNode[] = [];
  readonly #counts: number[] = [];
  #nextEntry = new Int32Array(64);
  #treeVersion = -1;
  #nodeCount = 0;

  constructor(tree: PrefixTree) {
    this.#tree = tree;
    const array = (): Int32Array => new Int32Array(64);
    this.#forest = {
      rows: 0,
      rowPosition: array(),
      requests: 0,
      requestRow: array(),
      nodes: 0,
      parent: array(),
      start: array(),
      length: array(),
      rowBegin: array(),
      rowEnd: array(),
      firstSlot: array(),
      pageBegin: array(),
      pages: array(),
    };
  }

  /**
   * The forest of a step. Rows of entry `order[r]` are requestRow[r] <= row < requestRow[r + 1].
   * The result is valid until the next call.
   */
  build(entries: readonly ForestEntry[]): Forest {
    if (!this.#sameShape(entries) || !this.#patch(entries)) this.#rebuild(entries);
    return this.#forest;
  }

  #sameShape(entries: readonly ForestEntry[]): boolean {
    if (this.#treeVersion !== this.#tree.structureVersion) return false;
    if (this.#paths.length !== entries.length) return false;
    for (let index = 0; index < entries.length; index++) {
      const { path, from, to } = entries[index];
      if (this.#paths[index] !== path || this.#counts[index] !== to - from) return false;
      // A row inside the tip reads one more or fewer nodes once it leaves the tip.
      if (this.#tips[index] !== path.tip || from < this.#tips[index].start) return false;
    }
    return true;
  }

  /** Moves rows and leaf ends of the last forest; false where a leaf ran out of page entries. */
  #patch(entries: readonly ForestEntry[]): boolean {
    const forest = this.#forest;
    const { pageSize } = this.#tree.pool;
    for (let request = 0; request < forest.requests; request++) {
      const { path, from, to } = entries[this.order[request]];
      const tip = path.tip!;
      const node = tip.forestIndex;
      const length = Math.max(tip.forestLength, to - tip.start);
      const pages = ceilDiv(tip.firstSlot + length, pageSize);
      if (tip.forestPages + pages > forest.pageBegin[node + 1]) return false;
      const before = ceilDiv(tip.firstSlot + tip.forestLength, pageSize);
      for (let page = before; page < pages; page++) {
        forest.pages[tip.forestPages + page] = tip.pages[page];
      }
      tip.forestLength = length;
      forest.length[node] = tip.start + length - forest.start[node];
      const row = forest.requestRow[request];
      for (let index = 0; index < to - from; index++)
        forest.rowPosition[row + index] = from + index;
    }
    return true;
  }

  #rebuild(entries: readonly ForestEntry[]): void {
    this.version++;
    this.#treeVersion = this.#tree.structureVersion;
    const roots = this.#link(entries);
    const forest = this.#forest;
    forest.rows = 0;
    forest.requests = 0;
    forest.nodes = 0;
    this.#nodeCount = 0;
    if (roots !== null) this.#walk(roots, entries);
    this.#listPages();
  }

  /** Links the nodes on the entries' paths into child lists; returns the list of top nodes. */
  #link(entries: readonly ForestEntry[]): TreeNode | null {
    const stamp = ++nextStamp;
    let [rows, nodes] = [0, 0];
    let roots: TreeNode | null = null;
    this.#paths.length = entries.length;
    this.#tips.length = entries.length;
    this.#counts.length = entries.length;
    if (this.#nextEntry.length < entries.length)
      this.#nextEntry = new Int32Array(2 * entries.length);
    for (let index = entries.length - 1; index >= 0; index--) {
      const { path, from, to } = entries[index];
      assert(from >= 0 && from < to && to <= path.length, 'rows outside of the path');
      this.#paths[index] = path;
      this.#counts[index] = to - from;
      rows += to - from;
      let node = path.tip!;
      while (node.start >= to) node = node.parent!;
      this.#tips[index] = node;
      let child: TreeNode | null = null;
      for (let each = node; each.parent !== null; each = each.parent) {
        const isNew = each.mark !== stamp;
        if (isNew) startNode(each, stamp);
        if (child !== null) addChild(each, child);
        each.forestLength = Math.max(each.forestLength, Math.min(each.length, to - each.start));
        child = isNew ? each : null;
        if (!isNew) break;
        nodes++;
      }
      this.#nextEntry[index] = node.firstEntry;
      node.firstEntry = index;
      if (child === null) continue;
      child.nextSibling = roots;
      roots = child;
    }
    this.#reserve(rows, entries.length, nodes);
    return roots;
  }

  /** Numbers nodes and rows depth-first. */
  #walk(roots: TreeNode, entries: readonly ForestEntry[]): void {
    const forest = this.#forest;
    let node: TreeNode | null = roots;
    while (node !== null) {
      this.#enter(node, entries);
      if (node.firstChild !== null) {
        node = node.firstChild;
        continue;
      }
      let next: TreeNode | null = null;
      while (node !== null && next === null) {
        forest.rowEnd[node.forestIndex] = forest.rows;
        next = node.nextSibling;
        node = node.parent!.parent === null ? null : node.parent;
      }
      node = next;
    }
    forest.requestRow[forest.requests] = forest.rows;
  }

  /** Adds a node, or lengthens its parent's where both are one run of KV for the same rows. */
  #enter(node: TreeNode, entries: readonly ForestEntry[]): void {
    const forest = this.#forest;
    const parent = node.parent!.parent === null ? null : node.parent!;
    this.#nodes[this.#nodeCount++] = node;
    if (parent !== null && this.#continues(node, parent)) {
      node.forestIndex = parent.forestIndex;
      forest.length[node.forestIndex] += node.forestLength;
    } else {
      const index = forest.nodes++;
      node.forestIndex = index;
      forest.parent[index] = parent === null ? -1 : parent.forestIndex;
      forest.start[index] = node.start;
      forest.length[index] = node.forestLength;
      forest.firstSlot[index] = node.firstSlot;
      forest.rowBegin[index] = forest.rows;
    }
    for (let entry = node.firstEntry; entry >= 0; entry = this.#nextEntry[entry]) {
      const { from, to } = entries[entry];
      this.order[forest.requests] = entry;
      forest.requestRow[forest.requests++] = forest.rows;
      for (let at = from; at < to; at++) forest.rowPosition[forest.rows++] = at;
    }
  }

  #continues(node: TreeNode, parent: TreeNode): boolean {
    if (parent.firstEntry >= 0 || node.nextSibling !== null || parent.firstChild !== node)
      return false;
    const { pageSize } = this.#tree.pool;
    if (parent.forestLength < parent.length) return false;
    if (node.firstSlot !== (parent.firstSlot + parent.length) % pageSize) return false;
    return node.firstSlot === 0 || node.pages[0] === parent.pages[parent.pageCount - 1];
  }

  #listPages(): void {
    const forest = this.#forest;
    const { pageSize } = this.#tree.pool;
    let count = 0;
    let open = -1;
    for (let index = 0; index < this.#nodeCount; index++) {
      const node = this.#nodes[index];
      const pages = ceilDiv(node.firstSlot + node.forestLength, pageSize);
      if (node.forestIndex !== open) {
        if (index > 0) count += SPARE_PAGES;
        open = node.forestIndex;
        forest.pageBegin[open] = count;
      } else if (node.firstSlot > 0) count--;
      node.forestPages = count;
      if (count + pages + SPARE_PAGES > forest.pages.length) {
        forest.pages = widen(forest.pages, count + pages + SPARE_PAGES);
      }
      forest.pages.set(node.pages.subarray(0, pages), count);
      count += pages;
    }
    forest.pageBegin[forest.nodes] = count + SPARE_PAGES;
  }

  #reserve(rows: number, requests: number, nodes: number): void {
    const forest = this.#forest;
    if (rows > forest.rowPosition.length) forest.rowPosition = new Int32Array(2 * rows);
    if (requests >= forest.requestRow.length) {
      forest.requestRow = new Int32Array(2 * requests);
      this.order = new Int32Array(2 * requests);
    }
    if (nodes < forest.parent.length) return;
    for (const name of NODE_ARRAYS) forest[name] = new Int32Array(2 * nodes);
  }
}

const NODE_ARRAYS = [
  'parent',
  'start',
  'length',
  'rowBegin',
  'rowEnd',
  'firstSlot',
  'pageBegin',
] as const;

function startNode(node: TreeNode, stamp: number): void {
  node.mark = stamp;
  node.firstChild = null;
  node.nextSibling = null;
  node.firstEntry = -1;
  node.forestLength = 0;
}

function addChild(parent: TreeNode, child: TreeNode): void {
  child.nextSibling = parent.firstChild;
  parent.firstChild = child;
}

function widen(array: Int32Array, length: number): Int32Array<ArrayBuffer> {
  const wider = new Int32Array(2 * length);
  wider.set(array);
  return wider;
}
