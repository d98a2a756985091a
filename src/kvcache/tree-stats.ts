/**
 * Accounts of the cache: what is held, what is shared, what it costs.
 * @module
 */
import type { PrefixTree } from './prefix-tree.ts';

export interface TreeStats {
  readonly pageSize: number;
  /** Pages in all; used = free's rest; evictable pages are used but nobody needs them. */
  readonly pages: number;
  readonly pagesUsed: number;
  readonly pagesFree: number;
  readonly pagesEvictable: number;
  /** Nodes and tokens in the cache; tokens that at least two held paths share. */
  readonly nodes: number;
  readonly tokens: number;
  readonly tokensShared: number;
  /** Tokens of all held paths, each path counted in full: what a flat cache would hold. */
  readonly tokensFlat: number;
  /** Bytes of KV of `tokens`, and of the pages in use. */
  readonly bytes: number;
  readonly bytesUsed: number;
  readonly evictedTokens: number;
}

/** Counts the whole tree; `tokenBytes` is the KV of one token over all layers. */
export function treeStats(tree: PrefixTree, tokenBytes: number): TreeStats {
  const { pages, pageSize, freePages, idlePages } = tree.pool;
  let [nodes, tokens, tokensShared, tokensFlat] = [0, 0, 0, 0];
  for (const node of tree.nodes()) {
    nodes++;
    tokens += node.length;
    if (node.refs > 1) tokensShared += node.length;
    tokensFlat += node.length * node.refs;
  }
  const pagesUsed = pages - freePages;
  return {
    pageSize,
    pages,
    pagesUsed,
    pagesFree: freePages,
    pagesEvictable: idlePages,
    nodes,
    tokens,
    tokensShared,
    tokensFlat,
    bytes: tokens * tokenBytes,
    bytesUsed: pagesUsed * pageSize * tokenBytes,
    evictedTokens: tree.evictedTokens,
  };
}
