/**
 * Where the nodes of the prefix tree lie: a node's tokens run from left to right, its children
 * lie to its right, one above the other. No page is needed for it, so that tests can run it.
 * @module
 */

export interface TreeNode {
  readonly id: number;
  readonly parent: number | null;
  /** Absolute position of the first token. */
  readonly start: number;
  readonly tokens: number;
  /** Tokens whose KV is written. */
  readonly computed: number;
  /** Sequences and held prefixes that pass through or end here; 0 = only cached. */
  readonly sharers: number;
  /** Those that end here. */
  readonly ends: number;
}

export interface Block {
  readonly node: TreeNode;
  readonly depth: number;
  /** Left edge and length, as shares of the width. */
  x: number;
  width: number;
  /** First row and number of rows: one for each leaf below. */
  row: number;
  rows: number;
  readonly parent: Block | null;
  readonly children: Block[];
}

export interface Layout {
  /** Parents first, then from top to bottom. */
  readonly blocks: readonly Block[];
  readonly rows: number;
}

/**
 * Lengths grow with the square root: a branch of ten tokens stays visible below a document of
 * ten thousand.
 */
const lengthOf = ({ tokens }: TreeNode): number => Math.sqrt(Math.max(1, tokens));

/** @param withCached also nodes that nobody uses now */
export function layoutTree(nodes: readonly TreeNode[], withCached: boolean): Layout {
  const shown = withCached ? nodes : nodes.filter(({ sharers }) => sharers > 0);
  const known = new Map<number, Block>();
  const roots: Block[] = [];
  for (const node of shown) {
    const parent = node.parent === null ? null : (known.get(node.parent) ?? null);
    const place = { x: 0, width: lengthOf(node), row: 0, rows: 1 };
    const depth = parent === null ? 0 : parent.depth + 1;
    const block: Block = { node, depth, ...place, parent, children: [] };
    known.set(node.id, block);
    (parent === null ? roots : parent.children).push(block);
  }
  // What is in use comes first, then what came last.
  roots.sort(
    ({ node: a }, { node: b }) => Number(b.sharers > 0) - Number(a.sharers > 0) || b.id - a.id,
  );
  const blocks: Block[] = [];
  let rows = 0;
  for (const root of roots) rows = place(root, 0, rows, blocks);
  const end = blocks.reduce((most, { x, width }) => Math.max(most, x + width), 1);
  for (const block of blocks) {
    block.x /= end;
    block.width /= end;
  }
  return { blocks, rows };
}

/** Places a block and all below it; returns the first free row. Deep trees need no deep stack. */
function place(root: Block, x: number, row: number, into: Block[]): number {
  const open: Block[] = [root];
  const ordered: Block[] = [];
  root.x = x;
  for (let block = open.pop(); block !== undefined; block = open.pop()) {
    ordered.push(block);
    const { children } = block;
    children.sort((a, b) => a.node.id - b.node.id);
    for (const child of children) child.x = block.x + block.width;
    for (let i = children.length - 1; i >= 0; i--) open.push(children[i]);
  }
  let next = row;
  for (const block of ordered) {
    block.row = next;
    if (block.children.length === 0) next++;
  }
  for (let i = ordered.length - 1; i >= 0; i--) {
    const { children } = ordered[i];
    if (children.length === 0) continue;
    ordered[i].rows = children.reduce((sum, child) => sum + child.rows, 0);
  }
  into.push(...ordered);
  return next;
}
