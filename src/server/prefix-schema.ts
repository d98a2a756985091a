/**
 * The branching API: prefixes that clients hold, fork and name in their requests.
 * @module
 */
import { z } from 'zod';
import { chatRequest } from './chat-schema.ts';
import { NAME_LENGTH, samplingFields } from './sampling-fields.ts';

const TTL_MAX_S = 7 * 24 * 3600;
export const TTL_DEFAULT_S = 600;

const ttl = z
  .number()
  .gt(0)
  .max(TTL_MAX_S)
  .nullish()
  .describe(`Seconds without use until the prefix is let go; default ${TTL_DEFAULT_S}.`);
const id = z
  .string()
  .regex(/^[A-Za-z0-9_-]{1,64}$/)
  .nullish()
  .describe('Default: a random one.');
const content = {
  text: z.string().min(1).nullish(),
  tokens: z.array(z.int().min(0).max(Number.MAX_SAFE_INTEGER)).min(1).nullish(),
  messages: chatRequest.shape.messages.nullish(),
};

export const prefixCreateRequest = z.strictObject({
  ...content,
  id,
  ttl_seconds: ttl,
  cache_salt: samplingFields.cache_salt,
  priority: samplingFields.priority,
  public: z
    .boolean()
    .nullish()
    .describe('Shared by all API keys; what follows it stays private. For operators.'),
});
export type PrefixCreateRequest = z.output<typeof prefixCreateRequest>;

export const prefixForkRequest = z.strictObject({
  ...content,
  id,
  ttl_seconds: ttl,
  length: z.int().min(1).nullish().describe('Tokens to keep; default all.'),
});
export type PrefixForkRequest = z.output<typeof prefixForkRequest>;

export const prefixBody = z.object({
  id: z.string().max(NAME_LENGTH),
  object: z.literal('prefix'),
  tokens: z.int(),
  cached_tokens: z.int().optional().describe('Tokens that were in the cache; at its creation.'),
  pages: z.int().describe('KV pages that its path touches.'),
  bytes: z.int().describe('KV bytes of its tokens.'),
  sharers: z.int().describe('Requests and prefixes that share its last token, itself included.'),
  public: z.boolean(),
  parent: z.string().nullable(),
  created: z.int(),
  last_used: z.int(),
  expires: z.int(),
});

export const prefixList = z.object({ object: z.literal('list'), data: z.array(prefixBody) });
export const prefixDeleted = z.object({
  id: z.string(),
  object: z.literal('prefix'),
  deleted: z.literal(true),
});
