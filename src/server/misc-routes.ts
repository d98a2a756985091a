/**
 * The smaller endpoints: models, tokens, health, metrics, and what is not here.
 * @module
 */
import { ApiError, badRequest } from './api-error.ts';
import type { Exchange } from './exchange.ts';
import { templateMessages } from './messages.ts';
import type { DetokenizeRequest, TokenizeRequest } from './misc-schema.ts';
import { servedModel } from './request-checks.ts';

const startedS = Math.floor(Date.now() / 1000);

function modelBodies(exchange: Exchange) {
  const { names, reference, info } = exchange.parts.host.ready;
  return names.map((id) => ({
    id,
    object: 'model',
    created: startedS,
    owned_by: 'flashforge',
    root: reference,
    parent: null,
    max_model_len: info.config.contextLength,
  }));
}

export const listModels = (exchange: Exchange): Response =>
  Response.json({ object: 'list', data: modelBodies(exchange) });

export function getModel(exchange: Exchange): Response {
  const found = modelBodies(exchange).find(({ id }) => id === exchange.params.model);
  if (found !== undefined) return Response.json(found);
  throw new ApiError(404, `model ${JSON.stringify(exchange.params.model)} is not served here`, {
    param: 'model',
    code: 'model_not_found',
  });
}

export async function tokenize(exchange: Exchange): Promise<Response> {
  const body = exchange.body as TokenizeRequest;
  const { host } = exchange.parts;
  const { info, texts } = body.model == null ? host.ready : servedModel(exchange, body.model);
  if ((body.prompt == null) === (body.messages == null)) {
    throw badRequest('give exactly one of prompt and messages', 'prompt');
  }
  const prompt =
    body.messages == null
      ? { text: body.prompt ?? '' }
      : {
          messages: templateMessages(body.messages),
          chat: { addGenerationPrompt: body.add_generation_prompt ?? true },
        };
  const tokens = (await host.call(
    { kind: 'encode', prompt },
    undefined,
    exchange.signal,
  )) as number[];
  return Response.json({
    count: tokens.length,
    max_model_len: info.config.contextLength,
    tokens,
    token_strs: body.return_token_strs ? tokens.map((id) => texts.textOf(id)) : null,
  });
}

export async function detokenize(exchange: Exchange): Promise<Response> {
  const { model, tokens } = exchange.body as DetokenizeRequest;
  const { host } = exchange.parts;
  const { info } = model == null ? host.ready : servedModel(exchange, model);
  const wrong = tokens.findIndex((id) => id >= info.config.vocab);
  if (wrong >= 0) {
    throw badRequest(
      `tokens[${wrong}] must be an integer between 0 and ${info.config.vocab - 1}, ` +
        `got ${tokens[wrong]}`,
      `tokens[${wrong}]`,
    );
  }
  return Response.json({ prompt: await host.call({ kind: 'decode', tokens }) });
}

/** @throws ApiError 503 until requests can be served. */
export function health(exchange: Exchange): Response {
  void exchange.parts.host.ready;
  return Response.json({ status: 'ok' });
}

export function metrics({ parts }: Exchange): Response {
  const text = parts.metrics.text(parts.host, parts.admission, parts.prefixes.size);
  return new Response(text, { headers: { 'content-type': 'text/plain; version=0.0.4' } });
}

export function embeddings(): Response {
  throw new ApiError(400, 'embeddings are not offered: this server decodes text only', {
    code: 'unsupported_endpoint',
  });
}
