/**
 * Picks how a bucket's products are computed, by measuring on the device: the fastest of cuBLASLt's
 * algorithms for each product. What was measured once is kept on disk.
 * @module
 */
import { join } from 'node:path';
import { defaultCacheFolder, type KernelLoader } from '../kernel-loader.ts';
import type { CudaParts } from './cuda-ops.ts';
import { MeasuredChoices } from './measured-choices.ts';
import { type ProductName, productOf, runProduct } from './products.ts';
import type { StepTimer } from './step-timer.ts';

const LAYER_PRODUCTS = ['qkv', 'o', 'gateUp', 'down'] as const;

/** Choices start from what is on disk for this device and driver. */
export function openChoices({ cuda }: KernelLoader): MeasuredChoices {
  const { name, driverVersion } = cuda.info;
  const file = join(defaultCacheFolder(), 'choices.json');
  return new MeasuredChoices(file, `${name} ${driverVersion}`);
}

/**
 * Picks the products' algorithms of a bucket. It overwrites the step's tensors and the residual
 * stream: call it before a step begins.
 */
export function tuneBucket(
  parts: CudaParts,
  timer: StepTimer,
  rows: number,
  logitRows: number,
): void {
  const { layers } = parts.model.config;
  for (const name of LAYER_PRODUCTS) tuneProduct(parts, timer, name, layers, rows);
  if (logitRows > 0) tuneProduct(parts, timer, 'output', 1, logitRows);
}

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
