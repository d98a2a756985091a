/**
 * Outside clients against a real server process with the real default model: the official openai
 * package, the ai SDK, curl, and the examples.
 * @module
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { promisify } from 'node:util';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, jsonSchema, streamText, tool } from 'ai';
import OpenAI from 'openai';
import { eventsOf, metric, request, startTestServer, until } from '../helpers/api-server.ts';
import { defaultModel } from '../helpers/default-model.ts';

const found = await defaultModel();
const skip = 'missing' in found ? `the default model is not here: ${found.missing}` : false;
const server = 'missing' in found ? null : await startTestServer(found.path);
after(() => server?.stop());
const url = server?.url ?? '';
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0 });
const run = promisify(execFile);

const model = 'test';
const user = (content: string) => [{ role: 'user' as const, content }];
const weather = {
  type: 'function' as const,
  function: {
    name: 'get_weather',
    description: 'The weather of a city',
    parameters: {
      type: 'object',
      properties: { city: { enum: ['Paris', 'Oslo'] } },
      required: ['city'],
      additionalProperties: false,
    },
  },
};

test('openai: a chat, twice: the second finds its prompt in the cache', { skip }, async () => {
  const body = {
    model,
    messages: user('What is the capital of France?'),
    temperature: 0,
    max_tokens: 16,
  };
  const first = await openai.chat.completions.create(body);
  const [choice] = first.choices;
  assert.equal(choice.message.role, 'assistant');
  assert.ok((choice.message.content ?? '').length > 0);
  assert.match(choice.finish_reason, /^(stop|length)$/);
  const second = await openai.chat.completions.create(body);
  assert.ok(first.usage !== undefined && second.usage !== undefined);
  assert.equal(second.usage.prompt_tokens, first.usage.prompt_tokens);
  assert.equal(second.usage.prompt_tokens_details?.cached_tokens, first.usage.prompt_tokens);
  assert.equal(first.usage.total_tokens, first.usage.prompt_tokens + first.usage.completion_tokens);
});

test('openai: a stream has the same text as the whole, and its usage', { skip }, async () => {
  const body = { model, messages: user('Name three colours.'), temperature: 0, max_tokens: 24 };
  await openai.chat.completions.create(body);
  const whole = await openai.chat.completions.create(body);
  const stream = await openai.chat.completions.create({
    ...body,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true } as object,
  });
  let text = '';
  let usage: OpenAI.CompletionUsage | null = null;
  const counts: number[] = [];
  const reasons: string[] = [];
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    if (chunk.choices[0]?.finish_reason) reasons.push(chunk.choices[0].finish_reason);
    usage = chunk.usage ?? usage;
    counts.push(usage?.completion_tokens ?? -1);
    assert.equal(usage?.prompt_tokens, whole.usage?.prompt_tokens);
  }
  assert.deepEqual(
    counts,
    [...counts].sort((a, b) => a - b),
  );
  assert.ok(counts[0] <= 1 && counts.length > 3);
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(reasons, [whole.choices[0].finish_reason]);
  assert.equal(usage?.completion_tokens, whole.usage?.completion_tokens);
});

test('openai: n = 4 with a seed repeats, shares its prompt and says so', { skip }, async () => {
  const body = { model, prompt: 'Once upon a time in the north', n: 4, seed: 11, max_tokens: 12 };
  const { data, response } = await openai.completions.create(body).withResponse();
  const again = await openai.completions.create(body);
  const texts = data.choices.map(({ text }) => text);
  assert.equal(new Set(texts).size, 4);
  // Cold and cached prompts are summed in another order: a near tie may fall the other way.
  const same = again.choices.filter(({ text }, index) => text === texts[index]);
  assert.ok(same.length >= 2, JSON.stringify([texts, again.choices]));
  const { kv_cache } = data.usage as unknown as { kv_cache: Record<string, number> };
  assert.ok(kv_cache.reduction > 1.2, JSON.stringify(kv_cache));
  assert.equal(response.headers.get('x-flashforge-kv-bytes-read'), String(kv_cache.bytes_read));
});

test('openai: log-probabilities, logit bias, stop and echo', { skip }, async () => {
  const chat = await openai.chat.completions.create({
    model,
    messages: user('Say yes.'),
    temperature: 0,
    max_tokens: 4,
    logprobs: true,
    top_logprobs: 3,
  });
  const content = chat.choices[0].logprobs?.content ?? [];
  assert.equal(content.length, chat.usage?.completion_tokens);
  for (const { token, logprob, bytes, top_logprobs: top } of content) {
    assert.equal(top.length, 3);
    assert.equal(top[0].token, token);
    assert.ok(logprob <= 0 && logprob === top[0].logprob && top[0].logprob >= top[1].logprob);
    assert.equal(Buffer.from(bytes ?? []).toString(), token);
  }
  const plain = await openai.completions.create({
    model,
    prompt: 'One, two, three,',
    temperature: 0,
    max_tokens: 8,
    logprobs: 2,
  });
  const { tokens, text_offset: offsets } = plain.choices[0].logprobs ?? {};
  assert.equal(tokens?.join(''), plain.choices[0].text);
  assert.equal(offsets?.[1], tokens?.[0].length);
  const echoed = await openai.completions.create({
    model,
    prompt: 'One, two, three,',
    temperature: 0,
    max_tokens: 8,
    echo: true,
    stop: [plain.choices[0].text.slice(2)],
  });
  assert.equal(echoed.choices[0].text, `One, two, three,${plain.choices[0].text.slice(0, 2)}`);
  assert.equal(echoed.choices[0].finish_reason, 'stop');
  // Scored as a text, the answer is as likely as when it was written.
  const scored = await openai.completions.create({
    model,
    prompt: `One, two, three,${plain.choices[0].text}`,
    max_tokens: 0,
    echo: true,
    logprobs: 1,
  });
  const { token_logprobs: before } = plain.choices[0].logprobs ?? {};
  const after = scored.choices[0].logprobs?.token_logprobs?.slice(-8) ?? [];
  assert.equal(scored.choices[0].logprobs?.token_logprobs?.[0], null);
  before?.forEach((each, at) => {
    assert.ok(Math.abs(each - after[at]) < 0.5, JSON.stringify([before, after]));
  });
  const ids = await request({ url }, '/tokenize', { prompt: tokens?.[0] });
  const banned = await openai.completions.create({
    model,
    prompt: 'One, two, three,',
    temperature: 0,
    max_tokens: 1,
    logit_bias: Object.fromEntries(ids.body.tokens.map((id: number) => [id, -100])),
  });
  assert.notEqual(banned.choices[0].text, tokens?.[0]);
});

test('openai: an aborted stream frees its pages at once', { skip }, async () => {
  const controller = new AbortController();
  const stream = await openai.chat.completions.create(
    { model, messages: user('Write a very long story.'), max_tokens: 2000, stream: true },
    { signal: controller.signal },
  );
  let chunks = 0;
  for await (const _ of stream) if (++chunks === 3) controller.abort();
  assert.ok(chunks < 20, `${chunks} chunks`);
  const held = () => metric({ url }, 'flashforge:pages', 'state="held"');
  await until('pages are freed', async () => (await held()) === 0);
  assert.equal(await metric({ url }, 'vllm:num_requests_running'), 0);
});

test('openai: a forced tool call, its answer, and one in a stream', { skip }, async () => {
  const messages: OpenAI.ChatCompletionMessageParam[] = user('What is the weather in Oslo?');
  const body = { model, messages, tools: [weather], tool_choice: 'required' as const };
  const first = await openai.chat.completions.create({ ...body, temperature: 0, max_tokens: 64 });
  const [{ message, finish_reason: reason }] = first.choices;
  assert.equal(reason, 'tool_calls');
  const [call] = message.tool_calls ?? [];
  assert.ok(call?.type === 'function' && call.function.name === 'get_weather');
  assert.match(JSON.parse(call.function.arguments).city, /^(Paris|Oslo)$/);

  messages.push(message, { role: 'tool', tool_call_id: call.id, content: '5 degrees, rain' });
  const answer = await openai.chat.completions.create({
    model,
    messages,
    tools: [weather],
    max_tokens: 16,
  });
  assert.match(answer.choices[0].finish_reason, /^(stop|length|tool_calls)$/);

  const stream = await openai.chat.completions.create({
    ...body,
    messages: messages.slice(0, 1),
    stream: true,
    max_tokens: 64,
  });
  let name = '';
  let args = '';
  for await (const { choices } of stream) {
    for (const each of choices[0]?.delta.tool_calls ?? []) {
      name += each.function?.name ?? '';
      args += each.function?.arguments ?? '';
    }
  }
  assert.equal(name, 'get_weather');
  assert.match(JSON.parse(args).city, /^(Paris|Oslo)$/);
});

test('openai: answers in a JSON schema and as any JSON object', { skip }, async () => {
  const schema = {
    type: 'object',
    properties: { name: { enum: ['Ann', 'Bo'] }, age: { type: 'integer' } },
    required: ['name', 'age'],
    additionalProperties: false,
  };
  const answer = await openai.chat.completions.create({
    model,
    messages: user('Describe a person as JSON.'),
    n: 3,
    seed: 3,
    max_tokens: 48,
    response_format: { type: 'json_schema', json_schema: { name: 'person', schema } },
  });
  for (const { message, finish_reason: reason } of answer.choices) {
    if (reason === 'length') continue;
    const { name, age } = JSON.parse(message.content ?? '');
    assert.match(name, /^(Ann|Bo)$/);
    assert.ok(Number.isInteger(age));
  }
  assert.ok(answer.choices.some((choice) => choice.finish_reason === 'stop'));
  const any = await openai.chat.completions.create({
    model,
    messages: user('Reply with JSON: {"ok": true}'),
    temperature: 0,
    max_tokens: 64,
    response_format: { type: 'json_object' },
  });
  assert.equal(any.choices[0].message.content?.trimStart()[0], '{');
});

test('openai: responses, whole and as a stream', { skip }, async () => {
  const body = { model, input: 'Say hello.', temperature: 0, max_output_tokens: 8 };
  const whole = await openai.responses.create({ ...body, instructions: 'Be brief.' });
  assert.ok(whole.output_text.length > 0);
  assert.match(whole.status ?? '', /^(completed|incomplete)$/);
  assert.ok((whole.usage?.output_tokens ?? 0) > 0);
  const format = {
    type: 'json_schema' as const,
    name: 'answer',
    schema: { enum: ['yes', 'no'] },
  };
  const constrained = await openai.responses.create({ ...body, text: { format } });
  assert.match(constrained.output_text, /^"(yes|no)"$/);
  const input = [
    { role: 'user' as const, content: [{ type: 'input_text' as const, text: 'Say hello.' }] },
    { role: 'assistant' as const, content: 'Hello.' },
    { role: 'user' as const, content: 'And again?' },
  ];
  let text = '';
  let last = '';
  for await (const event of await openai.responses.create({ ...body, input, stream: true })) {
    if (event.type === 'response.output_text.delta') text += event.delta;
    if ('response' in event) {
      const done = event.response.output[0];
      if (done?.type === 'message' && done.content[0].type === 'output_text') {
        last = done.content[0].text;
      }
    }
  }
  assert.ok(text.length > 0);
  assert.equal(text, last);
});

test('ai SDK: text, stream and a tool', { skip }, async () => {
  const provider = createOpenAICompatible({
    name: 'flashforge',
    baseURL: `${url}/v1`,
    includeUsage: true,
  });
  const settings = { model: provider(model), maxOutputTokens: 16, temperature: 0, maxRetries: 0 };
  const whole = await generateText({ ...settings, prompt: 'Say hello.' });
  assert.ok(whole.text.length > 0);
  assert.ok((whole.usage.outputTokens ?? 0) > 0);
  const stream = streamText({ ...settings, prompt: 'Say hello.' });
  let text = '';
  for await (const part of stream.textStream) text += part;
  assert.equal(text.slice(0, 4), whole.text.slice(0, 4));
  const { parameters } = weather.function;
  const called = await generateText({
    ...settings,
    maxOutputTokens: 64,
    prompt: 'What is the weather in Paris?',
    tools: { get_weather: tool({ inputSchema: jsonSchema(parameters as object) }) },
    toolChoice: 'required',
  });
  assert.equal(called.toolCalls[0]?.toolName, 'get_weather');
  assert.equal(called.finishReason, 'tool-calls');
});

test('curl: a completion, a stream and beam search', { skip }, async (context) => {
  const curl = async (path: string, body: object): Promise<string> => {
    const type = 'content-type: application/json';
    const words = ['-sS', '-N', '-H', type, '-d', JSON.stringify(body), url + path];
    return (await run('curl', words)).stdout;
  };
  try {
    await run('curl', ['--version']);
  } catch {
    context.skip('curl is not on this machine');
    return;
  }
  const body = { model, prompt: 'The capital of France is', temperature: 0, max_tokens: 4 };
  const whole = JSON.parse(await curl('/v1/completions', body));
  assert.match(whole.choices[0].text, /Paris/);
  const streamed = await curl('/v1/completions', { ...body, stream: true });
  assert.match(streamed, /data: \[DONE\]\n\n$/);
  const texts = eventsOf(streamed) as { choices: { text: string }[] }[];
  assert.equal(texts.map(({ choices }) => choices[0].text).join(''), whole.choices[0].text);
  const beams = JSON.parse(await curl('/v1/completions', { ...body, use_beam_search: true, n: 3 }));
  const scores = beams.choices.map((each: { cumulative_logprob: number }) => each);
  assert.equal(scores.length, 3);
  assert.ok(scores[0].cumulative_logprob >= scores[1].cumulative_logprob);
  assert.ok(beams.usage.prompt_tokens > 0 && beams.usage.kv_cache.bytes_read > 0);
});

test('the examples of the documentation run', { skip }, async () => {
  let root = import.meta.dirname;
  while (!existsSync(join(root, 'package.json'))) root = dirname(root);
  const example = (name: string) => run(process.execPath, [join(root, 'examples', name), url]);
  const [best, tree] = await Promise.all([
    example('best-of-n.mjs'),
    example('tree-of-thought.mjs'),
  ]);
  assert.match(best.stdout, /cached prompt tokens: \d+; KV bytes: [1-9][\d.]*x fewer[\s\S]*best: /);
  assert.match(tree.stdout, /level 3: 6 thoughts[\s\S]*KV bytes: [1-9][\d.]*x fewer/);
  assert.deepEqual((await request({ url }, '/v1/prefixes')).body.data, []);
  assert.equal(await metric({ url }, 'flashforge:pages', 'state="held"'), 0);
});
