/**
 * Opening models: every storage type, both formats give the same model, and one clear sentence
 * for each way a model can be wrong.
 * @module
 */
import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { FlashForgeError } from '../../src/base/errors.ts';
import type { DecoderConfig } from '../../src/checkpoint/checkpoint.ts';
import { deinterleave, openCheckpoint } from '../../src/checkpoint/open-checkpoint.ts';
import { TENSOR_TYPES } from '../../src/checkpoint/tensor-types.ts';
import { weightShapes } from '../../src/checkpoint/weights.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import type { Metadata } from '../helpers/gguf-writer.ts';
import { GGML_NUMBERS, ggufBytes, safetensorsBytes } from '../helpers/gguf-writer.ts';
import {
  ggufMetadata,
  hfConfig,
  randomTensors,
  TINY,
  writeTinyGguf,
  writeTinySafetensors,
} from '../helpers/tiny-checkpoint.ts';

const folder = temporaryFolder();
let count = 0;

function newFolder(): string {
  const path = join(folder, `model-${count++}`);
  mkdirSync(path);
  return path;
}

/** Expects one sentence of kind 'model' that matches. */
function assertRefused(path: string, pattern: RegExp): void {
  assert.throws(
    () => openCheckpoint(path),
    (error: unknown) => {
      assert.ok(error instanceof FlashForgeError, String(error));
      assert.equal(error.code, 'model');
      assert.match(error.message, pattern);
      assert.doesNotMatch(error.message, /\n/);
      return true;
    },
  );
}

const QWEN3: DecoderConfig = { ...TINY, architecture: 'qwen3', qkNorm: true };
const QWEN2: DecoderConfig = { ...TINY, architecture: 'qwen2', qkvBias: true };

describe('GGUF', () => {
  for (const type of TENSOR_TYPES) {
    test(`opens ${type}`, () => {
      const model = openCheckpoint(writeTinyGguf(newFolder(), TINY, type));
      assert.equal(model.config.hidden, TINY.hidden);
      assert.equal(model.tensors.size, weightShapes(TINY).length);
      for (const info of model.tensors.values()) {
        assert.equal(model.read(info.name).length, info.bytes);
      }
      assert.equal(model.tensors.get('0.down')?.type, type);
      model.close();
    });
  }

  test('describes every family as written', () => {
    for (const config of [TINY, QWEN2, QWEN3, { ...TINY, tiedEmbeddings: true }]) {
      const model = openCheckpoint(writeTinyGguf(newFolder(), config));
      const { normEpsilon, ...rest } = model.config;
      assert.deepEqual({ ...rest, normEpsilon: 1e-5 }, config);
      assert.ok(Math.abs(normEpsilon - config.normEpsilon) < 1e-12);
      model.close();
    }
  });

  test('undoes the interleaving of rotary pairs for llama only', () => {
    for (const config of [TINY, QWEN2]) {
      const tensors = randomTensors(config, 'Q4_0', 'gguf');
      const model = openCheckpoint(writeTinyGguf(newFolder(), config, 'Q4_0'));
      const stored = tensors.find(({ name }) => name === 'blk.1.attn_k.weight')!.data;
      const expected =
        config === TINY ? deinterleave(stored, config.kvHeads, config.headDim) : stored;
      assert.deepEqual(model.read('1.k'), expected);
      const v = tensors.find(({ name }) => name === 'blk.1.attn_v.weight')!.data;
      assert.deepEqual(model.read('1.v'), v);
      model.close();
    }
  });

  test('deinterleave puts even rows first in each head', () => {
    const rows = Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7);
    assert.deepEqual(deinterleave(rows, 2, 4), Uint8Array.of(0, 2, 1, 3, 4, 6, 5, 7));
    assert.deepEqual(deinterleave(rows, 1, 4), Uint8Array.of(0, 1, 4, 5, 2, 3, 6, 7));
  });

  test('joins the parts of a split model', () => {
    const path = newFolder();
    const tensors = randomTensors(TINY, 'Q8_0', 'gguf');
    const split: Record<string, Metadata> = { 'split.count': { type: 'u32', value: 2 } };
    const [first, second] = ['x-00001-of-00002.gguf', 'x-00002-of-00002.gguf'];
    writeFileSync(
      join(path, first),
      ggufBytes({ ...ggufMetadata(TINY), ...split }, tensors.slice(0, 5)),
    );
    assertRefused(path, /x-00002-of-00002\.gguf: cannot be opened/);
    writeFileSync(join(path, second), ggufBytes(split, tensors.slice(5)));
    const model = openCheckpoint(path);
    assert.deepEqual(
      model.read('1.down'),
      tensors.find((t) => t.name === 'blk.1.ffn_down.weight')!.data,
    );
    model.close();
    assertRefused(join(path, second), /is not supported|open the first one/);
  });

  const refusals: [string, Record<string, Metadata>, RegExp][] = [
    ['architecture', { 'general.architecture': { type: 'string', value: 'mamba' } }, /"mamba"/],
    ['experts', { 'llama.expert_count': { type: 'u32', value: 8 } }, /expert_count is 8/],
    ['zero layers', { 'llama.block_count': { type: 'u32', value: 0 } }, /block_count must be/],
    ['many layers', { 'llama.block_count': { type: 'u32', value: 2 ** 31 } }, /block_count must/],
    [
      'NaN epsilon',
      { 'llama.attention.layer_norm_rms_epsilon': { type: 'f32', value: Number.NaN } },
      /layer_norm_rms_epsilon must be a number/,
    ],
    [
      'heads',
      { 'llama.attention.head_count': { type: 'u32', value: 3 } },
      /3 attention heads are no multiple of 2/,
    ],
    [
      'text for a size',
      { 'llama.embedding_length': { type: 'string', value: 'x' } },
      /embedding_length must be an integer/,
    ],
    [
      'partial rotary',
      { 'llama.rope.dimension_count': { type: 'u32', value: 32 } },
      /rope.dimension_count is 32/,
    ],
    [
      'rope type',
      {
        'llama.rope.scaling.type': { type: 'string', value: 'longrope' },
        'llama.rope.scaling.factor': { type: 'f32', value: 4 },
      },
      /rope.scaling.type is "longrope"/,
    ],
    ['wrong hidden', { 'llama.embedding_length': { type: 'u32', value: 128 } }, /has the shape/],
    [
      'soft-caps',
      { 'llama.attn_logit_softcapping': { type: 'f32', value: 50 } },
      /attn_logit_softcapping is 50/,
    ],
  ];
  for (const [name, change, pattern] of refusals) {
    test(`refuses ${name}`, () => {
      const path = join(newFolder(), 'model.gguf');
      const metadata = { ...ggufMetadata(TINY), ...change };
      writeFileSync(path, ggufBytes(metadata, randomTensors(TINY, 'F32', 'gguf')));
      assertRefused(path, pattern);
    });
  }

  test('reads rope scaling', () => {
    const path = join(newFolder(), 'model.gguf');
    const factors = Float32Array.from({ length: 32 }, (_, i) => 1 + i);
    const tensors = [
      ...randomTensors(TINY, 'F16', 'gguf'),
      {
        name: 'rope_freqs.weight',
        type: GGML_NUMBERS.F32,
        shape: [32],
        data: new Uint8Array(factors.buffer),
      },
    ];
    writeFileSync(path, ggufBytes(ggufMetadata(TINY), tensors));
    const model = openCheckpoint(path);
    assert.deepEqual(model.config.ropeScaling, { type: 'factors', factors: [...factors] });
    model.close();
    const scaling: Record<string, Metadata> = {
      'llama.rope.scaling.type': { type: 'string', value: 'yarn' },
      'llama.rope.scaling.factor': { type: 'f32', value: 4 },
      'llama.rope.scaling.original_context_length': { type: 'u32', value: 128 },
    };
    writeFileSync(path, ggufBytes({ ...ggufMetadata(TINY), ...scaling }, tensors.slice(0, -1)));
    const yarn = openCheckpoint(path);
    assert.deepEqual(yarn.config.ropeScaling, {
      type: 'yarn',
      factor: 4,
      originalContext: 128,
      betaFast: 32,
      betaSlow: 1,
      attentionFactor: null,
    });
    yarn.close();
  });

  test('refuses missing, strange and unsupported tensors', () => {
    const path = join(newFolder(), 'model.gguf');
    const tensors = randomTensors(TINY, 'F32', 'gguf');
    const write = (list: typeof tensors): void =>
      writeFileSync(path, ggufBytes(ggufMetadata(TINY), list));
    write(tensors.filter(({ name }) => name !== 'blk.1.ffn_up.weight'));
    assertRefused(path, /the tensor "blk\.1\.ffn_up\.weight" is missing/);
    write([...tensors, { ...tensors[1], name: 'blk.0.attn_output.bias' }]);
    assertRefused(path, /"blk\.0\.attn_output\.bias" has no place in the architecture llama/);
    write(tensors.map((t) => (t.name === 'blk.0.attn_v.weight' ? { ...t, type: 16 } : t)));
    assertRefused(path, /"blk\.0\.attn_v\.weight" is stored as IQ2_XXS, supported are F32, F16/);
    write([...tensors, tensors[3]]);
    assertRefused(path, /is there twice/);
  });

  test('refuses what is no model at all', () => {
    const path = newFolder();
    assertRefused(path, /holds neither config\.json with safetensors nor a \.gguf file/);
    assertRefused(join(path, 'nothing.gguf'), /nothing\.gguf: cannot be opened/);
    writeFileSync(join(path, 'a.gguf'), 'hello world, this is text');
    assertRefused(path, /does not start with "GGUF"/);
    writeFileSync(join(path, 'a.gguf'), '');
    assertRefused(path, /does not start with "GGUF"/);
    writeTinyGguf(path);
    assertRefused(path, /holds 2 \.gguf models, name one of them/);
  });
});

describe('safetensors', () => {
  for (const type of ['F32', 'F16', 'BF16'] as const) {
    test(`opens ${type}`, () => {
      const path = newFolder();
      writeTinySafetensors(path, QWEN3, type);
      const model = openCheckpoint(path);
      assert.deepEqual(model.config, QWEN3);
      const stored = randomTensors(QWEN3, type, 'safetensors');
      const q = stored.find(({ name }) => name === 'model.layers.1.self_attn.q_proj.weight')!;
      assert.deepEqual(model.read('1.q'), q.data);
      model.close();
    });
  }

  test('joins shards by their index', () => {
    const path = newFolder();
    const tensors = randomTensors(QWEN2, 'F32', 'safetensors');
    const shards: Record<string, typeof tensors> = {
      'model-1.safetensors': tensors.slice(0, 9),
      'model-2.safetensors': tensors.slice(9),
    };
    const map: Record<string, string> = {};
    writeFileSync(join(path, 'config.json'), JSON.stringify(hfConfig(QWEN2)));
    for (const [file, part] of Object.entries(shards)) {
      writeFileSync(join(path, file), safetensorsBytes(part));
      for (const { name } of part) map[name] = file;
    }
    const index = join(path, 'model.safetensors.index.json');
    writeFileSync(index, JSON.stringify({ weight_map: map }));
    const model = openCheckpoint(path);
    assert.deepEqual(model.config, QWEN2);
    assert.deepEqual(model.read('outputNorm'), tensors[1].data);
    model.close();

    writeFileSync(index, JSON.stringify({ weight_map: { x: '../model-1.safetensors' } }));
    assertRefused(path, /weight_map puts "x" into "\.\.\/model-1\.safetensors"/);
    writeFileSync(index, JSON.stringify({ weight_map: { x: 'model-3.safetensors' } }));
    assertRefused(path, /model-3\.safetensors: cannot be opened/);
    writeFileSync(index, '{');
    assertRefused(path, /index\.json: cannot be read as JSON/);
  });

  test('ignores an output matrix beside tied embeddings', () => {
    const path = newFolder();
    const tensors = randomTensors(TINY, 'F32', 'safetensors');
    const config = { ...hfConfig(TINY), tie_word_embeddings: true };
    writeFileSync(join(path, 'config.json'), JSON.stringify(config));
    writeFileSync(join(path, 'model.safetensors'), safetensorsBytes(tensors));
    const model = openCheckpoint(path);
    assert.equal(model.tensors.has('output'), false);
    model.close();
  });

  test('refuses a folder without weights, or with damaged ones', () => {
    const path = newFolder();
    writeFileSync(join(path, 'config.json'), JSON.stringify(hfConfig(TINY)));
    assertRefused(path, /model\.safetensors: cannot be opened/);
    const bytes = safetensorsBytes(randomTensors(TINY, 'F32', 'safetensors'));
    writeFileSync(join(path, 'model.safetensors'), bytes.subarray(0, bytes.length - 1));
    assertRefused(path, /is at \d+ to \d+, the data has \d+ bytes/);
    writeFileSync(join(path, 'model.safetensors'), 'short');
    assertRefused(path, /has only 5 bytes/);
  });
});
