/**
 * Constrained decoding beside other requests, with the real default model: compiling a grammar
 * takes seconds of its own and nobody else's.
 * @module
 */
import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { request, startTestServer, until } from '../helpers/api-server.ts';
import { defaultModel } from '../helpers/default-model.ts';

const found = await defaultModel();
const skip = 'missing' in found ? `the default model is not here: ${found.missing}` : false;
const server = 'missing' in found ? null : await startTestServer(found.path);
after(() => server?.stop());
const url = server?.url ?? '';

const counted = (fields: number) => ({
  type: 'json_schema',
  json_schema: {
    name: 'counted',
    schema: {
      type: 'object',
      properties: Object.fromEntries(
        Array.from({ length: fields }, (_, at) => [`f${at}`, { type: 'string', maxLength: 90 }]),
      ),
      required: ['f0'],
      additionalProperties: false,
    },
  },
});

test('streams go on while a grammar is compiled for seconds', { skip }, async () => {
  const controller = new AbortController();
  const response = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({
      model: 'test',
      prompt: 'Once upon a time',
      stream: true,
      max_tokens: 8000,
      ignore_eos: true,
    }),
    signal: controller.signal,
  });
  let tokens = 0;
  const reading = (async () => {
    const decoder = new TextDecoder();
    for await (const bytes of response.body!) {
      tokens += decoder.decode(bytes, { stream: true }).split('data: ').length - 1;
    }
  })().catch(() => undefined);
  await until('the stream runs', () => tokens > 0);

  const before = tokens;
  const body = { model: 'test', prompt: 'As JSON:', max_tokens: 16, response_format: counted(1) };
  const constrained = await request({ url }, '/v1/completions', body);
  const meanwhile = tokens - before;
  assert.equal(constrained.status, 200, JSON.stringify(constrained.body));
  assert.match(constrained.body.choices[0].text, /^\s*\{/);
  // More than the constrained answer itself had: those of the time in which it was compiled.
  assert.ok(meanwhile > 40, `${meanwhile} tokens`);
  controller.abort();
  await reading;
});

test('many requests under several new grammars at a time', { skip }, async () => {
  const bodies = Array.from({ length: 12 }, (_, at) => ({
    model: 'test',
    prompt: `Person ${at} as JSON:`,
    max_tokens: 24,
    n: 2,
    response_format:
      at % 3 === 0
        ? { type: 'json_object' }
        : { type: 'json_schema', json_schema: { name: 'x', schema: schemas[at % 2] } },
  }));
  const answers = await Promise.all(
    bodies.map((body) => request({ url }, '/v1/completions', body)),
  );
  for (const { status, body } of answers) {
    assert.equal(status, 200, JSON.stringify(body));
    for (const { text } of body.choices) assert.match(text, /^\s*[{[]/);
  }
});

const schemas = [
  { type: 'object', properties: { name: { type: 'string', minLength: 2 } }, required: ['name'] },
  { type: 'array', items: { enum: ['a', 'b'] }, minItems: 2, maxItems: 4 },
];
