/**
 * `flashforge bench soak`: random load for a time, in two lives of a model, and then the accounts:
 * no page held, device memory after the second life as after the first, outputs as computed alone.
 * Ends with exit code 1 if one of them is wrong.
 * @module
 */
import { Cuda } from '../backend/cuda/driver.ts';
import { FlashForgeError } from '../base/errors.ts';
import type { Llm } from '../index.ts';
import { type Device, pickDevice } from '../model/load-runner.ts';
import { PLAN_SHAPES } from '../plan/default-profile.ts';
import { type Arguments, type Command, type Context, JSON_OPTION } from './command.ts';
import { deviceOptions, loadModel, MODEL_OPTIONS } from './load-model.ts';
import { integerOption } from './parse-arguments.ts';
import { type ReplayResult, Soak, type SoakOptions } from './soak.ts';

const SECONDS_DEFAULT = 600;
const CLIENTS_DEFAULT = 16;
/** Room for so many tokens a client, fewer than a prompt has: requests wait and are evicted. */
const CLIENT_TOKENS = 600;
/** The longest prompt and its tree have room, also with one client. */
const TOKENS_MIN = 8000;
/**
 * How far the better of two tokens may lead where a replay takes the other one, in nats: batches
 * and trees add up in another order. In bf16 SmolLM2's best logits are up to 0.52 from those of
 * 32-bit floats; on the processor products round their inputs to 8 bits, where the least
 * difference may decide, and random weights part at up to 0.1. One other token in the prompt
 * makes most outputs part at more than that, many at any distance.
 */
const LEAD_MAX: Readonly<Record<Device, number>> = { cuda: 0.6, cpu: 0.3, reference: 0.01 };

export const benchSoakCommand: Command = {
  name: 'bench soak',
  summary: 'Runs random requests for a time and checks pages, memory and outputs afterwards.',
  positionals: [],
  options: [
    ...MODEL_OPTIONS,
    { name: 'seconds', value: 'N', help: `how long requests arrive (default ${SECONDS_DEFAULT})` },
    { name: 'seed', value: 'N', help: 'of everything random (default 1)' },
    { name: 'clients', value: 'N', help: `clients at a time (default ${CLIENTS_DEFAULT})` },
    { name: 'kv-pages', value: 'N', help: 'pages of the KV cache (default: too few for all)' },
    JSON_OPTION,
  ],
  examples: ['flashforge bench soak --device cuda --seconds 600 --json soak.json'],
  run,
};

async function run(context: Context, given: Arguments): Promise<void> {
  const options: SoakOptions = {
    seconds: integerOption(given, 'seconds', SECONDS_DEFAULT, 1),
    seed: integerOption(given, 'seed', 1, 0),
    clients: integerOption(given, 'clients', CLIENTS_DEFAULT, 1, 256),
  };
  const { provider, device: wanted } = deviceOptions(given);
  const device = await pickDevice(wanted);
  const { pageSize } = PLAN_SHAPES[device];
  const tokens = Math.max(TOKENS_MIN, options.clients * CLIENT_TOKENS);
  const kvPages = integerOption(given, 'kv-pages', Math.ceil(tokens / pageSize), 1);
  const open = (): Promise<Llm> =>
    loadModel(context, given.text('model'), { device, provider, kvPages });
  const probe = device === 'cuda' ? await Cuda.open() : null;
  const memory = (): number | null => probe?.memory()[0] ?? null;
  const half = { ...options, seconds: options.seconds / 2 };
  try {
    // Libraries load code when it is first wanted and keep it: a life ends as the one before.
    const first = await soak(await open(), half, context);
    const before = memory();
    const result = joined(first, await soak(await open(), half, context));
    const after = memory();
    const problems = problemsOf(result, before, after, LEAD_MAX[device]);
    const { counts, replay, pagesHeld } = result;
    context.print(
      `soak: ${counts.requests} requests (${counts.cancelled} cancelled, ${counts.forked} on ` +
        `forks, ${counts.refused} refused), ${counts.beamSearches} beam searches, ` +
        `${counts.tokens} tokens in ${options.seconds} s on ${device}; ${pagesHeld} pages held; ` +
        `${memoryText(before, after)}; ${replayText(replay)}: ` +
        (problems.length === 0 ? 'sound' : 'NOT SOUND'),
    );
    await context.report({
      ...{ device, ...options, kv_pages: kvPages, ...result, problems },
      memory_free_after_one: before,
      memory_free_after_two: after,
    });
    if (problems.length > 0) throw new FlashForgeError('device', problems.join('; '));
  } finally {
    probe?.close();
  }
}

interface SoakResult {
  readonly counts: Soak['counts'];
  readonly failures: readonly string[];
  readonly replay: ReplayResult;
  readonly pagesHeld: number;
  readonly evictedTokens: number;
}

/** What two lives gave together. */
function joined(a: SoakResult, b: SoakResult): SoakResult {
  const names = Object.keys(a.counts) as (keyof Soak['counts'])[];
  const counts = { ...a.counts };
  for (const name of names) counts[name] += b.counts[name];
  return {
    counts,
    failures: [...a.failures, ...b.failures],
    replay: {
      replayed: a.replay.replayed + b.replay.replayed,
      equal: a.replay.equal + b.replay.equal,
      leads: [...a.replay.leads, ...b.replay.leads],
    },
    pagesHeld: a.pagesHeld + b.pagesHeld,
    evictedTokens: a.evictedTokens + b.evictedTokens,
  };
}

/** The whole life of one model. */
async function soak(llm: Llm, options: SoakOptions, context: Context): Promise<SoakResult> {
  try {
    const load = new Soak(llm, options, context.signal);
    await load.run();
    const replay = await load.replay();
    const { evictedTokens } = llm.stats().tree;
    await llm.clearCache();
    const { pagesUsed } = llm.stats().tree;
    const { counts, failures } = load;
    return { counts, failures, replay, pagesHeld: pagesUsed, evictedTokens };
  } finally {
    await llm.dispose();
  }
}

function problemsOf(
  { failures, replay, pagesHeld }: SoakResult,
  before: number | null,
  after: number | null,
  leadMax: number,
): string[] {
  const problems = [...failures];
  if (pagesHeld > 0) problems.push(`${pagesHeld} KV pages are held though no request is left`);
  if (before !== null && after !== null && after < before) {
    problems.push(`${before} bytes of device memory were free after one life, ${after} after two`);
  }
  const wrong = replay.leads.filter((lead) => !(lead <= leadMax));
  if (wrong.length > 0) {
    problems.push(
      `${wrong.length} outputs differ from a replay where the better token leads by up to ` +
        `${Math.max(...wrong).toFixed(2)}, more than rounding explains (${leadMax})`,
    );
  }
  return problems;
}

function memoryText(before: number | null, after: number | null): string {
  if (before === null || after === null) return `RSS ${mib(process.memoryUsage.rss())} MiB`;
  return `device memory free ${mib(before)} MiB after one life, ${mib(after)} after two`;
}

function replayText({ replayed, equal, leads }: ReplayResult): string {
  const apart = leads.length === 0 ? '' : `, others part at leads of ${list(leads)}`;
  return `${equal} of ${replayed} replays equal${apart}`;
}

const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);

const list = (leads: readonly number[]): string => leads.map((lead) => lead.toFixed(3)).join(', ');
