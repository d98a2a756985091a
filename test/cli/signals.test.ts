/**
 * Commands that do not end by themselves: signals, and readers that close the pipe.
 * @module
 */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { platform } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { runCli } from '../helpers/run-cli.ts';
import { writeTinyChatModel } from '../helpers/tiny-chat-model.ts';

const folder = temporaryFolder();
const model = writeTinyChatModel(folder, { contextLength: 65_536 });
const generate = ['generate', '--model', model, '--prompt', 'hello'];
const endless = [...generate, '--max-tokens', '60000'];
const skip = platform() === 'win32' ? 'signals and closed pipes are others on Windows' : false;

/** A child that ended cannot be found by its number any more. */
function assertGone({ pid }: ChildProcess): void {
  assert.throws(() => process.kill(pid as number, 0), { code: 'ESRCH' });
}

for (const [signal, expected] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  test(`${signal} while generating: exit code ${expected}, nothing written`, { skip }, async () => {
    const report = join(folder, `${signal}.json`);
    let process: ChildProcess | undefined;
    const { code, stderr } = await runCli([...endless, '--json', report], {}, (child) => {
      process = child;
      child.stdout?.once('data', () => child.kill(signal));
    });
    assert.equal(code, expected, stderr);
    assert.match(stderr, /^flashforge: interrupted$/m);
    assert.doesNotMatch(stderr, /^\s+at /m);
    assert.ok(!existsSync(report));
    assertGone(process as ChildProcess);
  });

  test(`${signal} with several samples in a pipe: not even half a report`, { skip }, async () => {
    const { code, stdout, stderr } = await runCli([...endless, '-n', '4', '--json'], {}, (child) =>
      child.stderr?.on('data', (text) => / on cpu, /.test(text) && child.kill(signal)),
    );
    assert.equal(code, expected, stderr);
    assert.equal(stdout, '');
    assert.match(stderr, /^flashforge: interrupted$/m);
  });
}

test('a reader that closes the pipe ends the command quietly', { skip }, async () => {
  const { code, stderr } = await runCli(endless, {}, (child) =>
    child.stdout?.once('data', () => child.stdout?.destroy()),
  );
  assert.equal(code, 0, stderr);
  assert.doesNotMatch(stderr, /flashforge: |^\s+at /m);
});

test('a report asked for as a file is written though nobody reads on', { skip }, async () => {
  const report = join(folder, 'unread.json');
  const words = [...generate, '--max-tokens', '40', '--json', report];
  const { code, stderr } = await runCli(words, {}, (child) => {
    child.stdout?.destroy();
    child.stderr?.destroy();
  });
  assert.equal(code, 0, stderr);
  assert.equal(JSON.parse(readFileSync(report, 'utf8')).completions.length, 1);
});
