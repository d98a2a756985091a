/**
 * Joining a private node with the tree: two samples that drew the same token first kept a node
 * each; once nobody needs the later one, what the other holds too is dropped and the rest moves.
 * @module
 */
import { dropHead, type TreeNode } from './node.ts';
import type { PagePool } from './page-pool.ts';

/** The tree's own operations that grafting needs. */
export interface TreeEdits {
  split(node: TreeNode, count: number): TreeNode;
  /** Takes a leaf without references out. */
  remove(node: TreeNode): void;
  /** The node lost its last reference or child. */
  idle(node: TreeNode): void;
}

/** Moves a private node without references, and all below it, among its parent's children. */
export function graft(node: TreeNode, edits: TreeEdits, pool: PagePool): void {
  settleBelow(node, node.parent!, edits, pool);
}

function settleBelow(node: TreeNode, target: TreeNode, edits: TreeEdits, pool: PagePool): void {
  let at = target;
  let twin = at.children.get(node.edge);
  while (twin !== undefined) {
    const common = commonTokens(node, twin);
    // The twin is still being computed there: what we hold below it could not be reached in order.
    if (common > twin.computed) {
      removeAll(node, edits);
      return;
    }
    at = common === twin.length ? twin : edits.split(twin, common);
    if (common === node.length) {
      for (const child of [...node.children.values()]) settleBelow(child, at, edits, pool);
      edits.remove(node);
      return;
    }
    takeOut(node);
    dropHead(node, common, pool);
    node.parent = at;
    node.edge = node.tokens[0];
    at.privates.add(node);
    twin = at.children.get(node.edge);
  }
  move(node, at, edits);
}

/** Makes the node an ordinary child of `target`, which has none with its first token. */
function move(node: TreeNode, target: TreeNode, edits: TreeEdits): void {
  takeOut(node);
  node.parent = target;
  target.children.set(node.edge, node);
  edits.idle(node);
}

function takeOut(node: TreeNode): void {
  const parent = node.parent!;
  if (!parent.privates.delete(node)) parent.children.delete(node.edge);
}

function removeAll(node: TreeNode, edits: TreeEdits): void {
  for (const child of [...node.children.values()]) removeAll(child, edits);
  edits.remove(node);
}

function commonTokens(a: TreeNode, b: TreeNode): number {
  const most = Math.min(a.length, b.length);
  let count = 0;
  while (count < most && a.tokens[count] === b.tokens[count]) count++;
  return count;
}
