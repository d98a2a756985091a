/**
 * Completions of plain prompts, tokens and text: requests and answers in OpenAI's and vLLM's shape.
 * @module
 */
import { z } from 'zod';
import { responseFormat } from './chat-schema.ts';
import { NAME_LENGTH, SAMPLES_PER_REQUEST, samplingFields } from './sampling-fields.ts';
import { chunkUsageSchema, usageSchema } from './usage.ts';

const PROMPTS_MAX = 256;
const tokenIds = z.array(z.int().min(0).max(Number.MAX_SAFE_INTEGER)).min(1);
const prompt = z.union([
  z.string(),
  tokenIds,
  z.array(z.string()).min(1).max(PROMPTS_MAX),
  z.array(tokenIds).min(1).max(PROMPTS_MAX),
]);

const completionFields = z.strictObject({
  ...samplingFields,
  model: z.string(),
  prompt: prompt.describe('Text, token ids, or a list of either.'),
  max_tokens: z
    .int()
    .min(0)
    .max(Number.MAX_SAFE_INTEGER)
    .nullish()
    .describe('Most new tokens a sample; 0 only with echo, to look at the prompt.'),
  best_of: z.int().min(1).max(SAMPLES_PER_REQUEST).nullish().describe('At least n.'),
  echo: z.boolean().nullish().describe('Put the prompt before the answer.'),
  logprobs: z
    .int()
    .min(0)
    .max(20)
    .nullish()
    .describe("With echo of the prompt's tokens too, which are computed anew then."),
  suffix: z.null().optional().describe('Not supported: must be absent or null.'),
  response_format: responseFormat.nullish(),
  prefix_id: z.string().max(NAME_LENGTH).nullish().describe('A prefix that the prompt continues.'),
});
export const completionRequest = completionFields.refine(
  ({ max_tokens, echo, use_beam_search }) => max_tokens !== 0 || (echo && !use_beam_search),
  { path: ['max_tokens'], error: 'expected at least 1, or 0 with echo' },
);
export type CompletionRequest = z.output<typeof completionRequest>;

const logprobs = z
  .object({
    tokens: z.array(z.string()),
    token_logprobs: z.array(z.number().nullable()).describe("Null: a text's first token."),
    top_logprobs: z.array(z.record(z.string(), z.number()).nullable()).nullable(),
    text_offset: z.array(z.int()),
  })
  .nullable();
export type CompletionLogprobs = z.output<typeof logprobs>;

export const completionResponse = z.object({
  id: z.string(),
  object: z.literal('text_completion'),
  created: z.int(),
  model: z.string(),
  choices: z.array(
    z.object({
      index: z.int(),
      text: z.string(),
      logprobs,
      finish_reason: z.enum(['stop', 'length']),
      cumulative_logprob: z.number().optional().describe('Of beam search and best_of.'),
    }),
  ),
  usage: usageSchema,
});
export type CompletionResponse = z.output<typeof completionResponse>;

export const completionChunk = z.object({
  ...completionResponse.shape,
  choices: z.array(
    z.object({
      index: z.int(),
      text: z.string(),
      logprobs,
      finish_reason: z.enum(['stop', 'length']).nullable(),
    }),
  ),
  usage: chunkUsageSchema.nullable().optional(),
});
