/**
 * The reference runner for a checkpoint: all weights as 32-bit floats, so for tiny models only.
 * @module
 */
import type { Runner } from '../backend/backend.ts';
import { referenceRunner } from '../backend/reference/reference-runner.ts';
import type { Checkpoint, WeightName } from '../checkpoint/checkpoint.ts';
import { dequantize } from '../checkpoint/dequantize.ts';
import { defaultProfile } from '../plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS } from '../plan/make-plan.ts';
import { forward } from './decoder.ts';
import type { RunnerOptions } from './load-runner.ts';
import { ropeTables } from './rope.ts';

const PAGE_SIZE = 64;
const DEFAULT_PAGES = 64;
const DEFAULT_ROWS = 512;

export function loadReferenceRunner(checkpoint: Checkpoint, options: RunnerOptions): Runner {
  const { config } = checkpoint;
  const pages = options.kvPages ?? DEFAULT_PAGES;
  const weights = new Map<WeightName, Float32Array>();
  for (const { name, type } of checkpoint.tensors.values()) {
    weights.set(name, dequantize(type, checkpoint.read(name)));
  }
  const pageBytes = PAGE_SIZE * config.layers * config.kvHeads * config.headDim * 2 * 4;
  const { cosine, sine } = ropeTables(config, Math.min(config.contextLength, pages * PAGE_SIZE));
  const weight = (name: WeightName): Float32Array => weights.get(name)!;
  return referenceRunner(
    { config, weight, cosine, sine },
    {
      pages,
      pageSize: PAGE_SIZE,
      maxRows: options.maxRows ?? DEFAULT_ROWS,
      hostPages: Math.floor((options.hostKvBytes ?? 0) / pageBytes),
      planSpec: {
        kvHeads: config.kvHeads,
        groupSize: config.heads / config.kvHeads,
        headDim: config.headDim,
        pageSize: PAGE_SIZE,
        workers: 1,
        taskRows: 64,
        profile: defaultProfile('reference', config.headDim),
        options: DEFAULT_PLAN_OPTIONS,
      },
      forward,
    },
  );
}
