/**
 * The forward pass: one description for every supported family (Llama, Mistral, Qwen2, Qwen3,
 * SmolLM2). What differs between them is data in DecoderConfig, read by the backend's operations.
 * @module
 */
import type { DecoderOps } from '../backend/ops.ts';

/** Runs one step. On the CPU every worker calls this with its own `ops`. */
export function forward(ops: DecoderOps, layers: number): void {
  ops.embed();
  for (let layer = 0; layer < layers; layer++) {
    ops.attentionInput(layer);
    ops.rotateAndStore(layer);
    ops.attention(layer);
    ops.attentionOutput(layer);
    ops.mlpInput(layer);
    ops.mlpOutput(layer);
  }
  ops.logits();
}
