/**
 * The fields that chat completions and completions have in common, as OpenAI and vLLM name them,
 * and what they mean to the engine.
 * @module
 */
import { z } from 'zod';
import type { BeamOptions } from '../engine/beam-search.ts';
import type { SamplingOptions } from '../engine/sampling-params.ts';
import { badRequest } from './api-error.ts';

/** A seed may be any 64-bit number in OpenAI's API; these are exact in JavaScript. */
const INTEGER_MAX = Number.MAX_SAFE_INTEGER;
export const SAMPLES_PER_REQUEST = 128;
const STOP_STRINGS = 16;
const STOP_LENGTH = 1024;
export const NAME_LENGTH = 256;

const stopString = z.string().min(1).max(STOP_LENGTH);
/** Accepted for the sake of clients that send them; they change nothing here. */
const ignored = z.unknown().optional().describe('Accepted and ignored.');

/** `z.strictObject` shapes are spread into the requests, so that unknown fields are refused. */
export const samplingFields = {
  max_tokens: z.int().min(1).max(INTEGER_MAX).nullish().describe('Most new tokens a sample.'),
  min_tokens: z.int().min(0).max(INTEGER_MAX).nullish().describe('No end before these. Default 0.'),
  temperature: z.number().min(0).max(2).nullish().describe('0 = greedy. Default 1.'),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.int().min(-1).max(INTEGER_MAX).nullish().describe('0 and -1 = all.'),
  min_p: z.number().min(0).max(1).nullish(),
  n: z.int().min(1).max(SAMPLES_PER_REQUEST).nullish().describe('Samples that share the prompt.'),
  stop: z
    .union([stopString, z.array(stopString).max(STOP_STRINGS)])
    .nullish()
    .describe('Generation ends before the first of these.'),
  stop_token_ids: z.array(z.int().min(0).max(INTEGER_MAX)).max(STOP_STRINGS).nullish(),
  ignore_eos: z.boolean().nullish(),
  seed: z.int().min(-INTEGER_MAX).max(INTEGER_MAX).nullish(),
  logit_bias: z
    .record(z.string().regex(/^[0-9]{1,7}$/), z.number().min(-100).max(100))
    .nullish()
    .describe('Token id to a number that is added to its logit.'),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  repetition_penalty: z.number().min(0.01).max(100).nullish(),
  stream: z.boolean().nullish(),
  stream_options: z
    .strictObject({
      include_usage: z.boolean().nullish(),
      continuous_usage_stats: z
        .boolean()
        .nullish()
        .describe('With include_usage: every chunk says how far its choice is.'),
      include_obfuscation: z.literal(false).nullish().describe('Chunks are never padded.'),
    })
    .nullish(),
  use_beam_search: z.boolean().nullish().describe('n beams instead of n samples.'),
  length_penalty: z.number().min(0).max(10).nullish().describe('Of beam search. Default 1.'),
  priority: z.int().min(-1000).max(1000).nullish().describe('Larger goes first. Default 0.'),
  cache_salt: z
    .string()
    .min(1)
    .max(NAME_LENGTH)
    .nullish()
    .describe('Requests with different salts never share KV.'),
  user: ignored,
  metadata: ignored,
  store: ignored,
  service_tier: ignored,
  prompt_cache_key: ignored,
  safety_identifier: ignored,
};

const fields = z.strictObject(samplingFields);
export type SamplingFields = z.output<typeof fields>;

/** Without nulls: the engine's options have no null. */
function given<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], null | undefined> } {
  const entries = Object.entries(options).filter(([, value]) => value != null);
  return Object.fromEntries(entries) as never;
}

/** @param maxTokens most new tokens, already decided */
export function samplingOptions(body: SamplingFields, maxTokens: number): SamplingOptions {
  return given({
    maxTokens,
    minTokens: body.min_tokens,
    temperature: body.temperature ?? 1,
    topP: body.top_p,
    topK: body.top_k === -1 ? 0 : body.top_k,
    minP: body.min_p,
    n: body.n,
    stop: Array.isArray(body.stop) && body.stop.length === 0 ? null : body.stop,
    stopTokenIds: body.stop_token_ids,
    ignoreEos: body.ignore_eos,
    seed: body.seed,
    logitBias: body.logit_bias,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    repetitionPenalty: body.repetition_penalty,
  }) as SamplingOptions;
}

/** Every chunk of a stream says how far its choice is, as vLLM has it. */
export const wantsRunningUsage = ({ stream_options: options }: SamplingFields): boolean =>
  options?.include_usage === true && options.continuous_usage_stats === true;

/** Fields that beam search cannot honour. */
const NOT_WITH_BEAMS = [
  'stream',
  'stop',
  'stop_token_ids',
  'ignore_eos',
  'min_tokens',
  'logit_bias',
  'top_p',
  'top_k',
  'min_p',
  'presence_penalty',
  'frequency_penalty',
  'repetition_penalty',
] as const;

/** @throws ApiError for a field that beam search cannot honour. */
export function beamOptionsOf(body: SamplingFields, maxTokens: number): BeamOptions {
  for (const field of NOT_WITH_BEAMS) {
    if (body[field] != null && body[field] !== false) {
      throw badRequest(`${field} must not be given with use_beam_search`, field);
    }
  }
  const beams = body.n ?? 1;
  return { beams, maxTokens, lengthPenalty: body.length_penalty ?? 1 };
}
