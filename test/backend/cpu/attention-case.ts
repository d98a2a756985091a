/**
 * Random attention problems for the CPU kernels: a forest whose nodes start inside pages, KV pages
 * in which everything that no node owns is NaN or huge, and the answer in float64.
 * @module
 */
import {
  type AttentionShape,
  kvLayout,
  PAGE_TOKENS,
  runAttention,
} from '../../../src/backend/cpu/attention.ts';
import { PlanImage } from '../../../src/backend/cpu/attention-image.ts';
import type { Memory } from '../../../src/backend/cpu/memory.ts';
import type { Provider } from '../../../src/backend/cpu/provider.ts';
import { randomStream } from '../../../src/base/math.ts';
import type { Forest } from '../../../src/kvcache/forest.ts';
import type { Plan } from '../../../src/plan/plan.ts';

/** A node to build a forest from; children follow their parent at once (depth first). */
export interface NodeSpec {
  readonly parent: number;
  readonly tokens: number;
  /** Rows of each request that ends at this node: its last tokens. */
  readonly requests?: readonly number[];
  readonly firstSlot?: number;
}

/** Nodes in depth-first order; a node's own requests come before those of its children. */
export function buildForest(nodes: readonly NodeSpec[]): Forest {
  const children = nodes.map((_, i) => nodes.flatMap((n, j) => (n.parent === i ? [j] : [])));
  const ints = (): Int32Array => new Int32Array(nodes.length);
  const forest = { start: ints(), length: ints(), rowBegin: ints(), rowEnd: ints() };
  const positions: number[] = [];
  const requestRow = [0];
  const visit = (i: number): void => {
    const { parent, tokens, requests = [] } = nodes[i];
    forest.start[i] = parent < 0 ? 0 : forest.start[parent] + nodes[parent].tokens;
    forest.length[i] = tokens;
    forest.rowBegin[i] = positions.length;
    for (const rows of requests) {
      const end = forest.start[i] + tokens;
      for (let r = 0; r < rows; r++) positions.push(end - rows + r);
      requestRow.push(positions.length);
    }
    for (const child of children[i]) visit(child);
    forest.rowEnd[i] = positions.length;
  };
  nodes.forEach((node, i) => {
    if (node.parent < 0) visit(i);
  });

  const firstSlot = Int32Array.from(nodes, (node) => node.firstSlot ?? 0);
  const pageBegin = new Int32Array(nodes.length + 1);
  nodes.forEach(({ tokens }, i) => {
    pageBegin[i + 1] = pageBegin[i] + Math.ceil((firstSlot[i] + tokens) / PAGE_TOKENS);
  });
  const pages = pageBegin[nodes.length];
  // Neighbours in the tree are not neighbours in memory.
  const order = Int32Array.from({ length: pages }, (_, i) => i).reverse();
  return {
    rows: positions.length,
    rowPosition: Int32Array.from(positions),
    requests: requestRow.length - 1,
    requestRow: Int32Array.from(requestRow),
    nodes: nodes.length,
    parent: Int32Array.from(nodes, (node) => node.parent),
    ...forest,
    firstSlot,
    pageBegin,
    pages: order,
  };
}

/** A random tree of up to `nodes` nodes with decoding requests and prefill chunks. */
export function randomNodes(seed: number, nodes: number, tokensMax: number): NodeSpec[] {
  const random = randomStream(seed);
  const below = (n: number): number => Math.floor(random() * n);
  const made: NodeSpec[] = [];
  const grow = (parent: number, depth: number): void => {
    const tokens = 1 + below(tokensMax);
    const index = made.length;
    const leaf = depth === 3 || made.length + 1 >= nodes;
    const requests: number[] = [];
    for (let i = leaf ? 1 + below(3) : below(2); i > 0; i--) {
      requests.push(below(4) === 0 ? 1 + below(Math.min(tokens, 40)) : 1);
    }
    made.push({ parent, tokens, requests, firstSlot: below(PAGE_TOKENS) });
    for (let i = leaf ? 0 : 1 + below(3); i > 0; i--) grow(index, depth + 1);
  };
  while (made.length < nodes) grow(-1, 0);
  return made;
}

/** Bits of a multiple of 1/64 below 2 as f16 or bf16: both hold it exactly. */
function halfBits(value: number, type: 'f16' | 'bf16'): number {
  if (Number.isNaN(value)) return 0x7fc0;
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0];
  if (type === 'bf16') return bits >>> 16;
  if (value === 0) return 0;
  const exponent = ((bits >>> 23) & 255) - 112;
  return ((bits >>> 16) & 0x8000) | (exponent << 10) | ((bits >>> 13) & 0x3ff);
}

/** Integers of multiples of 1/64: about as large as the kernels make them. */
const KEY_STEP = 1 / (64 * 16);
const VALUE_STEP = 1 / (64 * 256);

/** Writes one token's K and V of one head into the page at `at`. */
function writeToken(
  memory: Memory,
  { headDim, kvType }: AttentionShape,
  at: number,
  valueOffset: number,
  slot: number,
  key: Float32Array,
  value: Float32Array,
): void {
  const count = headDim * PAGE_TOKENS;
  if (kvType === 'i16') {
    const [keys, values] = [memory.u16(at, count), memory.u16(at + valueOffset, count)];
    for (let d = 0; d < headDim; d++) {
      keys[((d >> 1) * PAGE_TOKENS + slot) * 2 + (d & 1)] = key[d] / KEY_STEP;
      values[((slot >> 1) * headDim + d) * 2 + (slot & 1)] = value[d] / VALUE_STEP;
    }
    memory.f32(at + count * 2, PAGE_TOKENS)[slot] = KEY_STEP;
    memory.f32(at + valueOffset + count * 2, PAGE_TOKENS)[slot] = VALUE_STEP;
    return;
  }
  const cells = (from: number): Float32Array | Uint16Array =>
    kvType === 'f32' ? memory.f32(from, count) : memory.u16(from, count);
  const [keys, values] = [cells(at), cells(at + valueOffset)];
  for (let d = 0; d < headDim; d++) {
    keys[d * PAGE_TOKENS + slot] = kvType === 'f32' ? key[d] : halfBits(key[d], kvType);
    values[slot * headDim + d] = kvType === 'f32' ? value[d] : halfBits(value[d], kvType);
  }
}

/** A forest with its K, V and queries, in memory and as numbers. */
export class AttentionCase {
  readonly shape: AttentionShape;
  readonly forest: Forest;
  readonly image: PlanImage;
  readonly #provider: Provider;
  readonly #query: Float32Array;
  readonly #output: Float32Array;
  /** Per token of each node, in the nodes' order: (kvHeads, headDim). */
  readonly #keys: Float32Array;
  readonly #values: Float32Array;
  readonly #tokenBegin: number[] = [];
  /** Answers found so far, by row and head. */
  readonly #answers = new Map<number, Float64Array>();

  constructor(
    provider: Provider,
    shape: AttentionShape,
    forest: Forest,
    options: { seed?: number; queryScale?: number } = {},
  ) {
    this.shape = shape;
    this.forest = forest;
    this.#provider = provider;
    const { memory, kernels } = provider;
    const random = randomStream(options.seed ?? 1);
    const width = shape.kvHeads * shape.headDim;
    const queryWidth = width * shape.groupSize;
    const layout = kvLayout(shape, 1, Math.max(1, forest.pageBegin[forest.nodes]));

    const query = memory.alloc(forest.rows * queryWidth * 4);
    const output = memory.alloc(forest.rows * queryWidth * 4);
    const pages = memory.alloc(layout.totalBytes);
    this.#query = query.f32();
    this.#output = output.f32();
    const scale = options.queryScale ?? 1;
    for (let i = 0; i < this.#query.length; i++) this.#query[i] = (random() * 4 - 2) * scale;

    let tokens = 0;
    for (let node = 0; node < forest.nodes; node++) {
      this.#tokenBegin.push(tokens);
      tokens += forest.length[node];
    }
    const values = (): Float32Array =>
      Float32Array.from({ length: tokens * width }, () => Math.floor(random() * 255 - 127) / 64);
    this.#keys = values();
    this.#values = values();
    // Integers have no NaN: the largest ones, with scales that would show.
    if (shape.kvType === 'i16') pages.f32().fill(1e30);
    else if (shape.kvType === 'f32') pages.f32().fill(Number.NaN);
    else pages.u16().fill(halfBits(Number.NaN, shape.kvType));
    this.#eachToken((node, token, page, slot) => {
      for (let head = 0; head < shape.kvHeads; head++) {
        const at = pages.address + page * layout.pageBytes + head * layout.headBytes;
        const from = this.#at(node, token, head);
        const vector = (of: Float32Array): Float32Array => of.subarray(from, from + shape.headDim);
        const [key, value] = [vector(this.#keys), vector(this.#values)];
        writeToken(memory, shape, at, layout.valueOffset, slot, key, value);
      }
    });

    this.image = new PlanImage(memory, kernels, shape, {
      ...{ query: query.address, key: 0, value: 0, inputStride: queryWidth },
      ...{ output: output.address, outputStride: queryWidth, pages: pages.address, layout },
      ...{ cosine: 0, sine: 0, writeSlots: 0 },
    });
  }

  /** Output (rows, query heads, headDim) of the kernels. */
  run(plan: Plan): Float32Array {
    const { kernels } = this.#provider;
    this.#output.fill(Number.NaN);
    this.image.write(plan, this.forest);
    for (let worker = 0; worker < plan.workers; worker++)
      runAttention(kernels, this.image.address, 0, worker);
    return this.#output.slice();
  }

  /** The largest difference between the kernels' output and the answer in float64. */
  error(plan: Plan): number {
    const output = this.run(plan);
    const { groupSize, kvHeads, headDim } = this.shape;
    const heads = groupSize * kvHeads;
    let worst = 0;
    for (let row = 0; row < this.forest.rows; row++) {
      for (let head = 0; head < heads; head++) {
        const index = row * heads + head;
        const wanted = this.#answers.get(index) ?? this.#answer(row, head);
        this.#answers.set(index, wanted);
        const at = index * headDim;
        for (let d = 0; d < headDim; d++) {
          const difference = Math.abs(output[at + d] - wanted[d]);
          if (!(difference <= worst)) worst = difference;
        }
        if (Number.isNaN(worst)) return worst;
      }
    }
    return worst;
  }

  #answer(row: number, head: number): Float64Array {
    const { forest, shape } = this;
    const { headDim, groupSize, kvHeads, window = 0 } = shape;
    const kvHead = Math.floor(head / groupSize);
    const query = (row * kvHeads * groupSize + head) * headDim;
    const own = forest.rowPosition[row];
    const scores: number[] = [];
    const places: number[] = [];
    for (let node = 0; node < forest.nodes; node++) {
      if (row < forest.rowBegin[node] || row >= forest.rowEnd[node]) continue;
      for (let token = 0; token < forest.length[node]; token++) {
        const position = forest.start[node] + token;
        if (position > own || (window > 0 && position <= own - window)) continue;
        const at = this.#at(node, token, kvHead);
        let score = 0;
        for (let d = 0; d < headDim; d++) score += this.#query[query + d] * this.#keys[at + d];
        scores.push(score / Math.sqrt(headDim));
        places.push(at);
      }
    }
    let most = Number.NEGATIVE_INFINITY;
    for (const score of scores) most = Math.max(most, score);
    const weights = scores.map((score) => Math.exp(score - most));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const out = new Float64Array(headDim);
    weights.forEach((weight, i) => {
      for (let d = 0; d < headDim; d++) out[d] += (weight / total) * this.#values[places[i] + d];
    });
    return out;
  }

  #at(node: number, token: number, head: number): number {
    const { kvHeads, headDim } = this.shape;
    return ((this.#tokenBegin[node] + token) * kvHeads + head) * headDim;
  }

  #eachToken(use: (node: number, token: number, page: number, slot: number) => void): void {
    const { forest } = this;
    for (let node = 0; node < forest.nodes; node++) {
      for (let token = 0; token < forest.length[node]; token++) {
        const slot = forest.firstSlot[node] + token;
        const page = forest.pages[forest.pageBegin[node] + Math.floor(slot / PAGE_TOKENS)];
        use(node, token, page, slot % PAGE_TOKENS);
      }
    }
  }
}
