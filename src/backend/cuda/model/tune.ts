/**
 * Picks how a bucket's products are computed, by measuring on the device: the fastest of cuBLASLt's
 * algorithms for each product, then whether a layer's launches one by one or our own chain of
 * products is faster. What was measured once is kept on disk.
 * @module
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { FlashForgeError } from '../../../base/errors.ts';
import type { Stream } from '../driver.ts';
import { defaultCacheFolder, type KernelLoader } from '../kernel-loader.ts';
import { kernelSources } from '../variants.ts';
import type { CudaModel } from './cuda-model.ts';
import type { CudaOps, CudaParts } from './cuda-ops.ts';
import { fitsLinear, LINEAR_HIDDEN_MAX, LINEAR_ROWS_MAX, LinearKernels } from './linear.ts';
import { MeasuredChoices } from './measured-choices.ts';
import { type ProductName, productOf, runProduct } from './products.ts';
import type { StepTimer } from './step-timer.ts';

const LAYER_PRODUCTS = ['qkv', 'o', 'gateUp', 'down'] as const;
/** Replays of which the fastest counts. */
const REPLAYS = 3;

/** Choices start from what is on disk for this device, driver and these kernels. */
export function openWays({ cuda }: KernelLoader): Pick<CudaParts, 'ways' | 'choices'> {
  const hash = createHash('sha256');
  for (const [name, text] of kernelSources()) hash.update(`${name}\0${text}\0`);
  const { name, driverVersion } = cuda.info;
  const circumstances = `${name} ${driverVersion} ${hash.digest('hex').slice(0, 16)}`;
  return {
    ways: { chained: new Map(), ownOutput: new Map() },
    choices: new MeasuredChoices(join(defaultCacheFolder(), 'choices.json'), circumstances),
  };
}

/** Our own products, where the device and the model's shapes allow them. */
export function openLinear(
  loader: KernelLoader,
  model: CudaModel,
  pageSize: number,
  abortFlag: bigint,
  stream: Stream,
): LinearKernels | undefined {
  const { layers, output, config, dtype } = model;
  const { qkv, o, gateUp, down } = layers[0];
  const matrices = [qkv, o, gateUp, down, output];
  const { hidden, headDim } = config;
  const fits = hidden <= LINEAR_HIDDEN_MAX && matrices.every(fitsLinear);
  if (!fits || !LinearKernels.runsOn(loader.cuda.info.arch)) return undefined;
  const widest = Math.max(...matrices.map(({ outputs }) => outputs));
  return new LinearKernels(loader, { headDim, pageSize, dtype }, widest, abortFlag, stream);
}

/**
 * Picks the ways of a bucket. It overwrites the step's tensors, the residual stream and the KV
 * slots that the step writes: call it before a step begins.
 */
export function tuneBucket(
  parts: CudaParts,
  ops: CudaOps,
  timer: StepTimer,
  rows: number,
  logitRows: number,
): void {
  const { layers } = parts.model.config;
  for (const name of LAYER_PRODUCTS) tuneProduct(parts, timer, name, layers, rows);
  if (logitRows > 0) tuneProduct(parts, timer, 'output', 1, logitRows);
  const { ways, choices } = parts;
  const isFaster = (name: string, count: number, work: (own: boolean) => void): boolean => {
    if (count === 0 || count > LINEAR_ROWS_MAX || !loads(parts.linear, count)) return false;
    const key = `${name} ${count} ${shapeName(parts)}`;
    let choice = choices.get(key);
    if (choice === undefined) {
      const [own, separate] = [true, false].map((way) => fastestUs(timer, () => work(way)));
      choice = own < separate ? 'own' : 'cuBLASLt';
      choices.set(key, choice);
    }
    return choice === 'own';
  };
  if (!ways.chained.has(rows)) {
    const chained = isFaster('layers', rows, (own) => {
      ops.begin(rows, logitRows, { chained: own, ownOutput: false });
      for (let layer = 0; layer < layers; layer++) runLayer(ops, layer);
    });
    ways.chained.set(rows, chained);
  }
  if (!ways.ownOutput.has(logitRows)) {
    const ownOutput = isFaster('output', logitRows, (own) => {
      ops.begin(rows, logitRows, { chained: false, ownOutput: own });
      ops.logits();
    });
    ways.ownOutput.set(logitRows, ownOutput);
  }
  ops.begin(rows, logitRows);
}

/** Where our kernel neither ships nor can be compiled, cuBLASLt does everything. */
function loads(linear: LinearKernels | undefined, rows: number): boolean {
  try {
    linear?.load(rows);
    return linear !== undefined;
  } catch (error) {
    if (error instanceof FlashForgeError && error.code === 'compile') return false;
    throw error;
  }
}

/** All of a layer but attention. */
function runLayer(ops: CudaOps, layer: number): void {
  ops.attentionInput(layer);
  ops.rotateAndStore(layer);
  ops.attentionOutput(layer);
  ops.mlpInput(layer);
  ops.mlpOutput(layer);
}

const fastestUs = (timer: StepTimer, work: () => void): number =>
  Math.min(...Array.from({ length: REPLAYS }, () => timer.graphUs(work)));

/**
 * The fastest algorithm of one product, timed over all layers in turn, so that weights come from
 * memory as in a step.
 */
function tuneProduct(
  parts: CudaParts,
  timer: StepTimer,
  name: ProductName,
  layers: number,
  rows: number,
): void {
  const { shape } = productOf(parts, name, 0, rows);
  parts.cublas.tune(shape, parts.choices, () =>
    timer.graphUs(() => {
      for (let layer = 0; layer < layers; layer++) runProduct(parts, name, layer, rows);
    }),
  );
}

const shapeName = ({ model }: CudaParts): string => {
  const { layers, hidden, intermediate, heads, kvHeads, headDim, vocab } = model.config;
  const { dtype } = model;
  return [layers, hidden, intermediate, heads, kvHeads, headDim, vocab, dtype].join(' ');
};
