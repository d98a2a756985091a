/**
 * The dashboard in a real Chromium, before a real server with the real default model. It
 * takes pictures; with FLASHFORGE_SCREENSHOTS=docs/images, the one of the README is made anew.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { Locator, Page } from 'playwright-core';
import { request, startTestServer, until } from '../helpers/api-server.ts';
import { startBrowser } from '../helpers/browser.ts';
import { defaultModel } from '../helpers/default-model.ts';

const BRANCHES = 8;
const MODEL = 'SmolLM2-135M-Instruct';
const NAME = ['--served-model-name', MODEL];
/** Some hundred tokens, so that sharing them is worth something. */
const DOCUMENT = `The forge stood where the valley road meets the river, and it had stood there for
three hundred years. Mara had it from her father, who had it from his aunt. She made hinges and
ploughshares, and once a year, at midwinter, a bell. On the night of the first frost a light came
down over the ridge, slower than a falling star ought to fall, and went out behind the mill. She
found it at dawn in the frozen race: a stone the size of two fists, black as a cooking pot, warm
enough to have melted a bowl for itself in the ice. It rang when she touched it with the hammer.
It rang again, a moment later, when she had not. She carried it home in her apron, set it on the
anvil, and banked the coals around it. The bellows breathed. The stone began to glow, first a dull
red that she knew, then a blue that she did not know at all, and the tools upon the wall turned,
one after the other, until every one of them was pointing at it.

Write what happens next.`;

const temporary = mkdtempSync(join(tmpdir(), 'flashforge-screenshots-'));
const pictures = process.env.FLASHFORGE_SCREENSHOTS ?? temporary;

/** What the page has complained about: scripts that fail, files that the policy blocks. */
const complaints: string[] = [];

const found = await defaultModel();
const browser = await startBrowser();
const missing =
  'missing' in found
    ? `the default model is not here: ${found.missing}`
    : 'missing' in browser
      ? browser.missing
      : null;
const skip = missing ?? false;
const server = missing === null && 'path' in found ? await startTestServer(found.path, NAME) : null;
const page = missing === null && 'context' in browser ? await openPage(server?.url ?? '') : null;
after(async () => {
  if ('context' in browser) await browser.close();
  await server?.stop();
  rmSync(temporary, { recursive: true, force: true });
});

async function openPage(url: string): Promise<Page> {
  assert.ok('context' in browser);
  const opened = await browser.context.newPage();
  opened.on('pageerror', (error) => complaints.push(String(error)));
  opened.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(message.text());
  });
  opened.setDefaultTimeout(10_000);
  await opened.goto(url);
  return opened;
}

/** Slow machines take their time over a model. */
const eventually = (what: string, condition: () => Promise<boolean>): Promise<void> =>
  until(what, condition, 60_000);
const textOf = (selector: string): Promise<string> => page!.locator(selector).innerText();
const countOf = (selector: string): Promise<number> => page!.locator(selector).count();

/** @param below show the page down to the end of this */
async function picture(folder: string, name: string, below = 'footer'): Promise<void> {
  const path = join(folder, `${name}.png`);
  await page!.evaluate('scrollTo(0, 0)');
  const box = (await page!.locator(below).first().boundingBox())!;
  const width = page!.viewportSize()!.width;
  const clip = { x: 0, y: 0, width, height: Math.ceil(box.y + box.height + 16) };
  await page!.screenshot({ path, fullPage: true, clip });
  assert.ok(statSync(path).size > 20_000, 'the picture is empty');
}

async function fork(prompt: string, fields: Readonly<Record<string, string>>): Promise<void> {
  await page!.fill('#prompt', prompt);
  for (const [id, value] of Object.entries(fields)) await page!.fill(`#${id}`, value);
  await page!.click('#fork');
}

test('eight branches stream while the tree grows and the plan is drawn', { skip }, async () => {
  await eventually('the page is live', async () => (await textOf('#connection')) === 'Live');
  assert.match(await textOf('#model'), /^SmolLM2-135M-Instruct on cpu/);
  const text = DOCUMENT.replaceAll(/(?<=\S)\n(?=\S)/g, ' ');
  await fork(text, { branches: `${BRANCHES}`, 'max-tokens': '64', seed: '7' });
  await eventually('all branches stream', async () => {
    const lengths = await lengthsOf(page!.locator('.card'));
    return lengths.length === BRANCHES && lengths.every((length) => length > 20);
  });

  // Some may have ended by now; a held prefix is one more sharer.
  await eventually(
    'the tree shows the shared prompt',
    async () => (await mostSharers()) > BRANCHES / 2,
  );
  const early = await tokensInTree();
  await eventually('the tree grows', async () => (await tokensInTree()) > early + BRANCHES);
  assert.ok((await countOf('[role=treeitem]')) > BRANCHES, 'a node a branch, and the prompt');
  assert.ok(Number(await page!.getAttribute('#plan', 'data-items')) > 0, 'the plan has items');
  assert.match(await textOf('#plan-summary'), /work items? on \d+ workers?.*makespan/);
  assert.ok((await inked('#plan')) > 1000, 'the chart of the plan is drawn');
  await page!.fill('#branches', '4');
  await again(page!.locator('.card').nth(2));
  await eventually('they branch again', async () => {
    const lengths = await lengthsOf(page!.locator('.group').first().locator('.card'));
    return lengths.length === 4 && lengths.every((length) => length > 160);
  });
  await picture(temporary, 'dashboard-all');
  await picture(pictures, 'dashboard', '.group');

  await eventually('none runs', async () => (await textOf('#playground-status')).startsWith('All'));
  assert.equal(await countOf('.card[data-state=failed]'), 0);
  assert.match(
    await page!.locator('.group .note').last().innerText(),
    /shared by 8 branches; read .* of KV, flat .* ×/,
  );
  assert.equal(await countOf('.group'), 2);
  await eventually('throughput is drawn', async () => (await inked('.chart canvas')) > 100);
  assert.match(await textOf('[data-note=saved]'), /^read [\d.,]+ .*without sharing/);
});

const again = (card: Locator): Promise<void> =>
  card.getByRole('button', { name: 'Branch again' }).click();

/** Characters in each card; as many as one likes in one whose branch has ended. */
function lengthsOf(cards: Locator): Promise<number[]> {
  return cards.evaluateAll((elements) =>
    elements.map((card) => {
      const running = ['waiting', 'streaming'].includes(card.getAttribute('data-state') ?? '');
      const length = card.querySelector('.text')?.textContent?.length ?? 0;
      return running ? length : Number.POSITIVE_INFINITY;
    }),
  );
}

async function mostSharers(): Promise<number> {
  const labels = await page!
    .locator('[role=treeitem]')
    .evaluateAll((nodes) => nodes.map((node) => node.getAttribute('aria-label') ?? ''));
  return Math.max(0, ...labels.map((label) => Number(/shared by (\d+)/.exec(label)?.[1] ?? 0)));
}

/** Tokens in all nodes, as the page says. */
async function tokensInTree(): Promise<number> {
  const [, tokens] = /([\d,]+) tokens?/.exec(await textOf('#tree-summary')) ?? ['', '0'];
  return Number(tokens.replaceAll(',', ''));
}

/** Points of a canvas that are painted. */
function inked(selector: string): Promise<number> {
  return (
    page!
      .locator(selector)
      .first()
      // biome-ignore lint/suspicious/noExplicitAny: this function runs in the page, where types are others.
      .evaluate((canvas: any) => {
        const { width, height } = canvas;
        const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
        let painted = 0;
        for (let i = 3; i < data.length; i += 4) if (data[i] > 0) painted++;
        return painted;
      })
  );
}

test('one branch is stopped while the others go on, and branches again', { skip }, async () => {
  // The likeliest way to count never ends by itself.
  await page!.check('input[value=text]');
  const fields = { branches: '3', 'max-tokens': '1500', temperature: '0', seed: '' };
  await fork('1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,', fields);
  await eventually('there is a fork', async () => (await countOf('.group')) === 3);
  const group = page!.locator('.group').first();
  const first = group.locator('.card').first();
  await eventually('it streams', async () => (await first.locator('.text').innerText()).length > 5);
  await first.getByRole('button', { name: 'Stop' }).click();
  await eventually(
    'it is stopped',
    async () => (await first.getAttribute('data-state')) === 'stopped',
  );
  assert.ok((await group.locator('.card[data-state=streaming]').count()) > 0, 'the others go on');

  await page!.fill('#branches', '2');
  const text = await first.locator('.text').innerText();
  await again(first);
  await eventually('there are new branches', async () => (await countOf('.group')) === 4);
  const newest = page!.locator('.group').first();
  assert.match(await newest.locator('h3').innerText(), /^Fork 4 of branch 3\.1$/);
  const inherited = await newest.locator('.inherited').first().innerText();
  assert.equal(inherited.slice(-5), text.slice(-5));
  await page!.click('#stop-all');
  await eventually('none runs', async () => (await textOf('#playground-status')).startsWith('All'));
});

test('closing forks lets their prefixes and pages go', { skip }, async () => {
  const held = async (): Promise<number> =>
    (await request(server!, '/v1/prefixes')).body.data.length;
  assert.equal(await held(), 4);
  for (let left = 4; left > 0; left--) {
    await page!.locator('.group').first().getByRole('button', { name: 'Close' }).click();
  }
  await eventually('no prefix is held', async () => (await held()) === 0);
  const { body } = await request(server!, '/dashboard/state');
  assert.equal(body.pages.held, 0);
});

test('what a prompt holds is text, never HTML', { skip }, async () => {
  const bad = '<img src=x onerror="document.title=\'taken\'"><b id=injected>bold</b>';
  const fields = { branches: '2', 'max-tokens': '16', temperature: '0.8' };
  await fork(`Repeat: ${bad} ${bad} ${bad} <img`, fields);
  await eventually('it runs', async () => (await countOf('.card')) === 2);
  await eventually('it has ended', async () =>
    (await textOf('#playground-status')).startsWith('All'),
  );
  await again(page!.locator('.card').first());
  await eventually('there are new branches', async () => (await countOf('.group')) === 2);
  assert.equal(await countOf('#injected, .card img'), 0);
  assert.equal(await page!.title(), 'FlashForge');
});

test('the tree is walked by the keyboard', { skip }, async () => {
  await page!.locator('[role=treeitem][tabindex="0"]').focus();
  const label = (): Promise<string | null> =>
    page!.locator('[role=treeitem]:focus').getAttribute('aria-label');
  await page!.keyboard.press('Home');
  const first = await label();
  await page!.keyboard.press('ArrowDown');
  assert.notEqual(await label(), first);
  assert.equal(await textOf('#tree-detail'), await label());
  assert.match((await label()) ?? '', /tokens? at positions .* touches \d+ pages? of \d+ tokens/);
});

test('axe finds nothing that keeps people out, light, dark or narrow', { skip }, async () => {
  const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
  await page!.evaluate(axe);
  for (const colorScheme of ['light', 'dark'] as const) {
    await page!.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
    const found = (await page!.evaluate('axe.run()')) as {
      violations: { id: string; nodes: { html: string; failureSummary: string }[] }[];
    };
    const lines = found.violations.map(
      ({ id, nodes }) => `${id}: ${nodes[0].html} ${nodes[0].failureSummary}`,
    );
    assert.deepEqual(lines, []);
  }
  await picture(temporary, 'dashboard-dark');
  await page!.setViewportSize({ width: 390, height: 844 });
  const wide = await page!.evaluate('document.documentElement.scrollWidth');
  assert.ok(Number(wide) <= 390, `the page is ${wide} wide on a narrow screen`);
  await picture(temporary, 'dashboard-narrow');
});

test('nothing failed in the page and nothing was blocked', { skip }, () => {
  assert.deepEqual(complaints, []);
});

test('with API keys, the page asks for one and keeps it in the tab', { skip }, async () => {
  assert.ok('path' in found && 'context' in browser);
  const guarded = await startTestServer(found.path, ['--api-key', 'secret-1']);
  const tab = await browser.context.newPage();
  try {
    await tab.goto(guarded.url);
    await tab.getByLabel('Key', { exact: true }).fill('wrong');
    await tab.getByRole('button', { name: 'Use this key' }).click();
    await tab.getByText('does not know this key').waitFor();
    await tab.getByLabel('Key', { exact: true }).fill('secret-1');
    await tab.keyboard.press('Enter');
    await tab.locator('#connection[data-kind=live]').waitFor();
    const kept = '[Object.values(sessionStorage), localStorage.length, document.cookie]';
    assert.deepEqual(await tab.evaluate(kept), [['secret-1'], 0, '']);
  } finally {
    await tab.close();
    await guarded.stop();
  }
});

test('the page is only its own: policy, types, and no other files', { skip }, async () => {
  const { headers, body } = await request(server!, '/');
  const policy = headers.get('content-security-policy') ?? '';
  assert.match(policy, /default-src 'none'; script-src 'self'; style-src 'self'/);
  assert.doesNotMatch(body, /<script(?![^>]*src=)|style=|https?:\/\//);
  assert.equal((await request(server!, '/dashboard/tsconfig.json')).status, 404);
  assert.equal((await request(server!, '/dashboard/..%2fpage-files.js')).status, 404);
  const etag = headers.get('etag') ?? '';
  const again = await request(server!, '/', undefined, { headers: { 'if-none-match': etag } });
  assert.equal(again.status, 304);
});
