/**
 * The prefix tree: every token sequence the cache knows, each shared prefix once. Nodes own runs
 * of KV in pages; requests are paths. Matching, forking and splitting move no KV. What no path
 * holds stays cached until pages run out, then the least recently used leaves go first.
 * (RadixAttention, Zheng et al. 2024, with runs that may start and end inside a page.)
 * @module
 */
import { assert, FlashForgeError } from '../base/errors.ts';
import { ceilDiv } from '../base/math.ts';
import { EvictionQueue, isEvictable } from './eviction-queue.ts';
import { graft, type TreeEdits } from './graft.ts';
import { commonLength, type Match, matchTokens } from './match.ts';
import {
  attach,
  canGrow,
  detach,
  emptyNode,
  grow,
  saltedEdge,
  splitNode,
  startAfter,
  type TreeNode,
  tailRoom,
  truncate,
} from './node.ts';
import { PagePool } from './page-pool.ts';
import { borderOf, type Namespace, Path, PUBLIC, rootKey } from './path.ts';

export type { Match } from './match.ts';

/** Who keeps what eviction takes: called while its KV is still there. */
export interface Evictions {
  /** The leaf will lose its tokens from index `keep` on. */
  leaving(leaf: TreeNode, keep: number): void;
  /** All of one eviction was told; its pages may be written from now on. */
  left(): void;
}

export class PrefixTree {
  readonly pool: PagePool;
  /** One root per salt: sequences under different salts never share. */
  readonly roots = new Map<string, TreeNode>();
  /**
   * Grows whenever a held part of the tree changes shape: a plan made for some paths stays valid
   * while this and the set of paths stay the same, however far the leaves grow.
   */
  structureVersion = 0;
  /** Tokens evicted so far. */
  evictedTokens = 0;
  evictions: Evictions | null = null;
  #clock = 1;
  readonly #queue = new EvictionQueue();
  readonly #edits: TreeEdits = {
    split: (node, count) => this.#split(node, count),
    remove: (node) => this.#remove(node),
    idle: (node) => this.#queueIfLeaf(node),
  };

  constructor(pages: number, pageSize: number) {
    this.pool = new PagePool(pages, pageSize);
  }

  /** Pages that are free or can be made free by eviction. */
  get availablePages(): number {
    return this.pool.freePages + this.pool.idlePages;
  }

  /** Looks a sequence up without changing anything. */
  match(tokens: ArrayLike<number>, namespace: Namespace = PUBLIC): Match {
    const root = this.roots.get(rootKey(namespace)) ?? null;
    return matchTokens(root, this.pool, tokens, namespace);
  }

  /**
   * Holds a token sequence: matched tokens are shared, the rest gets pages and waits for its KV.
   * @throws FlashForgeError 'out-of-pages' if eviction cannot free enough; nothing is held then.
   */
  insert(tokens: ArrayLike<number>, namespace: Namespace = PUBLIC): Path {
    const key = rootKey(namespace);
    let root = this.roots.get(key);
    if (root === undefined) {
      root = emptyNode(null, key, 0);
      this.roots.set(key, root);
    }
    const path = new Path(root, namespace.salt, borderOf(namespace));
    this.#hold(root, null);
    root.holds++;
    try {
      this.extend(path, tokens);
    } catch (error) {
      this.release(path);
      throw error;
    }
    return path;
  }

  /**
   * Continues a path by tokens that the cache may know already.
   * @throws FlashForgeError 'out-of-pages'; the path is as before then.
   */
  extend(path: Path, tokens: ArrayLike<number>): void {
    const tip = liveTip(path);
    const border = path.border - tip.end;
    let node = tip;
    let at = 0;
    while (at < tokens.length) {
      const edge = at === border ? saltedEdge(path.salt, tokens[at]) : tokens[at];
      const child = node.children.get(edge);
      if (child === undefined) break;
      const common = commonLength(child, tokens, at, border - at);
      at += common;
      node = common < child.length ? this.#split(child, common) : child;
    }
    this.#moveTip(path, node);
    try {
      this.#makeRoomFor(node, tokens.length - at);
    } catch (error) {
      this.#moveTipUp(path, tip);
      throw error;
    }
    // Public tokens first: the private rest hangs below them as a node of its own.
    if (at < border && border < tokens.length) {
      this.#place(path, Array.prototype.slice.call(tokens, 0, border), at);
      at = border;
    }
    if (at < tokens.length) this.#place(path, tokens, at);
  }

  /**
   * Continues a path by one token whose KV is not computed yet (a sampled one). A sibling that
   * starts with the same token does not disturb: the later one is private until its release.
   * @throws FlashForgeError 'out-of-pages'; the path is as before then.
   */
  append(path: Path, token: number): void {
    this.#makeRoomFor(liveTip(path), 1);
    this.#one[0] = token;
    this.#place(path, this.#one, 0);
  }
  readonly #one = new Int32Array(1);

  /**
   * A new path that shares the first `length` tokens of another one. With another salt, which a
   * public path allows, what follows them is that salt's own.
   */
  fork(path: Path, length: number = path.length, salt: string = path.salt): Path {
    assert(length >= 0 && length <= path.length, 'fork outside of the path');
    assert(salt === path.salt || path.salt === '', 'fork of a salted path under another salt');
    let node = liveTip(path);
    while (node.parent !== null && length <= node.start) node = node.parent;
    if (length < node.end) node = this.#split(node, length - node.start);
    this.#hold(node, null);
    node.holds++;
    if (salt !== path.salt) return new Path(node, salt, length);
    return new Path(node, salt, path.border < 0 ? -1 : Math.min(path.border, length));
  }

  /**
   * The tokens that this path may compute next: from its first missing one to the end of the run
   * that no other path is computing. Empty where the path is complete or has to wait. The range
   * is the path's own until it is computed or the path is released.
   */
  claim(path: Path): { from: number; to: number } {
    const from = path.computed;
    let to = path.length;
    for (let node = liveTip(path); node.end > from; node = node.parent!) {
      if (node.writer === null) node.writer = path;
      else if (node.writer !== path) to = Math.max(from, node.start);
    }
    return { from, to };
  }

  /** Gives up what the path claimed: it pauses, and others may need those tokens computed. */
  unclaim(path: Path): void {
    for (let node: TreeNode | null = liveTip(path); node !== null; node = node.parent) {
      if (node.writer === path) node.writer = null;
    }
  }

  /** Marks the tokens before position `computed` as written. */
  commit(path: Path, computed: number): void {
    for (let node = liveTip(path); node.parent !== null; node = node.parent) {
      if (node.start >= computed) continue;
      const count = Math.min(node.length, computed - node.start);
      if (node.computed >= count) return;
      node.computed = count;
      if (count === node.length) node.writer = null;
    }
  }

  /** Where the KV of the token at `position` lies: page * pageSize + slot. */
  slotOf(path: Path, position: number): number {
    let node = liveTip(path);
    while (position < node.start) node = node.parent!;
    const slot = node.firstSlot + position - node.start;
    const page = Math.floor(slot / this.pool.pageSize);
    return node.pages[page] * this.pool.pageSize + (slot - page * this.pool.pageSize);
  }

  /** `slotOf` for positions from <= position < to, into `out`, beginning at `at`. */
  copySlots(path: Path, from: number, to: number, out: Int32Array, at: number): void {
    const { pageSize } = this.pool;
    for (let node = liveTip(path); node.end > from; node = node.parent!) {
      const end = Math.min(to, node.end);
      for (let position = Math.max(from, node.start); position < end; position++) {
        const slot = node.firstSlot + position - node.start;
        const page = node.pages[Math.floor(slot / pageSize)];
        out[at + position - from] = page * pageSize + (slot % pageSize);
      }
    }
  }

  /** Lets go of a path; what it computed stays cached, what it did not compute is forgotten. */
  release(path: Path): void {
    const tip = liveTip(path);
    path.tip = null;
    tip.holds--;
    this.#letGo(tip, null, path);
  }

  /** Evicts everything that no path holds. */
  evictAll(): void {
    this.#evict(this.pool.pages);
  }

  /** Every node but the roots, parents first. */
  *nodes(): Generator<TreeNode> {
    const stack = [...this.roots.values()];
    for (let node = stack.pop(); node !== undefined; node = stack.pop()) {
      if (node.parent !== null) yield node;
      stack.push(...node.allChildren());
    }
  }

  /** @throws FlashForgeError 'out-of-pages' unless `count` tokens can follow the node. */
  #makeRoomFor(node: TreeNode, count: number): void {
    const missing = count - tailRoom(node, this.pool);
    if (missing > 0) this.#makeRoom(ceilDiv(missing, this.pool.pageSize));
  }

  /**
   * Adds tokens from index `from` on below the path's tip, in place where nobody else ends. There
   * is room for them.
   */
  #place(path: Path, tokens: ArrayLike<number>, from: number): void {
    const tip = liveTip(path);
    const isOwn = tip.parent !== null && tip.refs === 1 && tip.isLeaf;
    if (isOwn && path.length !== path.border && canGrow(tip, this.pool)) {
      tip.writer ??= path;
      grow(tip, tokens, from, this.pool);
      return;
    }
    const edge = path.edgeTo(tokens[from]);
    const node = emptyNode(tip, edge, tip.end);
    node.refs = 1;
    node.holds = 1;
    node.writer = path;
    startAfter(node, tip, this.pool);
    grow(node, tokens, from, this.pool);
    attach(node, edge);
    tip.holds--;
    path.tip = node;
    this.structureVersion++;
  }

  #makeRoom(pages: number): void {
    if (this.pool.freePages >= pages) return;
    if (this.availablePages >= pages) this.#evict(pages);
    if (this.pool.freePages >= pages) return;
    throw new FlashForgeError(
      'out-of-pages',
      `the KV cache has no room: ${pages} pages of ${this.pool.pageSize} tokens are needed, ` +
        `${this.pool.freePages} of ${this.pool.pages} are free and the rest is in use`,
    );
  }

  /** Evicts least recently used leaves, tail first, until `pages` pages are free. */
  #evict(pages: number): void {
    while (this.pool.freePages < pages) {
      const leaf = this.#queue.pop();
      if (leaf === null) break;
      const drop = Math.min(leaf.pageCount, pages - this.pool.freePages);
      const whole = (leaf.pageCount - drop) * this.pool.pageSize;
      const keep = Math.max(0, whole - leaf.firstSlot);
      this.evictions?.leaving(leaf, keep);
      this.evictedTokens += leaf.length - keep;
      if (keep === 0) this.#remove(leaf);
      else {
        truncate(leaf, keep, this.pool);
        this.#queue.push(leaf);
      }
    }
    this.evictions?.left();
  }

  #split(node: TreeNode, count: number): TreeNode {
    if (node.refs > 0) this.structureVersion++;
    return splitNode(node, count, this.pool);
  }

  /** Takes a leaf without references out of the tree. */
  #remove(node: TreeNode): void {
    assert(node.refs === 0 && node.isLeaf, 'removed node is in use');
    const parent = node.parent!;
    detach(node);
    truncate(node, 0, this.pool);
    node.parent = null;
    this.#queueIfLeaf(parent);
  }

  #queueIfLeaf(node: TreeNode): void {
    if (isEvictable(node)) this.#queue.push(node);
    else if (node.parent === null && node.refs === 0 && node.isLeaf) {
      if (this.roots.get(String(node.edge)) === node) this.roots.delete(String(node.edge));
    }
  }

  /** Adds a reference to the nodes from `node` up to, not including, `top`. */
  #hold(node: TreeNode, top: TreeNode | null): void {
    for (let each: TreeNode | null = node; each !== top && each !== null; each = each.parent) {
      if (each.refs++ > 0) continue;
      for (let page = 0; page < each.pageCount; page++) this.pool.setBusy(each.pages[page], 1);
    }
  }

  /** Moves a path's end down to a descendant of its tip. */
  #moveTip(path: Path, node: TreeNode): void {
    const tip = liveTip(path);
    if (node === tip) return;
    this.#hold(node, tip);
    tip.holds--;
    node.holds++;
    path.tip = node;
  }

  #moveTipUp(path: Path, node: TreeNode): void {
    const tip = liveTip(path);
    if (node === tip) return;
    tip.holds--;
    node.holds++;
    path.tip = node;
    this.#letGo(tip, node, path);
  }

  /** Removes a path's reference from the nodes between `tip` and `top` (not included). */
  #letGo(tip: TreeNode, top: TreeNode | null, path: Path): void {
    const now = this.#clock++;
    for (let node: TreeNode | null = tip; node !== top && node !== null; ) {
      const parent: TreeNode | null = node.parent;
      if (node.writer === path) node.writer = null;
      node.lastUse = now;
      if (node.refs === 1) {
        for (let page = 0; page < node.pageCount; page++) this.pool.setBusy(node.pages[page], -1);
      }
      if (--node.refs === 0) this.#settle(node);
      node = parent;
    }
  }

  /** Brings a node that was just let go of into the shape of cached nodes. */
  #settle(node: TreeNode): void {
    if (node.parent === null) this.#queueIfLeaf(node);
    else if (node.computed === 0) this.#remove(node);
    else {
      if (node.computed < node.length) truncate(node, node.computed, this.pool);
      if (node.isPrivate) graft(node, this.#edits, this.pool);
      else this.#queueIfLeaf(node);
    }
  }
}

function liveTip(path: Path): TreeNode {
  assert(path.tip !== null, 'path was released');
  return path.tip;
}
