/**
 * Runs the built command line as users do: as a process of its own.
 * @module
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';

const MAIN = join(import.meta.dirname, '../../src/cli/main.js');

export interface CliResult {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** @param onStart gets the process, to send it signals */
export function runCli(
  words: readonly string[],
  environment: Readonly<Record<string, string>> = {},
  onStart: (child: ChildProcess) => void = () => undefined,
): Promise<CliResult> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, DEBUG: '', HF_HUB_OFFLINE: '1', ...environment };
    const child = spawn(process.execPath, [MAIN, ...words], { env });
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString();
    });
    child.stderr.on('data', (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, stdout, stderr }));
    onStart(child);
  });
}

/** A command that must fail: with this exit code and one sentence on stderr that matches. */
export async function assertFails(
  words: readonly string[],
  code: number,
  message: RegExp,
  environment: Readonly<Record<string, string>> = {},
): Promise<void> {
  const result = await runCli(words, environment);
  const what = `flashforge ${words.join(' ')}\n${result.stderr}`;
  const errors = result.stderr.split('\n').filter((line) => line.startsWith('flashforge: '));
  assert.equal(result.code, code, what);
  assert.equal(errors.length, 1, what);
  assert.match(errors[0], message, what);
  assert.doesNotMatch(result.stderr, /^\s+at |internal error|Error:/m, what);
}

/** Runs checks a few at a time, as each is a process. */
export async function inTurns(checks: readonly (() => Promise<void>)[], width = 3): Promise<void> {
  const queue = [...checks];
  const lane = async (): Promise<void> => {
    for (let next = queue.shift(); next !== undefined; next = queue.shift()) await next();
  };
  await Promise.all(Array.from({ length: width }, lane));
}
