/**
 * Best of n over HTTP: one prompt held as a prefix, n drafts that share all of its KV, and the
 * draft whose tokens the model finds likeliest.
 *
 * Run `flashforge serve`, then: node examples/best-of-n.mjs [URL]
 */
import { call } from './api.mjs';

const N = 6;

const model = (await call('/v1/models')).data[0].id;
const text =
  'A harbour town lost its ferry. The council has money for one thing only: a new ferry, a ' +
  'footbridge, or a school by the water.\n\nAdvice to the council, in one sentence:';
const prefix = await call('/v1/prefixes', { text, ttl_seconds: 60 });
console.log(`prefix ${prefix.id}: ${prefix.tokens} tokens in ${prefix.pages} pages`);

// n samples in one request: the prompt is read once a step, whatever n is.
const drafts = await call('/v1/completions', {
  model,
  prefix_id: prefix.id,
  prompt: '',
  n: N,
  max_tokens: 32,
  temperature: 0.9,
  seed: 7,
  logprobs: 0,
});
const scored = drafts.choices.map(({ text: draft, logprobs }) => {
  const sum = logprobs.token_logprobs.reduce((total, each) => total + each, 0);
  return { draft: draft.trim(), score: sum / logprobs.token_logprobs.length };
});
scored.sort((a, b) => b.score - a.score);
for (const { draft, score } of scored) {
  console.log(`${score.toFixed(3)}  ${JSON.stringify(draft)}`);
}
const { cached_tokens: cached } = drafts.usage.prompt_tokens_details;
const { reduction } = drafts.usage.kv_cache;
console.log(`cached prompt tokens: ${cached}; KV bytes: ${reduction.toFixed(2)}x fewer than flat`);
console.log(`best: ${scored[0].draft}`);
await call(`/v1/prefixes/${prefix.id}`, undefined, 'DELETE');
