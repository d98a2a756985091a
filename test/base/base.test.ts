/**
 * Messages of bad values, and the arithmetic that every folder builds on.
 * @module
 */
import assert from 'node:assert/strict';
import { chmodSync } from 'node:fs';
import { homedir, platform } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { homeFolder } from '../../src/base/env.ts';
import { checkInteger, checkNumber, FlashForgeError, show } from '../../src/base/errors.ts';
import { alignUp, ceilDiv, median, randomStream } from '../../src/base/math.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';

test('a value out of range is named with its field and what is allowed', () => {
  const cases: [unknown, string][] = [
    [0, 'n must be an integer between 1 and 8, got 0'],
    [1.5, 'n must be an integer between 1 and 8, got 1.5'],
    [Number.NaN, 'n must be an integer between 1 and 8, got NaN'],
    ['2', 'n must be an integer between 1 and 8, got "2"'],
    [undefined, 'n must be an integer between 1 and 8, got nothing'],
  ];
  for (const [value, message] of cases) {
    assert.throws(() => checkInteger('request', 'n', value, 1, 8), { code: 'request', message });
  }
  assert.equal(checkInteger('request', 'n', 8, 1, 8), 8);
  assert.throws(() => checkNumber('usage', 'x', Number.POSITIVE_INFINITY, 0), {
    name: 'FlashForgeError',
    message: 'x must be a number of at least 0, got Infinity',
  });
  assert.equal(checkNumber('usage', 'x', 0.5, 0, 1), 0.5);
  assert.ok(new FlashForgeError('io', 'x') instanceof Error);
});

test('any value is shown short, on one line', () => {
  fc.assert(
    fc.property(fc.anything(), (value) => {
      const text = show(value);
      assert.ok(text.length <= 62 && !text.includes('\n'), text);
    }),
    { seed: 2 },
  );
});

test('division and alignment round up', () => {
  fc.assert(
    fc.property(fc.nat(1e6), fc.integer({ min: 1, max: 1e4 }), (a, b) => {
      const q = ceilDiv(a, b);
      assert.ok(q * b >= a && (q - 1) * b < a);
      assert.equal(alignUp(a, b), q * b);
    }),
    { seed: 3 },
  );
});

test('the median of odd and even lists', () => {
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 3, 2]), 2.5);
});

test('random streams repeat, differ by seed and are even', () => {
  const take = (seed: number, n: number) => {
    const random = randomStream(seed);
    return Array.from({ length: n }, random);
  };
  assert.deepEqual(take(1, 5), take(1, 5));
  assert.notDeepEqual(take(1, 5), take(2, 5));
  const many = take(9, 10_000);
  assert.ok(many.every((x) => x >= 0 && x < 1));
  const mean = many.reduce((sum, x) => sum + x, 0) / many.length;
  assert.ok(Math.abs(mean - 0.5) < 0.02);
});

const noUnix = platform() === 'win32' ? 'Windows users always have a home' : false;
test('a user without a home gets a folder of his own, which others cannot write to', {
  skip: noUnix,
}, () => {
  assert.equal(homeFolder(), homedir());
  const [{ HOME, TMPDIR }, temporary] = [process.env, temporaryFolder()];
  Object.assign(process.env, { HOME: '', TMPDIR: temporary });
  try {
    const folder = homeFolder();
    assert.equal(folder, join(temporary, `flashforge-home-${process.getuid?.()}`));
    assert.equal(homeFolder(), folder);
    chmodSync(folder, 0o777);
    assert.notEqual(homeFolder(), folder);
  } finally {
    Object.assign(process.env, { HOME });
    if (TMPDIR === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = TMPDIR;
  }
});
