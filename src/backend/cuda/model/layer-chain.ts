/**
 * A decoder's layers as launches of linear.cu: from one attention to the next, all products in one
 * launch (o, gate and up, down, the next layer's qkv with rotation and the write of K and V).
 * @module
 */
import type { LinearKernels, LinearPhase } from './linear.ts';
import type { ProductParts } from './products.ts';

/** What a chain works with; `linear` is absent where the device or the model cannot have one. */
export interface ChainParts extends ProductParts {
  readonly linear?: LinearKernels;
}

/** The product before a layer's attention; the residual stream's norm is in `buffers.input`. */
export function qkvPhase({ model, buffers }: ChainParts, layer: number): LinearPhase {
  const { qkv } = model.layers[layer];
  return { kind: 'rotate', matrix: qkv, input: buffers.input.address };
}

/** The products between a layer's attention and the next one's, or the last layer's end. */
export function layerPhases(parts: ChainParts, layer: number): LinearPhase[] {
  const { model, buffers } = parts;
  const { o, gateUp, down, mlpNorm } = model.layers[layer];
  const [x, input, act] = [buffers.x, buffers.input, buffers.gateUp].map((b) => b.address);
  const last = layer + 1 === model.config.layers;
  const norm = last ? 0n : model.layers[layer + 1].attnNorm;
  const residual = { kind: 'residual', out: x, out16: input } as const;
  return [
    { ...residual, matrix: o, input: buffers.attention.address, norm: mlpNorm },
    { kind: 'swiglu', matrix: gateUp, input, out16: act },
    { ...residual, matrix: down, input: act, norm },
    ...(last ? [] : [qkvPhase(parts, layer + 1)]),
  ];
}

/** The last product; `buffers.input` holds the norm of the rows that are asked for. */
export const outputPhase = ({ model, buffers }: ChainParts): LinearPhase => ({
  kind: 'plain',
  matrix: model.output,
  input: buffers.input.address,
  out: buffers.logits.address,
});
