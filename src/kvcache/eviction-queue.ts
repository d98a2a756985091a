/**
 * Leaves that may be evicted, least recently used first: a binary heap with lazy deletion. An
 * entry is stale when its node was used again, got a child or was removed; stale ones are skipped.
 * @module
 */
import type { TreeNode } from './node.ts';

/** True for a node that eviction may take now. */
export const isEvictable = (node: TreeNode): boolean =>
  node.refs === 0 && node.isLeaf && node.parent !== null;

export class EvictionQueue {
  #nodes: TreeNode[] = [];
  #stamps: number[] = [];
  #compactAt = 1024;

  /** Queues a leaf under its current `lastUse`. */
  push(node: TreeNode): void {
    if (this.#nodes.length >= this.#compactAt) this.#compact();
    this.#nodes.push(node);
    this.#stamps.push(node.lastUse);
    let at = this.#nodes.length - 1;
    while (at > 0) {
      const up = (at - 1) >> 1;
      if (this.#stamps[up] <= this.#stamps[at]) break;
      this.#swap(at, up);
      at = up;
    }
  }

  /** Removes and returns the least recently used evictable leaf; null when there is none. */
  pop(): TreeNode | null {
    while (this.#nodes.length > 0) {
      const [node, stamp] = [this.#nodes[0], this.#stamps[0]];
      this.#removeTop();
      if (node.lastUse === stamp && isEvictable(node)) return node;
    }
    return null;
  }

  #removeTop(): void {
    this.#swap(0, this.#nodes.length - 1);
    this.#nodes.pop();
    this.#stamps.pop();
    for (let at = 0; ; ) {
      let least = at;
      for (const child of [2 * at + 1, 2 * at + 2]) {
        if (child < this.#nodes.length && this.#stamps[child] < this.#stamps[least]) least = child;
      }
      if (least === at) return;
      this.#swap(at, least);
      at = least;
    }
  }

  #swap(a: number, b: number): void {
    [this.#nodes[a], this.#nodes[b]] = [this.#nodes[b], this.#nodes[a]];
    [this.#stamps[a], this.#stamps[b]] = [this.#stamps[b], this.#stamps[a]];
  }

  /** Drops stale entries, so that a long-lived busy tree does not grow the heap. */
  #compact(): void {
    const [nodes, stamps] = [this.#nodes, this.#stamps];
    this.#nodes = [];
    this.#stamps = [];
    this.#compactAt = Number.POSITIVE_INFINITY;
    const seen = new Set<TreeNode>();
    nodes.forEach((node, index) => {
      if (stamps[index] !== node.lastUse || !isEvictable(node) || seen.has(node)) return;
      seen.add(node);
      this.push(node);
    });
    this.#compactAt = Math.max(1024, 2 * this.#nodes.length);
  }
}
