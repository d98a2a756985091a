/**
 * `flashforge profile`: what the planner plans with, measured on this machine's device: the time
 * of work items over query vectors and KV tokens, and the fixed costs.
 * @module
 */
import { FlashForgeError } from '../base/errors.ts';
import { openCheckpoint } from '../checkpoint/open-checkpoint.ts';
import type { CostProfile } from '../plan/plan.ts';
import type { StoredProfile } from '../plan/profile-store.ts';
import {
  type Arguments,
  type Command,
  type Context,
  JSON_OPTION,
  MODEL_OPTION,
  PROVIDER_OPTION,
  PROVIDERS,
} from './command.ts';
import { findModel } from './find-model.ts';
import { choiceOption, integerOption, usageError } from './parse-arguments.ts';
import { table } from './table.ts';

const DEVICES = ['auto', 'cpu', 'cuda'] as const;
const DTYPES = ['auto', 'f16', 'bf16', 'f32', 'i16'] as const;
const HEADS_MAX = 1024;
const HEAD_DIM_MAX = 512;
/** The attention of most models between 7 and 70 billion parameters. */
const SHAPE = { headDim: 128, heads: 32, kvHeads: 8 };

export const profileCommand: Command = {
  name: 'profile',
  summary: 'Measures what attention costs on this machine: the profile that plans are made with.',
  positionals: [],
  options: [
    {
      name: 'device',
      value: 'NAME',
      help: 'cpu, cuda, or auto: cuda where there is one (default)',
    },
    { ...MODEL_OPTION, help: 'take the head shape of this model' },
    { name: 'head-dim', value: 'N', help: `dimensions of a head (default ${SHAPE.headDim})` },
    { name: 'heads', value: 'N', help: `query heads (default ${SHAPE.heads})` },
    { name: 'kv-heads', value: 'N', help: `KV heads (default ${SHAPE.kvHeads})` },
    {
      name: 'dtype',
      value: 'TYPE',
      help: 'KV type: f16, bf16, on the CPU f32 or i16 (default: its fastest, on CUDA f16)',
    },
    PROVIDER_OPTION,
    { name: 'force', help: 'measure again though there is a profile' },
    JSON_OPTION,
  ],
  examples: [
    'flashforge profile',
    'flashforge profile --device cuda --head-dim 128 --heads 32 --kv-heads 8 --force --json -',
  ],
  run: async (context, given) => {
    const device = choiceOption(given, 'device', DEVICES, 'auto');
    const shape = await headShape(context, given);
    const { pickDevice } = await import('../model/load-runner.ts');
    const found = await pickDevice(device);
    const stored = await (found === 'cuda'
      ? measureCuda(context, given, shape)
      : measureCpu(context, given, shape));
    context.print(profileText(stored));
    const { path, measured, profile } = stored;
    await context.report({ device: found, path, measured, profile });
  },
};

interface HeadShape {
  readonly headDim: number;
  readonly heads: number;
  readonly kvHeads: number;
}

/** From the options, else from the model, else a common one. */
async function headShape(context: Context, given: Arguments): Promise<HeadShape> {
  const base = given.has('model') ? await shapeOfModel(context, given.text('model')) : SHAPE;
  const headDim = integerOption(given, 'head-dim', base.headDim, 1, HEAD_DIM_MAX);
  const heads = integerOption(given, 'heads', base.heads, 1, HEADS_MAX);
  const kvHeads = integerOption(given, 'kv-heads', base.kvHeads, 1, HEADS_MAX);
  if (heads % kvHeads !== 0) {
    throw usageError(`--heads must be a multiple of --kv-heads ${kvHeads}, got ${heads}`);
  }
  return { headDim, heads, kvHeads };
}

async function shapeOfModel(context: Context, reference: string | undefined): Promise<HeadShape> {
  const model = await findModel(context, reference);
  const checkpoint = openCheckpoint(model.path);
  try {
    const { headDim, heads, kvHeads } = checkpoint.config;
    return { headDim, heads, kvHeads };
  } finally {
    checkpoint.close();
  }
}

async function measureCpu(
  context: Context,
  given: Arguments,
  { headDim, heads, kvHeads }: HeadShape,
): Promise<StoredProfile> {
  const { checkShape, fastestKvType } = await import('../backend/cpu/attention.ts');
  const { cpuProfile } = await import('../backend/cpu/profile.ts');
  const { createProvider } = await import('../backend/cpu/provider.ts');
  const provider = await createProvider({
    provider: choiceOption(given, 'provider', PROVIDERS, 'auto'),
    log: context.note,
  });
  const dtype = choiceOption(given, 'dtype', DTYPES, 'auto');
  const kvType = dtype === 'auto' ? fastestKvType(provider.kernels) : dtype;
  const shape = { headDim, kvHeads, groupSize: heads / kvHeads, kvType };
  checkShape(shape);
  return cpuProfile(provider, shape, { force: given.has('force'), log: context.note });
}

async function measureCuda(
  context: Context,
  given: Arguments,
  { headDim, heads, kvHeads }: HeadShape,
): Promise<StoredProfile> {
  const dtype = choiceOption(given, 'dtype', DTYPES, 'auto');
  if (dtype === 'f32' || dtype === 'i16') {
    throw new FlashForgeError('usage', `--dtype must be f16 or bf16 on CUDA, got "${dtype}"`);
  }
  const { PLAN_SHAPES } = await import('../plan/default-profile.ts');
  const { Cuda } = await import('../backend/cuda/driver.ts');
  const { KernelLoader } = await import('../backend/cuda/kernel-loader.ts');
  const { cudaProfile } = await import('../backend/cuda/profile.ts');
  const cuda = await Cuda.open();
  try {
    const spec = {
      ...{ headDim, kvHeads, groupSize: heads / kvHeads },
      ...{ pageSize: PLAN_SHAPES.cuda.pageSize, dtype: dtype === 'auto' ? 'f16' : dtype },
    } as const;
    const loader = await KernelLoader.open(cuda);
    return cudaProfile(loader, spec, { force: given.has('force'), log: context.note });
  } finally {
    cuda.close();
  }
}

/** Microseconds over query vectors (rows) and KV tokens (columns), then the fixed costs. */
export function profileText({ profile, path, measured }: StoredProfile): string {
  const cells = profile.us.map((row, i) => [String(profile.queries[i]), ...row.map(us)]);
  const head = ['query vectors', ...profile.tokens.map((count) => `${count} tokens`)];
  const lines = [
    `${profile.device}; ${profile.kernel}`,
    'us of a work item without its fixed part, one KV head:',
    table(head, cells),
    ...fixedCosts(profile).map(([what, value]) => `${what.padEnd(38)} ${us(value)} us`),
    `${measured ? 'measured now, kept in' : 'measured before, from'} ${path}`,
  ];
  return lines.join('\n');
}

const fixedCosts = (profile: CostProfile): [string, number][] => [
  ['each work item', profile.itemUs],
  ['each segment of a work item', profile.segmentUs],
  ['each partial (one row, one KV head)', profile.partialUs],
  ['a plan with merges, once', profile.mergeUs ?? 0],
];

/** Three significant digits. */
const us = (value: number): string => Number(value.toPrecision(3)).toString();
