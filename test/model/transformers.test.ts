/**
 * Logits against Hugging Face transformers on the same random checkpoint, which
 * bench/peers/transformers_logits.py makes: as near to its float32 as its own bfloat16 is. Real
 * hidden sizes on a CUDA device, small ones on the processor; skipped where Python lacks it.
 * @module
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { packageRoot } from '../../src/base/package-files.ts';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.ts';
import { loadRunner, pickDevice, type RunnerOptions } from '../../src/model/load-runner.ts';
import { temporaryFolder } from '../helpers/fixtures.ts';
import { Stepper } from '../helpers/stepper.ts';

const PYTHON = process.env.FLASHFORGE_TEST_PYTHON ?? 'python3';
const SCRIPT = join(packageRoot(), 'bench', 'peers', 'transformers_logits.py');
/** Rows of a prefill step. */
const CHUNK = 256;
/** Our error over that of transformers' bfloat16, which keeps its residual stream in 16 bits. */
const ERROR_RATIO = 2;
/** Error in 32-bit floats, of the logits' rms: the order of sums. */
const FLOAT_ERROR = 1e-4;

const python = spawnSync(PYTHON, ['-c', 'import torch, transformers'], { encoding: 'utf8' });
const missing = python.status === 0 ? false : `${PYTHON} has no torch and transformers`;
const device = await pickDevice('auto');
const folder = temporaryFolder();

interface Prompts {
  readonly transformers: string;
  readonly vocab: number;
  readonly prompts: readonly { readonly ids: readonly number[]; readonly positions: number[] }[];
}

interface Made {
  readonly path: string;
  readonly asked: Prompts;
  readonly float32: Float32Array;
  readonly bfloat16: Float32Array;
}

function makeCheckpoint(family: string, size: string, on: string): Made {
  const path = join(folder, `${family}-${size}`);
  const words = [SCRIPT, '--out', path, '--family', family, '--size', size, '--device', on];
  const { status, stderr } = spawnSync(PYTHON, words, { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  const floats = (name: string): Float32Array => {
    const bytes = readFileSync(join(path, name));
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4).slice();
  };
  const asked = JSON.parse(readFileSync(join(path, 'prompts.json'), 'utf8')) as Prompts;
  return { path, asked, float32: floats('float32.bin'), bfloat16: floats('bfloat16.bin') };
}

/** Our logits of the wanted positions, prompt after prompt. */
async function compute({ path, asked }: Made, options: RunnerOptions): Promise<Float32Array> {
  const checkpoint = openCheckpoint(path);
  const runner = await loadRunner(checkpoint, { kvPages: 200, maxRows: CHUNK, ...options });
  checkpoint.close();
  try {
    const stepper = new Stepper(runner);
    const rows: Float32Array[] = [];
    for (const { ids, positions } of asked.prompts) {
      const sequence = stepper.tree.insert([...ids]);
      while (sequence.computed < sequence.length) {
        const start = sequence.computed;
        const { output } = await stepper.step([sequence], CHUNK, true);
        const { logits } = output;
        for (const at of positions) {
          const row = (at - start) * asked.vocab;
          if (at >= start && at < sequence.computed)
            rows.push(logits.slice(row, row + asked.vocab));
        }
      }
    }
    const all = new Float32Array(rows.length * asked.vocab);
    for (const [i, row] of rows.entries()) all.set(row, i * asked.vocab);
    return all;
  } finally {
    await runner.dispose();
  }
}

/** Differences to the float32 logits, in units of their rms. */
function errors(float32: Float32Array, other: Float32Array): { rms: number; max: number } {
  assert.equal(other.length, float32.length);
  let [squares, norm, max] = [0, 0, 0];
  for (let i = 0; i < float32.length; i++) {
    const difference = Math.abs(other[i] - float32[i]);
    squares += difference ** 2;
    norm += float32[i] ** 2;
    if (!(difference <= max)) max = difference;
  }
  const scale = Math.sqrt(norm / float32.length);
  return { rms: Math.sqrt(squares / norm), max: max / scale };
}

const text = ({ rms, max }: { rms: number; max: number }): string =>
  `rms ${rms.toExponential(2)}, max ${max.toExponential(2)}`;

for (const family of ['qwen3', 'llama']) {
  test(`cpu, a small ${family}: logits of transformers`, { skip: missing }, async (t) => {
    const made = makeCheckpoint(family, 'small', 'cpu');
    const ours = errors(made.float32, await compute(made, { kvType: 'f32' }));
    const theirs = errors(made.float32, made.bfloat16);
    t.diagnostic(`ours ${text(ours)}; transformers' bfloat16 ${text(theirs)} of the logits' rms`);
    assert.ok(ours.rms < FLOAT_ERROR, text(ours));
  });

  const skip = missing || (device === 'cuda' ? false : 'no CUDA device on this machine');
  test(`cuda, ${family} of real size: logits of transformers`, { skip }, async (t) => {
    const made = makeCheckpoint(family, 'real', 'cuda');
    const theirs = errors(made.float32, made.bfloat16);
    t.diagnostic(`transformers ${made.asked.transformers}, bfloat16: ${text(theirs)}`);
    for (const kvType of ['bf16', 'f16'] as const) {
      const ours = errors(made.float32, await compute(made, { device: 'cuda', kvType }));
      t.diagnostic(`ours in ${kvType}: ${text(ours)} of the logits' rms`);
      assert.ok(ours.rms < ERROR_RATIO * theirs.rms, `rms ${ours.rms}, theirs ${theirs.rms}`);
      assert.ok(ours.max < ERROR_RATIO * theirs.max, `max ${ours.max}, theirs ${theirs.max}`);
    }
  });
}
