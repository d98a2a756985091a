/**
 * A CUDA device as a runner. A step's tokens, positions and plan are copied to fixed addresses;
 * then the forward pass runs: decode batches as one graph replay of their bucket, larger steps
 * kernel by kernel. Logits stay on the device until somebody reads them.
 * @module
 */
import { assert } from '../../../base/errors.ts';
import type { PlanSpec } from '../../../plan/plan.ts';
import type { EnergyMeter, Runner, StepInput, StepOutput } from '../../backend.ts';
import type { DecoderOps } from '../../ops.ts';
import type { DeviceMemory, Graph, PinnedMemory } from '../driver.ts';
import { bucketOf, isGraphBucket } from './buckets.ts';
import { freeBuffers, INPUTS, type InputName } from './cuda-model.ts';
import { CudaOps, type CudaParts } from './cuda-ops.ts';
import { tuneProducts } from './products.ts';
import { StepTimer } from './step-timer.ts';

/** model/decoder.ts forward, handed in because backends know nothing of the model folder. */
export type Forward = (ops: DecoderOps, layers: number) => void;

export interface CudaRunnerOptions {
  readonly parts: CudaParts;
  readonly forward: Forward;
  readonly planSpec: PlanSpec;
  readonly pages: number;
  readonly tokenBytes: number;
  /** Whose memory is given back at the end: weights, KV pages. */
  readonly owned: readonly DeviceMemory[];
  readonly providerWhy: string;
  readonly readBytesPerSecond: number;
  readonly energy: EnergyMeter & { close(): void };
}

/** Attention within a graph is timed by itself once in so many steps, and for another batch. */
const SAMPLE_STEPS = 64;
/** Plans that read so many times more or fewer KV tokens are of another batch. */
const OTHER_BATCH = 1.05;

interface Captured {
  /** Absent until the bucket has run once without a graph, which loads what it needs. */
  graph: Graph | undefined;
  steps: number;
  /** Attention of one step, and the KV tokens that its plan read. */
  attentionMs: number;
  kvTokens: number;
}

const newBucket = (): Captured => ({
  graph: undefined,
  steps: 0,
  attentionMs: 0,
  kvTokens: 0,
});

export class CudaRunner implements Runner {
  readonly device = 'cuda';
  readonly provider = 'nvrtc';
  readonly providerWhy: string;
  readonly pageSize: number;
  readonly pages: number;
  readonly tokenBytes: number;
  readonly maxRows: number;
  readonly planSpec: PlanSpec;
  readonly readBytesPerSecond: number;
  readonly energy: EnergyMeter;
  readonly #closeEnergy: () => void;
  readonly #parts: CudaParts;
  readonly #forward: Forward;
  readonly #owned: readonly DeviceMemory[];
  readonly #ops: CudaOps;
  readonly #timer: StepTimer;
  readonly #captured = new Map<string, Captured>();
  #attentionVersion = 0;
  #logitsStaging: PinnedMemory | undefined;
  #disposed = false;

  constructor(options: CudaRunnerOptions) {
    const { parts } = options;
    this.#parts = parts;
    this.#forward = options.forward;
    this.#owned = options.owned;
    this.providerWhy = options.providerWhy;
    this.pageSize = parts.attention.spec.pageSize;
    this.pages = options.pages;
    this.tokenBytes = options.tokenBytes;
    this.maxRows = parts.buffers.maxRows;
    this.planSpec = options.planSpec;
    this.readBytesPerSecond = options.readBytesPerSecond;
    this.energy = options.energy;
    this.#closeEnergy = () => options.energy.close();
    this.#ops = new CudaOps(parts);
    this.#timer = new StepTimer(parts.cuda, parts.stream);
  }

  async step(input: StepInput): Promise<StepOutput> {
    const began = performance.now();
    this.#checkStep(input);
    const { cuda, stream, attention, buffers } = this.#parts;
    const count = input.logitRows.length;
    const rows = bucketOf(input.forest.rows, this.maxRows);
    const logitRows = bucketOf(count, this.maxRows);
    this.#writeInputs(input, rows, logitRows);
    attention.setPlan(input.plan, input.forest, stream);
    cuda.uploadAsync(buffers.inputs.address, buffers.inputStaging, buffers.inputs.bytes, stream);
    const attentionMs = this.#run(rows, logitRows, input.plan.kvTokens);
    if (count > 0) {
      cuda.downloadAsync(buffers.statsStaging, buffers.stats.address, buffers.stats.bytes, stream);
    }
    attention.check(stream);
    let logits: Float32Array | undefined;
    const read = (): Float32Array => this.#readLogits(count);
    return {
      get logits() {
        logits ??= read();
        return logits;
      },
      argmax: new Int32Array(buffers.statsStaging.buffer, 0, count),
      logSumExp: new Float32Array(buffers.statsStaging.buffer, buffers.maxRows * 4, count),
      stepMs: performance.now() - began,
      attentionMs: attentionMs(),
    };
  }

  #checkStep({ tokens, forest, plan, writeSlots, logitRows }: StepInput): void {
    const { rows, rowPosition } = forest;
    const { config, positions } = this.#parts.model;
    assert(!this.#disposed, 'a step on a runner that was disposed of');
    assert(rows > 0 && rows <= this.maxRows, `a step of ${rows} rows, at most maxRows`);
    assert(plan.rows === rows, 'the plan is not for this step');
    assert(logitRows.length <= rows, 'more logit rows than rows');
    for (let row = 0; row < rows; row++) {
      // The kernels would read or write outside of their tables.
      assert(tokens[row] >= 0 && tokens[row] < config.vocab, `no token ${tokens[row]}`);
      assert(rowPosition[row] < positions, `no position ${rowPosition[row]}`);
      assert(writeSlots[row] < this.pages * this.pageSize, `no KV slot ${writeSlots[row]}`);
    }
  }

  /** Fills the pinned inputs; padding rows are token 0 at position 0, stored nowhere. */
  #writeInputs(input: StepInput, rows: number, logitRows: number): void {
    const { inputStaging, maxRows } = this.#parts.buffers;
    const array = (name: InputName, length: number): Int32Array =>
      new Int32Array(inputStaging.buffer, INPUTS.indexOf(name) * maxRows * 4, length);
    const write = (name: InputName, from: Int32Array, count: number, pad: number): void => {
      const to = array(name, name === 'logitRows' ? logitRows : rows);
      to.fill(pad, count);
      to.set(from.subarray(0, count));
    };
    const { rows: count, rowPosition } = input.forest;
    write('tokens', input.tokens, count, 0);
    write('positions', rowPosition, count, 0);
    write('writeSlots', input.writeSlots, count, -1);
    write('logitRows', input.logitRows, input.logitRows.length, 0);
  }

  /** Enqueues the forward pass; the result reads attention's time once the stream is done. */
  #run(rows: number, logitRows: number, kvTokens: number): () => number {
    const { layers } = this.#parts.model.config;
    this.#ops.begin(rows, logitRows);
    if (!isGraphBucket(rows)) return this.#runEagerly(layers);
    const { stream, cuda, attention } = this.#parts;
    if (attention.version !== this.#attentionVersion) this.#dropGraphs();
    this.#attentionVersion = attention.version;
    const key = `${rows} ${logitRows}`;
    const bucket = this.#captured.get(key) ?? newBucket();
    this.#captured.set(key, bucket);
    if (bucket.steps++ === 0) {
      tuneProducts(this.#parts, this.#timer, rows, logitRows);
      return this.#runEagerly(layers);
    }
    bucket.graph ??= cuda.capture(stream, () => this.#forward(this.#ops, layers));
    bucket.graph.launch(stream);
    return () => {
      const ratio = kvTokens / bucket.kvTokens;
      const other = !(ratio < OTHER_BATCH && ratio > 1 / OTHER_BATCH);
      if (other || bucket.steps % SAMPLE_STEPS === 0) {
        bucket.attentionMs = this.#attentionAloneMs(layers);
        bucket.kvTokens = kvTokens;
      }
      return bucket.attentionMs;
    };
  }

  #runEagerly(layers: number): () => number {
    this.#timer.begin();
    this.#forward(new TimedOps(this.#ops, this.#timer), layers);
    return () => this.#timer.pairsUs() / 1000;
  }

  /** Attention of all layers once more, over the step's last queries: it changes no KV. */
  #attentionAloneMs(layers: number): number {
    const us = this.#timer.graphUs(() => {
      for (let layer = 0; layer < layers; layer++) this.#ops.attention(layer);
    });
    return us / 1000;
  }

  #dropGraphs(): void {
    for (const { graph } of this.#captured.values()) graph?.free();
    this.#captured.clear();
  }

  /** (count, vocab), valid until it is called again. */
  #readLogits(count: number): Float32Array {
    const { cuda, stream, buffers, model } = this.#parts;
    const length = count * model.config.vocab;
    if (!this.#logitsStaging || this.#logitsStaging.bytes < length * 4) {
      this.#logitsStaging?.free();
      this.#logitsStaging = cuda.pinned(length * 4);
    }
    const staging = this.#logitsStaging;
    if (length > 0) cuda.downloadAsync(staging, buffers.logits.address, length * 4, stream);
    stream.synchronize();
    return new Float32Array(staging.buffer, 0, length);
  }

  async dispose(): Promise<void> {
    if (this.#disposed) return;
    this.#disposed = true;
    const { cuda, stream, kernels, cublas, attention, buffers } = this.#parts;
    this.#closeEnergy();
    this.#dropGraphs();
    this.#timer.free();
    this.#logitsStaging?.free();
    freeBuffers(buffers);
    attention.free();
    cublas.free();
    kernels.module.free();
    for (const memory of this.#owned) memory.free();
    stream.free();
    cuda.close();
  }
}

/** The same operations with marks around attention. */
class TimedOps implements DecoderOps {
  readonly #ops: DecoderOps;
  readonly #timer: StepTimer;

  constructor(ops: DecoderOps, timer: StepTimer) {
    this.#ops = ops;
    this.#timer = timer;
  }

  embed(): void {
    this.#ops.embed();
  }
  attentionInput(layer: number): void {
    this.#ops.attentionInput(layer);
  }
  rotateAndStore(layer: number): void {
    this.#ops.rotateAndStore(layer);
  }
  attention(layer: number): void {
    this.#timer.mark();
    this.#ops.attention(layer);
    this.#timer.mark();
  }
  attentionOutput(layer: number): void {
    this.#ops.attentionOutput(layer);
  }
  mlpInput(layer: number): void {
    this.#ops.mlpInput(layer);
  }
  mlpOutput(layer: number): void {
    this.#ops.mlpOutput(layer);
  }
  logits(): void {
    this.#ops.logits();
  }
}
