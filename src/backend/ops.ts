/**
 * The operations of a Llama-like decoder, coarse enough that a backend can fuse what it likes.
 * They work on state that the backend holds for the current step: x (rows, hidden) is the
 * residual stream. Every backend implements these; model/decoder.ts calls them in order.
 * @module
 */
export interface DecoderOps {
  /** x = embedding rows of the step's tokens. */
  embed(): void;
  /** q, k, v = RMSNorm(x) * Wqkv (+ bias). */
  attentionInput(layer: number): void;
  /** Optional norm of each q and k head, RoPE on q and k, K and V into their page slots. */
  rotateAndStore(layer: number): void;
  /** a = softmax(q K^T / sqrt(headDim)) V over the step's plan: partial attention, then merges. */
  attention(layer: number): void;
  /** x += a * Wo. */
  attentionOutput(layer: number): void;
  /** g, u = RMSNorm(x) * Wgate, RMSNorm(x) * Wup. */
  mlpInput(layer: number): void;
  /** x += (silu(g) * u) * Wdown. */
  mlpOutput(layer: number): void;
  /** logits = RMSNorm(x of the wanted rows) * Woutput; argmax and log-sum-exp of each. */
  logits(): void;
}
