/**
 * Sampling against the distribution computed directly, option checks and stop strings.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { CHANGES_MAX, type LogitChanges } from '../../src/backend/backend.ts';
import { randomStream } from '../../src/base/math.ts';
import { drawToken } from '../../src/engine/draw.ts';
import { Sampler, topLogprobs } from '../../src/engine/sampler.ts';
import { type SamplingOptions, samplingParams } from '../../src/engine/sampling-params.ts';
import { StopStrings } from '../../src/engine/stop-strings.ts';
import { changeLogits } from '../helpers/change-logits.ts';

const VOCAB = 40;

function randomLogits(seed: number, vocab = VOCAB): Float32Array {
  const random = randomStream(seed);
  return Float32Array.from({ length: vocab }, () => (random() - 0.5) * 8);
}

const logSumExp = (logits: Float32Array): number =>
  Math.log(logits.reduce((sum, x) => sum + Math.exp(x), 0));

const argmax = (logits: Float32Array): number => logits.indexOf(Math.max(...logits));

const sampler = (options: SamplingOptions, prompt: number[] = [], sample = 0): Sampler =>
  new Sampler(samplingParams(options, VOCAB), sample, prompt);

/** The distribution that the options describe, by sorting everything. */
function expected(logits: Float32Array, options: SamplingOptions): Map<number, number> {
  const t = options.temperature ?? 1;
  let list = [...logits].map((x, id) => ({ id, w: Math.exp(x / t) }));
  list.sort((a, b) => b.w - a.w || a.id - b.id);
  if (options.minP) list = list.filter((x) => x.w >= (options.minP as number) * list[0].w);
  if (options.topK) list = list.slice(0, options.topK);
  const total = list.reduce((sum, x) => sum + x.w, 0);
  if (options.topP !== undefined) {
    let mass = 0;
    const limit = options.topP * total;
    list = list.filter((x) => {
      const keep = mass < limit;
      mass += x.w;
      return keep;
    });
  }
  const kept = list.reduce((sum, x) => sum + x.w, 0);
  return new Map(list.map((x) => [x.id, x.w / kept]));
}

for (const options of [
  { temperature: 1 },
  { temperature: 0.5 },
  { temperature: 1.5, topK: 5 },
  { temperature: 1, topP: 0.7 },
  { temperature: 0.8, topK: 10, topP: 0.9 },
  { temperature: 1, minP: 0.1 },
] satisfies SamplingOptions[]) {
  test(`draws follow the distribution of ${JSON.stringify(options)}`, () => {
    const logits = randomLogits(7);
    const want = expected(logits, options);
    const drawer = sampler({ ...options, seed: 3 });
    const draws = 20_000;
    const seen = new Map<number, number>();
    for (let i = 0; i < draws; i++) {
      const { token } = drawer.sample(logits, argmax(logits), logSumExp(logits));
      seen.set(token, (seen.get(token) ?? 0) + 1);
    }
    for (const id of seen.keys()) assert.ok(want.has(id), `token ${id} should have been dropped`);
    for (const [id, p] of want) {
      const spread = 5 * Math.sqrt((p * (1 - p)) / draws) + 1 / draws;
      assert.ok(Math.abs((seen.get(id) ?? 0) / draws - p) <= spread, `token ${id}, p ${p}`);
    }
  });
}

test('greedy takes the largest logit, log-probabilities sum to the distribution', () => {
  const logits = randomLogits(11);
  const sum = logSumExp(logits);
  const greedy = sampler({ logprobs: 3 });
  const result = greedy.sample(logits, argmax(logits), sum);
  assert.equal(result.token, argmax(logits));
  assert.equal(result.top?.length, 3);
  assert.equal(result.top?.[0].token, result.token);
  assert.equal(result.top?.[0].logprob, result.logprob);
  const all = topLogprobs(logits, sum, VOCAB);
  assert.ok(Math.abs(all.reduce((s, x) => s + Math.exp(x.logprob), 0) - 1) < 1e-6);
  for (let i = 1; i < all.length; i++) assert.ok(all[i - 1].logprob >= all[i].logprob);
});

test('the same seed repeats, samples and seeds differ, large seeds count in full', () => {
  const logits = new Float32Array(VOCAB);
  const draw = (seed: number, sample: number): string => {
    const s = sampler({ temperature: 1, seed }, [], sample);
    return Array.from({ length: 12 }, () => s.sample(logits, 0, Math.log(VOCAB)).token).join();
  };
  assert.equal(draw(1, 0), draw(1, 0));
  const streams = [draw(1, 0), draw(1, 1), draw(2, 0), draw(2 ** 40 + 1, 0), draw(-1, 0)];
  assert.equal(new Set(streams).size, streams.length);
});

test('penalties, bias and a mask change what greedy takes', () => {
  const logits = new Float32Array(VOCAB);
  logits[3] = 2;
  logits[4] = 1.5;
  logits[5] = 1;
  const sum = logSumExp(logits);
  assert.equal(sampler({ repetitionPenalty: 2 }, [3]).sample(logits, 3, sum).token, 4);
  assert.equal(sampler({ logitBias: { 5: 10 } }).sample(logits, 3, sum).token, 5);
  const frequency = sampler({ frequencyPenalty: 0.3 });
  const tokens = Array.from({ length: 4 }, () => frequency.sample(logits, 3, sum).token);
  assert.deepEqual(tokens, [3, 3, 4, 3]);
  const presence = sampler({ presencePenalty: 1.2 });
  assert.deepEqual(
    [3, 4, 5].map(() => presence.sample(logits, 3, sum).token),
    [3, 4, 5],
  );
  const allowed = new Uint8Array(VOCAB);
  allowed[9] = 1;
  assert.equal(sampler({}).sample(logits, 3, sum, allowed).token, 9);
  assert.equal(sampler({ temperature: 2 }).sample(logits, 3, sum, allowed).token, 9);
});

test('a fork keeps the counts and draws from a stream of its own', () => {
  const logits = new Float32Array(VOCAB);
  logits[3] = 1;
  const parent = sampler({ presencePenalty: 2 });
  parent.sample(logits, 3, logSumExp(logits));
  assert.notEqual(parent.fork(1).sample(logits, 3, logSumExp(logits)).token, 3);
});

test('options are refused with the field, the value and what is allowed', () => {
  const cases: [object, RegExp][] = [
    [{ maxTokens: -1 }, /maxTokens must be an integer of at least 0, got -1/],
    [{ maxTokens: -3 }, /maxTokens .* got -3/],
    [{ temperature: Number.NaN }, /temperature must be a number between 0 and 100, got NaN/],
    [{ topP: 0 }, /topP must be above 0/],
    [{ topP: 1.5 }, /topP .* between 0 and 1, got 1.5/],
    [{ topK: 2.5 }, /topK must be an integer/],
    [{ n: 0 }, /n must be an integer between 1/],
    [{ stop: [''] }, /stop must hold non-empty strings/],
    [{ stop: 7 }, /stop must hold non-empty strings, got 7/],
    [{ logitBias: { 99: 1 } }, /logitBias token id .* got 99/],
    [{ logitBias: { cat: 1 } }, /logitBias token id .* got "cat"/],
    [{ logitBias: { 3: 'x' } }, /logitBias\[3\]/],
    [{ stopTokenIds: [VOCAB] }, /stopTokenIds\[0\]/],
    [{ temprature: 1 }, /unknown option temprature/],
    [{ ignoreEos: 'yes' }, /ignoreEos must be true or false/],
  ];
  for (const [options, message] of cases) {
    assert.throws(() => samplingParams(options as SamplingOptions, VOCAB), {
      code: 'request',
      message,
    });
  }
});

test('stop strings: the text before the first one, in whatever pieces it comes', () => {
  const alphabet = fc.constantFrom('a', 'b', 'c');
  const word = (max: number) => fc.array(alphabet, { minLength: 1, maxLength: max });
  fc.assert(
    fc.property(
      word(40),
      fc.array(word(4), { minLength: 1, maxLength: 3 }),
      fc.nat(5),
      (t, s, k) => {
        const text = t.join('');
        const stops = s.map((x) => x.join(''));
        const found = stops.map((x) => text.indexOf(x)).filter((at) => at >= 0);
        const matcher = new StopStrings(stops);
        let out = '';
        let stopped = false;
        for (let at = 0; at < text.length && !stopped; at += k + 1) {
          const result = matcher.push(text.slice(at, at + k + 1));
          out += result.text;
          stopped = result.stopped;
        }
        if (!stopped) out += matcher.flush();
        assert.equal(stopped, found.length > 0);
        if (k === 0 && stopped) {
          // One character at a time the stop string that ends first wins.
          const ends = stops.map((x) => (text.includes(x) ? text.indexOf(x) + x.length : Infinity));
          const end = Math.min(...ends);
          assert.ok(stops.some((x) => out + x === text.slice(0, end)));
        } else if (!stopped) assert.equal(out, text);
        assert.ok(text.startsWith(out));
      },
    ),
    { seed: 5 },
  );
});

test('what a device draws uses the random stream as sample does, once a token', () => {
  const options = { temperature: 1, topK: 6, seed: 9, logprobs: 0 };
  const [host, device] = [sampler(options), sampler(options)];
  for (let at = 0; at < 60; at++) {
    const logits = randomLogits(at);
    const expected = host.sample(logits, argmax(logits), logSumExp(logits));
    // Looking ahead, and again after a preemption, must not shift the stream.
    for (const ahead of [1, 0, 1].slice(at % 3)) device.draw(ahead);
    const draw = device.draw(0);
    assert.ok(draw !== null && draw !== 'argmax');
    const token = drawToken(logits, Math.max(...logits), draw, draw.uniform);
    const taken =
      at % 4 === 0
        ? device.sample(logits, argmax(logits), logSumExp(logits))
        : device.take(token, logits[token] - logSumExp(logits));
    assert.deepEqual(taken, expected);
  }
});

test('a device draws from changed logits as sample does, with a token that is not known yet', () => {
  const options = { logitBias: { 3: 1.5 }, repetitionPenalty: 1.3, presencePenalty: 0.2 };
  for (const temperature of [0, 0.8]) {
    const all = { ...options, frequencyPenalty: 0.3, temperature, seed: 4 };
    const [host, device] = [sampler(all, [1, 2, 2]), sampler(all, [1, 2, 2])];
    let own = 0;
    for (let at = 0; at < 40; at++) {
      const logits = randomLogits(at);
      // The first token is known; the others are still under way when the next is asked for.
      const draw = device.draw(at === 0 ? 0 : 1);
      assert.ok(draw !== null && draw !== 'argmax');
      const changed = logits.slice();
      changeLogits(changed, draw.changes as LogitChanges, own);
      if (at > 0) device.take(own, 0);
      const best = Math.max(...changed);
      own =
        temperature === 0 ? changed.indexOf(best) : drawToken(changed, best, draw, draw.uniform);
      assert.equal(own, host.sample(logits, argmax(logits), logSumExp(logits)).token);
    }
  }
});

test('a device draws only what needs no more than a row of its logits', () => {
  assert.equal(sampler({}).draw(0), 'argmax');
  assert.equal(sampler({ logprobs: 0 }).draw(1), 'argmax');
  assert.equal(sampler({ logprobs: 1 }).draw(0), null);
  const prompt = Array.from({ length: CHANGES_MAX + 1 }, (_, token) => token);
  assert.equal(sampler({ repetitionPenalty: 1.1 }, prompt).draw(0), null);
});
