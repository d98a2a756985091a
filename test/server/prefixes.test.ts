/**
 * Prefixes over HTTP: held, forked, shared, expired; and what keys and salts keep apart.
 * @module
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { metric, request, startTestServer, type TestServer, until } from '../helpers/api-server.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const folder = temporaryFolder();
const model = writeTinyChatModel(folder, { contextLength: 2048 });
const TEXT = 'hello world '.repeat(40);
const key = (name: string) => ({ headers: { authorization: `Bearer ${name}` } });

let open: TestServer;
let keyed: TestServer;
before(async () => {
  const keys = join(folder, 'keys.txt');
  writeFileSync(keys, '# operator first\noperator\n\nalice\nbob\n');
  const small = ['--workers', '1', '--kv-pages', '256'];
  [open, keyed] = await Promise.all([
    startTestServer(model, [...small, '--prefix-limit', '3']),
    startTestServer(model, [...small, '--api-key-file', keys]),
  ]);
});
after(() => Promise.all([open.stop(), keyed.stop()]));

const complete = (server: TestServer, more: object, init = {}) =>
  request(server, '/v1/completions', { model: 'test', max_tokens: 2, ...more }, init);
const cached = ({
  body,
}: {
  body: { usage: { prompt_tokens_details: { cached_tokens: number } } };
}) => body.usage.prompt_tokens_details.cached_tokens;

test('a prefix is held, named, forked, listed and let go', async () => {
  const made = await request(open, '/v1/prefixes', { text: TEXT, id: 'doc' });
  assert.equal(made.status, 201);
  const { tokens, pages, bytes, sharers, parent } = made.body;
  assert.deepEqual([made.body.id, sharers, parent], ['doc', 1, null]);
  assert.equal(pages, Math.ceil(tokens / 64));
  assert.ok(bytes > 0);
  const again = await request(open, '/v1/prefixes', { text: 'x', id: 'doc' });
  assert.equal(again.status, 409);

  const answer = await complete(open, { prompt: 'more', prefix_id: 'doc', n: 3, max_tokens: 8 });
  assert.equal(cached(answer), tokens);
  assert.ok(answer.body.usage.prompt_tokens > tokens);
  assert.ok(answer.body.usage.kv_cache.reduction > 2);
  const bare = await complete(open, { prompt: '', prefix_id: 'doc' });
  assert.equal(bare.body.usage.prompt_tokens, tokens);

  const fork = await request(open, '/v1/prefixes/doc/fork', { text: ' and more', id: 'fork' });
  assert.equal(fork.status, 201);
  assert.ok(fork.body.tokens > tokens);
  assert.equal(fork.body.parent, 'doc');
  assert.equal((await request(open, '/v1/prefixes/doc')).body.sharers, 2);
  const cut = await request(open, '/v1/prefixes/doc/fork', { length: 10, id: 'cut' });
  assert.equal(cut.body.tokens, 10);
  const far = await request(open, '/v1/prefixes/doc/fork', { length: tokens + 1 });
  assert.deepEqual([far.status, far.body.error.param], [400, 'length']);
  const full = await request(open, '/v1/prefixes', { text: 'x' });
  assert.deepEqual([full.status, full.body.error.code], [429, 'prefix_limit']);

  const list = (await request(open, '/v1/prefixes')).body.data;
  assert.deepEqual(list.map((each: { id: string }) => each.id).sort(), ['cut', 'doc', 'fork']);
  const remove = { method: 'DELETE' };
  const gone = await request(open, '/v1/prefixes/doc', undefined, remove);
  assert.deepEqual(gone.body, { id: 'doc', object: 'prefix', deleted: true });
  assert.equal((await request(open, '/v1/prefixes/doc')).status, 404);
  // The fork keeps what it shares.
  assert.equal(cached(await complete(open, { prompt: 'x', prefix_id: 'fork' })), fork.body.tokens);
  for (const id of ['fork', 'cut']) await request(open, `/v1/prefixes/${id}`, undefined, remove);
  const held = () => metric(open, 'flashforge:pages', 'state="held"');
  await until('no page held', async () => (await held()) === 0);
});

test('what forks keep of a prefix that is gone still counts against the limit', async () => {
  const pages = await metric(open, 'flashforge:pages', 'state="free"');
  assert.ok(pages > 100);
  const trunk = { text: 'hello world '.repeat(100), id: 'trunk' };
  const remove = (id: string) =>
    request(open, `/v1/prefixes/${id}`, undefined, { method: 'DELETE' });
  const made = await request(open, '/v1/prefixes', trunk);
  assert.equal(made.status, 201, JSON.stringify(made.body));
  for (const id of ['left', 'right']) {
    const fork = await request(open, '/v1/prefixes/trunk/fork', { text: ' x', id });
    assert.equal(fork.status, 201);
  }
  for (const id of ['trunk', 'left']) await remove(id);
  const right = await request(open, '/v1/prefixes/right');
  assert.equal(right.body.sharers, 1);
  await remove('right');
  await until('no page held', async () => (await metric(open, 'flashforge:prefixes')) === 0);
});

test('prefixes of messages are continued by messages', async () => {
  const system = { role: 'system', content: 'You are a lighthouse keeper who likes numbers.' };
  const made = await request(open, '/v1/prefixes', { messages: [system], id: 'keeper' });
  assert.equal(made.status, 201);
  const messages = [{ role: 'user', content: 'hello' }];
  const body = { model: 'test', messages, max_tokens: 2, prefix_id: 'keeper' };
  const answer = await request(open, '/v1/chat/completions', body);
  assert.equal(answer.status, 200, JSON.stringify(answer.body));
  assert.equal(cached(answer), made.body.tokens);
  const fork = await request(open, '/v1/prefixes/keeper/fork', { messages, id: 'talk' });
  assert.ok(fork.body.tokens > made.body.tokens);
  const text = await request(open, '/v1/prefixes', { text: 'x', id: 'text' });
  assert.equal(text.status, 201);
  const wrong = await request(open, '/v1/chat/completions', { ...body, prefix_id: 'text' });
  assert.deepEqual([wrong.status, wrong.body.error.param], [400, 'prefix_id']);
  for (const id of ['keeper', 'talk', 'text']) {
    await request(open, `/v1/prefixes/${id}`, undefined, { method: 'DELETE' });
  }
});

test('an unused prefix expires, a used one lives on', async () => {
  const short = { ttl_seconds: 1 };
  await request(open, '/v1/prefixes', { text: TEXT, id: 'idle', ...short });
  await request(open, '/v1/prefixes', { text: TEXT, id: 'used', ...short });
  for (let turn = 0; turn < 5; turn++) {
    await new Promise((resolve) => setTimeout(resolve, 300));
    assert.equal((await complete(open, { prompt: 'x', prefix_id: 'used' })).status, 200);
  }
  const expired = await complete(open, { prompt: 'x', prefix_id: 'idle' });
  assert.deepEqual([expired.status, expired.body.error.code], [404, 'prefix_not_found']);
  await request(open, '/v1/prefixes/used', undefined, { method: 'DELETE' });
});

test('salts keep requests apart', async () => {
  const prompt = 'salted words '.repeat(20);
  const tokens = (await complete(open, { prompt, cache_salt: 'a' })).body.usage.prompt_tokens;
  assert.equal(cached(await complete(open, { prompt })), 0);
  assert.equal(cached(await complete(open, { prompt, cache_salt: 'b' })), 0);
  assert.equal(cached(await complete(open, { prompt, cache_salt: 'a' })), tokens);
  await request(open, '/v1/prefixes', { text: prompt, id: 'salted', cache_salt: 'a' });
  assert.equal(cached(await complete(open, { prompt: 'x', prefix_id: 'salted' })), tokens);
  const other = await complete(open, { prompt: 'x', prefix_id: 'salted', cache_salt: 'b' });
  assert.deepEqual([other.status, other.body.error.param], [400, 'cache_salt']);
  await request(open, '/v1/prefixes/salted', undefined, { method: 'DELETE' });
});

test('keys are needed, and keep tenants apart', async () => {
  for (const path of ['/v1/models', '/metrics', '/v1/prefixes', '/dashboard/state']) {
    const none = await request(keyed, path);
    assert.deepEqual([none.status, none.body.error.code], [401, 'invalid_api_key']);
    assert.equal((await request(keyed, path, undefined, key('mallory'))).status, 401);
    assert.equal((await request(keyed, path, undefined, key('alice'))).status, 200);
  }
  assert.equal((await request(keyed, '/health')).status, 200);

  const prompt = 'a question of mine '.repeat(20);
  const tokens = (await complete(keyed, { prompt }, key('alice'))).body.usage.prompt_tokens;
  assert.equal(cached(await complete(keyed, { prompt }, key('bob'))), 0);
  assert.equal(cached(await complete(keyed, { prompt }, key('alice'))), tokens);
  await request(keyed, '/v1/prefixes', { text: prompt, id: 'mine' }, key('alice'));
  const theirs = await complete(keyed, { prompt: 'x', prefix_id: 'mine' }, key('bob'));
  assert.equal(theirs.status, 404);
  assert.deepEqual((await request(keyed, '/v1/prefixes', undefined, key('bob'))).body.data, []);
});

test('a public prefix is shared by all tenants, and nothing below it', async () => {
  const text = 'a system prompt for everybody '.repeat(20);
  const body = { text, id: 'system', public: true };
  const refused = await request(keyed, '/v1/prefixes', body, key('alice'));
  assert.deepEqual([refused.status, refused.body.error.param], [403, 'public']);
  const made = await request(keyed, '/v1/prefixes', body, key('operator'));
  assert.equal(made.status, 201);
  const { tokens } = made.body;

  const prompt = ' and a secret question of one tenant';
  for (const tenant of ['alice', 'bob']) {
    // By its name and by its text: both find the public part, and only that.
    assert.equal(
      cached(await complete(keyed, { prompt, prefix_id: 'system' }, key(tenant))),
      tokens,
    );
  }
  const whole = await complete(keyed, { prompt: text + prompt, cache_salt: 's' }, key('bob'));
  assert.ok(cached(whole) >= tokens - 1 && cached(whole) <= tokens, String(cached(whole)));
  const again = await complete(keyed, { prompt, prefix_id: 'system' }, key('alice'));
  assert.equal(cached(again), again.body.usage.prompt_tokens);
  const fork = await request(
    keyed,
    '/v1/prefixes/system/fork',
    { text: prompt, id: 'private' },
    key('alice'),
  );
  assert.equal(fork.status, 201, JSON.stringify(fork.body));
  const other = await complete(keyed, { prompt: 'x', prefix_id: 'private' }, key('bob'));
  assert.equal(other.status, 404);
  const remove = { method: 'DELETE', ...key('alice') };
  assert.equal((await request(keyed, '/v1/prefixes/system', undefined, remove)).status, 403);
});
