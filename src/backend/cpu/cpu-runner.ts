/**
 * The CPU as a runner: writes a step's tokens, forest and plan into shared memory and lets all
 * workers run the forward pass over it. The calling thread is worker 0.
 * @module
 */
import { assert } from '../../base/errors.ts';
import type { PlanSpec } from '../../plan/plan.ts';
import type { Runner, StepInput, StepOutput } from '../backend.ts';
import type { DecoderOps } from '../ops.ts';
import { type KvLayout, kvLayout, PAGE_TOKENS } from './attention.ts';
import { PlanImage } from './attention-image.ts';
import { allocateBuffers, type CpuBuffers, type CpuModel, HEADER } from './cpu-model.ts';
import { CpuOps } from './cpu-ops.ts';
import type { Provider, ProviderSource } from './provider.ts';
import { WorkerPool } from './worker-pool.ts';

/** model/decoder.ts forward, handed in because backends know nothing of the model folder. */
export type Forward = (ops: DecoderOps, layers: number) => void;

/** What every worker thread is started with, besides its number. */
export interface CpuProgram {
  readonly source: ProviderSource;
  readonly model: CpuModel;
  readonly buffers: CpuBuffers;
  readonly image: number;
}

export interface CpuRunnerOptions {
  readonly provider: Provider;
  readonly model: CpuModel;
  readonly workers: number;
  readonly pages: number;
  readonly maxRows: number;
  readonly planSpec: PlanSpec;
  readonly forward: Forward;
  /** Module that runs a worker thread. */
  readonly entry: URL;
}

/** Bytes of one KV token over all layers. */
const kvTokenBytes = (model: CpuModel): number =>
  kvLayout(model.shape, model.config.layers, 1).totalBytes / PAGE_TOKENS;

/**
 * Allocates KV pages and step buffers and starts the workers.
 * @throws FlashForgeError 'device' when memory is not enough or a worker does not start.
 */
export async function startCpuRunner(options: CpuRunnerOptions): Promise<Runner> {
  const { provider, model, workers, pages, maxRows } = options;
  const { memory, kernels } = provider;
  const layout = kvLayout(model.shape, model.config.layers, pages);
  const kv = memory.alloc(layout.totalBytes, 4096).address;
  const buffers = allocateBuffers(memory, model, maxRows, workers);
  const image = planImage(provider, model, buffers, kv, layout);
  const { source } = provider;
  const program: CpuProgram = { source, model, buffers, image: image.address };
  const pool = await WorkerPool.start({ workers, entry: options.entry, program });
  const self = { worker: 0, workers, kernels, memory, barrier: pool.barrier };
  const ops = new CpuOps(self, model, buffers, image.address);
  const { layers, vocab } = model.config;

  const step = async (input: StepInput): Promise<StepOutput> => {
    const began = performance.now();
    writeStep(input, provider, buffers, model, workers);
    image.write(input.plan, input.forest);
    pool.step(() => {
      ops.begin();
      options.forward(ops, layers);
    });
    const count = input.logitRows.length;
    return {
      logits: memory.f32(buffers.logits, count * vocab),
      argmax: memory.i32(buffers.argmax, count),
      logSumExp: memory.f32(buffers.logSumExp, count),
      stepMs: performance.now() - began,
      attentionMs: ops.attentionMs,
    };
  };
  return {
    device: 'cpu',
    provider: provider.kind,
    providerWhy: provider.why,
    pageSize: PAGE_TOKENS,
    pages,
    tokenBytes: kvTokenBytes(model),
    maxRows,
    planSpec: options.planSpec,
    step,
    dispose: () => pool.close(),
  };
}

function planImage(
  { memory, kernels }: Provider,
  model: CpuModel,
  buffers: CpuBuffers,
  pages: number,
  layout: KvLayout,
): PlanImage {
  const { heads, kvHeads, headDim } = model.config;
  return new PlanImage(memory, kernels, model.shape, {
    query: buffers.qkv,
    key: buffers.qkv + heads * headDim * 4,
    value: buffers.qkv + (heads + kvHeads) * headDim * 4,
    inputStride: (heads + 2 * kvHeads) * headDim,
    output: buffers.attention,
    outputStride: heads * headDim,
    pages,
    layout,
    cosine: model.cosine,
    sine: model.sine,
    writeSlots: buffers.writeSlots,
  });
}

/** Checks a step and copies what belongs to it besides forest and plan. */
function writeStep(
  input: StepInput,
  { memory }: Provider,
  buffers: CpuBuffers,
  model: CpuModel,
  workers: number,
): void {
  const { tokens, forest, plan, writeSlots, logitRows } = input;
  const { rows } = forest;
  const count = logitRows.length;
  assert(rows > 0 && rows <= buffers.maxRows, `a step of ${rows} rows, at most maxRows`);
  assert(plan.rows === rows && plan.workers === workers, 'the plan is not for this step');
  for (let row = 0; row < rows; row++) {
    // A wrong token would be read outside of the embedding table.
    assert(tokens[row] >= 0 && tokens[row] < model.config.vocab, `no token ${tokens[row]}`);
  }
  memory.i32(buffers.tokens, rows).set(tokens.subarray(0, rows));
  memory.i32(buffers.writeSlots, rows).set(writeSlots.subarray(0, rows));
  memory.i32(buffers.logitRows, count).set(logitRows);
  const contiguous = count > 0 && logitRows[count - 1] - logitRows[0] === count - 1;
  const header = memory.i32(buffers.header, 16);
  header[HEADER.rows] = rows;
  header[HEADER.logitRows] = count;
  header[HEADER.firstLogitRow] = contiguous ? logitRows[0] : -1;
}
