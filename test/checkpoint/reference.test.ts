/**
 * Model references: their grammar, and the hub behind a local server that fails in every way.
 * @module
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, test } from 'node:test';
import fc from 'fast-check';
import { FlashForgeError } from '../../src/base/errors.ts';
import { parseReference, resolveModel } from '../../src/checkpoint/reference.ts';
import { COMMIT, startFakeHub } from '../helpers/fake-hub.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';

const REFERENCE = 'hf:owner/repo';
const hub = await startFakeHub();
const cache = temporaryFolder();
const repo = join(cache, 'models--owner--repo');
const weights = Buffer.alloc(300_000, 'weights ');

process.env.HF_ENDPOINT = hub.url;
process.env.HF_HUB_CACHE = cache;
for (const name of ['HF_TOKEN', 'HF_HUB_OFFLINE']) delete process.env[name];
process.env.HF_TOKEN_PATH = join(cache, 'no-token');

beforeEach(() => {
  rmSync(repo, { recursive: true, force: true });
  Object.assign(hub, { status: 200, cuts: [], checksum: null, size: null, silent: false });
  hub.requests.length = 0;
  hub.files.clear();
  hub.files.set('config.json', { content: Buffer.from('{"a":1}'), large: false });
  hub.files.set('model.safetensors', { content: weights, large: true });
  hub.files.set('README.md', { content: Buffer.from('text'), large: false });
});

/** Files of the cache that are neither links nor whole blobs. */
const unfinished = (): string[] =>
  readdirSync(join(repo, 'blobs')).filter((name) => !/^[0-9a-f]+$/.test(name));

async function failure(reference: string, options = {}): Promise<FlashForgeError> {
  const error = await resolveModel(reference, options).catch((error: unknown) => error);
  assert.ok(error instanceof FlashForgeError, String(error));
  assert.doesNotMatch(error.message, /\n/);
  return error;
}

test('references are parsed, and nothing leads out of the cache', () => {
  const hubReference = { kind: 'hub', repo: 'a/b.c', revision: 'main', file: null };
  assert.deepEqual(parseReference('hf:a/b.c'), { ...hubReference, text: 'hf:a/b.c' });
  assert.deepEqual(parseReference('hf:a/b.c@v1:x/y.gguf'), {
    ...hubReference,
    text: 'hf:a/b.c@v1:x/y.gguf',
    revision: 'v1',
    file: 'x/y.gguf',
  });
  assert.deepEqual(parseReference('pip:a-b==1.0+x'), {
    kind: 'pip',
    text: 'pip:a-b==1.0+x',
    package: 'a-b',
    version: '1.0+x',
  });
  assert.deepEqual(parseReference('./hf'), { kind: 'path', path: './hf' });
  const wrong = ['hf:', 'hf:a', 'hf:a/b/c', 'hf:../b', 'hf:a/b@../x', 'hf:a/b:../x', 'hf:a/b:/x'];
  for (const text of [...wrong, 'pip:a', 'pip:a==', 'pip:-r==1', 'pip:a==1 --index-url=x', '']) {
    assert.throws(() => parseReference(text), /model reference ".*" must be/);
  }
  fc.assert(
    fc.property(fc.string(), fc.constantFrom('hf:', 'hf:a/b@', 'hf:a/b:', 'pip:'), (tail, head) => {
      try {
        const reference = parseReference(head + tail);
        assert.doesNotMatch(JSON.stringify(reference), /\.\.\/|\/\.\.|"\//);
      } catch (error) {
        assert.ok(error instanceof FlashForgeError);
      }
    }),
    { seed: 3, numRuns: 500 },
  );
});

test('only the needed files are brought, once, into the layout of the Python cache', async () => {
  const seen: number[] = [];
  const model = await resolveModel(REFERENCE, {
    onProgress: ({ receivedBytes }) => seen.push(receivedBytes),
  });
  assert.equal(model.source, 'hub');
  assert.equal(model.path, join(repo, 'snapshots', COMMIT));
  assert.deepEqual(model.files.map(({ name }) => name).sort(), [
    'config.json',
    'model.safetensors',
  ]);
  assert.deepEqual(readFileSync(join(model.path, 'model.safetensors')), weights);
  assert.equal(readFileSync(join(repo, 'refs', 'main'), 'utf8'), COMMIT);
  assert.equal(seen.at(-1), weights.length);
  assert.equal(unfinished().length, 0);

  hub.requests.length = 0;
  await resolveModel(REFERENCE);
  assert.equal(hub.requests.filter((line) => line.includes('/resolve/')).length, 0);
});

test('the shards that an index names are brought', async () => {
  hub.files.delete('model.safetensors');
  const map = { 'model.a': 'model-1.safetensors', 'model.b': 'model-2.safetensors' };
  const index = (weight_map: object): void => {
    const content = Buffer.from(JSON.stringify({ weight_map }));
    hub.files.set('model.safetensors.index.json', { content, large: false });
  };
  index(map);
  for (const name of Object.values(map)) hub.files.set(name, { content: weights, large: true });
  hub.files.set('consolidated.safetensors', { content: weights, large: true });
  const model = await resolveModel(REFERENCE);
  const names = model.files.map(({ name }) => name);
  assert.ok(names.includes('model-2.safetensors') && !names.includes('consolidated.safetensors'));
  rmSync(repo, { recursive: true });
  index({ a: '../../x.safetensors' });
  assert.match((await failure(REFERENCE)).message, /must name \.safetensors files in weight_map/);
});

test('one .gguf is chosen by itself, of several one must be named', async () => {
  hub.files.clear();
  hub.files.set('a.gguf', { content: weights, large: true });
  assert.equal((await resolveModel(REFERENCE)).path, join(repo, 'snapshots', COMMIT, 'a.gguf'));
  hub.files.set('b.gguf', { content: weights, large: true });
  assert.match((await failure(REFERENCE)).message, /2 \.gguf files, name one: hf:owner\/repo:a/);
  const named = await resolveModel(`${REFERENCE}@v1:b.gguf`);
  assert.equal(named.files.length, 1);
  assert.match((await failure(`${REFERENCE}:c.gguf`)).message, /has no file c\.gguf/);
  hub.files.clear();
  assert.match((await failure(REFERENCE)).message, /neither \.safetensors nor \.gguf/);
});

test('a connection that breaks is resumed where it broke', async () => {
  hub.files.delete('config.json');
  hub.cuts = [100_000, 50_000];
  await resolveModel(REFERENCE);
  const ranges = hub.requests.filter((line) => line.includes('/resolve/'));
  assert.equal(ranges.length, 3);
  assert.match(ranges[2], /bytes=150000-/);
});

test('a download given up keeps its part, and the next command continues it', async () => {
  hub.files.delete('config.json');
  hub.cuts = [70_000, 0, 0, 0];
  assert.match((await failure(REFERENCE)).message, /broke off after 0\.1 MB of 0\.3 MB .* resumes/);
  assert.equal(unfinished().length, 1);
  assert.ok(!existsSync(join(repo, 'refs')));
  hub.requests.length = 0;
  const model = await resolveModel(REFERENCE);
  assert.match(hub.requests.find((line) => line.includes('/resolve/')) ?? '', /bytes=70000-/);
  assert.deepEqual(readFileSync(join(model.path, 'model.safetensors')), weights);
});

test('a wrong checksum leaves nothing behind', async () => {
  hub.checksum = 'e'.repeat(64);
  const error = await failure(REFERENCE);
  assert.match(error.message, /arrived damaged: its checksum is [0-9a-f]+, expected e+/);
  assert.deepEqual(readdirSync(join(repo, 'blobs')), []);
  assert.ok(!existsSync(join(repo, 'snapshots')));
});

test('cancelling ends at once with its own error', async () => {
  const controller = new AbortController();
  const options = { signal: controller.signal, onProgress: () => controller.abort() };
  assert.equal((await failure(REFERENCE, options)).code, 'aborted');
  assert.ok(!existsSync(join(repo, 'snapshots', COMMIT, 'model.safetensors')));
});

test('a disk that cannot hold the file is named before anything is written', async () => {
  hub.size = 1e17;
  assert.match((await failure(REFERENCE)).message, /needs 1\d+\.\d MB on the disk .* are free/);
  assert.deepEqual(readdirSync(join(repo, 'blobs')), []);
});

test('refusals say what to do', async () => {
  hub.status = 401;
  assert.match((await failure(REFERENCE)).message, /not public .*401.*: set HF_TOKEN/);
  process.env.HF_TOKEN = 'secret';
  assert.match((await failure(REFERENCE)).message, /token in use may not read it/);
  assert.match(hub.requests.at(-1) ?? '', /Bearer secret/);
  delete process.env.HF_TOKEN;
  hub.status = 404;
  assert.match((await failure(`${REFERENCE}@nope`)).message, /no repository .* revision nope/);
});

test('an unreachable hub means the cache, and without a copy a clear error in seconds', async () => {
  hub.status = 503;
  assert.match((await failure(REFERENCE)).message, /cannot be reached \(the hub answered 503\)/);
  hub.silent = true;
  assert.match((await failure(REFERENCE)).message, /no answer within 4 s/);
  hub.silent = false;
  hub.status = 200;
  await resolveModel(REFERENCE);

  hub.status = 503;
  const said: string[] = [];
  const model = await resolveModel(REFERENCE, { log: (line) => said.push(line) });
  assert.equal(model.source, 'cache');
  assert.match(said.join(), /using the copy in the cache/);

  hub.requests.length = 0;
  assert.equal((await resolveModel(REFERENCE, { offline: true })).source, 'cache');
  process.env.HF_HUB_OFFLINE = '1';
  assert.equal((await resolveModel(REFERENCE)).source, 'cache');
  assert.match((await failure('hf:owner/other')).message, /not in the cache .* switched off/);
  delete process.env.HF_HUB_OFFLINE;
  assert.equal(hub.requests.length, 0);
});

test('local models are taken as they are', async () => {
  const file = join(cache, 'tiny.gguf');
  writeFileSync(file, 'x');
  assert.deepEqual((await resolveModel(file)).files, [{ name: 'tiny.gguf', path: file, bytes: 1 }]);
  assert.match((await failure(join(cache, 'none'))).message, /is no file or directory here/);
  writeFileSync(join(cache, 'x.bin'), 'x');
  assert.match((await failure(join(cache, 'x.bin'))).message, /must end in \.gguf/);
});
