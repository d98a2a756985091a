/**
 * The CPU runner for a checkpoint: kernels, weights, KV pages, worker threads.
 * @module
 */
import { availableParallelism } from 'node:os';
import { extname } from 'node:path';
import type { Runner } from '../backend/backend.ts';
import {
  CUT_TOKENS,
  fastestKvType,
  type KvType,
  kvLayout,
  PAGE_TOKENS,
} from '../backend/cpu/attention.ts';
import { startCpuRunner } from '../backend/cpu/cpu-runner.ts';
import { costProfile } from '../backend/cpu/profile.ts';
import { createProvider, type ProviderKind } from '../backend/cpu/provider.ts';
import { checkInteger } from '../base/errors.ts';
import { ceilDiv } from '../base/math.ts';
import type { Checkpoint, DecoderConfig } from '../checkpoint/checkpoint.ts';
import { PLAN_SHAPES } from '../plan/default-profile.ts';
import { DEFAULT_PLAN_OPTIONS } from '../plan/make-plan.ts';
import type { CostProfile, PlanSpec } from '../plan/plan.ts';
import { forward } from './decoder.ts';
import type { RunnerOptions } from './load-runner.ts';
import { loadCpuModel } from './weights.ts';

const DEFAULT_ROWS = 512;
const WORKERS_MAX = 256;
/** KV cache when no size is asked for: four full contexts, but no more than this. */
const DEFAULT_CONTEXTS = 4;
const DEFAULT_KV_BYTES: Readonly<Record<ProviderKind, number>> = {
  native: 2 ** 31,
  prebuilt: 2 ** 31,
  // Leaves most of the 4 GiB to the weights.
  wasm: 2 ** 30,
};

/** @throws FlashForgeError as loadRunner. */
export async function loadCpuRunner(
  checkpoint: Checkpoint,
  options: RunnerOptions,
): Promise<Runner> {
  const { config } = checkpoint;
  const workers = checkInteger(
    'usage',
    'workers',
    options.workers ?? availableParallelism(),
    1,
    WORKERS_MAX,
  );
  const maxRows = checkInteger('usage', 'maxRows', options.maxRows ?? DEFAULT_ROWS, 1);
  const { log, onProgress } = options;
  const provider = await createProvider({ provider: options.provider, workers, log });
  const kvType = options.kvType ?? fastestKvType(provider.kernels);
  const pages = kvPages(config, kvType, options, provider.kind);
  if (options.hostKvBytes) log?.('hostKvBytes has no effect on the CPU: all KV is in host memory');
  const positions = Math.min(config.contextLength, pages * PAGE_TOKENS);
  const model = loadCpuModel(provider, checkpoint, kvType, positions, onProgress);
  const profile = options.profile ?? (await costProfile(provider, model.shape, log));
  return startCpuRunner({
    provider,
    model,
    workers,
    pages,
    maxRows,
    planSpec: planSpec(config, workers, profile),
    forward,
    entry: new URL(`./cpu-worker${extname(import.meta.url)}`, import.meta.url),
  });
}

/** @throws FlashForgeError 'usage' for a size that is no positive integer. */
function kvPages(
  config: DecoderConfig,
  kvType: KvType,
  options: RunnerOptions,
  kind: ProviderKind,
): number {
  if (options.kvPages !== undefined) return checkInteger('usage', 'kvPages', options.kvPages, 1);
  const { layers, heads, kvHeads, headDim, contextLength } = config;
  const shape = { kvHeads, groupSize: heads / kvHeads, headDim, kvType };
  const pageBytes = kvLayout(shape, layers, 1).totalBytes;
  if (options.kvBytes !== undefined) {
    const bytes = checkInteger('usage', 'kvBytes', options.kvBytes, pageBytes);
    return Math.floor(bytes / pageBytes);
  }
  const wanted = DEFAULT_CONTEXTS * ceilDiv(contextLength, PAGE_TOKENS);
  return Math.max(1, Math.min(wanted, Math.floor(DEFAULT_KV_BYTES[kind] / pageBytes)));
}

function planSpec(config: DecoderConfig, workers: number, profile: CostProfile): PlanSpec {
  const { heads, kvHeads, headDim } = config;
  const groupSize = heads / kvHeads;
  return {
    kvHeads,
    groupSize,
    headDim,
    pageSize: PAGE_TOKENS,
    cutTokens: CUT_TOKENS,
    workers,
    taskRows: Math.max(1, Math.floor(PLAN_SHAPES.cpu.taskQueries / groupSize)),
    profile,
    options: DEFAULT_PLAN_OPTIONS,
  };
}
