/**
 * The official Python client, brought by pip, against a real server process with the real default
 * model.
 * @module
 */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { metric, startTestServer, until } from '../helpers/api-server.ts';
import { defaultModel } from '../helpers/default-model.ts';
import { pythonPackage } from '../helpers/python-package.ts';

const run = promisify(execFile);

/** Prints one JSON object of what it has found. */
const SCRIPT = `
import json, sys
from openai import OpenAI, BadRequestError, NotFoundError

client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)
model = client.models.list().data[0].id
user = [{"role": "user", "content": "Describe a person."}]
found = {}

chat = client.chat.completions.create(
    model=model, messages=user, n=4, seed=1, max_tokens=8, logprobs=True, top_logprobs=2)
found["choices"] = len(chat.choices)
found["logprobs"] = [len(each.top_logprobs) for each in chat.choices[0].logprobs.content]
found["completion_tokens"] = chat.usage.completion_tokens

body = dict(model=model, prompt="One, two, three,", temperature=0, max_tokens=8)
whole = client.completions.create(**body)
stream = client.completions.create(**body, stream=True, stream_options={"include_usage": True})
chunks = list(stream)
found["same"] = "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
found["usage"] = chunks[-1].usage.completion_tokens
scored = client.completions.create(model=model, prompt="One, two", echo=True, logprobs=1, max_tokens=0)
found["scored"] = scored.choices[0].logprobs.token_logprobs

schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 120}},
          "required": ["age"], "additionalProperties": False}
answer = client.chat.completions.create(
    model=model, messages=user, max_tokens=40, temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}})
found["json"] = json.loads(answer.choices[0].message.content)
tool = {"type": "function", "function": {"name": "save", "parameters": schema}}
call = client.chat.completions.create(
    model=model, messages=user, max_tokens=60, temperature=0, tools=[tool], tool_choice="required")
called = call.choices[0].message.tool_calls[0].function
found["tool"] = [called.name, json.loads(called.arguments)]

endless = client.chat.completions.create(
    model=model, messages=user, max_tokens=4000, stream=True, extra_body={"ignore_eos": True})
for index, _ in enumerate(endless):
    if index == 3:
        endless.close()
        break

for error, call in [(NotFoundError, lambda: client.completions.create(model="x", prompt="x")),
                    (BadRequestError, lambda: client.embeddings.create(model=model, input="x"))]:
    try:
        call()
        found["errors"] = "none"
    except error as raised:
        found.setdefault("codes", []).append(raised.code)
print(json.dumps(found))
`;

test('openai for Python: chat, completion, stream, n = 4, logprobs, abort, tools, JSON schema', async (context) => {
  const model = await defaultModel();
  if ('missing' in model) return context.skip(`the default model is not here: ${model.missing}`);
  const client = pythonPackage('openai==3.54.0');
  if ('missing' in client) return context.skip(client.missing);
  const env = { ...process.env, PYTHONPATH: client.folder };
  const server = await startTestServer(model.path);
  try {
    const { stdout } = await run('python3', ['-c', SCRIPT, server.url], { env });
    const found = JSON.parse(stdout);
    assert.equal(found.choices, 4);
    assert.ok(found.logprobs.every((count: number) => count === 2));
    assert.ok(found.completion_tokens > 4);
    assert.equal(found.same, true);
    assert.equal(found.usage, 8);
    assert.equal(found.scored[0], null);
    assert.ok(found.scored.slice(1).every((each: number) => each < 0));
    assert.ok(Number.isInteger(found.json.age) && found.json.age <= 120);
    assert.equal(found.tool[0], 'save');
    assert.ok(Number.isInteger(found.tool[1].age));
    assert.deepEqual(found.codes, ['model_not_found', 'unsupported_endpoint']);
    assert.equal(found.errors, undefined);
    await until('pages are freed', async () => {
      return (await metric(server, 'flashforge:pages', 'state="held"')) === 0;
    });
  } finally {
    await server.stop();
  }
});
