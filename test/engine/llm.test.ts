/**
 * The library as its users call it: a tiny model in an engine thread of its own.
 * @module
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { FlashForgeError } from '../../src/base/errors.ts';
import { type Llm, load } from '../../src/index.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { writeTinyModel } from '../helpers/tiny-model.ts';

const folder = temporaryFolder();
let llm: Llm;

before(async () => {
  llm = await load(writeTinyModel(folder), { device: 'reference', kvPages: 32 });
});
after(() => llm.dispose());

const greedy = { maxTokens: 8, ignoreEos: true };

const failsWith = (code: string, pattern: RegExp) => (error: unknown) => {
  assert.ok(error instanceof FlashForgeError, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, pattern);
  return true;
};

/** Pages in use by anything but the cache. */
async function heldPages(): Promise<number> {
  await llm.tokenize('x');
  const { tree } = llm.stats();
  return tree.pagesUsed - tree.pagesEvictable;
}

test('a generation is both iterated and awaited', async () => {
  const stream = llm.generate('hello world', { ...greedy, logprobs: 2 });
  let text = '';
  const tokens: number[] = [];
  for await (const chunk of stream) {
    text += chunk.text;
    if (chunk.token !== null) tokens.push(chunk.token);
  }
  const result = await stream;
  assert.equal(result.text, text);
  assert.deepEqual(result.tokens, tokens);
  assert.equal(result.finishReason, 'length');
  assert.equal(result.logprobs?.length, 8);
  for (const { token, logprob, top } of result.logprobs ?? []) {
    assert.deepEqual(top[0], { token, logprob }, 'greedy takes the likeliest');
    assert.equal(top.length, 2);
  }
  assert.ok(result.stats.ttftMs > 0 && result.stats.newTokens === 8);
});

test('forks of a prefix give what the whole text gives, without computing it again', async () => {
  const doc = await llm.prefill('hello world, this is a document about hello.');
  using a = doc.fork();
  using b = doc.fork();
  const [one, two] = await Promise.all([a.generate(' Who?', greedy), b.generate(' Why?', greedy)]);
  assert.equal(one.stats.cachedTokens >= doc.length, true);
  const ids = [...(await doc.tokens()), ...(await llm.tokenize(' Why?')).slice(-5)];
  const whole = await llm.generate(ids, greedy);
  assert.deepEqual(two.tokens, whole.tokens);
  assert.equal(await doc.text(), 'hello world, this is a document about hello.');
  doc.dispose();
  assert.throws(() => doc.fork(), failsWith('request', /disposed/));
  await assert.rejects(async () => doc.generate('x'), failsWith('request', /disposed/));
});

test('n samples, seeds, chat and batch', async () => {
  const options = { maxTokens: 6, n: 4, temperature: 1.5, seed: 7, ignoreEos: true };
  const first = await llm.generate('hello', options);
  const second = await llm.generate('hello', options);
  assert.equal(first.samples.length, 4);
  assert.deepEqual(
    first.samples.map(({ tokens }) => tokens),
    second.samples.map(({ tokens }) => tokens),
  );
  const messages = [{ role: 'user', content: 'hello' }];
  const chat = await llm.chat(messages, greedy);
  const rendered = await llm.tokenize({ messages });
  assert.deepEqual(chat.tokens, (await llm.generate(rendered, greedy)).tokens);
  const batch = await llm.batch(['hello world', { messages }, rendered], greedy);
  assert.deepEqual(
    batch.map(({ prompt }) => prompt),
    [0, 1, 2],
  );
  assert.deepEqual(batch[1].tokens, chat.tokens);
  assert.deepEqual(batch[2].tokens, chat.tokens);
});

test('greedy output is the same with and without sharing', async () => {
  const prompts = ['', ' a', ' b', ' world'].map((end) => `hello world hello world${end}`);
  await llm.clearCache();
  const tree = await llm.batch(prompts, greedy);
  llm.setFlat(true);
  await llm.clearCache();
  const flat = await llm.batch(prompts, greedy);
  llm.setFlat(false);
  assert.deepEqual(
    tree.map(({ tokens }) => tokens),
    flat.map(({ tokens }) => tokens),
  );
});

test('branches in lockstep: fork at any token, grow, prune', async () => {
  const root = await llm.prefill('hello world');
  const [best, other] = await root.top(2);
  const branches = [root.fork(), root.fork()];
  await llm.step([
    { branch: branches[0], tokens: best.token },
    { branch: branches[1], tokens: [other.token, best.token] },
  ]);
  assert.deepEqual(
    branches.map(({ length }) => length),
    [root.length + 1, root.length + 2],
  );
  const expected = await llm.generate(await branches[1].tokens(), {
    maxTokens: 1,
    ignoreEos: true,
  });
  const [, [top]] = await llm.top(branches, 1);
  assert.equal(top.token, expected.tokens[0]);
  const back = branches[1].fork(root.length);
  assert.deepEqual(await back.top(2), await root.top(2), 'a fork at an earlier token');
  const drawn = await back.sample({ temperature: 1, seed: 3 });
  assert.ok(drawn.logprob < 0);
  await assert.rejects(branches[0].append(Array(600).fill(1)), failsWith('request', /context/));
  for (const branch of [root, back, ...branches]) branch.dispose();
  assert.equal(await heldPages(), 0);
});

test('beam search finds what scoring every path finds', async () => {
  using root = await llm.prefill('hello');
  const beams = await root.beamSearch({ beams: 3, maxTokens: 2, lengthPenalty: 0 });
  assert.equal(beams.length, 3);
  for (const beam of beams) {
    let logprob = 0;
    using path = root.fork();
    for (const token of beam.tokens) {
      const all = await path.top(267);
      logprob += all.find((each) => each.token === token)?.logprob ?? Number.NaN;
      await path.append(token);
    }
    if (beam.finishReason === 'length') assert.ok(Math.abs(logprob - beam.logprob) < 1e-3);
    else assert.ok(beam.logprob < logprob);
  }
  const [single] = await root.beamSearch({ beams: 1, maxTokens: 5 });
  const plain = await root.generate('', { maxTokens: 5 });
  assert.deepEqual(single.tokens, plain.tokens.slice(0, single.tokens.length));
});

test('abort by signal, by leaving the loop, and by the method', async () => {
  const controller = new AbortController();
  const long = { maxTokens: 400, ignoreEos: true, signal: controller.signal };
  const bySignal = llm.generate('hello', long);
  const byMethod = llm.generate('world', { ...greedy, maxTokens: 400 });
  for await (const _ of llm.generate('hello world', { ...greedy, maxTokens: 400 })) break;
  controller.abort();
  byMethod.abort();
  await assert.rejects(async () => bySignal, failsWith('aborted', /aborted/));
  await assert.rejects(async () => byMethod, failsWith('aborted', /aborted/));
  await assert.rejects(async () => llm.generate('hello', long), failsWith('aborted', /aborted/));
  assert.equal(await heldPages(), 0);
});

test('every bad option is one clear error', async () => {
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ maxTokens: -1 }, /maxTokens.*-1/],
    [{ maxTokens: -3 }, /maxTokens.*-3/],
    [{ temperature: Number.NaN }, /temperature.*NaN/],
    [{ maxTokens: 2.5 }, /maxTokens.*2\.5/],
    [{ beams: 4 }, /unknown option beams/],
    [{ priority: 'high' }, /priority.*"high"/],
    [{ cacheSalt: '' }, /cacheSalt/],
    [{ signal: {} }, /signal/],
    [{ stop: [() => 1] }, /stop/],
  ];
  for (const [options, pattern] of bad) {
    await assert.rejects(async () => llm.generate('hello', options), failsWith('request', pattern));
  }
  const refuse = async (prompt: unknown, pattern: RegExp): Promise<void> => {
    const call = async () => llm.generate(prompt as string, greedy);
    await assert.rejects(call, failsWith('request', pattern));
  };
  await refuse('', /empty/);
  await refuse([], /at least one token/);
  await refuse([1, 5000], /tokens\[1\].*5000/);
  await refuse(42, /prompt must be text/);
  await refuse('hello '.repeat(600), /at most 511 tokens/);
  await assert.rejects(llm.prefill(''), failsWith('request', /empty/));
  await assert.rejects(async () => llm.batch([]), failsWith('request', /at least one prompt/));
  await assert.rejects(async () => llm.chat([]), failsWith('request', /messages/));
  await assert.rejects(llm.beamSearch('x', { beams: 0 }), failsWith('request', /beams.*0/));
  await assert.rejects(load('x', { gpu: 1 } as object), failsWith('usage', /unknown option gpu/));
  await assert.rejects(load('/nowhere/at/all.gguf'), failsWith('model', /nowhere/));
  assert.equal(await heldPages(), 0);
});

test('salts keep caches apart', async () => {
  const prompt = 'a secret that only one tenant has asked about';
  await llm.generate(prompt, { ...greedy, cacheSalt: 'one' });
  const same = await llm.generate(prompt, { ...greedy, cacheSalt: 'one' });
  const other = await llm.generate(prompt, { ...greedy, cacheSalt: 'two' });
  assert.ok(same.stats.cachedTokens > 0);
  assert.equal(other.stats.cachedTokens, 0);
  using doc = await llm.prefill(prompt, { cacheSalt: 'one' });
  await assert.rejects(
    async () => doc.generate('x', { cacheSalt: 'two' }),
    failsWith('request', /cacheSalt/),
  );
});

test('the event loop is free while the model computes', async () => {
  let turns = 0;
  const timer = setInterval(() => turns++, 1);
  await llm.generate('hello world', { maxTokens: 60, ignoreEos: true });
  clearInterval(timer);
  assert.ok(turns > 1);
});

test('dispose ends requests, and what follows says so', async () => {
  const other = await load(writeTinyModel(folder), { device: 'reference', kvPages: 16 });
  const running = other.generate('hello', { maxTokens: 400, ignoreEos: true });
  const failed = assert.rejects(async () => running, failsWith('aborted', /disposed/));
  await other.dispose();
  await failed;
  await other.dispose();
  await assert.rejects(async () => other.generate('hello'), FlashForgeError);
});

test('the inside can be looked at: tree and schedule, numbers only', async () => {
  using doc = await llm.prefill('a prefix of its own', { cacheSalt: 'inspect' });
  using fork = doc.fork();
  await fork.generate(' again', greedy);
  const { nodes, nodeCount, plan } = await llm.inspect();
  assert.equal(nodes.length, nodeCount);
  assert.ok(nodes.some(({ sharers, tokens }) => sharers === 2 && tokens === doc.length));
  const ids = new Set(nodes.map(({ id }) => id));
  assert.ok(nodes.every(({ parent }) => parent === null || ids.has(parent)));
  assert.ok(plan !== null && plan.items.length > 0 && plan.items.every(({ us }) => us > 0));
  assert.equal((await llm.inspect(1)).nodes.length, 1);
});

test('an evicted prompt comes back from host memory; a cleared cache has none', async () => {
  const options = { device: 'reference', kvPages: 3, hostKvBytes: 2 ** 24 } as const;
  const small = await load(writeTinyModel(folder), options);
  const [first, second] = ['once upon a time '.repeat(9), 'a whole new world '.repeat(12)];
  const { text } = await small.generate(first, greedy);
  await small.generate(second, greedy);
  const again = await small.generate(first, greedy);
  assert.equal(again.text, text);
  assert.equal(again.stats.cachedTokens % 64, 0);
  const { host } = small.stats();
  assert.ok(host !== null && host.restoredTokens === again.stats.cachedTokens);
  assert.ok(host.restoredTokens > 0 && host.bytesUsed > 0 && host.bytesUsed <= host.bytes);
  await small.clearCache();
  assert.equal(small.stats().host?.pagesUsed, 0);
  assert.equal((await small.generate(first, greedy)).stats.cachedTokens, 0);
  assert.equal(llm.stats().host, null, 'it has to be asked for');
  await small.dispose();
});

test('loading fails with one sentence, and leaves nothing behind', async () => {
  const path = writeTinyModel(folder);
  const broken = join(folder, 'broken.gguf');
  writeFileSync(broken, readFileSync(path).subarray(0, 5000));
  await assert.rejects(load(broken, { device: 'reference' }), failsWith('model', /broken/));
  const unknown = load(path, { device: 'abacus' as 'cpu' });
  await assert.rejects(unknown, failsWith('usage', /abacus/));
  await assert.rejects(
    load(path, { hostKvBytes: -1 }),
    failsWith('usage', /hostKvBytes must be an integer of at least 0, got -1/),
  );
  const signal = AbortSignal.abort();
  await assert.rejects(
    load(path, { device: 'reference', signal }),
    failsWith('aborted', /aborted/),
  );
});
