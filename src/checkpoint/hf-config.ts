/**
 * Hugging Face's config.json as a DecoderConfig: each family's defaults, and a refusal of every
 * option that this decoder does not compute.
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
import { isJsonObject } from './safetensors.ts';

/** Families that are a setting of DecoderConfig; SmolLM2 is a llama. */
const ARCHITECTURES: readonly string[] = ['llama', 'mistral', 'qwen2', 'qwen3'];
/** transformers' own default where config.json gives no rope_theta. */
const ROPE_THETA_DEFAULT = 10_000;
const NORM_EPSILON_DEFAULT = 1e-6;
/** Qwen3's head dimension where its file gives none; the others divide hidden by heads. */
const QWEN3_HEAD_DIM = 128;
/** yarn's defaults (Peng et al. 2023, "YaRN", section 3.2: beta of 32 and alpha of 1). */
const BETA_FAST = 32;
const BETA_SLOW = 1;

/** Reads a parsed config.json. */
export function configFromJson(
  source: string,
  json: Readonly<Record<string, unknown>>,
): DecoderConfig {
  const fields = new Fields(source, (key) => (Object.hasOwn(json, key) ? json[key] : undefined));
  const architecture = fields.value('model_type');
  if (typeof architecture !== 'string' || !ARCHITECTURES.includes(architecture)) {
    throw unknownArchitecture(source, architecture, ARCHITECTURES);
  }
  refuseUnsupported(fields, architecture);

  const hidden = fields.integer('hidden_size', LIMITS.width);
  const heads = fields.integer('num_attention_heads', LIMITS.heads);
  const headDim =
    architecture === 'qwen3'
      ? fields.integer('head_dim', LIMITS.headDim, QWEN3_HEAD_DIM)
      : headDimension(fields, 'head_dim', hidden, heads);
  const layers = fields.integer('num_hidden_layers', LIMITS.layers);
  const rope = ropeFields(fields);
  const position = fields.integer('max_position_embeddings', LIMITS.context);
  const ropeScaling = rope === null ? null : scalingOf(rope, position);
  return checkedConfig(source, {
    architecture,
    layers,
    hidden,
    intermediate: fields.integer('intermediate_size', LIMITS.width),
    heads,
    kvHeads: fields.integer('num_key_value_heads', LIMITS.heads, heads),
    headDim,
    vocab: fields.integer('vocab_size', LIMITS.vocab),
    contextLength: contextOf(position, ropeScaling),
    normEpsilon: fields.number('rms_norm_eps', 0, NORM_EPSILON_DEFAULT),
    ropeTheta: (rope?.has('rope_theta') ? rope : fields).number(
      'rope_theta',
      Number.MIN_VALUE,
      ROPE_THETA_DEFAULT,
    ),
    ropeScaling,
    qkvBias: architecture === 'qwen2',
    qkNorm: architecture === 'qwen3',
    tiedEmbeddings: fields.boolean('tie_word_embeddings', false),
    slidingWindow: windowOf(fields, architecture, layers),
  });
}

/** Options of other families, or of quantisers, that would change the output if ignored. */
function refuseUnsupported(fields: Fields, architecture: string): void {
  fields.only('hidden_act', 'silu', 'swish');
  fields.only('mlp_bias', false);
  fields.only('partial_rotary_factor', 1);
  fields.only('attn_logit_softcapping');
  fields.only('final_logit_softcapping');
  fields.only('num_experts', 0);
  fields.only('num_local_experts', 0);
  fields.only('no_rope_layers');
  fields.only('is_encoder_decoder', false);
  for (const multiplier of ['logits_scaling', 'embedding_multiplier', 'residual_multiplier']) {
    fields.only(multiplier, 1);
  }
  if (fields.has('quantization_config')) {
    throw fields.error(
      'quantization_config is not supported, safetensors weights must be F32, F16 or BF16',
    );
  }
  // In Llama and Qwen3 it adds a bias to the output projection too; Mistral does not use it.
  if (architecture === 'llama' || architecture === 'qwen3') fields.only('attention_bias', false);
}

/** The rope options: rope_scaling, or rope_parameters in newer files; null where there are none. */
function ropeFields(fields: Fields): Fields | null {
  const key = fields.has('rope_parameters') ? 'rope_parameters' : 'rope_scaling';
  const value = fields.value(key);
  if (value === undefined) return null;
  if (!isJsonObject(value)) throw fields.error(`${key} must be an object, got ${show(value)}`);
  return new Fields(
    fields.source,
    (name) => (Object.hasOwn(value, name) ? value[name] : undefined),
    `${key}.`,
  );
}

function scalingOf(rope: Fields, position: number): RopeScaling | null {
  const type = rope.value('rope_type') ?? rope.value('type') ?? 'default';
  rope.only('partial_rotary_factor', 1);
  switch (type) {
    case 'default':
      return null;
    case 'linear':
      return { type: 'linear', factor: rope.number('factor', 1) };
    case 'llama3':
      return llama3Scaling(rope);
    case 'yarn':
      return yarnScaling(rope, position);
    default:
      throw rope.error(
        `rope_type is ${show(type)}, supported are "default", "linear", "llama3", "yarn"`,
      );
  }
}

function llama3Scaling(rope: Fields): RopeScaling {
  const low = rope.number('low_freq_factor', Number.MIN_VALUE);
  const high = rope.number('high_freq_factor', Number.MIN_VALUE);
  if (high <= low) {
    throw rope.error(`high_freq_factor must be above low_freq_factor (${low}), got ${high}`);
  }
  return {
    type: 'llama3',
    factor: rope.number('factor', 1),
    lowFrequencyFactor: low,
    highFrequencyFactor: high,
    originalContext: rope.integer('original_max_position_embeddings', LIMITS.context),
  };
}

function yarnScaling(rope: Fields, position: number): RopeScaling {
  rope.only('truncate', true);
  const factor = rope.number('factor', 1);
  return {
    type: 'yarn',
    factor,
    originalContext: rope.integer('original_max_position_embeddings', LIMITS.context, position),
    betaFast: rope.number('beta_fast', Number.MIN_VALUE, BETA_FAST),
    betaSlow: rope.number('beta_slow', Number.MIN_VALUE, BETA_SLOW),
    attentionFactor: yarnAttentionFactor(rope, factor),
  };
}

/** The factor on cos and sin if the file gives one, directly or by DeepSeek's two mscales. */
function yarnAttentionFactor(rope: Fields, factor: number): number | null {
  if (rope.has('attention_factor')) return rope.number('attention_factor', Number.MIN_VALUE);
  const [scale, scaleAll] = [rope.number('mscale', 0, 0), rope.number('mscale_all_dim', 0, 0)];
  if (scale === 0 || scaleAll === 0) return null;
  const log = Math.log(factor);
  return (0.1 * scale * log + 1) / (0.1 * scaleAll * log + 1);
}

/** Qwen's files keep the unscaled length beside yarn, whose factor extends it. */
function contextOf(position: number, scaling: RopeScaling | null): number {
  if (scaling?.type !== 'yarn') return position;
  return Math.min(
    LIMITS.context,
    Math.max(position, Math.round(scaling.originalContext * scaling.factor)),
  );
}

/** The sliding window if every layer has it; a mixture of windows is refused. */
function windowOf(fields: Fields, architecture: string, layers: number): number | null {
  const gated = architecture === 'qwen2' || architecture === 'qwen3';
  if (architecture === 'llama' || !fields.has('sliding_window')) return null;
  if (gated && !fields.boolean('use_sliding_window', false)) return null;
  const window = fields.integer('sliding_window', LIMITS.context);
  if (fields.has('layer_types')) return windowOfLayers(fields, window);
  // In Qwen2 and Qwen3 only the layers from max_window_layers on have the window.
  const first = gated ? fields.number('max_window_layers', 0, 0) : 0;
  if (first >= layers) return null;
  if (first === 0) return window;
  throw fields.error(
    `max_window_layers is ${first}: a window on some of ${layers} layers is not supported`,
  );
}

function windowOfLayers(fields: Fields, window: number): number | null {
  const types = fields.value('layer_types');
  const kinds = new Set(Array.isArray(types) ? types : [types]);
  const [kind] = kinds;
  if (kinds.size === 1 && kind === 'full_attention') return null;
  if (kinds.size === 1 && kind === 'sliding_attention') return window;
  throw fields.error(
    `layer_types must be all "full_attention" or all "sliding_attention", got ${show([...kinds])}`,
  );
}
