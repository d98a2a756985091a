/**
 * Tokens that have a place in the tree before anybody knows them: a device draws them in a step
 * that is under way, and the next step computes them already. Until then a negative number stands
 * for the token. No request's tokens are negative, so nothing is ever found by one; and as such a
 * token is not computed for the tree, it goes with its path, like others that nobody computed.
 * @module
 */
import { assert } from '../base/errors.ts';
import { attach, detach, saltedEdge } from './node.ts';
import type { Path } from './path.ts';

/** Stands for the token that the step under way draws in its logit row `row`. */
export const pendingToken = (row: number): number => -1 - row;

/** Puts the token in the place that was kept for it at the end of the path. */
export function resolvePending(path: Path, token: number): void {
  const node = path.tip;
  assert(node !== null && node.tokens[node.length - 1] < 0, 'no token is pending on the path');
  assert(node.computed < node.length, 'a pending token counts as computed');
  node.tokens[node.length - 1] = token;
  if (node.length > 1) return;
  detach(node);
  attach(node, node.start === path.border ? saltedEdge(path.salt, token) : token);
}
