/**
 * Brings a checkpoint's weights to the device in 16 bits, through two pinned buffers so that one
 * fills while the other is copied. Weights that have the device's type already are copied as they
 * are; all others go there as floats and are rounded on the device.
 * @module
 */
import { FlashForgeError } from '../../../base/errors.ts';
import type {
  Checkpoint,
  LayerWeight,
  TensorInfo,
  WeightName,
} from '../../../checkpoint/checkpoint.ts';
import { dequantize } from '../../../checkpoint/dequantize.ts';
import type { Cuda, DeviceMemory, Event, Kernel, PinnedMemory, Stream } from '../driver.ts';
import { packArguments } from '../launch-arguments.ts';
import type { CudaLayer, CudaModel, DenseMatrix, HalfType } from './cuda-model.ts';

/** Bytes of one pinned buffer. */
const PIECE_BYTES = 32 * 2 ** 20;
const ROUND_THREADS = 256;
const FILE_TYPES: Readonly<Record<HalfType, TensorInfo['type']>> = { f16: 'F16', bf16: 'BF16' };

/** Cosines and sines of a model's rotary embedding, as model/rope.ts makes them. */
export interface RopeTables {
  readonly positions: number;
  readonly cosine: Float32Array;
  readonly sine: Float32Array;
}

/** Rows of a matrix that fit into `bytes` when each takes `rowBytes` there. */
export const rowsPerPiece = (rowBytes: number, bytes = PIECE_BYTES): number =>
  Math.max(1, Math.floor(bytes / rowBytes));

export class WeightUpload {
  /** Everything allocated so far: it lives as long as the model. */
  readonly memory: DeviceMemory[] = [];
  readonly #cuda: Cuda;
  readonly #stream: Stream;
  readonly #round: Kernel;
  readonly #dtype: HalfType;
  readonly #pinned: PinnedMemory[];
  readonly #copied: Event[];
  readonly #floats: DeviceMemory;
  readonly #onProgress: (share: number) => void;
  #turn = 0;
  #done = 0;
  #total = 1;

  /** @param round the kernel ff_round of decoder.cu for `dtype`. */
  constructor(
    cuda: Cuda,
    stream: Stream,
    round: Kernel,
    dtype: HalfType,
    onProgress: (share: number) => void = () => {},
  ) {
    this.#cuda = cuda;
    this.#stream = stream;
    this.#round = round;
    this.#dtype = dtype;
    this.#onProgress = onProgress;
    this.#pinned = [cuda.pinned(PIECE_BYTES), cuda.pinned(PIECE_BYTES)];
    this.#copied = [cuda.event(), cuda.event()];
    for (const event of this.#copied) event.record(stream);
    this.#floats = cuda.alloc(PIECE_BYTES);
  }

  /**
   * Loads all weights; the model's memory is in `memory`, also when this throws half-way.
   * @throws FlashForgeError 'device' before anything is read if they do not fit.
   */
  load(checkpoint: Checkpoint, tables: RopeTables): CudaModel {
    const { config, tensors } = checkpoint;
    this.#checkRoom(checkpoint);
    this.#total = [...tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
    const embed = this.#matrix(checkpoint, ['embed']);
    const model: CudaModel = {
      config,
      dtype: this.#dtype,
      embed: embed.address,
      layers: Array.from({ length: config.layers }, (_, i) => this.#layer(checkpoint, i)),
      outputNorm: this.#vector(checkpoint, ['outputNorm']),
      output: config.tiedEmbeddings ? embed : this.#matrix(checkpoint, ['output']),
      cosine: this.#upload(tables.cosine),
      sine: this.#upload(tables.sine),
      positions: tables.positions,
    };
    this.#stream.synchronize();
    return model;
  }

  #checkRoom({ source, tensors }: Checkpoint): void {
    const values = [...tensors.values()].reduce((sum, info) => sum + info.rows * info.columns, 0);
    const [free, total] = this.#cuda.memory();
    if (values * 2 <= free) return;
    const gib = (bytes: number): string => (bytes / 2 ** 30).toFixed(1);
    throw new FlashForgeError(
      'device',
      `the weights of ${source} take ${gib(values * 2)} GiB in ${this.#dtype}, and ${gib(free)} ` +
        `of the device's ${gib(total)} GiB are free: use a smaller model or --device cpu`,
    );
  }

  #layer(checkpoint: Checkpoint, layer: number): CudaLayer {
    const { qkvBias, qkNorm } = checkpoint.config;
    const names = (...parts: LayerWeight[]): WeightName[] =>
      parts.map((part): WeightName => `${layer}.${part}`);
    const matrix = (...parts: LayerWeight[]): DenseMatrix =>
      this.#matrix(checkpoint, names(...parts));
    const vector = (...parts: LayerWeight[]): bigint => this.#vector(checkpoint, names(...parts));
    return {
      attnNorm: vector('attnNorm'),
      qkv: matrix('q', 'k', 'v'),
      qkvBias: qkvBias ? vector('qBias', 'kBias', 'vBias') : 0n,
      qNorm: qkNorm ? vector('qNorm') : 0n,
      kNorm: qkNorm ? vector('kNorm') : 0n,
      o: matrix('o'),
      mlpNorm: vector('mlpNorm'),
      gateUp: matrix('gate', 'up'),
      down: matrix('down'),
    };
  }

  #alloc(bytes: number): bigint {
    const memory = this.#cuda.alloc(bytes);
    this.memory.push(memory);
    return memory.address;
  }

  #upload(values: Float32Array): bigint {
    const address = this.#alloc(values.byteLength);
    this.#cuda.upload(address, values);
    return address;
  }

  #read(checkpoint: Checkpoint, name: WeightName): { info: TensorInfo; bytes: Uint8Array } {
    const info = checkpoint.tensors.get(name) as TensorInfo;
    const bytes = checkpoint.read(name);
    this.#done += info.bytes;
    this.#onProgress(this.#done / this.#total);
    return { info, bytes };
  }

  /** Norms or biases, one after the other, as floats. */
  #vector(checkpoint: Checkpoint, names: readonly WeightName[]): bigint {
    const parts = names.map((name) => {
      const { info, bytes } = this.#read(checkpoint, name);
      return dequantize(info.type, bytes);
    });
    const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return this.#upload(all);
  }

  /** Matrices of equal width, one below the other. */
  #matrix(checkpoint: Checkpoint, names: readonly WeightName[]): DenseMatrix {
    const infos = names.map((name) => checkpoint.tensors.get(name) as TensorInfo);
    const outputs = infos.reduce((sum, { rows }) => sum + rows, 0);
    const { columns } = infos[0];
    const address = this.#alloc(outputs * columns * 2);
    let to = address;
    for (const name of names) {
      const { info, bytes } = this.#read(checkpoint, name);
      this.#convert(info, bytes, to);
      to += BigInt(info.rows * columns * 2);
    }
    return { address, outputs, columns };
  }

  #convert({ type, rows, columns }: TensorInfo, bytes: Uint8Array, to: bigint): void {
    const same = type === FILE_TYPES[this.#dtype];
    const step = rowsPerPiece(columns * (same ? 2 : 4));
    const rowBytes = bytes.length / rows;
    for (let row = 0; row < rows; row += step) {
      const end = Math.min(rows, row + step);
      const piece = bytes.subarray(row * rowBytes, end * rowBytes);
      const at = to + BigInt(row * columns * 2);
      if (same) this.#send(piece, at);
      else this.#sendFloats(dequantize(type, piece), at);
    }
  }

  /** Copies bytes of at most a piece through the pinned buffer whose turn it is. */
  #send(bytes: Uint8Array, to: bigint): void {
    const [pinned, copied] = [this.#pinned[this.#turn], this.#copied[this.#turn]];
    this.#turn = 1 - this.#turn;
    copied.synchronize();
    new Uint8Array(pinned.buffer).set(bytes);
    this.#cuda.uploadAsync(to, pinned, bytes.length, this.#stream);
    copied.record(this.#stream);
  }

  #sendFloats(values: Float32Array, to: bigint): void {
    this.#send(
      new Uint8Array(values.buffer, values.byteOffset, values.byteLength),
      this.#floats.address,
    );
    const args = packArguments('ppp', [this.#floats.address, to, BigInt(values.length)]);
    const shape = { blocks: Math.ceil(values.length / ROUND_THREADS), threads: ROUND_THREADS };
    this.#cuda.launch(this.#round, shape, args, this.#stream);
  }

  /** Gives back what only loading needs. */
  close(): void {
    for (const part of [...this.#pinned, ...this.#copied, this.#floats]) part.free();
  }
}
