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
  for (const find of [...SYSTEM.map((path) => async () => path), packaged]) {
    const profile = mkdtempSync(join(tmpdir(), 'flashforge-browser-'));
    const drop = (): void => rmSync(profile, { recursive: true, force: true });
    try {
      const executablePath = await find();
      if (!existsSync(executablePath)) throw new Error(`${executablePath} is not here`);
      const context = await chromium.launchPersistentContext(profile, {
        executablePath,
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

async function packaged(): Promise<string> {
  const { default: brought } = await import('@sparticuz/chromium');
  return brought.executablePath();
}
