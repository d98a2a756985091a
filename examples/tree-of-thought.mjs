/**
 * Tree of thought over HTTP: from one held question several first steps, of which the best are
 * forked and continued, level by level. Every level's requests run at the same time and share
 * their whole path; pruned branches are let go.
 *
 * Run `flashforge serve`, then: node examples/tree-of-thought.mjs [URL]
 */
import { call } from './api.mjs';

const LEVELS = 3;
const THOUGHTS = 3;
const KEEP = 2;

const model = (await call('/v1/models')).data[0].id;
const question =
  'Question: a farmer has 17 sheep, buys 5 more and sells 8. How many are left, and why?\n' +
  'Answer step by step.\n';
const root = await call('/v1/prefixes', { text: question, ttl_seconds: 120 });
let saved = { read: 0, flat: 0 };

/** Some next steps of a branch, each with the mean log-probability of its tokens. */
async function think(branch, level) {
  const { choices, usage } = await call('/v1/completions', {
    model,
    prefix_id: branch.id,
    prompt: `Step ${level}:`,
    n: THOUGHTS,
    max_tokens: 24,
    temperature: 0.8,
    seed: level,
    stop: ['\n'],
    logprobs: 0,
  });
  saved.read += usage.kv_cache.bytes_read;
  saved.flat += usage.kv_cache.bytes_flat;
  return choices.map(({ text, logprobs }) => {
    const values = logprobs.token_logprobs;
    const mean = values.reduce((sum, each) => sum + each, 0) / Math.max(1, values.length);
    return { branch, step: `Step ${level}:${text}\n`, score: branch.score + mean };
  });
}

let frontier = [{ id: root.id, score: 0, text: question }];
for (let level = 1; level <= LEVELS; level++) {
  const thoughts = (await Promise.all(frontier.map((branch) => think(branch, level)))).flat();
  thoughts.sort((a, b) => b.score - a.score);
  const kept = thoughts.slice(0, KEEP);
  // A fork shares every token of its branch; only the new step is computed.
  const next = await Promise.all(
    kept.map(async ({ branch, step, score }) => {
      const fork = await call(`/v1/prefixes/${branch.id}/fork`, { text: step });
      return { id: fork.id, score, text: branch.text + step, tokens: fork.tokens };
    }),
  );
  for (const { id } of frontier) {
    if (id !== root.id) await call(`/v1/prefixes/${id}`, undefined, 'DELETE');
  }
  frontier = next;
  console.log(`level ${level}: ${thoughts.length} thoughts, kept ${kept.length}`);
}
const [best] = frontier;
console.log(best.text.slice(question.length).trim());
console.log(`KV bytes: ${(saved.flat / saved.read).toFixed(2)}x fewer than flat`);
for (const { id } of [...frontier, root]) {
  await call(`/v1/prefixes/${id}`, undefined, 'DELETE');
}
