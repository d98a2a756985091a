/**
 * Measures what the planner must know of this machine: the time of a work item over (query
 * vectors, KV tokens), and the fixed costs. Takes well under a second, once per processor and
 * kernel variant; kept in the user's cache folder.
 * @module
 */
import { cpus } from 'node:os';
import { basename } from 'node:path';
import type { Forest } from '../../kvcache/forest.ts';
import type { CostProfile, Plan } from '../../plan/plan.ts';
import {
  profilePath,
  readProfile,
  type StoredProfile,
  saveProfile,
} from '../../plan/profile-store.ts';
import { trialPlan } from '../../plan/trial-plan.ts';
import { type AttentionShape, kvLayout, PAGE_TOKENS, runAttention } from './attention.ts';
import { PlanImage } from './attention-image.ts';
import { createProvider, type Provider } from './provider.ts';

const QUERIES = [1, 2, 3, 4, 6, 12, 24, 48, 96, 192];
const TOKENS = [16, 64, 512, 4096];
/** Items read different pages of this many bytes in turn, so that pages come from far caches. */
const KV_BYTES = 24 * 2 ** 20;
/** Work of one timed call, in query vectors x tokens; enough to be far above the clock's step. */
const CALL_WORK = 65_536;
const ITEMS_MAX = 64;
const SAMPLES = 15;
/** Changes when what is measured changes. */
const VERSION = 2;

/**
 * The profile of this machine for kernels like `provider`'s and a head shape: from the cache, else
 * measured now in memory of its own.
 * @param options `force` measures even if there is one in the cache.
 */
export async function cpuProfile(
  provider: Provider,
  shape: AttentionShape,
  options: {
    readonly force?: boolean | undefined;
    readonly log?: ((message: string) => void) | undefined;
  } = {},
): Promise<StoredProfile> {
  const device = cpus()[0]?.model.trim() ?? 'unknown processor';
  const { kernels } = provider.source;
  const build = kernels.kind === 'wasm' ? wasmBuild(kernels.wasm) : basename(kernels.library);
  const kernel = `${build}, head_dim ${shape.headDim}, ${shape.kvType}, group ${shape.groupSize}`;
  const key = { device, kernel, of: [VERSION] };
  const path = profilePath(key);
  const kept = options.force ? null : readProfile(path, key);
  if (kept !== null) return { profile: kept, path, measured: false };
  options.log?.('measuring the attention kernels');
  const own = await createProvider({ provider: provider.kind === 'wasm' ? 'wasm' : 'native' });
  const profile = { device, kernel, ...new Measurement(own, shape).run() };
  saveProfile(path, profile);
  return { profile, path, measured: true };
}

/** The profile alone, measured once: what runners plan with. */
export async function costProfile(
  provider: Provider,
  shape: AttentionShape,
  log?: (message: string) => void,
): Promise<CostProfile> {
  return (await cpuProfile(provider, shape, { log })).profile;
}

const wasmBuild = (wasm: { readonly relaxed: boolean }): string =>
  `wasm ${wasm.relaxed ? 'relaxed' : 'simd128'} V8 ${process.versions.v8}`;

/** Times work items of one KV head on the calling thread. */
class Measurement {
  readonly #provider: Provider;
  readonly #image: PlanImage;
  readonly #forest: Forest;
  readonly #poolTokens: number;
  readonly #groupSize: number;
  #next = 0;

  constructor(provider: Provider, model: AttentionShape) {
    this.#provider = provider;
    this.#groupSize = model.groupSize;
    // Only the number of query vectors matters, so that one row is one vector.
    const shape: AttentionShape = { ...model, kvHeads: 1, groupSize: 1, window: 0 };
    const { headBytes } = kvLayout(shape, 1, 1);
    const pages = Math.ceil(KV_BYTES / headBytes);
    const layout = kvLayout(shape, 1, pages);
    const rows = QUERIES[QUERIES.length - 1];
    const { memory, kernels } = provider;
    const query = memory.alloc(rows * shape.headDim * 4);
    const output = memory.alloc(rows * shape.headDim * 4);
    query.f32().fill(0.01);
    const block = memory.alloc(layout.totalBytes);
    // The same small number in every type; speed does not depend on values, zero pages might.
    if (shape.kvType === 'f32') block.f32().fill(0.125);
    else block.u16().fill(shape.kvType === 'f16' ? 0x3000 : 0x3e00);
    this.#poolTokens = pages * PAGE_TOKENS;
    this.#forest = oneNode(rows, pages);
    this.#image = new PlanImage(memory, kernels, shape, {
      ...{ query: query.address, key: 0, value: 0, inputStride: shape.headDim },
      ...{ output: output.address, outputStride: shape.headDim, pages: block.address, layout },
      ...{ cosine: 0, sine: 0, writeSlots: 0 },
    });
  }

  run(): Omit<CostProfile, 'device' | 'kernel'> {
    this.#items(4, 64, 1);
    const itemUs = this.#items(1, 0, 1);
    const lone = this.#items(3, 128, 1);
    const segmentUs = Math.max(0, (this.#items(3, 128, 8) - lone) / 7);
    // A measured time may dip below the fixed part by noise; costs stay positive and rising.
    const us = QUERIES.map((queries) => {
      let least = 0.01;
      return TOKENS.map((tokens) => {
        least = Math.max(least, this.#items(queries, tokens, 1) - itemUs - segmentUs);
        return least;
      });
    });
    return { queries: QUERIES, tokens: TOKENS, us, itemUs, segmentUs, partialUs: this.#partials() };
  }

  /** us of an item of `queries` vectors against `tokens` tokens cut into `segments` segments. */
  #items(queries: number, tokens: number, segments: number): number {
    const work = Math.max(1, queries * tokens);
    const items = Math.max(1, Math.min(ITEMS_MAX, Math.floor(CALL_WORK / work)));
    let best = Number.POSITIVE_INFINITY;
    for (let sample = 0; sample < SAMPLES; sample++) {
      const begins = Array.from({ length: items }, () => {
        if (this.#next + tokens > this.#poolTokens) this.#next = 0;
        const begin = this.#next;
        this.#next += Math.ceil(tokens / PAGE_TOKENS) * PAGE_TOKENS;
        return begin;
      });
      this.#image.write(itemsPlan(queries, begins, tokens, segments), this.#forest);
      const start = performance.now();
      runAttention(this.#provider.kernels, this.#image.address, 0, 0);
      best = Math.min(best, performance.now() - start);
    }
    return (best * 1000) / items;
  }

  /** us of writing and merging one partial of a row's query group. */
  #partials(): number {
    const rows = QUERIES[QUERIES.length - 1];
    // The same two tasks with and without partial results.
    const [merged, plain] = [true, false].map((partial) =>
      this.#best(itemsPlan(rows, [0, 0], PAGE_TOKENS, 1, partial)),
    );
    return (Math.max(0, merged - plain) * this.#groupSize) / (2 * rows);
  }

  /** Least time of a plan in us. */
  #best(plan: Plan): number {
    this.#image.write(plan, this.#forest);
    let best = Number.POSITIVE_INFINITY;
    for (let sample = 0; sample < SAMPLES; sample++) {
      const start = performance.now();
      runAttention(this.#provider.kernels, this.#image.address, 0, 0);
      best = Math.min(best, performance.now() - start);
    }
    return best * 1000;
  }
}

/** One node over all pages, and rows that see all of it. */
function oneNode(rows: number, pages: number): Forest {
  const tokens = pages * PAGE_TOKENS;
  return {
    ...{ rows, requests: 1, requestRow: Int32Array.of(0, rows), nodes: 1 },
    rowPosition: new Int32Array(rows).fill(tokens),
    ...{ parent: Int32Array.of(-1), start: Int32Array.of(0), length: Int32Array.of(tokens) },
    ...{ rowBegin: Int32Array.of(0), rowEnd: Int32Array.of(rows), firstSlot: Int32Array.of(0) },
    pageBegin: Int32Array.of(0, pages),
    // Pages of a real cache are not in the order of memory; 7 pages apart is far enough.
    pages: Int32Array.from({ length: pages }, (_, i) => stridden(i, pages)),
  };
}

/** A permutation of 0 to count - 1 that steps by 7. */
function stridden(index: number, count: number): number {
  const lanes = Math.min(7, count);
  const full = Math.floor(count / lanes);
  const longer = count % lanes;
  const split = longer * (full + 1);
  const lane =
    index < split ? Math.floor(index / (full + 1)) : longer + Math.floor((index - split) / full);
  const place = index < split ? index % (full + 1) : (index - split) % full;
  return place * lanes + lane;
}

/** Tasks of rows 0 to `rows`, one for each of `begins`, run by one worker. */
function itemsPlan(
  rows: number,
  begins: readonly number[],
  tokens: number,
  segments: number,
  partial = false,
): Plan {
  const each = tokens / segments;
  const tasks = begins.map((begin) => ({
    worker: 0,
    segments: Array.from({ length: segments }, (_, part) => ({
      ...{ node: 0, begin: begin + part * each, end: begin + (part + 1) * each },
      ...{ rowBegin: 0, rowEnd: rows },
    })),
  }));
  return trialPlan(rows, 1, tasks, partial);
}
