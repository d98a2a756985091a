/**
 * The smaller endpoints: models, tokens, health, and what every error looks like.
 * @module
 */
import { z } from 'zod';
import { chatRequest } from './chat-schema.ts';

export const errorBody = z.object({
  error: z.object({
    message: z.string(),
    type: z.string(),
    param: z.string().nullable(),
    code: z.string().nullable(),
  }),
});

export const modelBody = z.object({
  id: z.string(),
  object: z.literal('model'),
  created: z.int(),
  owned_by: z.string(),
  root: z.string(),
  parent: z.null(),
  max_model_len: z.int(),
});
export const modelList = z.object({ object: z.literal('list'), data: z.array(modelBody) });

export const health = z.object({ status: z.literal('ok') });

export const tokenizeRequest = z.strictObject({
  model: z.string().nullish(),
  prompt: z.string().min(1).nullish().describe('This or messages.'),
  messages: chatRequest.shape.messages.nullish(),
  add_generation_prompt: z.boolean().nullish(),
  return_token_strs: z.boolean().nullish(),
});
export type TokenizeRequest = z.output<typeof tokenizeRequest>;
export const tokenizeResponse = z.object({
  count: z.int(),
  max_model_len: z.int(),
  tokens: z.array(z.int()),
  token_strs: z.array(z.string()).nullable(),
});

export const detokenizeRequest = z.strictObject({
  model: z.string().nullish(),
  tokens: z.array(z.int().min(0).max(Number.MAX_SAFE_INTEGER)),
});
export type DetokenizeRequest = z.output<typeof detokenizeRequest>;
export const detokenizeResponse = z.object({ prompt: z.string() });
