/**
 * Tiny random models of every family and option, as folders that transformers can load too: the
 * weights come from a seeded stream, so that only its logits have to be kept as a fixture.
 * @module
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DecoderConfig } from '../../src/checkpoint/checkpoint.ts';
import { configFromJson } from '../../src/checkpoint/hf-config.ts';
import { safetensorsBytes } from './gguf-writer.ts';
import { randomTensors } from './tiny-checkpoint.ts';

export interface FamilyCase {
  readonly name: string;
  /** Its config.json. */
  readonly json: Readonly<Record<string, unknown>>;
  /** The option under test switched off, which must show in the logits. */
  readonly without?: Partial<DecoderConfig>;
}

const BASE = {
  model_type: 'llama',
  num_hidden_layers: 2,
  hidden_size: 64,
  intermediate_size: 96,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 16,
  vocab_size: 96,
  max_position_embeddings: 256,
  rms_norm_eps: 1e-5,
  rope_theta: 10_000,
  tie_word_embeddings: false,
  hidden_act: 'silu',
  bos_token_id: 1,
  eos_token_id: 2,
  pad_token_id: 0,
};
const YARN = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 32 };
const unscaled = { ropeScaling: null };

export const FAMILY_CASES: readonly FamilyCase[] = [
  { name: 'llama', json: BASE },
  {
    name: 'llama, llama3 rope',
    json: {
      ...BASE,
      rope_scaling: {
        rope_type: 'llama3',
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 32,
      },
    },
    without: unscaled,
  },
  {
    name: 'llama, linear rope',
    json: { ...BASE, rope_scaling: { rope_type: 'linear', factor: 4 } },
    without: unscaled,
  },
  { name: 'llama, yarn', json: { ...BASE, rope_scaling: YARN }, without: unscaled },
  {
    name: 'qwen2, yarn with its attention factor',
    json: {
      ...BASE,
      model_type: 'qwen2',
      head_dim: undefined,
      tie_word_embeddings: true,
      rope_scaling: { ...YARN, attention_factor: 1.5 },
    },
    without: { ropeScaling: null },
  },
  {
    name: 'mistral, sliding window',
    json: { ...BASE, model_type: 'mistral', sliding_window: 9 },
    without: { slidingWindow: null },
  },
  {
    name: 'qwen2, biases',
    json: { ...BASE, model_type: 'qwen2', head_dim: undefined },
    without: { qkvBias: false },
  },
  {
    name: 'qwen3, q and k norms, wide heads',
    json: { ...BASE, model_type: 'qwen3', head_dim: 32, tie_word_embeddings: true },
    without: { qkNorm: false },
  },
];

/** The tokens that every case is asked about. */
export const FAMILY_TOKENS: readonly number[] = Array.from({ length: 80 }, (_, i) => (i * 37) % 89);

/** Fills `folder` with the case's config.json and weights. */
export function writeFamilyCase(folder: string, { json }: FamilyCase): void {
  writeFileSync(join(folder, 'config.json'), JSON.stringify(json));
  const config = configFromJson('config.json', JSON.parse(JSON.stringify(json)));
  const tensors = randomTensors(config, 'F32', 'safetensors', 5);
  for (const { name, data } of tensors) {
    // Sharper attention and visible biases, so that a wrong rotation moves the logits.
    if (!/[qk]_proj|bias/.test(name)) continue;
    const values = new Float32Array(data.buffer);
    for (let i = 0; i < values.length; i++) values[i] *= 6;
  }
  writeFileSync(join(folder, 'model.safetensors'), safetensorsBytes(tensors));
}
