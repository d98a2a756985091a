/**
 * The dense products of a decoder: which matrix, input and output each has.
 * @module
 */

import type { Stream } from '../driver.ts';
import type { CublasLt, ProductShape, ProductTensors } from './cublas.ts';
import type { CudaBuffers, CudaModel, DenseMatrix } from './cuda-model.ts';

export type ProductName = 'qkv' | 'o' | 'gateUp' | 'down' | 'output';

/** What products work with. */
export interface ProductParts {
  readonly model: CudaModel;
  readonly buffers: CudaBuffers;
  readonly cublas: CublasLt;
  readonly stream: Stream;
}

/** Shape and addresses of a layer's product ('output' has no layer) over so many rows. */
export function productOf(
  { model, buffers }: ProductParts,
  name: ProductName,
  layer: number,
  rows: number,
): { readonly shape: ProductShape; readonly tensors: ProductTensors } {
  const { input, qkv, attention, x, gateUp, logits } = buffers;
  const matrix: DenseMatrix = name === 'output' ? model.output : model.layers[layer][name];
  const { outputs, columns, address: weight } = matrix;
  const from = name === 'o' ? attention : input;
  const to = { qkv, o: x, gateUp, down: x, output: logits }[name];
  return {
    shape: {
      ...{ rows, outputs, columns },
      input: model.dtype,
      output: name === 'gateUp' ? model.dtype : 'f32',
      accumulate: name === 'o' || name === 'down',
    },
    tensors: { x: from.address, weight, y: to.address },
  };
}

export function runProduct(
  parts: ProductParts,
  name: ProductName,
  layer: number,
  rows: number,
): void {
  const { shape, tensors } = productOf(parts, name, layer, rows);
  parts.cublas.run(shape, tensors, parts.stream);
}
