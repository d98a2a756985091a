/**
 * Tiny decoders on disk in every format, family and storage type, with seeded random weights.
 * @module
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { randomStream } from '../../src/base/math.ts';
import type { DecoderConfig, TensorType, WeightName } from '../../src/checkpoint/checkpoint.ts';
import { BLOCKS, bytesOf } from '../../src/checkpoint/tensor-types.ts';
import { ggufName, hfName, weightShapes } from '../../src/checkpoint/weights.ts';
import type { Metadata, TensorToWrite } from './gguf-writer.ts';
import { GGML_NUMBERS, ggufBytes, safetensorsBytes } from './gguf-writer.ts';

/** Two layers whose rows are whole blocks of every type. */
export const TINY: DecoderConfig = {
  architecture: 'llama',
  layers: 2,
  hidden: 256,
  intermediate: 256,
  heads: 4,
  kvHeads: 2,
  headDim: 64,
  vocab: 96,
  contextLength: 512,
  normEpsilon: 1e-5,
  ropeTheta: 10_000,
  ropeScaling: null,
  qkvBias: false,
  qkNorm: false,
  tiedEmbeddings: false,
  slidingWindow: null,
};

/** Byte offsets of the half-precision scales in a block, which random bits must not fill. */
const SCALE_OFFSETS: Readonly<Record<TensorType, readonly number[]>> = {
  F32: [],
  F16: [],
  BF16: [],
  Q8_0: [0],
  Q4_0: [0],
  Q4_1: [0, 2],
  Q5_0: [0],
  Q5_1: [0, 2],
  Q4_K: [0, 2],
  Q5_K: [0, 2],
  Q6_K: [208],
};

/** Random blocks whose values are small finite numbers. */
export function randomBlocks(type: TensorType, values: number, random: () => number): Uint8Array {
  const bytes = new Uint8Array(bytesOf(type, values));
  const view = new DataView(bytes.buffer);
  if (type === 'F32') {
    for (let i = 0; i < values; i++) view.setFloat32(i * 4, (random() - 0.5) / 8, true);
    return bytes;
  }
  for (let i = 0; i < bytes.length; i++) bytes[i] = random() * 256;
  // Half floats of magnitude 2^-7 to 2^-4, or the bfloat16 pattern of the same size.
  const small = (): number => ((random() * 2) << 15) | (0x2000 + random() * 0xc00);
  if (type === 'F16') for (let i = 0; i < values; i++) view.setUint16(i * 2, small(), true);
  if (type === 'BF16') {
    for (let i = 0; i < values; i++) view.setUint16(i * 2, 0x3c00 + random() * 0x180, true);
  }
  for (let block = 0; block < bytes.length; block += BLOCKS[type].bytes) {
    for (const at of SCALE_OFFSETS[type]) {
      view.setUint16(block + at, 0x1400 + random() * 0x800, true);
    }
  }
  return bytes;
}

/** The type that a weight gets: vectors stay floats. */
const typeFor = (name: WeightName, type: TensorType): TensorType =>
  /norm$|bias$/i.test(name) ? 'F32' : type;

/** Near 1, as in trained models. */
const normWeights = (count: number, random: () => number): Uint8Array =>
  new Uint8Array(Float32Array.from({ length: count }, () => 1 + (random() - 0.5) / 4).buffer);

/** Every weight of `config` under its name in the file. */
export function randomTensors(
  config: DecoderConfig,
  type: TensorType,
  format: 'gguf' | 'safetensors',
  seed = 1,
): TensorToWrite[] {
  const random = randomStream(seed);
  return weightShapes(config).map(({ name, rows, columns }) => {
    const stored = typeFor(name, type);
    return {
      name: format === 'gguf' ? ggufName(name) : hfName(name),
      type: format === 'gguf' ? GGML_NUMBERS[stored] : stored,
      shape: /norm$|bias$/i.test(name) ? [columns] : [rows, columns],
      data: /norm$/i.test(name)
        ? normWeights(columns, random)
        : randomBlocks(stored, rows * columns, random),
    };
  });
}

/** GGUF metadata of `config`, without a tokenizer. */
export function ggufMetadata(config: DecoderConfig): Record<string, Metadata> {
  const a = config.architecture;
  const u32 = (value: number): Metadata => ({ type: 'u32', value });
  const f32 = (value: number): Metadata => ({ type: 'f32', value });
  return {
    'general.architecture': { type: 'string', value: a },
    [`${a}.block_count`]: u32(config.layers),
    [`${a}.context_length`]: u32(config.contextLength),
    [`${a}.embedding_length`]: u32(config.hidden),
    [`${a}.feed_forward_length`]: u32(config.intermediate),
    [`${a}.attention.head_count`]: u32(config.heads),
    [`${a}.attention.head_count_kv`]: u32(config.kvHeads),
    [`${a}.attention.key_length`]: u32(config.headDim),
    [`${a}.attention.value_length`]: u32(config.headDim),
    [`${a}.attention.layer_norm_rms_epsilon`]: f32(config.normEpsilon),
    [`${a}.rope.freq_base`]: f32(config.ropeTheta),
  };
}

/** The config.json of `config`. */
export function hfConfig(config: DecoderConfig): Record<string, unknown> {
  return {
    model_type: config.architecture,
    num_hidden_layers: config.layers,
    hidden_size: config.hidden,
    intermediate_size: config.intermediate,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headDim,
    vocab_size: config.vocab,
    max_position_embeddings: config.contextLength,
    rms_norm_eps: config.normEpsilon,
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tiedEmbeddings,
    hidden_act: 'silu',
  };
}

/** Writes a GGUF file into `folder` and returns its path. */
export function writeTinyGguf(
  folder: string,
  config: DecoderConfig = TINY,
  type: TensorType = 'F32',
): string {
  const path = join(folder, `tiny-${config.architecture}-${type}.gguf`);
  writeFileSync(path, ggufBytes(ggufMetadata(config), randomTensors(config, type, 'gguf')));
  return path;
}

/** Fills `folder` with config.json and one safetensors file. */
export function writeTinySafetensors(
  folder: string,
  config: DecoderConfig = TINY,
  type: TensorType = 'F32',
): void {
  writeFileSync(join(folder, 'config.json'), JSON.stringify(hfConfig(config)));
  const tensors = randomTensors(config, type, 'safetensors');
  writeFileSync(join(folder, 'model.safetensors'), safetensorsBytes(tensors));
}
