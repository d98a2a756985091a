/**
 * The decoder's operations on the CPU as one worker runs them: each takes its share of rows or of
 * weight panels and meets the others where a result is needed whole.
 * @module
 */
import type { DecoderOps } from '../ops.ts';
import { runAttention, runRotate } from './attention.ts';
import type { Barrier } from './barrier.ts';
import {
  type CpuBuffers,
  type CpuModel,
  HEADER,
  type PackedMatrix,
  PRIVATE_ROWS,
  type ProductInput,
} from './cpu-model.ts';
import type { Kernels } from './kernel-table.ts';
import type { Memory } from './memory.ts';
import { formCode, isDense, panelCount, TYPE_CODE } from './repack.ts';

/** What one worker needs to take part in steps. */
export interface CpuWorker {
  readonly worker: number;
  readonly workers: number;
  readonly kernels: Kernels;
  readonly memory: Memory;
  readonly barrier: Barrier;
}

/** Rows of a group in quantised inputs; workers share rows in whole groups. */
const GROUP_ROWS = 4;

/** Writes rows [begin, end) of a product's input in one of its two forms. */
type InputWriter = (to: number, begin: number, end: number) => void;

export class CpuOps implements DecoderOps {
  /** Time of worker 0 in attention since `begin`, in ms. */
  attentionMs = 0;
  readonly #self: CpuWorker;
  readonly #model: CpuModel;
  readonly #buffers: CpuBuffers;
  /** Address of the step's PlanImage. */
  readonly #image: number;
  readonly #header: Int32Array;
  #rows = 0;

  constructor(self: CpuWorker, model: CpuModel, buffers: CpuBuffers, image: number) {
    this.#self = self;
    this.#model = model;
    this.#buffers = buffers;
    this.#image = image;
    this.#header = self.memory.i32(buffers.header, 16);
  }

  /** Takes up the step that worker 0 has written to the buffers. */
  begin(): void {
    this.#rows = this.#header[HEADER.rows];
    this.attentionMs = 0;
  }

  embed(): void {
    const { embed, config } = this.#model;
    const { tokens, x } = this.#buffers;
    const [begin, end] = this.#share(this.#rows);
    const code = TYPE_CODE[embed.type];
    this.#self.kernels.ff_embed(code, embed.address, tokens, x, begin, end, config.hidden);
    this.#self.barrier.meet();
  }

  attentionInput(layer: number): void {
    const { attnNorm, qkv } = this.#model.layers[layer];
    const input = this.#norm(this.#buffers.x, attnNorm, this.#rows, qkv);
    this.#product(qkv, input, this.#rows, this.#buffers.qkv, false);
    this.#self.barrier.meet();
  }

  rotateAndStore(layer: number): void {
    const { kernels, worker, workers, barrier } = this.#self;
    const { shape, layers } = this.#model;
    const { headNorms } = layers[layer];
    runRotate(kernels, this.#image, layer, this.#rows, shape, headNorms, worker, workers);
    barrier.meet();
  }

  attention(layer: number): void {
    const { kernels, worker, barrier } = this.#self;
    const began = performance.now();
    runAttention(kernels, this.#image, layer, worker);
    barrier.meet();
    this.attentionMs += performance.now() - began;
  }

  attentionOutput(layer: number): void {
    const { kernels } = this.#self;
    const { attention, x } = this.#buffers;
    const { o } = this.#model.layers[layer];
    const input = this.#prepare(this.#rows, [o], attention, (to, begin, end) => {
      kernels.ff_quantize_rows(attention, to, begin, end, o.columns);
    });
    this.#product([o], input, this.#rows, x, true);
    this.#self.barrier.meet();
  }

  mlpInput(layer: number): void {
    const { mlpNorm, gateUp } = this.#model.layers[layer];
    const input = this.#norm(this.#buffers.x, mlpNorm, this.#rows, gateUp);
    this.#product(gateUp, input, this.#rows, this.#buffers.gateUp, false);
    this.#self.barrier.meet();
  }

  mlpOutput(layer: number): void {
    const { kernels } = this.#self;
    const { gateUp: gate, x } = this.#buffers;
    const { down } = this.#model.layers[layer];
    const { columns } = down;
    const [up, stride] = [gate + columns * 4, 2 * columns];
    const input = this.#prepare(
      this.#rows,
      [down],
      (to, begin, end) => kernels.ff_swiglu(gate, up, stride, to, begin, end, columns),
      (to, begin, end) => kernels.ff_swiglu_quantize(gate, up, stride, to, begin, end, columns),
    );
    this.#product([down], input, this.#rows, x, true);
    this.#self.barrier.meet();
  }

  logits(): void {
    const { kernels, barrier } = this.#self;
    const { logits, argmax, logSumExp } = this.#buffers;
    const { output, outputNorm, config } = this.#model;
    const count = this.#header[HEADER.logitRows];
    if (count === 0) return;
    const input = this.#norm(this.#wantedRows(count), outputNorm, count, [output]);
    this.#product([output], input, count, logits, false);
    barrier.meet();
    const [begin, end] = this.#share(count);
    kernels.ff_logit_stats(logits, argmax, logSumExp, begin, end, config.vocab);
    barrier.meet();
  }

  /** Address of the rows whose logits are wanted, gathered where they are scattered. */
  #wantedRows(count: number): number {
    const { x, wanted, logitRows } = this.#buffers;
    const { hidden } = this.#model.config;
    const { memory, barrier } = this.#self;
    const first = this.#header[HEADER.firstLogitRow];
    if (first >= 0) return x + first * hidden * 4;
    const rows = memory.i32(logitRows, count);
    const [begin, end] = this.#share(count);
    for (let i = begin; i < end; i++) {
      const row = memory.f32(x + rows[i] * hidden * 4, hidden);
      memory.f32(wanted + i * hidden * 4, hidden).set(row);
    }
    barrier.meet();
    return wanted;
  }

  /** RMSNorm(x) as input of a product with `matrices`. */
  #norm(x: number, weight: number, rows: number, matrices: readonly PackedMatrix[]): ProductInput {
    const { kernels } = this.#self;
    const { hidden, normEpsilon } = this.#model.config;
    return this.#prepare(
      rows,
      matrices,
      (to, begin, end) => kernels.ff_rms_norm(x, weight, to, begin, end, hidden, normEpsilon),
      (to, begin, end) =>
        kernels.ff_rms_norm_quantize(x, weight, to, begin, end, hidden, normEpsilon),
    );
  }

  /**
   * Makes a product's input in the forms that `matrices` read: all rows by each worker for
   * itself where there are few, else each its share, and then a meeting.
   * @param dense writes 32-bit floats, or is the address where they lie already.
   */
  #prepare(
    rows: number,
    matrices: readonly PackedMatrix[],
    dense: InputWriter | number,
    quantized: InputWriter,
  ): ProductInput {
    const { worker, workers, barrier } = this.#self;
    const alone = rows <= PRIVATE_ROWS || workers === 1;
    const to = rows <= PRIVATE_ROWS ? this.#buffers.own[worker] : this.#buffers.shared;
    const [begin, end] = alone ? [0, rows] : this.#share(rows, GROUP_ROWS);
    const anyDense = matrices.some(({ type }) => isDense(type));
    if (anyDense && typeof dense !== 'number') dense(to.dense, begin, end);
    if (matrices.some(({ type }) => !isDense(type))) quantized(to.quantized, begin, end);
    if (!alone) barrier.meet();
    return typeof dense === 'number' ? { dense, quantized: to.quantized } : to;
  }

  /**
   * y (rows, sum of outputs) = input times each matrix, side by side: this worker's share of
   * their panels.
   */
  #product(
    matrices: readonly PackedMatrix[],
    input: ProductInput,
    rows: number,
    y: number,
    accumulate: boolean,
  ): void {
    const { kernels } = this.#self;
    let panels = 0;
    let stride = 0;
    for (const { outputs } of matrices) {
      panels += panelCount(outputs);
      stride += outputs;
    }
    let [begin, end] = this.#share(panels);
    let to = y;
    for (const { type, address, outputs, columns, bias } of matrices) {
      const count = panelCount(outputs);
      const [first, last] = [Math.max(begin, 0), Math.min(end, count)];
      if (first < last) {
        const dense = isDense(type);
        const kernel = dense ? kernels.ff_linear_dense : kernels.ff_linear;
        kernel(
          formCode(type),
          dense ? input.dense : input.quantized,
          address,
          bias,
          to,
          stride,
          0,
          rows,
          first,
          last,
          columns,
          outputs,
          accumulate ? 1 : 0,
        );
      }
      begin -= count;
      end -= count;
      to += outputs * 4;
    }
  }

  /** This worker's interval of `count` things, in multiples of `step`. */
  #share(count: number, step = 1): [begin: number, end: number] {
    const { worker, workers } = this.#self;
    const units = Math.ceil(count / step);
    const begin = Math.floor((units * worker) / workers) * step;
    const end = Math.floor((units * (worker + 1)) / workers) * step;
    return [Math.min(begin, count), Math.min(end, count)];
  }
}
