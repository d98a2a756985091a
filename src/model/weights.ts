/**
 * A checkpoint's weights into shared memory: matrices repacked as the product kernels read them,
 * vectors as floats. One tensor at a time, so that the peak stays near the model's own size.
 * @module
 */

import type { KvType } from '../backend/cpu/attention.ts';
import type { CpuLayer, CpuModel, PackedMatrix } from '../backend/cpu/cpu-model.ts';
import type { Provider } from '../backend/cpu/provider.ts';
import { PANEL_COLUMNS, panelCount, repackedBytes, TYPE_CODE } from '../backend/cpu/repack.ts';
import { alignUp } from '../base/math.ts';
import type { Checkpoint, LayerWeight, TensorInfo, WeightName } from '../checkpoint/checkpoint.ts';
import { dequantize } from '../checkpoint/dequantize.ts';
import { ropeTables } from './rope.ts';

/** Rows of a matrix are brought to shared memory and repacked in pieces of about this size. */
const PIECE_BYTES = 8 << 20;

/** Where weights of one checkpoint go. */
class Loader {
  readonly #provider: Provider;
  readonly #checkpoint: Checkpoint;
  readonly #onProgress: (share: number) => void;
  readonly #total: number;
  #done = 0;
  #piece = 0;
  #pieceBytes = 0;

  constructor(provider: Provider, checkpoint: Checkpoint, onProgress: (share: number) => void) {
    this.#provider = provider;
    this.#checkpoint = checkpoint;
    this.#onProgress = onProgress;
    this.#total = [...checkpoint.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  #read(name: WeightName): { info: TensorInfo; bytes: Uint8Array } {
    const info = this.#checkpoint.tensors.get(name)!;
    const bytes = this.#checkpoint.read(name);
    this.#done += info.bytes;
    this.#onProgress(this.#done / this.#total);
    return { info, bytes };
  }

  /** Copies floats into shared memory. */
  floats(values: Float32Array): number {
    const block = this.#provider.memory.alloc(alignUp(values.length * 4, 64));
    block.f32().set(values);
    return block.address;
  }

  /** A norm or bias as floats. */
  vector(name: WeightName): number {
    const { info, bytes } = this.#read(name);
    return this.floats(dequantize(info.type, bytes));
  }

  /** A matrix as it is in the file. */
  raw(name: WeightName): { type: TensorInfo['type']; address: number; bytes: Uint8Array } {
    const { info, bytes } = this.#read(name);
    // Kernels may read a little past the last block.
    const block = this.#provider.memory.alloc(alignUp(bytes.length, 64) + 64);
    block.u8().set(bytes);
    return { type: info.type, address: block.address, bytes };
  }

  matrix(name: WeightName, bias = 0): PackedMatrix {
    const { bytes } = this.#read(name);
    return this.pack(name, bytes, bias);
  }

  /** Repacks a matrix whose blocks are at hand. */
  pack(name: WeightName, bytes: Uint8Array, bias = 0): PackedMatrix {
    const { type, rows, columns } = this.#checkpoint.tensors.get(name)!;
    const { memory, kernels, kind } = this.#provider;
    const { address } = memory.alloc(repackedBytes(type, rows, columns, kind), 4096);
    const rowBytes = bytes.length / rows;
    const step = Math.max(1, Math.floor(PIECE_BYTES / (rowBytes * PANEL_COLUMNS)));
    const piece = this.#reserve(step * PANEL_COLUMNS * rowBytes);
    const panels = panelCount(rows);
    for (let begin = 0; begin < panels; begin += step) {
      const end = Math.min(panels, begin + step);
      const first = begin * PANEL_COLUMNS * rowBytes;
      const last = Math.min(end * PANEL_COLUMNS, rows) * rowBytes;
      memory.u8(piece, last - first).set(bytes.subarray(first, last));
      kernels.ff_repack(TYPE_CODE[type], piece, address, rows, columns, begin, end);
    }
    return { type, address, outputs: rows, columns, bias };
  }

  #reserve(bytes: number): number {
    if (bytes > this.#pieceBytes) {
      this.#piece = this.#provider.memory.alloc(bytes).address;
      this.#pieceBytes = bytes;
    }
    return this.#piece;
  }
}

/**
 * Loads all weights and the rotary tables for positions below `positions`.
 * @throws FlashForgeError 'device' when memory is not enough.
 */
export function loadCpuModel(
  provider: Provider,
  checkpoint: Checkpoint,
  kvType: KvType,
  positions: number,
  onProgress: (share: number) => void = () => {},
): CpuModel {
  const { config } = checkpoint;
  const loader = new Loader(provider, checkpoint, onProgress);
  const embed = loader.raw('embed');
  const output = config.tiedEmbeddings
    ? loader.pack('embed', embed.bytes)
    : loader.matrix('output');
  const tables = ropeTables(config, positions);
  return {
    config,
    shape: {
      kvHeads: config.kvHeads,
      groupSize: config.heads / config.kvHeads,
      headDim: config.headDim,
      kvType,
      window: config.slidingWindow ?? 0,
    },
    embed: { type: embed.type, address: embed.address },
    layers: Array.from({ length: config.layers }, (_, layer) => loadLayer(loader, config, layer)),
    outputNorm: loader.vector('outputNorm'),
    output,
    cosine: loader.floats(tables.cosine),
    sine: loader.floats(tables.sine),
  };
}

function loadLayer(loader: Loader, config: Checkpoint['config'], layer: number): CpuLayer {
  const name = (part: LayerWeight): WeightName => `${layer}.${part}`;
  const vector = (part: LayerWeight): number => loader.vector(name(part));
  const projection = (part: 'q' | 'k' | 'v'): PackedMatrix =>
    loader.matrix(name(part), config.qkvBias ? vector(`${part}Bias`) : 0);
  return {
    attnNorm: vector('attnNorm'),
    qkv: [projection('q'), projection('k'), projection('v')],
    headNorms: {
      query: config.qkNorm ? vector('qNorm') : 0,
      key: config.qkNorm ? vector('kNorm') : 0,
      epsilon: config.normEpsilon,
    },
    o: loader.matrix(name('o')),
    mlpNorm: vector('mlpNorm'),
    gateUp: [loader.matrix(name('gate')), loader.matrix(name('up'))],
    down: loader.matrix(name('down')),
  };
}
