/**
 * The way of a request: route, key, body, handler, answer, log. Everything that goes wrong on it
 * ends in OpenAI's error shape.
 * @module
 */

import { randomBytes } from 'node:crypto';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { type Context, Hono } from 'hono';
import { ApiError, toApiError } from './api-error.ts';
import { type PageFile, pageFiles, pageResponse } from './dashboard/page-files.ts';
import { boundSlowClient, Exchange } from './exchange.ts';
import { openApiDocument } from './openapi.ts';
import { checkHost, corsHeaders, SECURITY_HEADERS } from './origins.ts';
import type { Parts } from './parts.ts';
import { readBody } from './read-body.ts';
import type { Route } from './route.ts';
import { ROUTES } from './routes.ts';
import type { Tenant } from './tenants.ts';

interface NodeBindings {
  readonly incoming: IncomingMessage;
  readonly outgoing: ServerResponse;
}
interface Variables {
  /** Request id, known before anything else. */
  id: string;
}
export type App = Hono<{ Bindings: NodeBindings; Variables: Variables }>;
type Ctx = Context<{ Bindings: NodeBindings; Variables: Variables }>;

const REQUEST_ID = /^[A-Za-z0-9._-]{1,128}$/;
/** How long a client may take to read an answer that is complete. */
const SLOW_CLIENT_MS = 60_000;
const NOBODY: Tenant = { id: '', operator: false };

/** @param version of the package, for the OpenAPI document */
export function makeApp(parts: Parts, version: string): App {
  const app: App = new Hono();
  const { settings } = parts;

  app.use(async (c, next) => {
    const given = c.req.header('x-request-id') ?? '';
    c.set('id', REQUEST_ID.test(given) ? given : randomBytes(12).toString('hex'));
    checkHost(settings, c.req.header('host'));
    await next();
  });
  app.get('/openapi.json', (c) => c.json(document(parts, version)));
  const files = pageFiles();
  for (const file of files) {
    app.get(file.path, (c) => pageResponse(file, c.req.header('if-none-match')));
  }
  for (const route of ROUTES) {
    const path = route.path.replaceAll(/\{(\w+)\}/g, ':$1');
    app.on(route.method, path, (c) => serve(parts, route, c));
  }
  for (const [path, methods] of allowedMethods(files)) {
    app.all(path, (c) => {
      if (c.req.method === 'OPTIONS' && settings.corsOrigins.length > 0) {
        return new Response(null, { status: 204 });
      }
      throw new ApiError(405, `${c.req.method} is not allowed here, only ${methods}`, {
        code: 'method_not_allowed',
        headers: { allow: methods },
      });
    });
  }
  app.notFound((c) => {
    const error = new ApiError(404, `${c.req.method} ${c.req.path} is not here`, {
      code: 'not_found',
    });
    return errorResponse(error);
  });
  app.onError((error, c) => {
    const known = toApiError(error);
    if (known.status >= 500 && !(error instanceof ApiError)) {
      parts.log.error({ request: c.get('id'), err: error }, 'request failed');
    }
    return errorResponse(known);
  });
  return withHeaders(app, parts);
}

/** Characters of a path in the log: clients make them as long as they like. */
const LOGGED_PATH = 200;

/** What every answer carries, whoever made it; and the log line. */
function withHeaders(inner: App, parts: Parts): App {
  const outer: App = new Hono();
  outer.all('*', async (c) => {
    const started = performance.now();
    const response = await inner.fetch(c.req.raw, c.env);
    const { status } = response;
    parts.metrics.response(status);
    const headers = new Headers(response.headers);
    for (const [name, value] of Object.entries({
      ...SECURITY_HEADERS,
      ...corsHeaders(parts.settings, c.req.header('origin')),
    })) {
      headers.set(name, value);
    }
    const { method } = c.req;
    const path = c.req.path.slice(0, LOGGED_PATH);
    const ms = Math.round(performance.now() - started);
    const request = headers.get('x-request-id');
    // An open dashboard asks twice a second.
    const level = status >= 500 ? 'warn' : path === '/dashboard/state' ? 'debug' : 'info';
    parts.log[level]({ request, method, path, status, ms }, 'request');
    boundSlowClient(c.env.outgoing, SLOW_CLIENT_MS + parts.settings.requestTimeoutMs);
    return new Response(response.body, { status, headers });
  });
  return outer;
}

function errorResponse({ status, body, headers }: ApiError): Response {
  return Response.json(body, { status, headers });
}

function document(parts: Parts, version: string) {
  return openApiDocument(ROUTES, {
    version,
    models: parts.host.model?.names ?? null,
    needsKey: parts.settings.apiKeys.length > 0,
  });
}

/** (path, "GET, POST") of every path, in the router's form. */
function allowedMethods(files: readonly PageFile[]): Map<string, string> {
  const allowed = new Map([['/openapi.json', 'GET']]);
  for (const { path } of files) allowed.set(path, 'GET');
  for (const { path, method } of ROUTES) {
    const key = path.replaceAll(/\{(\w+)\}/g, ':$1');
    const before = allowed.get(key);
    allowed.set(key, before === undefined ? method : `${before}, ${method}`);
  }
  return allowed;
}

async function serve(parts: Parts, route: Route, c: Ctx): Promise<Response> {
  const id = c.get('id');
  const span = parts.tracing.start(`${route.method} ${route.path}`, c.req.raw.headers);
  let exchange: Exchange | null = null;
  let response: Response;
  try {
    const tenant =
      route.access === 'open' ? NOBODY : parts.tenants.identify(c.req.header('authorization'));
    // What needs no model also answers while it is loaded.
    const body = await bodyOf(parts, route, c.req.raw);
    exchange = new Exchange({
      id,
      tenant,
      parts,
      params: c.req.param(),
      body,
      client: c.req.raw.signal,
    });
    response = await route.handle(exchange);
  } catch (error) {
    response = errorResponse(failure(parts, route, id, error));
  }
  response.headers.set('x-request-id', id);
  span.set('http.response.status_code', response.status);
  if (exchange?.streams) {
    const streaming = exchange;
    exchange.onFinish(() => span.end(streaming.failed));
  } else {
    exchange?.finish();
    span.end(response.status >= 500);
  }
  return response;
}

function bodyOf(parts: Parts, { body }: Route, request: Request): Promise<unknown> {
  if (body === undefined) return Promise.resolve(undefined);
  return readBody(request, body.schema, parts.settings.bodyBytes);
}

function failure(parts: Parts, { promptField }: Route, request: string, error: unknown): ApiError {
  const known = toApiError(error, promptField);
  const { status, code, param } = known;
  parts.log.info({ request, status, code, param }, 'refused');
  if (!(error instanceof ApiError) && known.status >= 500) {
    parts.log.error({ request, err: error }, 'request failed');
  }
  return known;
}
