/**
 * A held path of the prefix tree: what a running sequence or a pinned prefix is to the cache.
 * @module
 */
import { type Edge, saltedEdge, type TreeNode } from './node.ts';

/** Where a sequence lives: who may share its KV. */
export interface Namespace {
  /** Sequences under different salts share nothing; '' is the public one. */
  readonly salt: string;
  /** Leading tokens that are public all the same: shared under every salt. */
  readonly publicTokens: number;
}

export const PUBLIC: Namespace = { salt: '', publicTokens: 0 };

/** The key of the root under which sequences of this namespace begin. */
export const rootKey = ({ salt, publicTokens }: Namespace): string =>
  publicTokens > 0 ? '' : salt;

/** See `Path.border`. */
export const borderOf = ({ salt, publicTokens }: Namespace): number =>
  salt !== '' && publicTokens > 0 ? publicTokens : -1;

/**
 * A path from a root to the end of `tip`. Everything on it stays in the cache until the path is
 * released. Only the tree changes it; after `release` it must not be used.
 */
export class Path {
  /** Null once released. */
  tip: TreeNode | null;

  readonly salt: string;
  /** Length at which the public part ends and the salted one begins; -1 = there is no border. */
  readonly border: number;

  constructor(tip: TreeNode, salt: string, border: number) {
    this.tip = tip;
    this.salt = salt;
    this.border = border;
  }

  /** What a child that continues the path by `token` hangs on. */
  edgeTo(token: number): Edge {
    return this.length === this.border ? saltedEdge(this.salt, token) : token;
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
