/**
 * Wrong command lines: exit code 2 and one sentence; help of every command; versions.
 * @module
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { packageRoot } from '../../src/base/package-files.ts';
import { assertFails, inTurns, runCli } from '../helpers/run-cli.ts';

const USAGE = 2;
const COMMANDS = [
  'demo',
  'generate',
  'pull',
  'inspect',
  'plan',
  'profile',
  'bench attention',
  'bench decode',
  'doctor',
];

/** Command lines and what must be said. */
const WRONG: readonly (readonly [string[], RegExp])[] = [
  [[], /a command is needed/],
  [['frobnicate'], /unknown command "frobnicate", known are demo, /],
  [['toString'], /unknown command "toString"/],
  [['bench'], /unknown command "bench"/],
  [['bench', 'speed'], /unknown command "bench speed"/],
  [['generate', '--pormpt', 'x'], /unknown option "--pormpt" for generate, known are .*--prompt/],
  [['pull', 'x', '-z'], /unknown option "-z"/],
  [['generate', '--prompt'], /option --prompt needs a value: --prompt P/],
  [['generate', '--prompt', 'a', '--prompt', 'b'], /option --prompt is given twice/],
  [['generate', '--flat=yes', '--prompt', 'a'], /option --flat takes no value/],
  [['generate'], /needs either --prompt P or --prompts FILE/],
  [['generate', '--prompt', 'a', '--prompts', 'b'], /needs either --prompt P or --prompts/],
  [['generate', '--prompt', ''], /--prompt must have at least one character, got ""/],
  [['generate', '--prompt', 'a', 'b'], /generate takes no argument "b"/],
  [['pull'], /pull needs REF/],
  [['inspect', 'a', 'b'], /inspect takes no argument "b"/],
  [['inspect', 'a', '--json', '/nowhere/at/all.json'], /--json cannot write .*does not exist/],
  [['doctor', '--json', '--jsno'], /unknown option "--jsno" for doctor/],
  [['doctor', '--json', ''], /--json must be a file or -/],
  [['profile', '--device', 'tpu'], /--device must be auto or cpu or cuda, got "tpu"/],
  [['profile', '--heads', '6', '--kv-heads', '4'], /--heads must be a multiple of --kv-heads 4/],
  [['profile', '--head-dim', '0'], /--head-dim must be an integer between 1 and 512, got "0"/],
  [['plan'], /--workload FILE is needed/],
  [['plan', '--workload', 'x', '--workers', '0'], /--?workers must be an integer .*got "?0/],
  [['bench', 'attention'], /--workloads FILE is needed/],
  [['bench', 'decode', '--shared', '-1'], /--shared must be an integer of at least 1, got "-1"/],
  [['bench', 'decode', '--batch', '1,,2'], /--batch must be an integer .* got ""/],
  [['bench', 'decode', '--new', '1,2'], /--new takes one number/],
  [['bench', 'decode', '--flat', '--both'], /--flat or --both/],
  [
    ['bench', 'decode', '--provider', 'gpu'],
    /--provider must be auto or native or wasm, got "gpu"/,
  ],
  [['demo', '--device', 'tpu'], /--device must be cpu or .*got "tpu"/],
];

/** Options of `generate` with values that are out of range or no numbers. */
const VALUES: readonly (readonly [string, string, RegExp])[] = [
  ['--max-tokens', '0', /--max-tokens must be an integer of at least 1, got "0"/],
  ['--max-tokens', '-5', /at least 1, got "-5"/],
  ['--max-tokens', '1.5', /at least 1, got "1.5"/],
  ['--max-tokens', 'NaN', /at least 1, got "NaN"/],
  ['--max-tokens', '1e99', /at least 1, got "1e99"/],
  ['-n', '0', /--n must be an integer between 1 and 1024, got "0"/],
  ['--temperature', 'NaN', /--temperature must be a number between 0 and 100, got "NaN"/],
  ['--temperature', '-1', /between 0 and 100, got "-1"/],
  ['--temperature', 'Infinity', /between 0 and 100, got "Infinity"/],
  ['--temperature', '', /between 0 and 100, got ""/],
  ['--top-p', '0', /--top-p must be above 0/],
  ['--top-p', '1.1', /--top-p must be a number between 0 and 1, got "1.1"/],
  ['--top-k', '-1', /--top-k must be an integer of at least 0, got "-1"/],
  ['--seed', '9'.repeat(20), /--seed must be an integer between -9\d+ and 9\d+, got "9+"/],
  ['--seed', 'abc', /--seed must be an integer .* got "abc"/],
  ['--stop', '', /--stop must have at least one character/],
];

test('wrong command lines end with exit code 2 and one sentence', async () => {
  await inTurns([
    ...WRONG.map(
      ([words, message]) =>
        () =>
          assertFails(words, USAGE, message),
    ),
    ...VALUES.map(
      ([option, value, message]) =>
        () =>
          assertFails(['generate', '--prompt', 'x', option, value], USAGE, message),
    ),
  ]);
});

test('every command has help, and the general help lists every command', async () => {
  const general = await runCli(['--help']);
  assert.equal(general.code, 0);
  await inTurns(
    COMMANDS.map((name) => async () => {
      assert.ok(general.stdout.includes(`  ${name} `), name);
      const { code, stdout, stderr } = await runCli([...name.split(' '), '--help']);
      assert.equal(code, 0, name);
      assert.equal(stderr, '');
      assert.match(stdout, new RegExp(`Usage: flashforge ${name}`));
      assert.match(stdout, /--help +show this help/);
    }),
  );
});

test('--version prints the version of the package', async () => {
  const { version } = JSON.parse(readFileSync(join(packageRoot(), 'package.json'), 'utf8'));
  assert.equal((await runCli(['--version'])).stdout, `${version}\n`);
});
