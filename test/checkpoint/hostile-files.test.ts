/**
 * Fuzzed model files: whatever the bytes, a parser either returns a model whose tensors lie inside
 * the file or throws one sentence, and it allocates no more than the file could justify.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import { FlashForgeError } from '../../src/base/errors.ts';
import type { DecoderConfig } from '../../src/checkpoint/checkpoint.ts';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import type { Metadata } from '../helpers/gguf-writer.ts';
import { ggufBytes, safetensorsBytes } from '../helpers/gguf-writer.ts';
import { ggufMetadata, hfConfig, randomTensors, TINY } from '../helpers/tiny-checkpoint.ts';

const folder = temporaryFolder();
const gguf = join(folder, 'model.gguf');
const hf = join(folder, 'hf');
mkdirSync(hf);

const SMALL: DecoderConfig = {
  ...TINY,
  layers: 1,
  hidden: 32,
  intermediate: 32,
  heads: 2,
  kvHeads: 1,
  headDim: 16,
  vocab: 8,
};
const TOKENIZER: Record<string, Metadata> = {
  'tokenizer.ggml.tokens': { type: 'strings', value: ['<s>', 'a', 'b', 'é'] },
  'tokenizer.ggml.scores': { type: 'f32s', value: [0, -1, -2, -3] },
  'tokenizer.ggml.token_type': { type: 'i32s', value: [3, 1, 1, 1] },
};
const GGUF_BYTES = ggufBytes(
  { ...ggufMetadata(SMALL), ...TOKENIZER },
  randomTensors(SMALL, 'Q4_0', 'gguf'),
);
/** About where the table of tensors ends; mutations aim at what comes before. */
const GGUF_HEADER = GGUF_BYTES.indexOf('blk.0.ffn_down.weight') + 60;
const SAFETENSORS_BYTES = safetensorsBytes(randomTensors(SMALL, 'F16', 'safetensors'));
const SAFETENSORS_HEADER = 8 + Number(SAFETENSORS_BYTES.readBigUInt64LE(0));
/** A window for the header, the file itself, and what the test runner does meanwhile. */
const ALLOCATION_BYTES_MAX = 8 << 20;

/** Opens a model and reads all of it; the only failure allowed is one sentence. */
function openOrRefuse(path: string): string | null {
  const before = process.memoryUsage();
  try {
    const model = openCheckpoint(path);
    try {
      for (const info of model.tensors.values()) {
        assert.equal(model.read(info.name).length, info.bytes);
      }
    } finally {
      model.close();
    }
    return null;
  } catch (error) {
    assert.ok(error instanceof FlashForgeError, `not one of ours: ${(error as Error).stack}`);
    assert.equal(error.code, 'model');
    assert.doesNotMatch(error.message, /\n/);
    assert.ok(error.message.length < 600, error.message);
    return error.message;
  } finally {
    const grown = process.memoryUsage().arrayBuffers - before.arrayBuffers;
    assert.ok(grown < ALLOCATION_BYTES_MAX, `${grown} bytes allocated`);
  }
}

/** Numbers that counts, sizes and offsets are replaced with. */
const hostile = fc.oneof(
  fc.constantFrom(0n, 1n, 0xffffffffn, 1n << 32n, 1n << 40n, (1n << 53n) - 1n, 1n << 53n),
  fc.constantFrom(1n << 62n, (1n << 63n) - 1n, 1n << 63n, (1n << 64n) - 1n),
  fc.bigInt({ min: 0n, max: 1n << 16n }),
);

/** Changes to a file: bytes flipped, a 64-bit number put somewhere, a piece moved or cut. */
const mutation = (headerBytes: number) => {
  const at = fc.nat(headerBytes - 9);
  return fc.oneof(
    fc.record({ kind: fc.constant('flip' as const), at, value: fc.integer({ min: 1, max: 255 }) }),
    fc.record({ kind: fc.constant('number' as const), at, value: hostile }),
    fc.record({ kind: fc.constant('cut' as const), at }),
    fc.record({ kind: fc.constant('repeat' as const), at, from: at }),
  );
};
type Mutation = ReturnType<typeof mutation> extends fc.Arbitrary<infer T> ? T : never;

function mutate(original: Buffer, changes: readonly Mutation[]): Buffer {
  let bytes = Buffer.from(original);
  for (const change of changes) {
    const at = Math.min(change.at, Math.max(0, bytes.length - 9));
    if (bytes.length < 9) break;
    if (change.kind === 'flip') bytes[at] ^= change.value;
    if (change.kind === 'number') bytes.writeBigUInt64LE(change.value, at);
    if (change.kind === 'cut') bytes = bytes.subarray(0, at);
    if (change.kind === 'repeat') bytes.copyWithin(at, change.from, change.from + 64);
  }
  return bytes;
}

test('the unchanged files open', () => {
  writeFileSync(gguf, GGUF_BYTES);
  assert.equal(openOrRefuse(gguf), null);
  writeFileSync(join(hf, 'config.json'), JSON.stringify(hfConfig(SMALL)));
  writeFileSync(join(hf, 'model.safetensors'), SAFETENSORS_BYTES);
  assert.equal(openOrRefuse(hf), null);
});

test('GGUF with changed bytes', { timeout: 60_000 }, () => {
  const changes = fc.array(mutation(GGUF_HEADER), { minLength: 1, maxLength: 3 });
  fc.assert(
    fc.property(changes, (list) => {
      writeFileSync(gguf, mutate(GGUF_BYTES, list));
      openOrRefuse(gguf);
    }),
    { numRuns: 1200, seed: 11 },
  );
});

test('GGUF cut off at every place is refused', { timeout: 60_000 }, () => {
  for (let end = 0; end < GGUF_BYTES.length - 32; end += end < GGUF_HEADER ? 3 : 257) {
    writeFileSync(gguf, GGUF_BYTES.subarray(0, end));
    assert.ok(openOrRefuse(gguf) !== null, `cut at ${end}`);
  }
});

test('GGUF with a hostile number at every place', { timeout: 60_000 }, () => {
  for (const value of [1n << 31n, 1n << 40n, (1n << 64n) - 1n]) {
    for (let at = 4; at < GGUF_HEADER; at += 3) {
      const bytes = Buffer.from(GGUF_BYTES);
      bytes.writeBigUInt64LE(value, at);
      writeFileSync(gguf, bytes);
      openOrRefuse(gguf);
    }
  }
});

test('safetensors with changed bytes', { timeout: 60_000 }, () => {
  const changes = fc.array(mutation(SAFETENSORS_HEADER), { minLength: 1, maxLength: 3 });
  fc.assert(
    fc.property(changes, (list) => {
      writeFileSync(join(hf, 'model.safetensors'), mutate(SAFETENSORS_BYTES, list));
      openOrRefuse(hf);
    }),
    { numRuns: 1000, seed: 12 },
  );
});

test('safetensors with changed entries', { timeout: 60_000 }, () => {
  const json = SAFETENSORS_BYTES.subarray(8, SAFETENSORS_HEADER).toString('utf8');
  const header = JSON.parse(json) as Record<string, Record<string, unknown>>;
  const names = Object.keys(header);
  const value = fc.oneof(
    fc.jsonValue(),
    fc.array(fc.constantFrom(-1, 0, 1, 0.5, 2 ** 31, 2 ** 53, 1e300), { maxLength: 10 }),
    fc.constantFrom('F32', 'F64', 'I8', 'Q4_0', '__proto__'),
  );
  const field = fc.constantFrom('dtype', 'shape', 'data_offsets');
  fc.assert(
    fc.property(fc.constantFrom(...names), field, value, (name, key, changed) => {
      const entry = { ...header[name], [key]: changed };
      const text = Buffer.from(JSON.stringify({ ...header, [name]: entry }));
      const length = Buffer.alloc(8);
      length.writeBigUInt64LE(BigInt(text.length));
      const data = SAFETENSORS_BYTES.subarray(SAFETENSORS_HEADER);
      writeFileSync(join(hf, 'model.safetensors'), Buffer.concat([length, text, data]));
      openOrRefuse(hf);
    }),
    { numRuns: 1000, seed: 13 },
  );
  writeFileSync(join(hf, 'model.safetensors'), SAFETENSORS_BYTES);
});

test('config.json with changed fields', { timeout: 60_000 }, () => {
  const base = hfConfig(SMALL);
  const extra = ['rope_scaling', 'rope_parameters', 'sliding_window', 'layer_types', 'mlp_bias'];
  const key = fc.constantFrom(...Object.keys(base), ...extra);
  const value = fc.oneof(
    fc.jsonValue(),
    fc.double(),
    fc.constantFrom(-1, 0, 0.5, 2 ** 31, 2 ** 53, 1e300, 'qwen2', 'mistral', 'qwen3'),
    fc.record({
      rope_type: fc.constantFrom('yarn', 'llama3', 'linear', 'dynamic'),
      factor: fc.oneof(fc.double(), fc.jsonValue()),
      low_freq_factor: fc.double(),
      high_freq_factor: fc.double(),
      original_max_position_embeddings: fc.integer(),
    }),
  );
  fc.assert(
    fc.property(key, value, (name, changed) => {
      writeFileSync(join(hf, 'config.json'), JSON.stringify({ ...base, [name]: changed }));
      openOrRefuse(hf);
    }),
    { numRuns: 1000, seed: 14 },
  );
  for (const text of ['', '[]', 'null', '{', '"x"', `${'['.repeat(100_000)}`]) {
    writeFileSync(join(hf, 'config.json'), text);
    assert.ok(openOrRefuse(hf) !== null, text.slice(0, 20));
  }
});
