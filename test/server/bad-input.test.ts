/**
 * Whatever clients send: a 4xx in OpenAI's error shape that names the field, no page lost, and the
 * server goes on.
 * @module
 */
import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { after, before, test } from 'node:test';
import {
  type Answer,
  metric,
  request,
  startTestServer,
  type TestServer,
} from '../helpers/api-server.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const CONTEXT = 512;
let server: TestServer;
before(async () => {
  const model = writeTinyChatModel(temporaryFolder(), { contextLength: CONTEXT });
  server = await startTestServer(model, ['--body-mib', '1', '--kv-pages', '64', '--workers', '1']);
});
after(() => server.stop());

function assertError({ status, body }: Answer, wanted: number, param?: string | null): void {
  assert.equal(status, wanted, JSON.stringify(body));
  const { error } = body;
  assert.deepEqual(Object.keys(error).sort(), ['code', 'message', 'param', 'type']);
  assert.equal(typeof error.message, 'string');
  assert.doesNotMatch(error.message, /\n|\/work|\/home|\.ts:|\.js:|node:|internal error/);
  if (param !== undefined) assert.equal(error.param, param, error.message);
}

const user = (content: unknown) => [{ role: 'user', content }];
const long = 'word '.repeat(CONTEXT);
const schema = (value: unknown) => ({
  type: 'json_schema',
  json_schema: { name: 'x', schema: value },
});
const tool = { type: 'function', function: { name: 'f', parameters: { type: 'object' } } };

/** [fields beside model and messages, status, param] */
const CHAT: [object, number, string | null][] = [
  [{ model: 'gpt-4' }, 404, 'model'],
  [{ model: 3 }, 400, 'model'],
  [{ model: null }, 400, 'model'],
  [{ messages: [] }, 400, 'messages'],
  [{ messages: 'hello' }, 400, 'messages'],
  [{ messages: user(7) }, 400, 'messages[0].content'],
  [{ messages: user(null) }, 400, 'messages[0].content'],
  [{ messages: [{ role: 'king', content: 'x' }] }, 400, 'messages[0].role'],
  [{ messages: user([{ type: 'image_url', image_url: {} }]) }, 400, 'messages[0].content[0].type'],
  [{ messages: [{ role: 'assistant' }] }, 400, 'messages[0].content'],
  [{ messages: user(long) }, 400, 'messages'],
  [{ max_tokens: 0 }, 400, 'max_tokens'],
  [{ max_tokens: -1 }, 400, 'max_tokens'],
  [{ min_tokens: 3 }, 400, 'min_tokens'],
  [{ max_tokens: 1.5 }, 400, 'max_tokens'],
  [{ max_tokens: 1e300 }, 400, 'max_tokens'],
  [{ max_completion_tokens: CONTEXT + 1 }, 400, 'max_completion_tokens'],
  [{ temperature: -0.1 }, 400, 'temperature'],
  [{ temperature: 'hot' }, 400, 'temperature'],
  [{ temperature: 3 }, 400, 'temperature'],
  [{ top_p: 0 }, 400, 'top_p'],
  [{ repetition_penalty: 5e-324 }, 400, 'repetition_penalty'],
  [{ n: 0 }, 400, 'n'],
  [{ n: 1e9 }, 400, 'n'],
  [{ stop: '' }, 400, 'stop'],
  [{ stop: Array(17).fill('x') }, 400, 'stop'],
  [{ stop: [1] }, 400, 'stop[0]'],
  [{ seed: 0.5 }, 400, 'seed'],
  [{ seed: 1e40 }, 400, 'seed'],
  [{ logit_bias: { x: 1 } }, 400, 'logit_bias.x'],
  [{ logit_bias: { 5: 1000 } }, 400, 'logit_bias.5'],
  [{ logit_bias: { 9999999: 1 } }, 400, 'logit_bias'],
  [{ logprobs: 5 }, 400, 'logprobs'],
  [{ top_logprobs: 2 }, 400, 'top_logprobs'],
  [{ logprobs: true, top_logprobs: 21 }, 400, 'top_logprobs'],
  [{ temprature: 1 }, 400, 'temprature'],
  [{ stream: 'yes' }, 400, 'stream'],
  [{ stream_options: { usage: true } }, 400, 'stream_options.usage'],
  [{ priority: 1e6 }, 400, 'priority'],
  [{ cache_salt: '' }, 400, 'cache_salt'],
  [{ cache_salt: 5 }, 400, 'cache_salt'],
  [{ prefix_id: 'never-made' }, 404, 'prefix_id'],
  [{ tools: [{ type: 'function' }] }, 400, 'tools[0].function'],
  [{ tools: [tool], tool_choice: named('g') }, 400, 'tool_choice.function.name'],
  [{ tool_choice: 'required' }, 400, 'tool_choice'],
  [{ tools: [withParameters({ type: 'odd' })], tool_choice: 'required' }, 400, 'tools'],
  [{ modalities: ['audio'] }, 400, 'modalities[0]'],
  [{ response_format: schema(deep(90)) }, 400, 'response_format'],
  [{ response_format: schema(deep(1000)) }, 400, null],
  [{ response_format: { type: 'xml' } }, 400, 'response_format.type'],
  [{ response_format: { type: 'json_schema' } }, 400, 'response_format.json_schema'],
  [{ response_format: schema({ type: 'nonsense' }) }, 400, 'response_format'],
  [{ response_format: schema({ $ref: '#/nowhere' }) }, 400, 'response_format'],
  [{ use_beam_search: true, stream: true }, 400, 'stream'],
  [{ use_beam_search: true, n: 100 }, 400, 'n'],
  [{ use_beam_search: true, top_k: 3 }, 400, 'top_k'],
];

function withParameters(parameters: object) {
  return { type: 'function', function: { name: 'f', parameters } };
}

function deep(levels: number): object {
  let inner = {};
  for (let level = 0; level < levels; level++) inner = { items: inner };
  return inner;
}

function named(name: string) {
  return { type: 'function', function: { name } };
}

test('chat completions: each wrong field is named', async () => {
  for (const [fields, status, param] of CHAT) {
    for (const stream of 'use_beam_search' in fields ? [false] : [false, true]) {
      const body = { model: 'test', messages: user('hello'), max_tokens: 2, stream, ...fields };
      const answer = await request(server, '/v1/chat/completions', body);
      assertError(answer, status, 'stream' in fields ? undefined : param);
    }
  }
});

const COMPLETION: [object, number, string | null][] = [
  [{ prompt: '' }, 400, 'prompt'],
  [{ prompt: [] }, 400, 'prompt'],
  [{ prompt: null }, 400, 'prompt'],
  [{ prompt: { text: 'x' } }, 400, 'prompt'],
  [{ prompt: [1, 'x'] }, 400, 'prompt[1]'],
  [{ prompt: [-1] }, 400, 'prompt[0]'],
  [{ prompt: [99999999] }, 400, 'prompt'],
  [{ prompt: Array(CONTEXT).fill(5) }, 400, 'prompt'],
  [{ prompt: [[1], []] }, 400, 'prompt[1]'],
  [{ prompt: Array(300).fill('x') }, 400, 'prompt'],
  [{ suffix: 'the end' }, 400, 'suffix'],
  [{ best_of: 1, n: 2 }, 400, 'best_of'],
  [{ best_of: 2, stream: true }, 400, 'best_of'],
  [{ echo: true, logprobs: 21 }, 400, 'logprobs'],
  [{ echo: true, logprobs: 20, prompt: Array(200).fill('hello'), n: 128 }, 400, 'logprobs'],
  [{ max_tokens: 0 }, 400, 'max_tokens'],
  [{ max_tokens: 0, echo: true, use_beam_search: true }, 400, 'max_tokens'],
  [{ logprobs: 99 }, 400, 'logprobs'],
  [{ max_tokens: CONTEXT + 1 }, 400, 'max_tokens'],
  [{ prefix_id: 'gone' }, 404, 'prefix_id'],
  [{ stop_token_ids: [1e9] }, 400, 'stop_token_ids'],
];

test('completions: each wrong field is named', async () => {
  for (const [fields, status, param] of COMPLETION) {
    const body = { model: 'test', prompt: 'hello', max_tokens: 2, ...fields };
    assertError(await request(server, '/v1/completions', body), status, param);
  }
});

const badText = { format: { type: 'json_schema', name: 'x', schema: { type: 'odd' } } };

test('prefixes, tokens and what is not offered', async () => {
  const bad: [string, unknown, number, string | null][] = [
    ['/v1/prefixes', {}, 400, 'text'],
    ['/v1/prefixes', { text: '' }, 400, 'text'],
    ['/v1/prefixes', { text: 'a', tokens: [1] }, 400, 'text'],
    ['/v1/prefixes', { text: long }, 400, 'text'],
    ['/v1/prefixes', { text: 'a', ttl_seconds: 0 }, 400, 'ttl_seconds'],
    ['/v1/prefixes', { text: 'a', ttl_seconds: 1e12 }, 400, 'ttl_seconds'],
    ['/v1/prefixes', { text: 'a', id: 'with space' }, 400, 'id'],
    ['/v1/prefixes', { text: 'a', public: true, cache_salt: 's' }, 400, 'cache_salt'],
    ['/v1/prefixes/none/fork', {}, 404, 'id'],
    ['/v1/responses', { model: 'test' }, 400, 'input'],
    ['/v1/responses', { model: 'test', input: '' }, 400, 'input'],
    ['/v1/responses', { model: 'test', input: long }, 400, 'input'],
    ['/v1/responses', { model: 'x', input: 'x' }, 404, 'model'],
    ['/v1/responses', { model: 'test', input: 'x', tools: [] }, 400, 'tools'],
    ['/v1/responses', { model: 'test', input: 'x', text: badText }, 400, 'text.format'],
    ['/tokenize', {}, 400, 'prompt'],
    ['/tokenize', { model: 'other', prompt: 'x' }, 404, 'model'],
    ['/detokenize', { tokens: [1e7] }, 400, 'tokens[0]'],
    ['/detokenize', { tokens: 'x' }, 400, 'tokens'],
    ['/v1/embeddings', { model: 'test', input: 'x' }, 400, null],
  ];
  for (const [path, body, status, param] of bad) {
    assertError(await request(server, path, body), status, param);
  }
  assertError(await request(server, '/v1/prefixes/none'), 404, 'id');
  assertError(await request(server, '/v1/models/none'), 404, 'model');
  assertError(await request(server, '/v1/nothing'), 404);
});

test('bodies that are no JSON, no UTF-8, too large or of another type', async () => {
  const path = '/v1/completions';
  const send = (body: string | Uint8Array, type = 'application/json') =>
    request(server, path, undefined, { method: 'POST', body, headers: { 'content-type': type } });
  assertError(await send('{"model": '), 400, null);
  assertError(await send(''), 400, null);
  assertError(await send('[]'), 400);
  assertError(await send('null'), 400);
  assertError(await send(`${'['.repeat(20_000)}`), 400);
  assertError(await send(`{"prompt":${'['.repeat(20_000)}${']'.repeat(20_000)}}`), 400, null);
  assertError(await send(Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d])), 400, null);
  assertError(await send('{"model":"test","prompt":"x"}', 'text/plain'), 415);
  assertError(await send(`{"prompt":"${'x'.repeat(2 ** 20)}"}`), 413);
  for (const extreme of [{ temperature: 5e-324 }, { top_p: 5e-324 }, { min_p: 1 }]) {
    const body = { model: 'test', prompt: 'hello', max_tokens: 3, ...extreme };
    assert.equal((await request(server, path, body)).status, 200);
  }
  const lone = await send('{"model":"test","prompt":"a \\ud800 b","max_tokens":1}');
  assert.equal(lone.status, 200);
});

test('other methods, other hosts and what is no HTTP', async () => {
  for (const method of ['GET', 'PUT', 'PATCH', 'OPTIONS']) {
    const answer = await request(server, '/v1/completions', undefined, { method });
    assertError(answer, 405);
    assert.equal(answer.headers.get('allow'), 'POST');
  }
  const { port } = new URL(server.url);
  const rebound = await raw(`GET /v1/models HTTP/1.1\r\nHost: evil.example:${port}\r\n\r\n`);
  assert.match(rebound, /^HTTP\/1.1 403 /);
  assert.match(await raw('complete nonsense\r\n\r\n'), /^HTTP\/1.1 400 [\s\S]*"invalid_http"/);
  const expect = 'GET / HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\n\r\n';
  assert.match(await raw(expect), /^HTTP\/1.1 417 [\s\S]*"invalid_http"/);
  const many = `GET / HTTP/1.1\r\nHost: localhost\r\nX: ${'y'.repeat(20_000)}\r\n\r\n`;
  assert.match(await raw(many), /^HTTP\/1.1 431 /);
});

/** Sends bytes and returns the beginning of the answer. */
function raw(text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect(Number(new URL(server.url).port), '127.0.0.1');
    socket.once('data', (data: Buffer) => {
      resolve(data.toString());
      socket.destroy();
    });
    socket.once('error', reject);
    socket.write(text);
  });
}

test('afterwards it still serves, and no page is held', async () => {
  const body = { model: 'test', messages: user('hello'), max_tokens: 3 };
  const answer = await request(server, '/v1/chat/completions', body);
  assert.equal(answer.status, 200);
  assert.equal(await metric(server, 'flashforge:pages', 'state="held"'), 0);
  assert.equal(await metric(server, 'flashforge:requests_open'), 0);
  assert.equal(await metric(server, 'flashforge:http_responses_total', 'status="500"'), 0);
  // A message without the words that were sent: prompts are not logged.
  assert.doesNotMatch(server.stderr(), /word word|hello/);
});
