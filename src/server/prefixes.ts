/**
 * /v1/prefixes: make, fork, look at, list and let go of prefixes.
 * @module
 */
import type { z } from 'zod';
import type { PathView } from '../engine/inspect.ts';
import type { PromptSource } from '../engine/rpc.ts';
import { ApiError, badRequest } from './api-error.ts';
import type { ApiMessage } from './chat-schema.ts';
import type { Exchange } from './exchange.ts';
import { admitted } from './jobs.ts';
import { templateMessages } from './messages.ts';
import {
  type PrefixCreateRequest,
  type PrefixForkRequest,
  type prefixBody,
  TTL_DEFAULT_S,
} from './prefix-schema.ts';
import type { HeldPrefix } from './prefix-store.ts';
import { placementOf } from './request-checks.ts';

const MS = 1000;

export async function createPrefix(exchange: Exchange): Promise<Response> {
  const body = exchange.body as PrefixCreateRequest;
  const { host } = exchange.parts;
  const shared = body.public === true;
  checkPublic(exchange, body);
  const prompt = sourceOf(body);
  const placement = shared ? { priority: body.priority ?? 0 } : placementOf(exchange, body);
  return hold(exchange, body, async (id) => {
    const branch = host.newBranch();
    const call = { kind: 'prefill', branch, prompt, placement, public: shared } as const;
    const made = await admitted(exchange, () => host.call(call, undefined, exchange.signal));
    const { length, cachedTokens } = made as { length: number; cachedTokens: number };
    return {
      cachedTokens,
      prefix: {
        ...common(exchange, id, body),
        branch,
        tokens: length,
        messages: body.messages ?? null,
        public: shared,
        salt: placement.salt ?? '',
        parent: null,
        ownTokens: length,
        accountedBy: null,
      },
    };
  });
}

function checkPublic({ tenant }: Exchange, body: PrefixCreateRequest): void {
  if (body.public !== true) return;
  if (!tenant.operator) {
    throw new ApiError(403, 'this API key may not make prefixes public', {
      param: 'public',
      code: 'not_operator',
    });
  }
  if (body.cache_salt != null) {
    throw badRequest('cache_salt must not be given for a public prefix', 'cache_salt');
  }
}

/** Forks a prefix, whole or cut, and continues the fork if there is something to add. */
export async function forkPrefix(exchange: Exchange): Promise<Response> {
  const body = exchange.body as PrefixForkRequest;
  const { host, prefixes } = exchange.parts;
  const origin = prefixes.use(exchange.params.id, exchange.tenant, 'id');
  if (body.length != null && body.length > origin.tokens) {
    throw badRequest(
      `length must be an integer between 1 and ${origin.tokens}, got ${body.length}`,
      'length',
    );
  }
  const messages = forkMessages(origin, body);
  const given = [body.text, body.tokens, body.messages].filter((each) => each != null);
  if (given.length > 1) throw oneContent();
  const cut = body.length == null || body.length === origin.tokens ? null : body.length;
  if (cut !== null && body.messages != null) {
    throw badRequest('length must not be given with messages', 'length');
  }
  return hold(exchange, body, async (id) => {
    const branch = host.newBranch();
    const placement = placementOf(exchange, { prefix_id: origin.id });
    const length = await admitted(exchange, () =>
      grow(exchange, origin, body, { branch, cut, messages, placement }),
    );
    return {
      cachedTokens: cut ?? origin.tokens,
      prefix: {
        ...common(exchange, id, body),
        branch,
        tokens: length,
        messages,
        public: false,
        salt: placement.salt ?? '',
        parent: origin.id,
        ownTokens: length - (cut ?? origin.tokens),
        accountedBy: origin.id,
      },
    };
  });
}

/** What the fork is made of, where it is still messages. */
function forkMessages(origin: HeldPrefix, body: PrefixForkRequest): readonly ApiMessage[] | null {
  if (body.messages != null) {
    if (origin.messages !== null) return [...origin.messages, ...body.messages];
    throw badRequest('messages cannot continue a prefix of text or tokens', 'messages');
  }
  const same = body.text == null && body.tokens == null && body.length == null;
  return same ? origin.messages : null;
}

interface Growth {
  readonly branch: number;
  readonly cut: number | null;
  readonly messages: readonly ApiMessage[] | null;
  readonly placement: { readonly salt?: string | undefined };
}

/** Makes the new branch in the engine; returns its length. */
async function grow(
  { parts: { host }, signal }: Exchange,
  origin: HeldPrefix,
  body: PrefixForkRequest,
  { branch, cut, messages, placement }: Growth,
): Promise<number> {
  if (body.messages != null && messages !== null) {
    const prompt = messageSource(messages);
    const call = { kind: 'prefill', branch, prompt, placement } as const;
    return ((await host.call(call, undefined, signal)) as { length: number }).length;
  }
  const length = cut === null ? {} : { length: cut };
  host.send({ kind: 'fork', branch, of: origin.branch, ...length, ...placementSalt(placement) });
  try {
    const move = { branch, text: body.text ?? '', tokens: body.tokens ?? undefined };
    const [length] = (await host.call({ kind: 'append', moves: [move] })) as number[];
    return length;
  } catch (error) {
    host.send({ kind: 'release', branch });
    throw error;
  }
}

/** Below a public prefix everything is the tenant's own. */
const placementSalt = ({ salt }: Growth['placement']): object =>
  salt === undefined ? {} : { salt };

/** Reserves the id, makes the prefix and answers with it; nothing is held if it fails. */
async function hold(
  exchange: Exchange,
  { id }: { readonly id?: string | null | undefined },
  make: (id: string) => Promise<{ prefix: HeldPrefix; cachedTokens: number }>,
): Promise<Response> {
  const { prefixes, host } = exchange.parts;
  const { info } = host.ready;
  const name = prefixes.reserve(id);
  try {
    const { prefix, cachedTokens } = await make(name);
    try {
      exchange.signal.throwIfAborted();
      prefixes.add(prefix, info.pageSize, info.pages);
    } catch (error) {
      host.send({ kind: 'release', branch: prefix.branch });
      throw exchange.errorOf(error);
    }
    const view = await describe(exchange, prefix);
    return Response.json({ ...view, cached_tokens: cachedTokens }, { status: 201 });
  } finally {
    prefixes.unreserve(name);
  }
}

function common(
  { tenant }: Exchange,
  id: string,
  body: { readonly ttl_seconds?: number | null | undefined },
) {
  const now = Date.now();
  const ttlMs = Math.ceil((body.ttl_seconds ?? TTL_DEFAULT_S) * MS);
  return { id, tenant: tenant.id, createdMs: now, lastUseMs: now, ttlMs };
}

const oneContent = (): ApiError =>
  badRequest('give exactly one of text, tokens and messages', 'text', 'missing_required_parameter');

function sourceOf(body: PrefixCreateRequest): PromptSource {
  const { text, tokens, messages } = body;
  const given = [text, tokens, messages].filter((each) => each != null);
  if (given.length !== 1) throw oneContent();
  if (messages != null) return messageSource(messages);
  return { text: text ?? undefined, tokens: tokens ?? undefined };
}

/** Without the opening of the assistant's turn: more messages may follow. */
const messageSource = (messages: readonly ApiMessage[]): PromptSource => ({
  messages: templateMessages(messages),
  chat: { addGenerationPrompt: false },
});

export async function getPrefix(exchange: Exchange): Promise<Response> {
  const prefix = exchange.parts.prefixes.peek(exchange.params.id, exchange.tenant, 'id');
  return Response.json(await describe(exchange, prefix));
}

export async function listPrefixes(exchange: Exchange): Promise<Response> {
  const held = exchange.parts.prefixes.list(exchange.tenant);
  const data = await Promise.all(held.map((each) => describe(exchange, each)));
  return Response.json({ object: 'list', data });
}

export function deletePrefix(exchange: Exchange): Response {
  const { prefixes } = exchange.parts;
  const { id, tenant } = prefixes.peek(exchange.params.id, exchange.tenant, 'id');
  if (tenant !== exchange.tenant.id) {
    throw new ApiError(403, 'only its maker may delete a public prefix', { param: 'id' });
  }
  prefixes.remove(id);
  return Response.json({ id, object: 'prefix', deleted: true });
}

async function describe(
  { parts: { host } }: Exchange,
  prefix: HeldPrefix,
): Promise<z.output<typeof prefixBody>> {
  const { tokenBytes } = host.ready.info;
  const view = (await host.call({ kind: 'branchView', branch: prefix.branch })) as PathView;
  return {
    id: prefix.id,
    object: 'prefix',
    tokens: prefix.tokens,
    pages: view.pages,
    bytes: prefix.tokens * tokenBytes,
    sharers: view.sharers,
    public: prefix.public,
    parent: prefix.parent,
    created: Math.floor(prefix.createdMs / MS),
    last_used: Math.floor(prefix.lastUseMs / MS),
    expires: Math.floor((prefix.lastUseMs + prefix.ttlMs) / MS),
  };
}
