/**
 * The live prefix tree: blocks that keep their identity from update to update, so that one sees
 * them grow; a tree for the keyboard and for screen readers.
 * @module
 */
import { byId, make, setText } from './dom.ts';
import { count } from './format.ts';
import { drawLegend, heat } from './palette.ts';
import { type Block, type Layout, layoutTree, type TreeNode } from './tree-layout.ts';

const HEIGHT = 300;
const ROW_MAX = 46;
const ROW_MIN = 9;
/** Rows lower than this have no room for a text. */
const ROW_TEXT = 15;
const GAP = 2;
const LABEL_PX = 34;
const LONG_LABEL_PX = 150;

export class TreeView {
  readonly #root = byId('tree');
  readonly #detail = byId('tree-detail');
  readonly #summary = byId('tree-summary');
  readonly #cached = byId<HTMLInputElement>('tree-cached');
  readonly #elements = new Map<number, HTMLElement>();
  readonly #canvas = make('div', 'tree-canvas');
  readonly #empty = make('p', 'note empty', 'Empty. Fork a prompt to see it grow.');
  #layout: Layout = { blocks: [], rows: 0 };
  #blocks = new Map<number, Block>();
  #nodes: readonly TreeNode[] = [];
  #total = 0;
  #pageSize = 1;
  /** The block that Tab reaches. */
  #current: number | null = null;
  #hovered: number | null = null;

  constructor() {
    drawLegend(byId('tree-legend'));
    this.#canvas.setAttribute('role', 'presentation');
    this.#root.append(this.#canvas);
    this.#root.after(this.#empty);
    this.#cached.addEventListener('change', () => this.#draw());
    this.#root.addEventListener('keydown', (event) => this.#key(event));
    this.#root.addEventListener('focusin', ({ target }) => this.#focused(target));
    this.#root.addEventListener('pointerover', ({ target }) => this.#hover(idOf(target)));
    this.#root.addEventListener('pointerleave', () => this.#hover(null));
    new ResizeObserver(() => this.#draw()).observe(this.#root);
  }

  /** @param total nodes there are, also those that were left out */
  show(nodes: readonly TreeNode[], total: number, pageSize: number): void {
    this.#nodes = nodes;
    this.#total = total;
    this.#pageSize = pageSize;
    this.#draw();
  }

  #draw(): void {
    const layout = layoutTree(this.#nodes, this.#cached.checked);
    this.#layout = layout;
    this.#blocks = new Map(layout.blocks.map((block) => [block.node.id, block]));
    const row = Math.max(ROW_MIN, Math.min(ROW_MAX, HEIGHT / Math.max(1, layout.rows)));
    this.#canvas.style.height = `${row * layout.rows}px`;
    this.#empty.hidden = layout.blocks.length > 0;
    const width = this.#canvas.clientWidth;
    for (const [id, element] of this.#elements) {
      if (this.#blocks.has(id)) continue;
      element.remove();
      this.#elements.delete(id);
    }
    if (this.#current === null || !this.#blocks.has(this.#current)) {
      this.#current = layout.blocks[0]?.node.id ?? null;
    }
    for (const block of layout.blocks) this.#drawBlock(block, row, width);
    const tokens = this.#nodes.reduce((sum, node) => sum + node.tokens, 0);
    const hidden = this.#total - this.#nodes.length;
    setText(
      this.#summary,
      `${count(this.#total, 'node')}, ${count(tokens, 'token')}` +
        (hidden > 0 ? ` (${hidden} nodes not shown)` : ''),
    );
    this.#describe();
  }

  #drawBlock(block: Block, row: number, width: number): void {
    const { node } = block;
    const element = this.#elements.get(node.id) ?? this.#add(node.id);
    const pixels = Math.max(3, block.width * width - GAP);
    const { style } = element;
    style.left = `${block.x * width}px`;
    style.width = `${pixels}px`;
    style.top = `${block.row * row}px`;
    style.height = `${Math.max(2, block.rows * row - GAP)}px`;
    const className = `node heat-${heat(node.sharers)}`;
    if (element.className !== className) element.className = className;
    const label =
      row * block.rows < ROW_TEXT || pixels < LABEL_PX
        ? ''
        : pixels < LONG_LABEL_PX
          ? `${node.tokens}`
          : `${count(node.tokens, 'token')} · ${sharersText(node)}`;
    if (element.dataset.text !== label) element.dataset.text = label;
    element.setAttribute('aria-label', this.#textOf(node));
    element.setAttribute('aria-level', `${block.depth + 1}`);
    if (block.children.length > 0) element.setAttribute('aria-expanded', 'true');
    else element.removeAttribute('aria-expanded');
    element.tabIndex = node.id === this.#current ? 0 : -1;
  }

  #add(id: number): HTMLElement {
    const element = make('div', 'node');
    element.setAttribute('role', 'treeitem');
    element.dataset.id = `${id}`;
    this.#elements.set(id, element);
    this.#canvas.append(element);
    return element;
  }

  #textOf({ start, tokens, computed, sharers, ends }: TreeNode): string {
    const size = this.#pageSize;
    const pages = Math.floor((start + tokens - 1) / size) - Math.floor(start / size) + 1;
    const parts = [
      `${count(tokens, 'token')} at positions ${start}–${start + tokens - 1}`,
      sharers === 0 ? 'shared by nobody now, only cached' : `shared by ${sharers}`,
      `touches ${count(pages, 'page')} of ${size} tokens`,
    ];
    if (ends > 0) parts.push(`${ends} ${ends === 1 ? 'ends' : 'end'} here`);
    if (computed < tokens) parts.push(`${tokens - computed} not computed yet`);
    return parts.join('; ');
  }

  #describe(): void {
    const focused = this.#root.contains(document.activeElement) ? this.#current : null;
    const block = this.#blocks.get(this.#hovered ?? focused ?? -1);
    setText(
      this.#detail,
      block === undefined
        ? 'Point at a node, or move with the arrow keys, for its tokens, sharers and pages.'
        : this.#textOf(block.node),
    );
  }

  #hover(id: number | null): void {
    this.#hovered = id;
    this.#describe();
  }

  #focused(target: EventTarget | null): void {
    const id = idOf(target);
    if (id === null) return;
    const before = this.#current === null ? undefined : this.#elements.get(this.#current);
    if (before !== undefined) before.tabIndex = -1;
    this.#current = id;
    this.#elements.get(id)!.tabIndex = 0;
    this.#describe();
  }

  #key(event: KeyboardEvent): void {
    const block = this.#blocks.get(this.#current ?? -1);
    if (block === undefined) return;
    const next = this.#neighbour(block, event.key);
    if (next === undefined) return;
    event.preventDefault();
    this.#elements.get(next.node.id)?.focus();
  }

  /** Right to the first child, left to the parent, up and down in the order of the rows. */
  #neighbour(block: Block, key: string): Block | undefined {
    const { blocks } = this.#layout;
    if (key === 'ArrowRight') return block.children[0];
    if (key === 'ArrowLeft') return block.parent ?? undefined;
    if (key === 'Home') return blocks[0];
    if (key === 'End') return blocks.at(-1);
    const at = blocks.indexOf(block);
    if (key === 'ArrowDown') return blocks[at + 1];
    if (key === 'ArrowUp') return blocks[at - 1];
    return undefined;
  }
}

const sharersText = ({ sharers }: TreeNode): string =>
  sharers === 0 ? 'cached' : count(sharers, 'sharer');

function idOf(target: EventTarget | null): number | null {
  const id = target instanceof HTMLElement ? target.dataset.id : undefined;
  return id === undefined ? null : Number(id);
}
