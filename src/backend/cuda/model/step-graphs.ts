/**
 * Enqueues forward passes: decode batches as one graph replay of their bucket, larger steps kernel
 * by kernel. Attention's share of a step is timed by events; in graphs, only a second graph has
 * them, which is replayed now and then.
 * @module
 */
import type { DecoderOps } from '../../ops.ts';
import type { Graph } from '../driver.ts';
import { isGraphBucket } from './buckets.ts';
import { CudaOps, type CudaParts } from './cuda-ops.ts';
import type { Sampler } from './sampler.ts';
import { StepTimer } from './step-timer.ts';
import { tuneBucket } from './tune.ts';

/** model/decoder.ts forward, handed in because backends know nothing of the model folder. */
export type Forward = (ops: DecoderOps, layers: number) => void;

/** Attention within a graph is timed once in so many steps, and for another batch. */
const SAMPLE_STEPS = 64;
/** Plans that read so many times more or fewer KV tokens are of another batch. */
const OTHER_BATCH = 1.05;

/** A number of rows and of logit rows. */
interface Bucket {
  /** Absent until the bucket has run once without a graph, which loads what it needs. */
  graph: Graph | undefined;
  /** The same with events around attention, and whether a replay of it is under way. */
  timed: Graph | undefined;
  readonly timer: StepTimer;
  timing: boolean;
  steps: number;
  /** Attention of one step, and the KV tokens that its plan read. */
  attentionMs: number;
  kvTokens: number;
}

export class StepGraphs {
  readonly #parts: CudaParts;
  readonly #sampler: Sampler;
  readonly #forward: Forward;
  readonly #ops: CudaOps;
  readonly #buckets = new Map<number, Bucket>();
  #attentionVersion = 0;

  constructor(parts: CudaParts, sampler: Sampler, forward: Forward) {
    this.#parts = parts;
    this.#sampler = sampler;
    this.#forward = forward;
    this.#ops = new CudaOps(parts);
  }

  /**
   * Enqueues a step of a bucket, from the embedding to the statistics of its logits.
   * @param timer for steps without a graph; nobody else uses it until the step has ended.
   * @returns reads attention's time over all layers, ms, to be called once when the step has ended.
   */
  run(rows: number, logitRows: number, kvTokens: number, timer: StepTimer): () => number {
    this.#ops.begin(rows, logitRows);
    if (!isGraphBucket(rows)) return this.#runEagerly(logitRows, timer);
    const bucket = this.#bucket(rows, logitRows);
    const { stream } = this.#parts;
    const isOther = !isSame(kvTokens, bucket.kvTokens);
    if (bucket.steps++ === 0) {
      tuneBucket(this.#parts, timer, rows, logitRows);
      const read = this.#runEagerly(logitRows, timer);
      return () => keepTime(bucket, read(), kvTokens);
    }
    if (bucket.timing || !(isOther || bucket.steps % SAMPLE_STEPS === 0)) {
      bucket.graph ??= this.#capture(logitRows, this.#ops);
      bucket.graph.launch(stream);
      return () => bucket.attentionMs;
    }
    bucket.timed ??= this.#captureTimed(logitRows, bucket.timer);
    bucket.timed.launch(stream);
    bucket.timing = true;
    return () => {
      bucket.timing = false;
      return keepTime(bucket, bucket.timer.pairsUs() / 1000, kvTokens);
    };
  }

  #bucket(rows: number, logitRows: number): Bucket {
    const { cuda, stream, attention } = this.#parts;
    if (attention.version !== this.#attentionVersion) this.#dropGraphs();
    this.#attentionVersion = attention.version;
    const key = rows * 2 ** 16 + logitRows;
    let bucket = this.#buckets.get(key);
    if (!bucket) {
      const timer = new StepTimer(cuda, stream);
      const nothing = { graph: undefined, timed: undefined, timing: false };
      bucket = { ...nothing, timer, steps: 0, attentionMs: 0, kvTokens: 0 };
      this.#buckets.set(key, bucket);
    }
    return bucket;
  }

  #enqueue(ops: DecoderOps, logitRows: number): void {
    this.#forward(ops, this.#parts.model.config.layers);
    if (logitRows > 0) this.#sampler.stats(logitRows, this.#parts.stream);
  }

  #runEagerly(logitRows: number, timer: StepTimer): () => number {
    timer.begin();
    this.#enqueue(new TimedOps(this.#ops, () => timer.mark()), logitRows);
    return () => timer.pairsUs() / 1000;
  }

  #capture(logitRows: number, ops: DecoderOps): Graph {
    const { cuda, stream } = this.#parts;
    return cuda.capture(stream, () => this.#enqueue(ops, logitRows));
  }

  #captureTimed(logitRows: number, timer: StepTimer): Graph {
    timer.begin();
    return this.#capture(logitRows, new TimedOps(this.#ops, () => timer.markInGraph()));
  }

  /** The device keeps a graph that is under way until it has ended. */
  #dropGraphs(): void {
    for (const bucket of this.#buckets.values()) {
      bucket.graph?.free();
      bucket.timed?.free();
      bucket.graph = bucket.timed = undefined;
    }
  }

  free(): void {
    this.#dropGraphs();
    for (const { timer } of this.#buckets.values()) timer.free();
  }
}

const isSame = (kvTokens: number, before: number): boolean =>
  kvTokens < before * OTHER_BATCH && before < kvTokens * OTHER_BATCH;

function keepTime(bucket: Bucket, ms: number, kvTokens: number): number {
  bucket.attentionMs = ms;
  bucket.kvTokens = kvTokens;
  return ms;
}

/** The same operations with marks around attention. */
class TimedOps implements DecoderOps {
  readonly #ops: DecoderOps;
  readonly #mark: () => void;

  constructor(ops: DecoderOps, mark: () => void) {
    this.#ops = ops;
    this.#mark = mark;
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
    this.#mark();
    this.#ops.attention(layer);
    this.#mark();
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
