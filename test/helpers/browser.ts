/**
 * A real Chromium for tests: the system's, or the one that a package of the tests brings.
 * @module
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type BrowserContext, chromium } from 'playwright-core';

const SYSTEM = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];
const FLAGS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--lang=en-US',
];
const START_MS = 30_000;

export interface TestBrowser {
  readonly context: BrowserContext;
  /** Ends it and removes what it has written. */
  close(): Promise<void>;
}

/** A browser with a profile of its own, or why none starts. */
export async function startBrowser(): Promise<TestBrowser | { readonly missing: string }> {
  const reasons: string[] = [];
  for (const find of [...SYSTEM.map((path) => async () => ({ path, env: {} })), packaged]) {
    const folder = mkdtempSync(join(tmpdir(), 'flashforge-browser-'));
    const drop = (): void => rmSync(folder, { recursive: true, force: true });
    try {
      const { path, env } = await find(folder);
      if (!existsSync(path)) throw new Error(`${path} is not here`);
      const context = await chromium.launchPersistentContext(join(folder, 'profile'), {
        executablePath: path,
        env: { ...process.env, ...env },
        args: FLAGS,
        timeout: START_MS,
        locale: 'en-US',
        viewport: { width: 1440, height: 900 },
      });
      return { context, close: () => context.close().finally(drop) };
    } catch (error) {
      drop();
      reasons.push(String(error).split('\n')[0]);
    }
  }
  return { missing: `no Chromium starts: ${reasons.join('; ')}` };
}

interface Found {
  readonly path: string;
  /** What it needs in its environment. */
  readonly env: Readonly<Record<string, string>>;
}

/**
 * Unpacks the package's browser, and the libraries and fonts it needs beyond the C library, which
 * the package only does when it believes itself to be where it was made for.
 */
async function packaged(folder: string): Promise<Found> {
  const names = ['TMPDIR', 'AWS_EXECUTION_ENV', 'LD_LIBRARY_PATH', 'FONTCONFIG_PATH'];
  const before = names.map((name) => [name, process.env[name]] as const);
  process.env.TMPDIR = folder;
  process.env.AWS_EXECUTION_ENV = 'AWS_Lambda_nodejs20.x';
  try {
    const { default: brought } = await import('@sparticuz/chromium');
    const path = await brought.executablePath();
    const libraries = join(folder, 'al2023', 'lib');
    return { path, env: { LD_LIBRARY_PATH: libraries, FONTCONFIG_PATH: join(folder, 'fonts') } };
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  }
}
