/**
 * Chat completions: the request, the answer and the chunks of a stream, in OpenAI's shape.
 * @module
 */
import { z } from 'zod';
import { NAME_LENGTH, samplingFields } from './sampling-fields.ts';
import { chunkUsageSchema, usageSchema } from './usage.ts';

const textPart = z.strictObject({ type: z.literal('text'), text: z.string() });
const content = z.union([z.string(), z.array(textPart).min(1)]);
const functionCall = z.strictObject({ name: z.string(), arguments: z.string() });
const toolCall = z.strictObject({
  id: z.string(),
  type: z.literal('function'),
  function: functionCall,
});
const name = z.string().max(NAME_LENGTH).nullish();
const cacheControl = z.unknown().optional();

const message = z.discriminatedUnion('role', [
  z.strictObject({
    role: z.enum(['system', 'developer', 'user']),
    content,
    name,
    cache_control: cacheControl,
  }),
  z.strictObject({
    role: z.literal('assistant'),
    content: content.nullish(),
    refusal: z.string().nullish(),
    reasoning_content: z.string().nullish(),
    name,
    tool_calls: z.array(toolCall).nullish(),
  }),
  z.strictObject({ role: z.literal('tool'), content, tool_call_id: z.string(), name }),
]);
export type ApiMessage = z.output<typeof message>;

/** JSON Schemas are handed to the grammar compiler, which judges them. */
const jsonSchema = z.record(z.string(), z.unknown());
const toolName = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/);
const tool = z.strictObject({
  type: z.literal('function'),
  function: z.strictObject({
    name: toolName,
    description: z.string().nullish(),
    parameters: jsonSchema.nullish(),
    strict: z.boolean().nullish(),
  }),
});
export type Tool = z.output<typeof tool>;

const toolChoice = z.union([
  z.enum(['none', 'auto', 'required']),
  z.strictObject({ type: z.literal('function'), function: z.strictObject({ name: toolName }) }),
]);

export const namedSchema = z.strictObject({
  name: z.string().regex(/^[A-Za-z0-9_-]{1,64}$/),
  description: z.string().nullish(),
  schema: jsonSchema,
  strict: z.boolean().nullish(),
});

export const responseFormat = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('text') }),
  z.strictObject({ type: z.literal('json_object') }),
  z.strictObject({ type: z.literal('json_schema'), json_schema: namedSchema }),
]);
export type ResponseFormat = z.output<typeof responseFormat>;

export const chatRequest = z.strictObject({
  ...samplingFields,
  model: z.string(),
  messages: z.array(message).min(1),
  max_completion_tokens: samplingFields.max_tokens,
  logprobs: z.boolean().nullish(),
  top_logprobs: z.int().min(0).max(20).nullish().describe('Only with logprobs.'),
  tools: z.array(tool).max(128).nullish(),
  tool_choice: toolChoice.nullish(),
  parallel_tool_calls: z.boolean().nullish(),
  response_format: responseFormat.nullish(),
  chat_template_kwargs: z.record(z.string(), z.unknown()).nullish(),
  add_generation_prompt: z.boolean().nullish(),
  modalities: z.array(z.literal('text')).nullish(),
  verbosity: z.unknown().optional().describe('Accepted and ignored.'),
  reasoning_effort: z.unknown().optional().describe('Accepted and ignored.'),
  prefix_id: z
    .string()
    .max(NAME_LENGTH)
    .nullish()
    .describe('A prefix made of messages; the messages of the request follow it.'),
});
export type ChatRequest = z.output<typeof chatRequest>;

const bytes = z.array(z.int()).nullable();
const topLogprob = z.object({ token: z.string(), logprob: z.number(), bytes });
const tokenLogprob = topLogprob.extend({ top_logprobs: z.array(topLogprob) });
export type TokenLogprobBody = z.output<typeof tokenLogprob>;
const chatLogprobs = z
  .object({ content: z.array(tokenLogprob), refusal: z.null() })
  .nullable()
  .describe('Where logprobs were asked for.');
const finishReason = z.enum(['stop', 'length', 'tool_calls']);

export const chatResponse = z.object({
  id: z.string(),
  object: z.literal('chat.completion'),
  created: z.int(),
  model: z.string(),
  choices: z.array(
    z.object({
      index: z.int(),
      message: z.object({
        role: z.literal('assistant'),
        content: z.string().nullable(),
        refusal: z.null(),
        tool_calls: z.array(toolCall).optional(),
      }),
      logprobs: chatLogprobs,
      finish_reason: finishReason,
      cumulative_logprob: z.number().optional().describe('Of beam search.'),
    }),
  ),
  usage: usageSchema,
});
export type ChatResponse = z.output<typeof chatResponse>;

export const chatChunk = z.object({
  id: z.string(),
  object: z.literal('chat.completion.chunk'),
  created: z.int(),
  model: z.string(),
  choices: z.array(
    z.object({
      index: z.int(),
      delta: z.object({
        role: z.literal('assistant').optional(),
        content: z.string().nullable().optional(),
        tool_calls: z.array(toolCall.extend({ index: z.int() })).optional(),
      }),
      logprobs: chatLogprobs,
      finish_reason: finishReason.nullable(),
    }),
  ),
  usage: chunkUsageSchema.nullable().optional(),
});
