/**
 * GGUF metadata as a DecoderConfig, and the names of GGUF's tensors.
 * @module
 */
import { show } from '../base/errors.ts';
import type { DecoderConfig, RopeScaling } from './checkpoint.ts';
import {
  checkedConfig,
  Fields,
  headDimension,
  LIMITS,
  unknownArchitecture,
} from './decoder-config.ts';
import { dequantize } from './dequantize.ts';
import type { GgufHeader, GgufTensor } from './gguf.ts';
import type { ModelFile } from './model-file.ts';
import { modelError } from './model-file.ts';
import { isTensorType } from './tensor-types.ts';

/** Families that are a setting of DecoderConfig; converters write Mistral and SmolLM2 as llama. */
const ARCHITECTURES: readonly string[] = ['llama', 'qwen2', 'qwen3'];
const ROPE_THETA_DEFAULT = 10_000;
const BETA_FAST = 32;
const BETA_SLOW = 1;
const ROPE_FACTORS = 'rope_freqs.weight';

/**
 * Reads the description of a decoder.
 * @param find finds a tensor and the file that holds it.
 */
export function configFromGguf(
  source: string,
  metadata: GgufHeader['metadata'],
  find: (name: string) => { tensor: GgufTensor; file: ModelFile } | undefined,
): DecoderConfig {
  const architecture = metadata.get('general.architecture');
  if (typeof architecture !== 'string' || !ARCHITECTURES.includes(architecture)) {
    throw unknownArchitecture(source, architecture, ARCHITECTURES);
  }
  const fields = new Fields(
    source,
    (key) => metadata.get(`${architecture}.${key}`),
    `${architecture}.`,
  );
  refuseUnsupported(fields);

  const hidden = fields.integer('embedding_length', LIMITS.width);
  const heads = perLayer(fields, 'attention.head_count', LIMITS.heads);
  const headDim = headDimension(fields, 'attention.key_length', hidden, heads);
  fields.only('attention.value_length', headDim);
  fields.only('rope.dimension_count', headDim);
  const factors = find(ROPE_FACTORS);
  return checkedConfig(source, {
    architecture,
    layers: fields.integer('block_count', LIMITS.layers),
    hidden,
    intermediate: perLayer(fields, 'feed_forward_length', LIMITS.width),
    heads,
    kvHeads: perLayer(fields, 'attention.head_count_kv', LIMITS.heads, heads),
    headDim,
    vocab: vocabOf(fields, metadata, find('token_embd.weight')?.tensor),
    contextLength: fields.integer('context_length', LIMITS.context),
    normEpsilon: fields.number('attention.layer_norm_rms_epsilon', 0),
    ropeTheta: fields.number('rope.freq_base', Number.MIN_VALUE, ROPE_THETA_DEFAULT),
    ropeScaling: scalingOf(
      fields,
      factors && ropeFactors(source, factors.tensor, factors.file, headDim),
    ),
    qkvBias: find('blk.0.attn_q.bias') !== undefined,
    qkNorm: find('blk.0.attn_q_norm.weight') !== undefined,
    tiedEmbeddings: find('output.weight') === undefined,
    slidingWindow:
      fields.has('attention.sliding_window') && fields.value('attention.sliding_window') !== 0
        ? fields.integer('attention.sliding_window', LIMITS.context)
        : null,
  });
}

/** Options of other families that would change the output if ignored. */
function refuseUnsupported(fields: Fields): void {
  fields.only('expert_count', 0);
  fields.only('attention.causal', true);
  fields.only('attn_logit_softcapping', 0);
  fields.only('final_logit_softcapping', 0);
  fields.only('attention.scale', 0);
  fields.only('attention.sliding_window_pattern');
  for (const scale of ['logit_scale', 'residual_scale', 'embedding_scale']) fields.only(scale, 1);
}

/** A size that the format allows to differ by layer; here all layers must agree. */
function perLayer(fields: Fields, key: string, max: number, fallback?: number): number {
  const value = fields.value(key);
  if (!ArrayBuffer.isView(value)) return fields.integer(key, max, fallback);
  const sizes = new Set(value as unknown as Iterable<unknown>);
  if (sizes.size === 1) {
    return new Fields(fields.source, () => [...sizes][0]).integer(key, max);
  }
  throw fields.error(`${key} differs between layers, which is not supported`);
}

/** The vocabulary as the embedding has it; the tokenizer in the file must agree. */
function vocabOf(
  fields: Fields,
  metadata: GgufHeader['metadata'],
  embedding: GgufTensor | undefined,
): number {
  const rows = embedding?.dimensions[1];
  const vocab = fields.integer('vocab_size', LIMITS.vocab, rows);
  const tokens = metadata.get('tokenizer.ggml.tokens');
  if (Array.isArray(tokens) && tokens.length > vocab) {
    throw fields.error(`vocab_size is ${vocab}, the tokenizer in the file has ${tokens.length}`);
  }
  return vocab;
}

function scalingOf(fields: Fields, factors: readonly number[] | undefined): RopeScaling | null {
  const type = fields.value('rope.scaling.type') ?? 'none';
  // Before scaling types were written, a plain factor meant linear scaling.
  const old = fields.has('rope.scale_linear') && fields.value('rope.scale_linear') !== 1;
  const factor = fields.number('rope.scaling.factor', 0, fields.number('rope.scale_linear', 0, 1));
  const scaled = (type !== 'none' || old) && factor !== 0 && factor !== 1;
  if (factors && scaled) {
    throw fields.error(`rope.scaling.type ${show(type)} beside ${ROPE_FACTORS} is not supported`);
  }
  if (factors) return { type: 'factors', factors };
  if (!scaled) return null;
  if (type === 'linear' || type === 'none') return { type: 'linear', factor };
  if (type === 'yarn') return yarnScaling(fields, factor);
  throw fields.error(`rope.scaling.type is ${show(type)}, supported are "none", "linear", "yarn"`);
}

function yarnScaling(fields: Fields, factor: number): RopeScaling {
  fields.only('rope.scaling.yarn_ext_factor', 1);
  fields.only('rope.scaling.yarn_log_multiplier', 0);
  const key = 'rope.scaling.attn_factor';
  // ggml multiplies YaRN's own factor by the file's; DecoderConfig has the product.
  const attentionFactor = fields.has(key)
    ? fields.number(key, Number.MIN_VALUE) * (1 + 0.1 * Math.log(factor))
    : null;
  return {
    type: 'yarn',
    factor,
    originalContext: fields.integer('rope.scaling.original_context_length', LIMITS.context),
    betaFast: fields.number('rope.scaling.yarn_beta_fast', Number.MIN_VALUE, BETA_FAST),
    betaSlow: fields.number('rope.scaling.yarn_beta_slow', Number.MIN_VALUE, BETA_SLOW),
    attentionFactor,
  };
}

/** Divisors of the rotary frequencies, one per pair (how converters write Llama 3's scaling). */
function ropeFactors(
  source: string,
  tensor: GgufTensor,
  file: ModelFile,
  headDim: number,
): readonly number[] {
  const { type, dimensions } = tensor;
  if (!isTensorType(type) || dimensions.length !== 1 || dimensions[0] !== headDim / 2) {
    throw modelError(
      source,
      `${ROPE_FACTORS} must hold ${headDim / 2} floats, got ${show(dimensions)} of ${type}`,
    );
  }
  const factors = [...dequantize(type, file.read(tensor.offset, tensor.bytes))];
  if (factors.every((factor) => Number.isFinite(factor) && factor > 0)) return factors;
  throw modelError(source, `${ROPE_FACTORS} must be positive numbers, got ${show(factors)}`);
}
