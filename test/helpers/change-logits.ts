/**
 * What a device does to a row's logits before it draws, in plain words.
 * @module
 */
import type { LogitChanges } from '../../src/backend/backend.ts';

/** @param own the row's token, which counts as generated where it was pending */
export function changeLogits(logits: Float32Array, changes: LogitChanges, own: number): void {
  const all = Array.from(changes.tokens, (token, i) => ({
    ...{ token, bias: changes.bias[i], inPrompt: changes.inPrompt[i] === 1 },
    count: changes.counts[i] + (changes.pending && token === own ? 1 : 0),
  }));
  if (changes.pending && !changes.tokens.includes(own)) {
    all.push({ token: own, bias: 0, inPrompt: false, count: 1 });
  }
  for (const { token, bias, inPrompt, count } of all) {
    logits[token] += bias;
    const occurred = inPrompt || count > 0;
    if (occurred && logits[token] > 0) logits[token] /= changes.repetitionPenalty;
    else if (occurred) logits[token] *= changes.repetitionPenalty;
    if (count > 0) logits[token] -= changes.presencePenalty + changes.frequencyPenalty * count;
  }
}
