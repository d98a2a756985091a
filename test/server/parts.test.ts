/**
 * The server's parts alone: metrics, streams, keys, options, figures over time.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FlashForgeError } from '../../src/base/errors.ts';
import { Admission } from '../../src/server/admission.ts';
import { ApiError, toApiError } from '../../src/server/api-error.ts';
import { EventStream } from '../../src/server/event-stream.ts';
import { Registry } from '../../src/server/metrics.ts';
import { openApiDocument } from '../../src/server/openapi.ts';
import { checkHost, corsHeaders } from '../../src/server/origins.ts';
import { Recent } from '../../src/server/recent.ts';
import { ROUTES } from '../../src/server/routes.ts';
import { settingsOf } from '../../src/server/server-options.ts';
import { saltOf, Tenants } from '../../src/server/tenants.ts';

test('metrics: the text format with labels, cumulative buckets and escapes', () => {
  const registry = new Registry();
  const count = registry.counter('a:total', 'Things.');
  count.add(2, { kind: 'x"y\\z\n' });
  const times = registry.histogram('b:seconds', 'Times.', [1, 2]);
  for (const value of [0.5, 1.5, 1.6, 9]) times.observe(value);
  assert.equal(
    registry.text({ m: 'n' }),
    [
      '# HELP a:total Things.',
      '# TYPE a:total counter',
      'a:total{m="n",kind="x\\"y\\\\z\\n"} 2',
      '# HELP b:seconds Times.',
      '# TYPE b:seconds histogram',
      'b:seconds_bucket{m="n",le="1"} 1',
      'b:seconds_bucket{m="n",le="2"} 3',
      'b:seconds_bucket{m="n",le="+Inf"} 4',
      'b:seconds_sum{m="n"} 12.6',
      'b:seconds_count{m="n"} 4',
      '',
    ].join('\n'),
  );
});

test('event stream: what is not read is bounded, and the reader is told off once', async () => {
  const gone: string[] = [];
  const stream = new EventStream(1000, (why) => gone.push(why));
  for (let index = 0; index < 100; index++) stream.send({ text: 'x'.repeat(50) });
  stream.end();
  assert.deepEqual(gone, ['slow']);
  await assert.rejects(new Response(stream.body).text());

  const read = new EventStream(1000, (why) => gone.push(why));
  read.send({ a: 1 });
  read.send({ text: 'a\u0085b\u2028c\u2029d\n' });
  read.end();
  read.send({ a: 2 });
  // No character but the stream's own line ends may end a line, for any client.
  const second = '{"text":"a\\u0085b\\u2028c\\u2029d\\n"}';
  assert.equal(
    await new Response(read.body).text(),
    `data: {"a":1}\n\ndata: ${second}\n\ndata: [DONE]\n\n`,
  );
  const left = new EventStream(1000, (why) => gone.push(why));
  await left.body.cancel();
  left.send({});
  assert.deepEqual(gone, ['slow', 'closed']);
});

test('tenants: keys are told apart, salts never mix tenants', () => {
  const tenants = new Tenants(settingsOf({ apiKeys: ['one', 'two'] }));
  const [one, two] = ['one', 'two'].map((key) => tenants.identify(`Bearer ${key}`));
  assert.notEqual(one.id, two.id);
  assert.deepEqual([one.operator, two.operator], [true, false]);
  assert.notEqual(saltOf(one, 's'), saltOf(two, 's'));
  assert.notEqual(saltOf(one, null), saltOf(one, ''));
  for (const wrong of [undefined, '', 'one', 'Bearer', 'Bearer three', 'Basic one']) {
    assert.throws(() => tenants.identify(wrong), { status: 401 });
  }
  const shared = new Tenants(settingsOf({ apiKeys: ['one', 'two'], shareAcrossKeys: true }));
  assert.equal(shared.identify('bearer two').id, '');
});

test('admission: 429 with a time to come again, 503 while draining', () => {
  const admission = new Admission(2);
  const leave = admission.enter();
  admission.enter();
  assert.throws(() => admission.enter(), { status: 429, code: 'queue_full' });
  leave();
  leave();
  assert.equal(admission.open, 1);
  admission.drain();
  assert.throws(() => admission.enter(), { status: 503 });
});

test('errors: names of the API, no inner words', () => {
  const wrong = toApiError(new FlashForgeError('request', 'topP must be above 0, got 0'));
  assert.deepEqual([wrong.status, wrong.param], [400, 'top_p']);
  assert.match(wrong.message, /^top_p must/);
  const secret = toApiError(new Error('ENOENT /home/user/secret'));
  assert.deepEqual([secret.status, secret.message], [500, 'the server failed']);
  assert.equal(toApiError(new FlashForgeError('out-of-pages', 'no room')).status, 429);
  assert.equal(toApiError(new ApiError(418, 'x')).body.error.type, 'invalid_request_error');
});

test('other origins and rebound names are kept out unless allowed', () => {
  const local = settingsOf({});
  for (const host of ['localhost:80', '127.0.0.1:8000', '[::1]:9', '127.0.0.5']) {
    checkHost(local, host);
  }
  for (const host of ['evil.example', 'localhost.evil.example:8000', undefined]) {
    assert.throws(() => checkHost(local, host), { status: 403 });
  }
  checkHost(settingsOf({ host: '0.0.0.0' }), 'any.example');
  assert.deepEqual(corsHeaders(local, 'https://a.example'), {});
  const some = settingsOf({ corsOrigins: ['https://a.example'] });
  const allowed = corsHeaders(some, 'https://a.example');
  assert.equal(allowed['access-control-allow-origin'], 'https://a.example');
  assert.deepEqual(corsHeaders(some, 'https://b.example'), {});
});

test('recent: means a second, and nothing older than the window', () => {
  let now = 1_000_000_000;
  const recent = new Recent(() => now);
  recent.token(null);
  recent.ttft(40);
  recent.token(10);
  recent.token(20);
  now += 1000;
  recent.token(30);
  const [first, second] = recent.seconds();
  assert.deepEqual([first.tokens, first.tpotMs, first.ttftMs], [3, 15, 40]);
  assert.deepEqual([second.tokens, second.tpotMs, second.ttftMs], [1, 30, null]);
  now += 400_000;
  assert.deepEqual(recent.seconds(), []);
});

test('options out of range are refused with their names', () => {
  const bad = [{ port: 70000 }, { queueLimit: 0 }, { logLevel: 'loud' }, { apiKeys: [' '] }];
  for (const options of [...bad, { requestTimeoutMs: 1e12 }, { prefixPagesShare: 2 }]) {
    assert.throws(() => settingsOf(options), { code: 'usage' });
  }
});

test('the OpenAPI document describes every route, and every reference in it exists', () => {
  const document = openApiDocument(ROUTES, { version: '1', models: ['m'], needsKey: true });
  const text = JSON.stringify(document);
  const { schemas } = document.components as { schemas: Record<string, object> };
  for (const [, name] of text.matchAll(/"#\/components\/schemas\/(\w+)"/g)) {
    assert.ok(schemas[name] !== undefined, name);
  }
  for (const { path, method } of ROUTES) {
    const paths = document.paths as Record<string, Record<string, object>>;
    assert.ok(paths[path][method.toLowerCase()] !== undefined);
  }
  assert.match(text, /"model":\{"type":"string","enum":\["m"\]\}/);
});
