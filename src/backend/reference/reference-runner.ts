/**
 * The decoder in plain loops: the oracle that every other backend is tested against. It ignores
 * the plan, keeps K and V as 32-bit floats and sums in double precision.
 * @module
 */
import { assert } from '../../base/errors.ts';
import type { DecoderConfig, WeightName } from '../../checkpoint/checkpoint.ts';
import type { Forest } from '../../kvcache/forest.ts';
import type { HostKv } from '../../kvcache/host-cache.ts';
import type { PlanSpec } from '../../plan/plan.ts';
import type { Runner, StepInput, StepOutput } from '../backend.ts';
import type { DecoderOps } from '../ops.ts';

/** A model with all weights as floats. */
export interface ReferenceModel {
  readonly config: DecoderConfig;
  /** (rows, columns) of a weight. */
  weight(name: WeightName): Float32Array;
  /** (positions, headDim / 2) */
  readonly cosine: Float32Array;
  readonly sine: Float32Array;
}

export interface ReferenceOptions {
  readonly pages: number;
  readonly pageSize: number;
  readonly maxRows: number;
  readonly planSpec: PlanSpec;
  /** Pages that stand for host memory; 0 = none. */
  readonly hostPages: number;
  /** model/decoder.ts forward, handed in because backends know nothing of the model folder. */
  readonly forward: (ops: DecoderOps, layers: number) => void;
}

/** y (rows, outputs) = x (rows, inputs) times the transposed matrix (outputs, inputs). */
function product(
  x: Float32Array,
  rows: number,
  matrix: Float32Array,
  inputs: number,
  bias: Float32Array | null = null,
): Float32Array<ArrayBuffer> {
  const outputs = matrix.length / inputs;
  const y = new Float32Array(rows * outputs);
  for (let row = 0; row < rows; row++) {
    for (let out = 0; out < outputs; out++) {
      let sum = bias === null ? 0 : bias[out];
      for (let i = 0; i < inputs; i++) sum += x[row * inputs + i] * matrix[out * inputs + i];
      y[row * outputs + out] = sum;
    }
  }
  return y;
}

/** RMSNorm over consecutive vectors of the weight's length. */
function rmsNorm(
  x: Float32Array,
  weight: Float32Array,
  epsilon: number,
): Float32Array<ArrayBuffer> {
  const size = weight.length;
  const y = new Float32Array(x.length);
  for (let at = 0; at < x.length; at += size) {
    let squares = 0;
    for (let i = 0; i < size; i++) squares += x[at + i] ** 2;
    const scale = 1 / Math.sqrt(squares / size + epsilon);
    for (let i = 0; i < size; i++) y[at + i] = x[at + i] * scale * weight[i];
  }
  return y;
}

function add(x: Float32Array, y: Float32Array): void {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** The state of one step and the operations on it. */
class ReferenceOps implements DecoderOps {
  #x = new Float32Array();
  #q = new Float32Array();
  #k = new Float32Array();
  #v = new Float32Array();
  #a = new Float32Array();
  #g = new Float32Array();
  #u = new Float32Array();
  logitValues: Float32Array<ArrayBuffer> = new Float32Array();
  attentionMs = 0;
  readonly #model: ReferenceModel;
  readonly #input: StepInput;
  /** [layer] (slots, kvHeads, headDim) */
  readonly #keys: readonly Float32Array[];
  readonly #values: readonly Float32Array[];
  readonly #pageSize: number;
  readonly #rows: number;

  constructor(
    model: ReferenceModel,
    input: StepInput,
    keys: readonly Float32Array[],
    values: readonly Float32Array[],
    pageSize: number,
  ) {
    this.#model = model;
    this.#input = input;
    this.#keys = keys;
    this.#values = values;
    this.#pageSize = pageSize;
    this.#rows = input.forest.rows;
  }

  embed(): void {
    const { hidden } = this.#model.config;
    const table = this.#model.weight('embed');
    this.#x = new Float32Array(this.#rows * hidden);
    for (let row = 0; row < this.#rows; row++) {
      const token = this.#input.tokens[row];
      this.#x.set(table.subarray(token * hidden, (token + 1) * hidden), row * hidden);
    }
  }

  attentionInput(layer: number): void {
    const { config } = this.#model;
    const x = this.#normed(this.#x, `${layer}.attnNorm`);
    const project = (part: 'q' | 'k' | 'v'): Float32Array<ArrayBuffer> => {
      const bias = config.qkvBias ? this.#model.weight(`${layer}.${part}Bias`) : null;
      const matrix = this.#model.weight(`${layer}.${part}`);
      return product(x, this.#rows, matrix, config.hidden, bias);
    };
    this.#q = project('q');
    this.#k = project('k');
    this.#v = project('v');
  }

  rotateAndStore(layer: number): void {
    const { kvHeads, headDim, qkNorm } = this.#model.config;
    if (qkNorm) {
      this.#q = this.#normed(this.#q, `${layer}.qNorm`);
      this.#k = this.#normed(this.#k, `${layer}.kNorm`);
    }
    this.#rotate(this.#q);
    this.#rotate(this.#k);
    const size = kvHeads * headDim;
    for (let row = 0; row < this.#rows; row++) {
      const slot = this.#input.writeSlots[row];
      if (slot < 0) continue;
      this.#keys[layer].set(this.#k.subarray(row * size, (row + 1) * size), slot * size);
      this.#values[layer].set(this.#v.subarray(row * size, (row + 1) * size), slot * size);
    }
  }

  #rotate(heads: Float32Array): void {
    const { headDim } = this.#model.config;
    const { cosine, sine } = this.#model;
    const [half, perRow] = [headDim / 2, heads.length / this.#rows];
    for (let at = 0; at < heads.length; at += headDim) {
      const position = this.#input.forest.rowPosition[Math.floor(at / perRow)];
      for (let i = 0; i < half; i++) {
        const [c, s] = [cosine[position * half + i], sine[position * half + i]];
        const [a, b] = [heads[at + i], heads[at + i + half]];
        heads[at + i] = a * c - b * s;
        heads[at + i + half] = b * c + a * s;
      }
    }
  }

  attention(layer: number): void {
    const began = performance.now();
    const { heads, kvHeads, headDim } = this.#model.config;
    this.#a = new Float32Array(this.#q.length);
    for (let row = 0; row < this.#rows; row++) {
      const slots = this.#visibleSlots(this.#input.forest, row);
      for (let head = 0; head < heads; head++) {
        const kvHead = Math.floor(head / (heads / kvHeads));
        const offsets = slots.map((slot) => (slot * kvHeads + kvHead) * headDim);
        this.#attend(layer, (row * heads + head) * headDim, offsets);
      }
    }
    this.attentionMs += performance.now() - began;
  }

  /** One query vector at `at` against the keys at `offsets`. */
  #attend(layer: number, at: number, offsets: readonly number[]): void {
    const { headDim } = this.#model.config;
    const [keys, values] = [this.#keys[layer], this.#values[layer]];
    const scores = offsets.map((offset) => {
      let dot = 0;
      for (let i = 0; i < headDim; i++) dot += this.#q[at + i] * keys[offset + i];
      return dot / Math.sqrt(headDim);
    });
    const most = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    const weights = scores.map((score) => Math.exp(score - most));
    const sum = weights.reduce((a, b) => a + b, 0);
    for (let i = 0; i < headDim; i++) {
      let out = 0;
      for (let t = 0; t < offsets.length; t++) out += weights[t] * values[offsets[t] + i];
      this.#a[at + i] = out / sum;
    }
  }

  /** Slots (page * pageSize + slot) of the tokens that a row sees. */
  #visibleSlots(forest: Forest, row: number): number[] {
    const position = forest.rowPosition[row];
    const window = this.#model.config.slidingWindow ?? Number.POSITIVE_INFINITY;
    const slots: number[] = [];
    for (let node = 0; node < forest.nodes; node++) {
      if (row < forest.rowBegin[node] || row >= forest.rowEnd[node]) continue;
      for (let t = 0; t < forest.length[node]; t++) {
        const at = forest.start[node] + t;
        if (at > position || at <= position - window) continue;
        const place = forest.firstSlot[node] + t;
        const page = forest.pages[forest.pageBegin[node] + Math.floor(place / this.#pageSize)];
        slots.push(page * this.#pageSize + (place % this.#pageSize));
      }
    }
    return slots;
  }

  attentionOutput(layer: number): void {
    const { heads, headDim } = this.#model.config;
    const matrix = this.#model.weight(`${layer}.o`);
    add(this.#x, product(this.#a, this.#rows, matrix, heads * headDim));
  }

  mlpInput(layer: number): void {
    const { hidden } = this.#model.config;
    const x = this.#normed(this.#x, `${layer}.mlpNorm`);
    const project = (part: 'gate' | 'up'): Float32Array<ArrayBuffer> =>
      product(x, this.#rows, this.#model.weight(`${layer}.${part}`), hidden);
    this.#g = project('gate');
    this.#u = project('up');
  }

  mlpOutput(layer: number): void {
    const gated = this.#g.map((g, i) => (g / (1 + Math.exp(-g))) * this.#u[i]);
    const matrix = this.#model.weight(`${layer}.down`);
    add(this.#x, product(gated, this.#rows, matrix, this.#model.config.intermediate));
  }

  logits(): void {
    const { hidden, tiedEmbeddings } = this.#model.config;
    const { logitRows } = this.#input;
    const wanted = new Float32Array(logitRows.length * hidden);
    logitRows.forEach((row, i) => {
      wanted.set(this.#x.subarray(row * hidden, (row + 1) * hidden), i * hidden);
    });
    const x = this.#normed(wanted, 'outputNorm');
    const matrix = this.#model.weight(tiedEmbeddings ? 'embed' : 'output');
    this.logitValues = product(x, logitRows.length, matrix, hidden);
  }

  #normed(x: Float32Array, name: WeightName): Float32Array<ArrayBuffer> {
    const { normEpsilon } = this.#model.config;
    return rmsNorm(x, this.#model.weight(name), normEpsilon);
  }
}

/** A runner for tiny models; everything happens in the calling thread. */
export function referenceRunner(model: ReferenceModel, options: ReferenceOptions): Runner {
  const { layers, kvHeads, headDim, vocab } = model.config;
  const { pages, pageSize, maxRows, planSpec, hostPages, forward } = options;
  const slotSize = kvHeads * headDim;
  const size = pages * pageSize * slotSize;
  const keys = Array.from({ length: layers }, () => new Float32Array(size));
  const values = Array.from({ length: layers }, () => new Float32Array(size));

  const step = async (input: StepInput): Promise<StepOutput> => {
    assert(input.forest.rows <= maxRows, 'a step has more rows than maxRows');
    const began = performance.now();
    const ops = new ReferenceOps(model, input, keys, values, pageSize);
    forward(ops, layers);
    const count = input.logitRows.length;
    const argmax = new Int32Array(count);
    const logSumExp = new Float32Array(count);
    for (let i = 0; i < count; i++) {
      const row = ops.logitValues.subarray(i * vocab, (i + 1) * vocab);
      const most = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
      argmax[i] = row.indexOf(most);
      logSumExp[i] = most + Math.log(row.reduce((sum, x) => sum + Math.exp(x - most), 0));
    }
    const stepMs = performance.now() - began;
    const { logitValues: logits, attentionMs } = ops;
    return { logits, argmax, logSumExp, stepMs, attentionMs };
  };
  return {
    device: 'reference',
    provider: 'typescript',
    providerWhy: 'plain loops: the oracle of the tests',
    pageSize,
    pages,
    tokenBytes: layers * kvHeads * headDim * 2 * 4,
    maxRows,
    planSpec,
    hostKv:
      hostPages > 0 ? hostMemory([...keys, ...values], slotSize, pageSize, hostPages) : undefined,
    step,
    dispose: async () => {},
  };
}

/** Copies of tokens' vectors, `size` floats each in every one of `tensors`. */
function hostMemory(
  tensors: readonly Float32Array[],
  size: number,
  pageSize: number,
  pages: number,
): HostKv {
  const copies = tensors.map(() => new Float32Array(pages * pageSize * size));
  const eachToken = (
    slots: Int32Array,
    to: Int32Array,
    copy: (tensor: Float32Array, host: Float32Array, slot: number, place: number) => void,
  ): void => {
    slots.forEach((slot, index) => {
      if (slot < 0) return;
      const place = to[Math.floor(index / pageSize)] * pageSize + (index % pageSize);
      tensors.forEach((tensor, i) => {
        copy(tensor, copies[i], slot * size, place * size);
      });
    });
  };
  return {
    pages,
    save: (slots, to) =>
      eachToken(slots, to, (tensor, host, at, place) => {
        host.set(tensor.subarray(at, at + size), place);
      }),
    load: (from, slots) =>
      eachToken(slots, from, (tensor, host, at, place) => {
        tensor.set(host.subarray(place, place + size), at);
      }),
  };
}
