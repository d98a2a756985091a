/**
 * A real server process for tests: `flashforge serve` on a free port, ended after the tests.
 * @module
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const MAIN = join(import.meta.dirname, '../../src/cli/main.js');
const START_MS = 120_000;

export interface TestServer {
  readonly url: string;
  /** Name under which the model is served. */
  readonly model: string;
  readonly process: ChildProcess;
  /** Everything it has written to standard error: the log. */
  stderr(): string;
  /** Ends it in good order; its exit code. */
  stop(signal?: NodeJS.Signals): Promise<number | null>;
}

interface ServerInit {
  readonly script?: string;
  readonly loaded?: boolean;
  readonly preload?: string;
}

/**
 * @param words further options of `serve`
 * @param script what to run instead of the command line
 * @param loaded wait until the model is loaded
 * @param preload a module that every thread of the process loads first
 */
export async function startTestServer(
  model: string,
  words: readonly string[] = [],
  { script = MAIN, loaded = true, preload }: ServerInit = {},
): Promise<TestServer> {
  const before = preload === undefined ? [] : ['--import', pathToFileURL(preload).href];
  const all = [...before, script, 'serve', '--port', '0', '--model', model];
  if (!words.includes('--served-model-name')) all.push('--served-model-name', 'test');
  const drain = words.includes('--drain') ? [] : ['--drain', '5'];
  const child = spawn(process.execPath, [...all, ...drain, ...words], {
    env: { ...process.env, DEBUG: '', HF_HUB_OFFLINE: '1' },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [stdout, stderr] = ['', ''];
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const exit = once(child, 'exit') as Promise<[number | null]>;
  const wanted = loaded ? /^serving /m : /^listening on /m;
  await new Promise<void>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no start: ${stdout}${stderr}`)), START_MS);
    child.stdout.on('data', (chunk: Buffer) => {
      stdout += chunk.toString();
      if (wanted.test(stdout)) resolve();
    });
    exit.then(([code]) => reject(new Error(`ended with ${code}: ${stderr}`)), reject);
    exit.finally(() => clearTimeout(timer));
    child.stdout.on('data', () => wanted.test(stdout) && clearTimeout(timer));
  });
  const url = /^listening on (\S+)$/m.exec(stdout)?.[1];
  assert.ok(url !== undefined, stdout);
  return {
    url,
    model: 'test',
    process: child,
    stderr: () => stderr,
    stop: async (signal = 'SIGTERM') => {
      if (child.exitCode === null && child.signalCode === null) child.kill(signal);
      const [code] = await exit;
      return code;
    },
  };
}

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape.
  readonly body: any;
}

/** A request with a JSON body, or none. */
export async function request(
  { url }: Pick<TestServer, 'url'>,
  path: string,
  body?: unknown,
  init: RequestInit = {},
): Promise<Answer> {
  const response = await fetch(url + path, {
    ...(body === undefined ? {} : { method: 'POST', body: JSON.stringify(body) }),
    ...init,
    headers: { 'content-type': 'application/json', ...init.headers },
  });
  const text = await response.text();
  const json = response.headers.get('content-type')?.startsWith('application/json');
  return {
    status: response.status,
    headers: response.headers,
    body: json ? JSON.parse(text) : text,
  };
}

/** The value of a line of /metrics whose beginning this is, or 0. */
export async function metric(
  server: Pick<TestServer, 'url'>,
  name: string,
  label = '',
): Promise<number> {
  const { body } = await request(server, '/metrics');
  const line = (body as string)
    .split('\n')
    .find((each) => each.startsWith(`${name}{`) && each.includes(label));
  return line === undefined ? 0 : Number(line.slice(line.lastIndexOf(' ')));
}

/** Waits until a condition holds. */
export async function until(
  what: string,
  condition: () => Promise<boolean> | boolean,
  ms = 20_000,
): Promise<void> {
  const end = performance.now() + ms;
  while (!(await condition())) {
    assert.ok(performance.now() < end, `${what} did not happen in ${ms} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The events of a stream of server-sent events. */
export function eventsOf(text: string): unknown[] {
  return text
    .split('\n\n')
    .filter((event) => event.startsWith('data: ') && event !== 'data: [DONE]')
    .map((event) => JSON.parse(event.slice('data: '.length)));
}
