/**
 * The cost profile that plans for a CUDA device are made with: measured by a few short launches
 * of the attention kernel when a device, driver, kernel source and variant are first used, and
 * kept in the cache folder.
 * @module
 */
import { createHash } from 'node:crypto';
import type { CostProfile } from '../../plan/plan.ts';
import {
  type ProfileKey,
  profilePath,
  readProfile,
  type StoredProfile,
  saveProfile,
} from '../../plan/profile-store.ts';
import type { DeviceInfo } from './driver.ts';
import type { KernelLoader } from './kernel-loader.ts';
import { fitProfile } from './profile-fit.ts';
import { TrialRunner } from './profile-trials.ts';
import {
  type AttentionSpec,
  GROUP_VECTORS,
  kernelSources,
  type Variant,
  variantFor,
} from './variants.ts';

/** us for 64 vectors x 64 tokens x head_dim 128 by one group of warps, and by two at once. */
const TILE_US = { alone: 0.9, both: 1.1 };
/** One item: its records, its queries, its rows' output. */
const ITEM_US = 1.2;
const SEGMENT_US = 0.01;
/** Writing and reading a partial, bytes per us of one multiprocessor; waiting for the last one. */
const PARTIAL_BYTES_PER_US = 40_000;
const MERGE_US = 5;

/** Changes when what is measured, or how costs follow from it, changes. */
const VERSION = 2;

/**
 * The profile of a device for the head shape of `spec`: from the cache, else measured now, which
 * takes a fraction of a second.
 * @param options `force` measures even if there is one in the cache.
 * @throws FlashForgeError 'device' for a shape that no variant covers, or too little memory.
 */
export function cudaProfile(
  loader: KernelLoader,
  spec: AttentionSpec,
  options: {
    readonly force?: boolean | undefined;
    readonly log?: ((message: string) => void) | undefined;
  } = {},
): StoredProfile {
  const { info } = loader.cuda;
  const variant = variantFor(spec, info.arch);
  const key = profileKey(info, spec, variant);
  const path = profilePath(key);
  const kept = options.force ? null : readProfile(path, key);
  if (kept !== null) return { profile: kept, path, measured: false };
  options.log?.('measuring the attention kernel');
  const profile = measureProfile(loader, spec, key);
  saveProfile(path, profile);
  return { profile, path, measured: true };
}

/** The profile that was kept for a device and head shape, and where; null if there is none. */
export function keptCudaProfile(
  info: DeviceInfo,
  spec: AttentionSpec,
): { readonly profile: CostProfile | null; readonly path: string } {
  const key = profileKey(info, spec, variantFor(spec, info.arch));
  const path = profilePath(key);
  return { profile: readProfile(path, key), path };
}

function profileKey(info: DeviceInfo, spec: AttentionSpec, variant: Variant): ProfileKey {
  const sources = createHash('sha256');
  for (const [name, text] of kernelSources()) sources.update(`${name}\0${text}\0`);
  const { headDim, dtype, groupSize } = spec;
  return {
    device: info.name,
    kernel: `tree-attention ${info.arch}, head_dim ${headDim}, ${dtype}, group ${groupSize}`,
    of: [
      ...[VERSION, info.driverVersion, info.multiprocessors],
      ...[JSON.stringify(variant.defines), sources.digest('hex')],
    ],
  };
}

function measureProfile(loader: KernelLoader, spec: AttentionSpec, key: ProfileKey): CostProfile {
  const runner = new TrialRunner(loader, spec);
  const { groupRows, taskRows } = runner.variant;
  const tile = { groupSize: spec.groupSize, groupRows, taskRows };
  try {
    return { device: key.device, kernel: key.kernel, ...fitProfile(runner, tile) };
  } finally {
    runner.free();
  }
}

/**
 * A profile without a measurement, from the device's read bandwidth alone (bytes per us over all
 * multiprocessors) and an H200's tiles: for tests and where nothing has been measured.
 */
export function defaultCudaProfile(
  { headDim, groupSize }: Pick<AttentionSpec, 'headDim' | 'groupSize'>,
  multiprocessors: number,
  readBytesPerUs: number,
  variant: Variant,
): CostProfile {
  const readUs = (headDim * 4 * multiprocessors) / readBytesPerUs;
  const scale = headDim / 128 / 64;
  /* Few vectors: the groups take turns at the tiles. Many: each has its own rows. */
  const few = Math.max(readUs, (TILE_US.alone * scale) / (variant.taskRows / variant.groupRows));
  const many = Math.max(readUs, TILE_US.both * scale);
  const tokens = [16, 1024, 16384];
  return {
    device: 'cuda',
    kernel: `tree-attention ${variant.arch}`,
    queries: [GROUP_VECTORS, GROUP_VECTORS + 1, GROUP_VECTORS * 2],
    tokens,
    us: [few, many, many].map((us) => tokens.map((count) => us * count)),
    itemUs: ITEM_US,
    segmentUs: SEGMENT_US,
    partialUs: (groupSize * headDim * 4 * 2) / PARTIAL_BYTES_PER_US,
    mergeUs: MERGE_US,
  };
}
