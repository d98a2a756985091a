/**
 * Looking a token sequence up in the prefix tree: how much of it is there, how much of that is
 * computed, and what holding all of it would take.
 * @module
 */
import { ceilDiv } from '../base/math.ts';
import { saltedEdge, type TreeNode, tailRoom } from './node.ts';
import type { PagePool } from './page-pool.ts';
import { borderOf, type Namespace } from './path.ts';

/** What the cache knows of a token sequence, and what holding all of it would take. */
export interface Match {
  /** Leading tokens in the cache, and those of them whose KV is written. */
  readonly length: number;
  readonly computed: number;
  /** Pages, at most, that holding the whole sequence would take from those now available. */
  readonly pages: number;
}

/** Looks a sequence up below a root without changing anything. */
export function matchTokens(
  root: TreeNode | null,
  pool: PagePool,
  tokens: ArrayLike<number>,
  namespace: Namespace,
): Match {
  const border = borderOf(namespace);
  let node = root;
  let [at, computed, idle, lastPage, room] = [0, 0, 0, -1, 0];
  while (node !== null) {
    const edge = at === border ? saltedEdge(namespace.salt, tokens[at]) : tokens[at];
    const child: TreeNode | undefined = node.children.get(edge);
    const common = child === undefined ? 0 : commonLength(child, tokens, at, border - at);
    if (child === undefined || common === 0) {
      room = tailRoom(node, pool);
      break;
    }
    if (computed === at) computed += Math.min(common, child.computed);
    for (let page = 0; page * pool.pageSize < child.firstSlot + common; page++) {
      const id = child.pages[page];
      if (id !== lastPage && pool.busy[id] === 0) idle++;
      lastPage = id;
    }
    at += common;
    if (common < child.length) break;
    node = child;
  }
  const fresh = ceilDiv(Math.max(0, tokens.length - at - room), pool.pageSize);
  return { length: at, computed, pages: idle + fresh };
}

/** Tokens that a node has in common with tokens[at...], not reaching over a border ahead. */
export function commonLength(
  node: TreeNode,
  tokens: ArrayLike<number>,
  at: number,
  toBorder: number,
): number {
  const room = toBorder > 0 ? toBorder : node.length;
  const most = Math.min(node.length, room, tokens.length - at);
  let count = 0;
  while (count < most && node.tokens[count] === tokens[at + count]) count++;
  return count;
}
