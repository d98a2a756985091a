/**
 * Scoring texts over HTTP: `echo` with `logprobs` against what the same model said when it wrote
 * the tokens itself, from empty, warm and crowded caches.
 * @module
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import {
  eventsOf,
  metric,
  request,
  startTestServer,
  type TestServer,
  until,
} from '../helpers/api-server.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

let server: TestServer;
before(async () => {
  const model = writeTinyChatModel(temporaryFolder(), { contextLength: 1024 });
  server = await startTestServer(model, ['--kv-pages', '64', '--workers', '2']);
});
after(() => server.stop());

interface Logprobs {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  text_offset: number[];
}

async function complete(fields: object) {
  const body = { model: 'test', temperature: 0, ignore_eos: true, ...fields };
  const answer = await request(server, '/v1/completions', body);
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  return answer.body;
}

const tokensOf = async (prompt: string): Promise<number[]> =>
  (await request(server, '/tokenize', { model: 'test', prompt })).body.tokens;

/**
 * Other chunks are summed in another order, which now and then rounds KV and the 8-bit inputs of
 * products another way: a wrong row or token would be off by whole units.
 */
function assertClose(found: readonly (number | null)[], wanted: readonly number[]): void {
  assert.equal(found.length, wanted.length);
  const gaps = wanted.map((each, at) => Math.abs(each - found[at]!));
  assert.ok(Math.max(0, ...gaps) < 0.2, `gap of ${Math.max(...gaps)}`);
  const square = gaps.reduce((sum, gap) => sum + gap * gap, 0);
  assert.ok(Math.sqrt(square / Math.max(1, gaps.length)) < 0.05, `rms over ${gaps.length}`);
}

/** What the model says of each token by teacher forcing: one completion of one token a position. */
async function teacher(tokens: readonly number[], from: number): Promise<number[]> {
  const wanted: number[] = [];
  for (let at = from; at < tokens.length; at++) {
    const { choices } = await complete({
      prompt: tokens.slice(0, at),
      max_tokens: 1,
      logprobs: 0,
      logit_bias: { [tokens[at]]: 100 },
    });
    wanted.push(choices[0].logprobs.token_logprobs[0]);
  }
  return wanted;
}

const TEXT = 'hello world, this is a document about hello and the world of words.';

test('a prompt is scored as by teacher forcing, cold and from a warm cache', async () => {
  const tokens = await tokensOf(TEXT);
  const score = { prompt: TEXT, echo: true, logprobs: 2, max_tokens: 0 };
  const cold = await complete(score);
  const wanted = await teacher(tokens, 1);
  const warm = await complete(score);
  for (const { choices, usage } of [cold, warm]) {
    const [{ text, logprobs, finish_reason: reason }] = choices;
    assert.equal(text, TEXT);
    assert.equal(reason, 'length');
    const { tokens: texts, token_logprobs: found, top_logprobs: top, text_offset } = logprobs;
    assert.equal(texts.length, tokens.length);
    assert.equal(found[0], null);
    assert.equal(top[0], null);
    assertClose(found.slice(1), wanted);
    texts.forEach((each: string, at: number) => {
      assert.ok(TEXT.startsWith(each, text_offset[at]), `${each} at ${text_offset[at]}`);
      if (at === 0) return;
      assert.ok(Object.keys(top[at]).length >= 2 && Object.keys(top[at]).length <= 3);
      assert.ok(Object.values(top[at]).includes(found[at]), 'the token itself is among them');
    });
    assert.equal(usage.completion_tokens, 0);
    assert.equal(usage.prompt_tokens_details.cached_tokens, 0, 'all of it was computed');
  }
});

test('prompt and answer in one, whole, as a stream, n samples and several prompts', async () => {
  const body = { prompt: TEXT, echo: true, logprobs: 1, max_tokens: 5 };
  const { choices } = await complete(body);
  const whole: Logprobs = choices[0].logprobs;
  const length = (await tokensOf(TEXT)).length;
  assert.equal(whole.tokens.length, length + 5);
  assert.equal(whole.text_offset[length], TEXT.length);
  // Its own answer as a prompt scores as when it was written.
  const plain = await complete({ prompt: TEXT, logprobs: 1, max_tokens: 5 });
  assertClose(whole.token_logprobs.slice(length), plain.choices[0].logprobs.token_logprobs);

  const streamed: Logprobs & { text: string } = {
    text: '',
    tokens: [],
    token_logprobs: [],
    top_logprobs: [],
    text_offset: [],
  };
  const events = eventsOf(await complete({ ...body, stream: true }));
  for (const { choices: pieces } of events as {
    choices: { text: string; logprobs: Logprobs }[];
  }[]) {
    streamed.text += pieces[0].text;
    if (pieces[0].logprobs === null) continue;
    for (const field of ['tokens', 'token_logprobs', 'top_logprobs', 'text_offset'] as const) {
      (streamed[field] as unknown[]).push(...pieces[0].logprobs[field]);
    }
  }
  assert.equal(streamed.text, choices[0].text);
  assert.deepEqual(streamed.tokens, whole.tokens);
  assert.deepEqual(streamed.text_offset, whole.text_offset);
  assertClose(streamed.token_logprobs.slice(1), whole.token_logprobs.slice(1) as number[]);

  const many = await complete({ ...body, prompt: [TEXT, 'hello', TEXT], n: 2, best_of: 3 });
  assert.equal(many.choices.length, 6);
  assert.deepEqual(many.choices[4].logprobs.tokens.slice(0, length), whole.tokens.slice(0, length));
  assert.equal(many.choices[2].logprobs.token_logprobs[0], null);
  const silent = await complete({ prompt: TEXT, echo: true, max_tokens: 0 });
  assert.equal(silent.choices[0].text, TEXT);
  assert.equal(silent.choices[0].logprobs, null);
});

test('what follows a held prefix is scored without computing the prefix', async () => {
  const made = await request(server, '/v1/prefixes', { text: TEXT, id: 'scored' });
  assert.equal(made.status, 201);
  const held = await tokensOf(TEXT);
  const own = (await tokensOf(' hello')).slice(-3);
  const fields = { prefix_id: 'scored', prompt: own, echo: true, logprobs: 0, max_tokens: 0 };
  const { choices, usage } = await complete(fields);
  assertClose(choices[0].logprobs.token_logprobs, await teacher([...held, ...own], held.length));
  assert.equal(usage.prompt_tokens_details.cached_tokens, held.length - 1);
  const empty = await complete({ ...fields, prompt: '' });
  assert.deepEqual(empty.choices[0].logprobs.tokens, []);
  assert.equal(
    (await request(server, '/v1/prefixes/scored', undefined, { method: 'DELETE' })).status,
    200,
  );
});

test('long texts are scored in chunks beside others, in a cache that is too small', async () => {
  const tokens = Array.from({ length: 900 }, (_, at) => 5 + ((at * at) % 90));
  const score = (prompt: readonly number[]) =>
    complete({ prompt, echo: true, logprobs: 0, max_tokens: 0 });
  const alone: number[] = (await score(tokens)).choices[0].logprobs.token_logprobs;
  const decoding = complete({ prompt: 'hello', max_tokens: 400, n: 8, temperature: 1 });
  const lists = [tokens, [...tokens.slice(0, 700), 9], tokens, tokens.slice(0, 300)];
  const together = await Promise.all([...lists, ...lists].map(score));
  together.forEach(({ choices }, at) => {
    const length = Math.min(lists[at % 4].length, at % 4 === 1 ? 700 : 900);
    assertClose(choices[0].logprobs.token_logprobs.slice(1, length), alone.slice(1, length));
  });
  await decoding;
  await until(
    'no page held',
    async () => (await metric(server, 'flashforge:pages', 'state="held"')) === 0,
  );
});
