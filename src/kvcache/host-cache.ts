/**
 * KV that has left the device: pages that eviction takes are copied to host memory first, and a
 * sequence that needs them again gets them back instead of computing them. The unit is a chunk of
 * page size at a multiple of it in the sequence, wherever in the device's pages its tokens lie,
 * so that runs which begin inside a page match all the same. A last part of a chunk is not kept.
 * @module
 */
import { assert } from '../base/errors.ts';
import { type Chunk, chunkKeys, HostChunks } from './host-chunks.ts';
import type { TreeNode } from './node.ts';
import { type Namespace, Path, PUBLIC } from './path.ts';
import type { PrefixTree } from './prefix-tree.ts';

/**
 * Host memory beside a device's KV pages. Copies are done in order with the steps that the device
 * was given: after those before, before those that follow. The arrays are free on return.
 */
export interface HostKv {
  /** Its size in pages of as many tokens as the device's. */
  readonly pages: number;
  /** Fills `pages` (n) with the tokens in the device's `slots` (n, pageSize). */
  save(slots: Int32Array, pages: Int32Array): void;
  /** The way back; tokens with slot -1 are left out. */
  load(pages: Int32Array, slots: Int32Array): void;
}

export interface HostStats {
  /** Pages of host memory, and those with KV in them. */
  readonly pages: number;
  readonly pagesUsed: number;
  readonly bytes: number;
  readonly bytesUsed: number;
  /** Tokens copied to the host, and back to the device, since the start. */
  readonly savedTokens: number;
  readonly restoredTokens: number;
}

export class HostCache {
  readonly #tree: PrefixTree;
  readonly #host: HostKv;
  readonly #chunks: HostChunks;
  readonly #pageSize: number;
  /** [host page] slots of what one eviction is about to copy there. */
  readonly #pending = new Map<number, Int32Array>();
  /** Chunks before the last evicted tokens, from the root on, and the nodes above those. */
  readonly #trail: Chunk[] = [];
  #trailNodes = new Set<TreeNode>();
  /** The last sequence that was looked up: the next one often begins alike. */
  #lastFound = NOTHING_FOUND;
  #savedTokens = 0;
  #restoredTokens = 0;

  constructor(tree: PrefixTree, host: HostKv) {
    this.#tree = tree;
    this.#host = host;
    this.#pageSize = tree.pool.pageSize;
    this.#chunks = new HostChunks(host.pages);
    tree.evictions = this;
  }

  /** Runs an insertion into the tree and restores what it can of the path. */
  admit(tokens: ArrayLike<number>, namespace: Namespace, insert: () => Path): Path {
    const known = this.#find(tokens, namespace);
    // What the insertion evicts must not take the place of what it wants.
    this.#chunks.pin(known);
    try {
      const path = insert();
      this.#restore(path, known);
      return path;
    } finally {
      this.#chunks.unpin(known);
    }
  }

  /**
   * Brings back what follows a path's computed tokens, as far as it is known without a gap and
   * nobody else is computing it.
   */
  restore(path: Path, namespace: Namespace): void {
    this.#restore(path, this.#find(path.tokens(), namespace));
  }

  #restore(path: Path, known: readonly Chunk[]): void {
    const size = this.#pageSize;
    const { from, to } = this.#tree.claim(path);
    const first = Math.floor(from / size);
    let last = first;
    while (last < known.length && last * size < to && known[last].page >= 0) last++;
    if (last === first || from === to) return;
    const end = Math.min(to, last * size);
    const slots = new Int32Array((last - first) * size).fill(-1);
    this.#tree.copySlots(path, from, end, slots, from - first * size);
    this.#host.load(
      Int32Array.from(known.slice(first, last), ({ page }) => page),
      slots,
    );
    this.#tree.commit(path, end);
    this.#restoredTokens += end - from;
  }

  /** The tree's word that a leaf's tokens from index `keep` on will go. */
  leaving(leaf: TreeNode, keep: number): void {
    const size = this.#pageSize;
    const from = Math.floor((leaf.start + keep) / size);
    const to = Math.min(Math.floor(leaf.end / size), from + this.#chunks.pagesToGive);
    if (from >= to) return;
    const trail = this.#follow(leaf, to);
    const path = new Path(leaf, '', -1);
    // The beginning last, so that it stays longest: the rest is of no use without it.
    for (let at = to - 1; at >= from; at--) {
      if (!this.#chunks.keep(trail[at])) continue;
      const slots = new Int32Array(size);
      this.#tree.copySlots(path, at * size, (at + 1) * size, slots, 0);
      this.#pending.set(trail[at].page, slots);
    }
    // What grows there next may be something else.
    trail.length = Math.min(trail.length, from);
  }

  /** The tree's word that pages will be used again from now on. */
  left(): void {
    if (this.#pending.size === 0) return;
    const size = this.#pageSize;
    const slots = new Int32Array(this.#pending.size * size);
    let at = 0;
    for (const each of this.#pending.values()) slots.set(each, size * at++);
    this.#savedTokens += slots.length;
    this.#host.save(slots, Int32Array.from(this.#pending.keys()));
    this.#pending.clear();
  }

  /** Forgets everything that no path holds, here and on the device. */
  evictAll(): void {
    this.#tree.evictions = null;
    this.#tree.evictAll();
    this.#tree.evictions = this;
    this.#chunks.clear();
    this.#trail.length = 0;
    this.#lastFound = NOTHING_FOUND;
  }

  /** @param tokenBytes KV of one token over all layers */
  stats(tokenBytes: number): HostStats {
    const { pages, pagesUsed } = this.#chunks;
    const pageBytes = this.#pageSize * tokenBytes;
    return {
      pages,
      pagesUsed,
      bytes: pages * pageBytes,
      bytesUsed: pagesUsed * pageBytes,
      savedTokens: this.#savedTokens,
      restoredTokens: this.#restoredTokens,
    };
  }

  /** The known chunks of a sequence, from its beginning on; some have no KV. */
  #find(tokens: ArrayLike<number>, namespace: Namespace): Chunk[] {
    const size = this.#pageSize;
    const { salt, publicTokens } = namespace;
    const all = new Int32Array(tokens);
    const last = this.#lastFound;
    let same = 0;
    if (last.salt === salt && last.publicTokens === publicTokens) {
      const most = Math.min(all.length, last.chunks.length * size);
      while (same < most && all[same] === last.tokens[same]) same++;
    }
    const chunks = last.chunks.slice(0, Math.floor(same / size));
    dropDead(chunks);
    const keyOf = chunkKeys(all, size, salt, publicTokens);
    let chunk: Chunk | undefined = chunks.at(-1) ?? this.#chunks.root;
    while ((chunks.length + 1) * size <= all.length) {
      chunk = chunk.children.get(keyOf(chunks.length));
      if (chunk === undefined) break;
      chunks.push(chunk);
    }
    this.#lastFound = { tokens: all, salt, publicTokens, chunks };
    return chunks;
  }

  /**
   * The first `count` chunks of a leaf's path, made where they are missing. Evictions go from leaf
   * to leaf nearby, so that what the last one followed is mostly the way of the next one too.
   */
  #follow(leaf: TreeNode, count: number): Chunk[] {
    const size = this.#pageSize;
    const trail = this.#trail;
    const nodes = new Set<TreeNode>();
    let [common, salt, begin] = [-1, '', Number.POSITIVE_INFINITY];
    for (let node: TreeNode | null = leaf; node !== null; node = node.parent) {
      if (common < 0 && this.#trailNodes.has(node)) common = node.end;
      nodes.add(node);
      if (typeof node.edge === 'number' || node.edge === '') continue;
      // A root's edge is the salt itself.
      const end = node.parent === null ? undefined : node.edge.lastIndexOf('\n');
      [salt, begin] = [node.edge.slice(0, end), node.start];
    }
    this.#trailNodes = nodes;
    trail.length = Math.min(trail.length, count, Math.floor(Math.max(0, common) / size));
    dropDead(trail);
    const start = trail.length * size;
    const tokens = new Int32Array(count * size - start);
    new Path(leaf, '', -1).copyTokens(start, count * size, tokens, 0);
    assert(
      tokens.every((token) => token >= 0),
      'a token that nobody knows was evicted',
    );
    const keyOf = chunkKeys(tokens, size, salt, begin - start);
    const first = trail.length;
    let chunk = trail.at(-1) ?? this.#chunks.root;
    while (trail.length < count) {
      chunk = this.#chunks.child(chunk, keyOf(trail.length - first));
      trail.push(chunk);
    }
    return trail;
  }
}

/** Cuts a chain where its chunks were taken out of the trie: what is below went before. */
function dropDead(chain: Chunk[]): void {
  while (chain.length > 0 && !chain[chain.length - 1].alive) chain.pop();
}

const NOTHING_FOUND = {
  tokens: new Int32Array(),
  ...PUBLIC,
  chunks: [] as readonly Chunk[],
};
