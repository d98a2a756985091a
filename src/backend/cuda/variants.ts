/**
 * Variants of the attention kernel: which constants a kernel is compiled with for a head
 * dimension, GQA group, page size and architecture, and what it then needs of the device.
 * @module
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { FlashForgeError } from '../../base/errors.ts';
import type { Sources } from './nvrtc.ts';

export const HEAD_DIMS = [64, 80, 96, 128, 256] as const;
/** Query vectors of one group of consumer warps: the rows of a tensor-core tile. */
export const GROUP_VECTORS = 64;

/** Shared memory in which the states of two groups of warps leave room for a ring of KV tiles. */
const SHARED_BYTES_FOR_TWO = 128 * 1024;
/** More stages than this do not help: as many tokens, or as many bytes. */
const STAGES_MAX = { wide: 8, eight: 12 };

/** What a model and its cache ask of the kernel. */
export interface AttentionSpec {
  readonly headDim: number;
  /** Query heads of one KV head. */
  readonly groupSize: number;
  readonly kvHeads: number;
  /** Tokens of a KV page: a multiple of 16, up to 256. */
  readonly pageSize: number;
  /** Of queries and output, and of KV unless `kv` says otherwise. */
  readonly dtype: 'f16' | 'bf16';
  /** KV as 8-bit floats (OCP E4M3) with a scale a KV head for K and one for V. */
  readonly kv?: 'e4m3';
  readonly softcap?: boolean;
}

/** Bytes of one number of KV. */
export const kvNumberBytes = ({ kv }: { readonly kv?: 'e4m3' | undefined }): number =>
  kv === 'e4m3' ? 1 : 2;

/** A compiled shape of the kernel. */
export interface Variant {
  readonly arch: string;
  readonly defines: Readonly<Record<string, number>>;
  /** Threads of a block and bytes of its shared memory. */
  readonly threads: number;
  readonly sharedBytes: number;
  /** Most rows of one group of consumer warps, and of one task. */
  readonly groupRows: number;
  readonly taskRows: number;
  /** Single warps compute on entries that are for their rows alone. */
  readonly narrow: boolean;
}

/**
 * Picks the tile shape: two groups of warps where shared memory holds their states, and as many
 * stages of the KV ring as still fit.
 * @throws FlashForgeError 'device' for a shape that no variant covers.
 */
export function variantFor(spec: AttentionSpec, arch: string, portable = false): Variant {
  const { headDim, groupSize, pageSize } = spec;
  if (!(HEAD_DIMS as readonly number[]).includes(headDim)) {
    throw new FlashForgeError(
      'device',
      `head_dim must be one of ${HEAD_DIMS.join(', ')} on CUDA, got ${headDim}`,
    );
  }
  if (!Number.isInteger(groupSize) || groupSize < 1 || groupSize > GROUP_VECTORS) {
    throw new FlashForgeError(
      'device',
      `query heads per KV head must be between 1 and ${GROUP_VECTORS} on CUDA, got ${groupSize}`,
    );
  }
  if (pageSize % 16 !== 0 || pageSize < 16 || pageSize > 256) {
    throw new FlashForgeError(
      'device',
      `page size must be a multiple of 16 between 16 and 256 on CUDA, got ${pageSize}`,
    );
  }
  if (spec.kv === 'e4m3' && /^sm_8[0-7]/.test(arch)) {
    throw new FlashForgeError(
      'device',
      `8-bit KV needs compute capability 8.9 or later, and this device is ${arch}`,
    );
  }
  const hopper = arch.startsWith('sm_90');
  const budget = sharedBudget(arch);
  const groups = headDim === 256 || budget < SHARED_BYTES_FOR_TWO ? 1 : 2;
  /* Registers move between whole warpgroups on Hopper, so that the producer is one there. */
  const threads = groups * 128 + (hopper ? 128 : 32);
  const tile = headDim === 256 ? 32 : 64;
  /* Hopper reads queries into registers at once, except where accumulators need them all. */
  const mma = portable || !hopper || spec.kv === 'e4m3';
  const buffers = !mma && headDim <= 128 ? 0 : 2;
  const tokenBytes = headDim * 2 * kvNumberBytes(spec);
  const fixed = sharedBytes(headDim, tile, 0, groups, buffers, tokenBytes);
  const most = spec.kv === 'e4m3' ? STAGES_MAX.eight : STAGES_MAX.wide;
  const stages = Math.min(most, Math.floor((budget - fixed) / (tile * tokenBytes + 128)));
  return {
    arch,
    defines: {
      FF_HEAD_DIM: headDim,
      FF_GROUP: groupSize,
      FF_PAGE_TOKENS: pageSize,
      FF_TILE: tile,
      FF_STAGES: stages,
      FF_GROUPS: groups,
      FF_QUERY_BUFFERS: buffers,
      FF_THREADS: threads,
      FF_BF16: spec.dtype === 'bf16' ? 1 : 0,
      FF_SOFTCAP: spec.softcap ? 1 : 0,
      FF_PORTABLE: mma ? 1 : 0,
      FF_KV8: spec.kv === 'e4m3' ? 1 : 0,
    },
    threads,
    sharedBytes: sharedBytes(headDim, tile, stages, groups, buffers, tokenBytes),
    groupRows: Math.floor(GROUP_VECTORS / groupSize),
    narrow: buffers === 0,
    taskRows: groups * Math.floor(GROUP_VECTORS / groupSize),
  };
}

/** Most shared memory of one block. Architectures 8.6, 8.9 and 12.x have the smaller amount. */
function sharedBudget(arch: string): number {
  if (/^sm_(90|10)/.test(arch)) return 227 * 1024;
  return /^sm_(80|87)/.test(arch) ? 163 * 1024 : 99 * 1024;
}

/** Bytes of `Shape::Shared` in tree-attention.cu. */
function sharedBytes(
  headDim: number,
  tile: number,
  stages: number,
  groups: number,
  buffers: number,
  tokenBytes: number,
): number {
  const ring = stages * (tile * tokenBytes + (tile / 16) * 16 + 24);
  const queries = groups * (buffers > 0 ? buffers * GROUP_VECTORS * headDim * 2 : 16);
  const state = groups > 1 ? (headDim * 64 + 512) * 4 : 16;
  return Math.ceil((ring + queries + state + 8) / 16) * 16;
}

const KERNELS = join(import.meta.dirname, 'kernels');

/** All kernel sources of the package, by file name. */
export function kernelSources(): Sources {
  const sources = new Map<string, string>();
  for (const name of readdirSync(KERNELS).sort()) {
    if (/\.cuh?$/.test(name)) sources.set(name, readFileSync(join(KERNELS, name), 'utf8'));
  }
  return sources;
}
