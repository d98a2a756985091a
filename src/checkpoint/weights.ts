/**
 * Which weights a decoder has: their names here and in each file format, and their shapes.
 * @module
 */
import { show } from '../base/errors.ts';
import type { DecoderConfig, TensorInfo, TensorType, WeightName } from './checkpoint.ts';
import { modelError } from './model-file.ts';
import { FLOAT_TYPES, isTensorType, TENSOR_TYPES } from './tensor-types.ts';

export interface WeightShape {
  readonly name: WeightName;
  readonly rows: number;
  readonly columns: number;
}

/** Every weight of a decoder; vectors have one row. */
export function weightShapes(config: DecoderConfig): readonly WeightShape[] {
  const { hidden, intermediate, headDim, vocab } = config;
  const [q, kv] = [config.heads * headDim, config.kvHeads * headDim];
  const shapes: WeightShape[] = [
    { name: 'embed', rows: vocab, columns: hidden },
    { name: 'outputNorm', rows: 1, columns: hidden },
  ];
  if (!config.tiedEmbeddings) shapes.push({ name: 'output', rows: vocab, columns: hidden });
  for (let layer = 0; layer < config.layers; layer++) {
    shapes.push(
      { name: `${layer}.attnNorm`, rows: 1, columns: hidden },
      { name: `${layer}.q`, rows: q, columns: hidden },
      { name: `${layer}.k`, rows: kv, columns: hidden },
      { name: `${layer}.v`, rows: kv, columns: hidden },
      { name: `${layer}.o`, rows: hidden, columns: q },
      { name: `${layer}.mlpNorm`, rows: 1, columns: hidden },
      { name: `${layer}.gate`, rows: intermediate, columns: hidden },
      { name: `${layer}.up`, rows: intermediate, columns: hidden },
      { name: `${layer}.down`, rows: hidden, columns: intermediate },
    );
    if (config.qkvBias) {
      shapes.push(
        { name: `${layer}.qBias`, rows: 1, columns: q },
        { name: `${layer}.kBias`, rows: 1, columns: kv },
        { name: `${layer}.vBias`, rows: 1, columns: kv },
      );
    }
    if (config.qkNorm) {
      shapes.push(
        { name: `${layer}.qNorm`, rows: 1, columns: headDim },
        { name: `${layer}.kNorm`, rows: 1, columns: headDim },
      );
    }
  }
  return shapes;
}

/** A weight's name outside the layers, then its part of a layer, in each format. */
const GGUF_NAMES: Readonly<Record<string, string>> = {
  embed: 'token_embd.weight',
  outputNorm: 'output_norm.weight',
  output: 'output.weight',
  attnNorm: 'attn_norm.weight',
  q: 'attn_q.weight',
  k: 'attn_k.weight',
  v: 'attn_v.weight',
  o: 'attn_output.weight',
  qBias: 'attn_q.bias',
  kBias: 'attn_k.bias',
  vBias: 'attn_v.bias',
  qNorm: 'attn_q_norm.weight',
  kNorm: 'attn_k_norm.weight',
  mlpNorm: 'ffn_norm.weight',
  gate: 'ffn_gate.weight',
  up: 'ffn_up.weight',
  down: 'ffn_down.weight',
};

const HF_NAMES: Readonly<Record<string, string>> = {
  embed: 'model.embed_tokens.weight',
  outputNorm: 'model.norm.weight',
  output: 'lm_head.weight',
  attnNorm: 'input_layernorm.weight',
  q: 'self_attn.q_proj.weight',
  k: 'self_attn.k_proj.weight',
  v: 'self_attn.v_proj.weight',
  o: 'self_attn.o_proj.weight',
  qBias: 'self_attn.q_proj.bias',
  kBias: 'self_attn.k_proj.bias',
  vBias: 'self_attn.v_proj.bias',
  qNorm: 'self_attn.q_norm.weight',
  kNorm: 'self_attn.k_norm.weight',
  mlpNorm: 'post_attention_layernorm.weight',
  gate: 'mlp.gate_proj.weight',
  up: 'mlp.up_proj.weight',
  down: 'mlp.down_proj.weight',
};

/** The weight's name in a GGUF file. */
export function ggufName(name: WeightName): string {
  const dot = name.indexOf('.');
  return dot < 0
    ? GGUF_NAMES[name]
    : `blk.${name.slice(0, dot)}.${GGUF_NAMES[name.slice(dot + 1)]}`;
}

/** The weight's name in Hugging Face's safetensors files. */
export function hfName(name: WeightName): string {
  const dot = name.indexOf('.');
  return dot < 0
    ? HF_NAMES[name]
    : `model.layers.${name.slice(0, dot)}.${HF_NAMES[name.slice(dot + 1)]}`;
}

/**
 * Tensors that a file may hold beside the weights because they change nothing: frequencies that
 * are computed here, and the output matrix of a model that ties it to the embedding.
 */
const IGNORED = /(^|\.)(rotary_emb\.inv_freq|rope_freqs\.weight|lm_head\.weight)$/;

/** A tensor as a file has it. */
export interface StoredTensor {
  readonly type: string;
  /** Sizes, the contiguous dimension last. */
  readonly shape: readonly number[];
  readonly bytes: number;
}

/**
 * Finds every weight in a file's tensors and checks type and shape.
 * @throws FlashForgeError 'model' for a missing, misshapen or unsupported tensor, or for one that
 *   no weight stands for: ignoring it would give silently wrong output.
 */
export function matchWeights(
  source: string,
  config: DecoderConfig,
  stored: ReadonlyMap<string, StoredTensor>,
  fileName: (name: WeightName) => string,
): ReadonlyMap<WeightName, TensorInfo> {
  const infos = new Map<WeightName, TensorInfo>();
  const used = new Set<string>();
  for (const shape of weightShapes(config)) {
    const name = fileName(shape.name);
    const tensor = stored.get(name);
    if (!tensor) throw modelError(source, `the tensor ${show(name)} is missing`);
    used.add(name);
    checkShape(source, name, shape, tensor);
    infos.set(shape.name, {
      ...shape,
      type: typeOf(source, name, shape, tensor),
      bytes: tensor.bytes,
    });
  }
  for (const name of stored.keys()) {
    if (used.has(name) || IGNORED.test(name)) continue;
    throw modelError(
      source,
      `the tensor ${show(name)} has no place in the architecture ${config.architecture}`,
    );
  }
  return infos;
}

function checkShape(source: string, name: string, wanted: WeightShape, tensor: StoredTensor): void {
  const { rows, columns } = wanted;
  const expected = isVector(wanted.name) ? [columns] : [rows, columns];
  // GGUF keeps no trailing sizes of 1, so a matrix of one row may be stored as a vector.
  const actual = tensor.shape.length < expected.length ? [1, ...tensor.shape] : tensor.shape;
  if (actual.length === expected.length && actual.every((size, i) => size === expected[i])) return;
  throw modelError(
    source,
    `the tensor ${show(name)} has the shape ${show(tensor.shape)}, not ${show(expected)}`,
  );
}

/** Norms and biases. */
const isVector = (name: WeightName): boolean => /norm$|bias$/i.test(name);

function typeOf(
  source: string,
  name: string,
  shape: WeightShape,
  tensor: StoredTensor,
): TensorType {
  const allowed = isVector(shape.name) ? FLOAT_TYPES : TENSOR_TYPES;
  if (isTensorType(tensor.type) && allowed.includes(tensor.type)) return tensor.type;
  throw modelError(
    source,
    `the tensor ${show(name)} is stored as ${tensor.type}, supported are ${allowed.join(', ')}`,
  );
}
