/**
 * Steps handed in ahead of the device, on a CUDA device: the same tokens as step by step, with
 * draws and without; a fault on the device ends all steps under way, and with them the device's use
 * for this process: engine-client.ts then takes another one.
 * @module
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { RowDraw, StepOutput } from '../../src/backend/backend.ts';
import { Cuda } from '../../src/backend/cuda/driver.ts';
import { isProcessLost } from '../../src/base/errors.ts';
import { loadRunner, pickDevice } from '../../src/model/load-runner.ts';
import { DecodeLoop } from '../helpers/decode-loop.ts';
import { memoryCheckpoint } from '../helpers/memory-checkpoint.ts';
import { TINY_CONFIGS } from '../helpers/tiny-configs.ts';

const device = await pickDevice('auto');
const skip = device === 'cuda' ? false : 'no CUDA device on this machine';
const CHECKPOINT = memoryCheckpoint(TINY_CONFIGS['two KV heads'], 'F16');
const TURNS = 40;

const newLoop = async (): Promise<DecodeLoop> => {
  const runner = await loadRunner(CHECKPOINT, { device: 'cuda', kvPages: 200, maxRows: 160 });
  return new DecodeLoop(runner, { shared: 200, batch: 5 });
};

/** Every other sequence is drawn. */
const drawOf = (path: number, turn: number): RowDraw | null =>
  path % 2 === 0
    ? null
    : {
        temperature: 0.9,
        topK: 40,
        topP: 0.95,
        minP: 0,
        uniform: ((path * 37 + turn * 11) % 97) / 97,
      };

async function tokens(ahead: boolean): Promise<number[][]> {
  const loop = await newLoop();
  await loop.prefill();
  const all: number[][] = [];
  await loop.run(TURNS, ahead, drawOf, (drawn) => all.push(drawn));
  await loop.runner.dispose();
  return all;
}

test('two steps under way: the tokens of one at a time', { skip }, async () => {
  const expected = await tokens(false);
  assert.equal(expected.length, TURNS);
  assert.ok(new Set(expected.flat()).size > 5, 'tokens differ');
  assert.deepEqual(await tokens(true), expected);
});

/** Makes the inputs' kernel read from nowhere. */
function breakInputs(): () => void {
  const { launch } = Cuda.prototype;
  Cuda.prototype.launch = function (kernel, shape, args, stream, ...rest) {
    const broken = args.slice();
    if (kernel.name === 'ff_step_inputs') new DataView(broken.buffer).setBigUint64(0, 64n, true);
    launch.call(this, kernel, shape, broken, stream, ...rest);
  };
  return () => {
    Cuda.prototype.launch = launch;
  };
}

test('a fault on the device fails steps, and the next load here', { skip }, async () => {
  const loop = await newLoop();
  await loop.prefill();
  const steps: Promise<StepOutput>[] = [loop.step(false, drawOf)];
  const mend = breakInputs();
  steps.push(loop.step(true, drawOf));
  mend();
  const results = await Promise.allSettled(steps);
  assert.equal(results[1].status, 'rejected');
  assert.match(String(results[1].reason), /can no longer be used/);
  await assert.rejects(loop.step(false, drawOf), { code: 'device' });
  await loop.runner.dispose();
  await assert.rejects(newLoop(), (error: unknown) => {
    assert.ok(isProcessLost(error), String(error));
    return true;
  });
});
