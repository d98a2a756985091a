/**
 * Several completions over one connection: each as if it were alone, each stopped alone.
 * @module
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, test } from 'node:test';
import {
  eventsOf,
  request,
  startTestServer,
  type TestServer,
  until,
} from '../helpers/api-server.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

let server: TestServer;
before(async () => {
  const model = writeTinyChatModel(temporaryFolder(), { contextLength: 4096 });
  const keys = ['--api-key', 'alice,bob'];
  server = await startTestServer(model, ['--workers', '1', '--kv-pages', '256', ...keys]);
});
after(() => server.stop());

const as = (name: string) => ({ headers: { authorization: `Bearer ${name}` } });
const post = (path: string, body: object, who = 'alice') => request(server, path, body, as(who));
const run = (requests: readonly object[], id = randomUUID() as string, who = 'alice') =>
  post('/dashboard/branches', { id, requests }, who);

interface BranchEvent {
  readonly branch: number;
  readonly event: null | {
    readonly choices?: readonly { text: string; finish_reason: string | null }[];
    readonly error?: { readonly message: string; readonly param: string | null };
  };
}

/** The text of each branch and what it ended with, from the body of an answer. */
function branchesOf(body: string, count: number) {
  const branches = Array.from({ length: count }, () => ({ text: '', end: '', over: 0 }));
  for (const { branch, event } of eventsOf(body) as BranchEvent[]) {
    if (event === null) branches[branch].over++;
    if (event?.error !== undefined) branches[branch].end = event.error.message;
    for (const choice of event?.choices ?? []) {
      branches[branch].text += choice.text;
      branches[branch].end = choice.finish_reason ?? branches[branch].end;
    }
  }
  return branches;
}

const one = { model: 'test', prompt: 'hello world', max_tokens: 12, ignore_eos: true };
const endless = { ...one, max_tokens: 4000 };

test('branches say what the same completions say alone', async () => {
  const requests = Array.from({ length: 8 }, (_, seed) => ({ ...one, seed }));
  const { status, body } = await run(requests);
  assert.equal(status, 200);
  const alone = await Promise.all(requests.map((each) => post('/v1/completions', each)));
  assert.deepEqual(
    branchesOf(body, 8),
    alone.map((each) => ({ text: each.body.choices[0].text, end: 'length', over: 1 })),
  );
});

test('a branch that cannot run does not disturb the others', async () => {
  const { status, body } = await run([
    one,
    { ...one, prefix_id: 'nowhere' },
    { ...one, model: 'gpt-4' },
  ]);
  assert.equal(status, 200);
  const [good, lost, other] = branchesOf(body, 3);
  assert.equal(good.end, 'length');
  assert.match(lost.end, /prefix "nowhere" is unknown/);
  assert.match(other.end, /gpt-4/);
  assert.deepEqual([good.over, lost.over, other.over], [1, 1, 1]);
});

test('one branch is stopped, then all; what is over stays over', async () => {
  const id = randomUUID();
  const stop = (body: object, who = 'alice') => post(`/dashboard/branches/${id}/stop`, body, who);
  const answer = run([endless, one, endless], id);
  await until('it runs', async () => (await stop({ branch: 7 })).status === 200);
  assert.equal((await stop({ branch: 0 }, 'bob')).status, 404);
  assert.deepEqual((await stop({ branch: 0 })).body, { stopped: 1 });
  assert.deepEqual((await stop({ branch: 0 })).body, { stopped: 0 });
  assert.equal((await run([one], id)).status, 409);
  assert.equal((await stop({ branch: -1 })).status, 400);
  assert.ok((await stop({})).body.stopped >= 1);
  const branches = branchesOf((await answer).body, 3);
  assert.match(branches[0].end, /gone/);
  assert.match(branches[2].end, /gone/);
  assert.deepEqual(
    branches.map(({ over }) => over),
    [1, 1, 1],
  );
  assert.equal((await stop({})).status, 404);
});

test('a client that goes away ends all of its branches', async () => {
  const controller = new AbortController();
  const id = randomUUID();
  const response = await fetch(`${server.url}/dashboard/branches`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...as('alice').headers },
    body: JSON.stringify({ id, requests: [endless, endless] }),
    signal: controller.signal,
  });
  assert.equal(response.status, 200);
  controller.abort();
  const state = async () =>
    (await request(server, '/dashboard/state', undefined, as('alice'))).body;
  await until('nothing runs', async () => (await state()).open === 0);
  await until('no page is held', async () => (await state()).pages.held === 0);
  assert.equal((await run([one], id)).status, 200);
});

test('bad requests are refused as a whole', async () => {
  for (const [body, param] of [
    [{ id: 'short', requests: [one] }, 'id'],
    [{ id: randomUUID(), requests: [] }, 'requests'],
    [{ id: randomUUID(), requests: Array(33).fill(one) }, 'requests'],
    [{ id: randomUUID(), requests: [{ ...one, max_tokens: 0 }] }, 'requests[0].max_tokens'],
    [{ requests: [one] }, 'id'],
  ] as const) {
    const answer = await post('/dashboard/branches', body);
    assert.equal(answer.status, 400, JSON.stringify(answer.body));
    assert.equal(answer.body.error.param, param);
  }
  assert.equal(
    (await request(server, '/dashboard/branches', { id: 'x', requests: [] })).status,
    401,
  );
});
