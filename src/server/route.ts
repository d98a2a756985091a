/**
 * What a route is: one description that the router, the checks and the OpenAPI document read.
 * @module
 */
import type { z } from 'zod';
import type { Exchange } from './exchange.ts';

/** A schema with the name it has in the OpenAPI document. */
export interface NamedSchema {
  readonly name: string;
  readonly schema: z.ZodType;
}

export interface Route {
  readonly method: 'GET' | 'POST' | 'DELETE';
  /** With parameters in braces, as OpenAPI writes them: /v1/prefixes/{id}. */
  readonly path: string;
  readonly operation: string;
  readonly summary: string;
  readonly tag: string;
  /** The JSON body that it takes. */
  readonly body?: NamedSchema;
  /** Status and body of success; a text instead of a schema is a media type. */
  readonly status: 200 | 201;
  readonly answer: NamedSchema | string;
  /** With `stream: true` it answers with server-sent events of this. */
  readonly event?: NamedSchema;
  /** Errors beside those that every route may answer with. */
  readonly errors?: readonly number[];
  /** Says what saved KV reads in headers. */
  readonly savings?: boolean;
  /** Who may call: anybody, or holders of a key where keys are set. */
  readonly access: 'open' | 'key';
  /** Field that holds the prompt, for errors found in the engine. */
  readonly promptField?: string;
  readonly handle: (exchange: Exchange) => Promise<Response> | Response;
}
