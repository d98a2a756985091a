/**
 * The Responses API for text: what goes in and what comes out. Nothing is stored.
 * @module
 */
import { z } from 'zod';
import { namedSchema } from './chat-schema.ts';
import { NAME_LENGTH, samplingFields } from './sampling-fields.ts';

const inputPart = z.strictObject({
  type: z.enum(['input_text', 'output_text']),
  text: z.string(),
  annotations: z.unknown().optional(),
  logprobs: z.unknown().optional(),
});
const inputItem = z.strictObject({
  type: z.literal('message').nullish(),
  id: z.string().max(NAME_LENGTH).nullish(),
  status: z.string().nullish(),
  role: z.enum(['system', 'developer', 'user', 'assistant']),
  content: z.union([z.string(), z.array(inputPart).min(1)]),
});

const format = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
  z.strictObject({ type: z.literal('json_schema'), ...namedSchema.shape }),
]);

export const responsesRequest = z.strictObject({
  model: z.string(),
  input: z.union([z.string().min(1), z.array(inputItem).min(1)]),
  instructions: z.string().nullish().describe('A system message before the input.'),
  text: z.strictObject({ format: format.nullish(), verbosity: z.unknown().optional() }).nullish(),
  max_output_tokens: samplingFields.max_tokens,
  temperature: samplingFields.temperature,
  top_p: samplingFields.top_p,
  stream: samplingFields.stream,
  cache_salt: samplingFields.cache_salt,
  priority: samplingFields.priority,
  store: samplingFields.store,
  user: samplingFields.user,
  metadata: samplingFields.metadata,
});
export type ResponsesRequest = z.output<typeof responsesRequest>;

const outputText = z.object({
  type: z.literal('output_text'),
  text: z.string(),
  annotations: z.array(z.never()),
  logprobs: z.array(z.never()),
});
const status = z.enum(['in_progress', 'completed', 'incomplete']);
const message = z.object({
  type: z.literal('message'),
  id: z.string(),
  status,
  role: z.literal('assistant'),
  content: z.array(outputText),
});
export type OutputMessage = z.output<typeof message>;

export const responsesBody = z.object({
  id: z.string(),
  object: z.literal('response'),
  created_at: z.int(),
  status,
  error: z.null(),
  incomplete_details: z.object({ reason: z.literal('max_output_tokens') }).nullable(),
  instructions: z.string().nullable(),
  max_output_tokens: z.int().nullable(),
  model: z.string(),
  output: z.array(message),
  parallel_tool_calls: z.literal(true),
  previous_response_id: z.null(),
  store: z.literal(false),
  temperature: z.number(),
  text: z.object({ format: z.union([format, z.looseObject({ type: z.string() })]) }),
  tool_choice: z.literal('none'),
  tools: z.array(z.never()),
  top_p: z.number(),
  metadata: z.object({}),
  usage: z
    .object({
      input_tokens: z.int(),
      input_tokens_details: z.object({ cached_tokens: z.int() }),
      output_tokens: z.int(),
      output_tokens_details: z.object({ reasoning_tokens: z.literal(0) }),
      total_tokens: z.int(),
      kv_cache: z.object({
        bytes_read: z.number(),
        bytes_flat: z.number(),
        reduction: z.number(),
      }),
    })
    .nullable(),
});
export type ResponsesBody = z.output<typeof responsesBody>;

export const responsesEvent = z.looseObject({
  type: z.string(),
  sequence_number: z.int(),
});
