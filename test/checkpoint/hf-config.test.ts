/**
 * Hugging Face descriptions: the families' defaults, rope scalings, and refusals.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FlashForgeError } from '../../src/base/errors.ts';
import type { DecoderConfig } from '../../src/checkpoint/checkpoint.ts';
import { configFromJson } from '../../src/checkpoint/hf-config.ts';

/** The fields of Llama 3.2 1B's file that matter here. */
const LLAMA = {
  architectures: ['LlamaForCausalLM'],
  attention_bias: false,
  bos_token_id: 128000,
  head_dim: 64,
  hidden_act: 'silu',
  hidden_size: 2048,
  intermediate_size: 8192,
  max_position_embeddings: 131072,
  mlp_bias: false,
  model_type: 'llama',
  num_attention_heads: 32,
  num_hidden_layers: 16,
  num_key_value_heads: 8,
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  rope_scaling: {
    factor: 32,
    high_freq_factor: 4,
    low_freq_factor: 1,
    original_max_position_embeddings: 8192,
    rope_type: 'llama3',
  },
  tie_word_embeddings: true,
  vocab_size: 128256,
};

const parse = (change: Record<string, unknown> = {}): DecoderConfig =>
  configFromJson('config.json', { ...LLAMA, ...change });

test('reads a Llama 3 description', () => {
  assert.deepEqual(parse(), {
    architecture: 'llama',
    layers: 16,
    hidden: 2048,
    intermediate: 8192,
    heads: 32,
    kvHeads: 8,
    headDim: 64,
    vocab: 128256,
    contextLength: 131072,
    normEpsilon: 1e-5,
    ropeTheta: 500000,
    ropeScaling: {
      type: 'llama3',
      factor: 32,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalContext: 8192,
    },
    qkvBias: false,
    qkNorm: false,
    tiedEmbeddings: true,
    slidingWindow: null,
  });
});

test('fills in what the families leave out', () => {
  const { head_dim: _, num_key_value_heads: __, ...rest } = LLAMA;
  const small = { ...rest, rope_scaling: null, rope_theta: undefined, rms_norm_eps: undefined };
  const llama = configFromJson('config.json', small);
  assert.equal(llama.headDim, 64);
  assert.equal(llama.kvHeads, 32);
  assert.equal(llama.ropeTheta, 10_000);
  assert.equal(llama.normEpsilon, 1e-6);
  assert.equal(llama.ropeScaling, null);
  assert.equal(configFromJson('config.json', { ...small, model_type: 'qwen3' }).headDim, 128);
});

test('knows the families apart', () => {
  const qwen2 = parse({ model_type: 'qwen2' });
  assert.deepEqual([qwen2.qkvBias, qwen2.qkNorm], [true, false]);
  const qwen3 = parse({ model_type: 'qwen3' });
  assert.deepEqual([qwen3.qkvBias, qwen3.qkNorm], [false, true]);
});

test('reads sliding windows that all layers share', () => {
  const window = (change: Record<string, unknown>): number | null => parse(change).slidingWindow;
  const mistral = { model_type: 'mistral', sliding_window: 4096 };
  assert.equal(window(mistral), 4096);
  assert.equal(window({ ...mistral, sliding_window: null }), null);
  assert.equal(window({ ...mistral, max_position_embeddings: 4096 }), null, 'never reached');
  const qwen2 = { model_type: 'qwen2', sliding_window: 4096, max_window_layers: 16 };
  assert.equal(window({ ...qwen2, use_sliding_window: false }), null);
  assert.equal(window({ ...qwen2, use_sliding_window: true }), null, 'no layer has it');
  assert.equal(window({ ...qwen2, use_sliding_window: true, max_window_layers: 0 }), 4096);
  assert.throws(
    () => window({ ...qwen2, use_sliding_window: true, max_window_layers: 8 }),
    /max_window_layers is 8/,
  );
  const types = { ...qwen2, use_sliding_window: true };
  assert.equal(window({ ...types, layer_types: Array(16).fill('sliding_attention') }), 4096);
  assert.throws(
    () => window({ ...types, layer_types: ['full_attention', 'sliding_attention'] }),
    /layer_types must be all/,
  );
});

test('reads yarn and linear scaling', () => {
  const yarn = { type: 'yarn', factor: 4, original_max_position_embeddings: 32768 };
  const config = parse({ rope_scaling: yarn, max_position_embeddings: 32768 });
  assert.equal(config.contextLength, 131072);
  assert.deepEqual(config.ropeScaling, {
    type: 'yarn',
    factor: 4,
    originalContext: 32768,
    betaFast: 32,
    betaSlow: 1,
    attentionFactor: null,
  });
  const deepseek = parse({ rope_scaling: { ...yarn, mscale: 1, mscale_all_dim: 1 } });
  assert.ok(deepseek.ropeScaling?.type === 'yarn' && deepseek.ropeScaling.attentionFactor === 1);
  const linear = parse({ rope_scaling: { type: 'linear', factor: 2 } });
  assert.deepEqual(linear.ropeScaling, { type: 'linear', factor: 2 });
});

test('reads the newer rope_parameters', () => {
  const parameters = { rope_type: 'default', rope_theta: 1_000_000 };
  const config = parse({ rope_scaling: undefined, rope_theta: 5, rope_parameters: parameters });
  assert.equal(config.ropeTheta, 1_000_000);
  assert.equal(config.ropeScaling, null);
});

const refusals: [Record<string, unknown>, RegExp][] = [
  [{ model_type: 'smollm3' }, /architecture must be llama, .*, got "smollm3"/],
  [{ model_type: undefined }, /architecture must be .*, got nothing/],
  [{ model_type: 'mixtral' }, /"mixtral"/],
  [{ hidden_act: 'gelu' }, /hidden_act is "gelu", supported is only "silu"/],
  [{ attention_bias: true }, /attention_bias is true/],
  [{ mlp_bias: true }, /mlp_bias is true/],
  [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor is 0\.5/],
  [{ num_local_experts: 8 }, /num_local_experts is 8/],
  [{ no_rope_layers: [1, 0] }, /no_rope_layers/],
  [{ final_logit_softcapping: 30 }, /final_logit_softcapping is 30/],
  [{ quantization_config: { quant_method: 'gptq' } }, /quantization_config is not supported/],
  [{ rope_scaling: { rope_type: 'dynamic', factor: 2 } }, /rope_type is "dynamic"/],
  [{ rope_scaling: { rope_type: 'llama3', factor: 2 } }, /low_freq_factor must be a number/],
  [{ rope_scaling: { rope_type: 'linear', factor: 'x' } }, /rope_scaling\.factor must be a number/],
  [{ rope_scaling: 3 }, /rope_scaling must be an object, got 3/],
  [{ num_key_value_heads: 5 }, /32 attention heads are no multiple of 5/],
  [{ head_dim: 63 }, /head dimension 63 is odd/],
  [{ head_dim: undefined, hidden_size: 2047 }, /width 2047 is no multiple of its 32 heads/],
  [{ hidden_size: 1e9 }, /hidden_size must be an integer between 1 and/],
  [{ num_hidden_layers: -1 }, /num_hidden_layers must be an integer/],
  [{ vocab_size: '128256' }, /vocab_size must be an integer between 1 and \d+, got "128256"/],
  [{ tie_word_embeddings: 'yes' }, /tie_word_embeddings must be true or false/],
  [{ rope_theta: 0 }, /rope_theta must be a number/],
];
for (const [change, pattern] of refusals) {
  test(`refuses ${JSON.stringify(change)}`, () => {
    assert.throws(
      () => parse(change),
      (error: unknown) => {
        assert.ok(error instanceof FlashForgeError && error.code === 'model', String(error));
        assert.match(error.message, /^config\.json: /);
        assert.match(error.message, pattern);
        return true;
      },
    );
  });
}
