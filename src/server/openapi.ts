/**
 * The OpenAPI document, made from the same routes and schemas that serve and check requests.
 * @module
 */
import { z } from 'zod';
import { errorBody } from './misc-schema.ts';
import type { NamedSchema, Route } from './route.ts';

const VERSION = '3.1.0';
/** What any route may answer with. */
const ERRORS: Readonly<Record<number, string>> = {
  400: 'The request is wrong; `param` names the field.',
  401: 'No API key, or an unknown one.',
  403: 'Not with this key, or not under this host name.',
  404: 'Not here.',
  405: 'Not with this method; `Allow` names those that are.',
  408: 'The request took too long.',
  409: 'The id is in use.',
  413: 'The body is too large.',
  415: 'The body is not application/json.',
  429: 'No room now; come again after `Retry-After` seconds.',
  500: 'The server failed.',
  503: 'The model is not loaded, or the server is shutting down.',
};
const ALWAYS = [401, 403, 405, 500, 503];
const WITH_BODY = [400, 413, 415, 429];

type Json = Record<string, unknown>;

const schemaOf = (schema: z.ZodType, io: 'input' | 'output'): Json => {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: 'any' });
  return rest;
};

export interface DocumentFacts {
  readonly version: string;
  /** Names that clients may ask for, once they are known. */
  readonly models: readonly string[] | null;
  readonly needsKey: boolean;
}

/** The document, as plain JSON. */
export function openApiDocument(routes: readonly Route[], facts: DocumentFacts): Json {
  const schemas: Record<string, Json> = { Error: schemaOf(errorBody, 'output') };
  const use = ({ name, schema }: NamedSchema, io: 'input' | 'output'): Json => {
    schemas[name] ??= withModels(schemaOf(schema, io), facts.models);
    return { $ref: `#/components/schemas/${name}` };
  };
  const paths: Record<string, Json> = {};
  for (const route of routes) {
    paths[route.path] ??= {};
    paths[route.path][route.method.toLowerCase()] = operation(route, use, facts);
  }
  const keys = { apiKey: { type: 'http', scheme: 'bearer' } };
  return {
    openapi: VERSION,
    info: {
      title: 'FlashForge',
      version: facts.version,
      description: 'Decodes LLM requests that share prefixes.',
      license: { name: 'MIT', identifier: 'MIT' },
    },
    servers: [{ url: '/' }],
    paths,
    components: { schemas, ...(facts.needsKey ? { securitySchemes: keys } : {}) },
  };
}

/** Only these names are served: the document says so. */
function withModels(schema: Json, models: readonly string[] | null): Json {
  const properties = schema.properties as Record<string, Json> | undefined;
  if (models === null || properties?.model?.type !== 'string') return schema;
  const required = (schema.required ?? []) as string[];
  if (!['messages', 'prompt', 'input'].some((field) => required.includes(field))) return schema;
  return { ...schema, properties: { ...properties, model: { type: 'string', enum: models } } };
}

type Use = (named: NamedSchema, io: 'input' | 'output') => Json;

function operation(route: Route, use: Use, { needsKey, models }: DocumentFacts): Json {
  const { body } = route;
  return {
    operationId: route.operation,
    summary: route.summary,
    tags: [route.tag],
    ...(needsKey && route.access === 'key' ? { security: [{ apiKey: [] }] } : {}),
    ...parameters(route, models),
    ...(body === undefined
      ? {}
      : {
          requestBody: {
            required: true,
            content: { 'application/json': { schema: use(body, 'input') } },
          },
        }),
    responses: responses(route, use),
  };
}

function parameters({ path }: Route, models: readonly string[] | null): Json {
  const names = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name);
  if (names.length === 0) return {};
  return {
    parameters: names.map((name) => ({
      name,
      in: 'path',
      required: true,
      schema:
        name === 'model' && models !== null
          ? { type: 'string', enum: models }
          : { type: 'string', minLength: 1 },
    })),
  };
}

function responses(route: Route, use: Use): Json {
  const { status, answer, event, savings } = route;
  const content: Record<string, Json> =
    typeof answer === 'string'
      ? { [answer]: { schema: answer === 'text/plain' ? { type: 'string' } : {} } }
      : { 'application/json': { schema: use(answer, 'output') } };
  if (event !== undefined) {
    // OpenAPI 3.1 has no word for the schema of one event of a stream.
    content['text/event-stream'] = { 'x-event-schema': use(event, 'output') };
  }
  const errors = [
    ...ALWAYS,
    ...(route.body === undefined ? [] : WITH_BODY),
    ...(route.operation === 'createEmbedding' ? [400] : []),
    ...(route.errors ?? []),
  ];
  const all: Record<string, Json> = {
    [status]: {
      description: 'Success.',
      content,
      ...(savings ? { headers: savingsHeaders() } : {}),
    },
  };
  for (const code of [...new Set(errors)].sort((a, b) => a - b)) {
    all[code] = {
      description: ERRORS[code],
      content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
    };
  }
  return all;
}

const savingsHeaders = (): Json => {
  const header = (description: string): Json => ({ description, schema: { type: 'string' } });
  return {
    'x-flashforge-kv-bytes-read': header('KV bytes that attention read for this request.'),
    'x-flashforge-kv-bytes-flat': header('What it would have read without sharing.'),
    'x-flashforge-cached-tokens': header('Prompt tokens that were in the cache.'),
  };
};
