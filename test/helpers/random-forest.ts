/**
 * Random prefix forests for tests of planner and kernels: several roots, inner requests, requests
 * that share all of their path, zero-length and page-unaligned nodes, prefill chunks.
 * @module
 */
import { ceilDiv, randomStream } from '../../src/base/math.ts';
import type { Forest } from '../../src/kvcache/forest.ts';

/** Limits of a random forest; lengths are in tokens. */
export interface ForestShape {
  readonly roots: number;
  readonly depth: number;
  readonly children: number;
  /** Most tokens of a node. */
  readonly tokens: number;
  readonly pageSize: number;
  /** Share of nodes without any token. */
  readonly empty: number;
  /** Most rows of a prefill chunk; 1 = decode only. */
  readonly chunk: number;
}

/** The forest and its number of pages: ids are 0 to pages - 1 in shuffled order. */
export interface RandomForest {
  readonly forest: Forest;
  readonly pages: number;
}

/** A forest from a seed; the same one on every machine. */
export function randomForest(seed: number, shape: ForestShape): RandomForest {
  const random = randomStream(seed);
  const upTo = (most: number): number => Math.floor(random() * (most + 1));
  const [parent, start, length, rowBegin, rowEnd]: number[][] = [[], [], [], [], []];
  const [firstSlot, pageBegin, rowPosition, requestRow]: number[][] = [[], [0], [], [0]];

  const addRequests = (node: number, chunk: number, count: number): void => {
    const end = start[node] + length[node];
    for (let i = 0; i < count; i++) {
      const rows = i === 0 && count === 1 ? Math.min(chunk, Math.max(1, length[node])) : 1;
      for (let row = 0; row < rows; row++) rowPosition.push(end - rows + row);
      requestRow.push(rowPosition.length);
    }
  };
  const addNode = (above: number, depth: number): void => {
    const node = parent.length;
    parent.push(above);
    start.push(above < 0 ? 0 : start[above] + length[above]);
    const none = above >= 0 && random() < shape.empty;
    length.push(none ? 0 : 1 + upTo(shape.tokens - 1));
    rowBegin.push(rowPosition.length);
    rowEnd.push(0);
    firstSlot.push(upTo(shape.pageSize - 1));
    const used = length[node] === 0 ? 0 : ceilDiv(firstSlot[node] + length[node], shape.pageSize);
    pageBegin.push(pageBegin[node] + used);
    const children = depth === 0 ? 0 : upTo(shape.children);
    const inner = random() < 0.2 ? 1 + upTo(2) : 0;
    const early = random() < 0.5;
    if (children > 0 && early) addRequests(node, 1, inner);
    for (let child = 0; child < children; child++) addNode(node, depth - 1);
    if (children > 0 && !early) addRequests(node, 1, inner);
    // A leaf usually has one request, sometimes several, now and then none.
    if (children === 0) addRequests(node, 1 + upTo(shape.chunk - 1), leafRequests(random));
    rowEnd[node] = rowPosition.length;
  };
  for (let root = 0; root < shape.roots; root++) addNode(-1, shape.depth);

  const pages = Int32Array.from({ length: pageBegin[parent.length] }, (_, page) => page);
  for (let i = pages.length - 1; i > 0; i--) {
    const j = upTo(i);
    [pages[i], pages[j]] = [pages[j], pages[i]];
  }
  const forest: Forest = {
    rows: rowPosition.length,
    rowPosition: Int32Array.from(rowPosition),
    requests: requestRow.length - 1,
    requestRow: Int32Array.from(requestRow),
    nodes: parent.length,
    parent: Int32Array.from(parent),
    start: Int32Array.from(start),
    length: Int32Array.from(length),
    rowBegin: Int32Array.from(rowBegin),
    rowEnd: Int32Array.from(rowEnd),
    firstSlot: Int32Array.from(firstSlot),
    pageBegin: Int32Array.from(pageBegin),
    pages,
  };
  return { forest, pages: pages.length };
}

function leafRequests(random: () => number): number {
  const x = random();
  if (x < 0.1) return 0;
  return x < 0.85 ? 1 : 2 + Math.floor(random() * 3);
}
