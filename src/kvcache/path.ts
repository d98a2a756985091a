/**
 * A held path of the prefix tree: what a running sequence or a pinned prefix is to the cache.
 * @module
 */
import type { TreeNode } from './node.ts';

/**
 * A path from a root to the end of `tip`. Everything on it stays in the cache until the path is
 * released. Only the tree changes it; after `release` it must not be used.
 */
export class Path {
  /** Null once released. */
  tip: TreeNode | null;

  constructor(tip: TreeNode) {
    this.tip = tip;
  }

  get live(): boolean {
    return this.tip !== null;
  }

  /** Number of tokens. */
  get length(): number {
    return this.tip === null ? 0 : this.tip.end;
  }

  /** Leading tokens whose KV is written. */
  get computed(): number {
    let node = this.tip;
    if (node === null) return 0;
    while (node.computed === 0 && node.parent !== null) node = node.parent;
    return node.start + node.computed;
  }

  /** Copies the tokens at positions from <= position < to into `out`, beginning at `at`. */
  copyTokens(from: number, to: number, out: Int32Array, at: number): void {
    for (let node = this.tip; node !== null && node.end > from; node = node.parent) {
      const begin = Math.max(from, node.start);
      const end = Math.min(to, node.end);
      for (let position = begin; position < end; position++) {
        out[at + position - from] = node.tokens[position - node.start];
      }
    }
  }

  /** The tokens from the root on, as a new array. */
  tokens(): Int32Array {
    const tokens = new Int32Array(this.length);
    for (let node = this.tip; node !== null; node = node.parent) {
      tokens.set(node.tokens.subarray(0, node.length), node.start);
    }
    return tokens;
  }
}
