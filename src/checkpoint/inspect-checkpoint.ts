/**
 * What `flashforge inspect` tells about a model: sizes by storage type, and the memory it needs.
 * @module
 */
import type { Checkpoint, DecoderConfig, TensorType } from './checkpoint.ts';

/** All tensors of one storage type. */
export interface TypeSummary {
  readonly type: TensorType;
  readonly tensors: number;
  readonly parameters: number;
  readonly bytes: number;
}

export interface CheckpointSummary {
  readonly source: string;
  readonly format: Checkpoint['format'];
  readonly config: DecoderConfig;
  /** The type that holds most of the layers' parameters: what people call the quantisation. */
  readonly quantization: TensorType;
  readonly parameters: number;
  /** Bytes of all weights as stored. */
  readonly bytes: number;
  /** Largest first. */
  readonly types: readonly TypeSummary[];
  readonly tensors: readonly {
    readonly name: string;
    readonly type: TensorType;
    readonly shape: readonly [rows: number, columns: number];
    readonly bytes: number;
  }[];
  /** Bytes of K and V of one token in all layers, at `bytesPerValue`. */
  readonly kvBytesPerToken: number;
  /** Bytes of K and V of one sequence of the whole context. */
  readonly kvBytesOfContext: number;
}

/** Half precision, the KV cache's default. */
const KV_BYTES_PER_VALUE = 2;

/** Sums up an open model; reads no weights. */
export function inspectCheckpoint(
  checkpoint: Checkpoint,
  bytesPerValue: number = KV_BYTES_PER_VALUE,
): CheckpointSummary {
  const { config } = checkpoint;
  const infos = [...checkpoint.tensors.values()];
  const types = summarize(infos);
  const layers = summarize(infos.filter(({ name }) => name.includes('.')));
  const kvBytesPerToken = 2 * config.layers * config.kvHeads * config.headDim * bytesPerValue;
  return {
    source: checkpoint.source,
    format: checkpoint.format,
    config,
    quantization: layers[0].type,
    parameters: total(types, 'parameters'),
    bytes: total(types, 'bytes'),
    types,
    tensors: infos.map(({ name, type, rows, columns, bytes }) => ({
      name,
      type,
      shape: [rows, columns],
      bytes,
    })),
    kvBytesPerToken,
    kvBytesOfContext: kvBytesPerToken * config.contextLength,
  };
}

function summarize(
  infos: Iterable<{ type: TensorType; rows: number; columns: number; bytes: number }>,
): TypeSummary[] {
  const byType = new Map<TensorType, TypeSummary>();
  for (const { type, rows, columns, bytes } of infos) {
    const sum = byType.get(type) ?? { type, tensors: 0, parameters: 0, bytes: 0 };
    byType.set(type, {
      type,
      tensors: sum.tensors + 1,
      parameters: sum.parameters + rows * columns,
      bytes: sum.bytes + bytes,
    });
  }
  return [...byType.values()].sort((a, b) => b.parameters - a.parameters);
}

const total = (types: readonly TypeSummary[], key: 'parameters' | 'bytes'): number =>
  types.reduce((sum, type) => sum + type[key], 0);
