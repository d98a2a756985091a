/**
 * A request's body: its type, its size, its encoding, its JSON and its fields, each checked with
 * an answer that says what is wrong.
 * @module
 */
import type { z } from 'zod';
import { ApiError, badRequest } from './api-error.ts';

const JSON_TYPE = /^application\/(?:[\w.+-]+\+)?json\s*(?:;|$)/i;

/** @throws ApiError 400, 413 or 415 */
export async function readBody(
  request: Request,
  schema: z.ZodType,
  limitBytes: number,
): Promise<unknown> {
  const type = request.headers.get('content-type') ?? '';
  if (!JSON_TYPE.test(type)) {
    throw new ApiError(415, 'content-type must be application/json', {
      code: 'unsupported_media_type',
    });
  }
  const bytes = await readBytes(request, limitBytes);
  const value = parseJson(bytes);
  checkDepth(value);
  const result = schema.safeParse(value, { reportInput: true });
  if (result.success) return result.data;
  throw fieldError(result.error.issues[0]);
}

async function readBytes(request: Request, limit: number): Promise<Uint8Array> {
  const tooLarge = (): ApiError =>
    new ApiError(413, `the body must have at most ${limit} bytes`, {
      code: 'body_too_large',
      headers: { connection: 'close' },
    });
  if (Number(request.headers.get('content-length') ?? 0) > limit) throw tooLarge();
  const parts: Uint8Array[] = [];
  let size = 0;
  try {
    for await (const part of request.body ?? []) {
      size += part.length;
      if (size > limit) throw tooLarge();
      parts.push(part);
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw badRequest('the body ended early', null, 'incomplete_body');
  }
  return Buffer.concat(parts);
}

function parseJson(bytes: Uint8Array): unknown {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw badRequest('the body must be UTF-8', null, 'invalid_encoding');
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    const where = /position \d+/.exec((cause as Error).message)?.[0];
    const at = where === undefined ? '' : `, wrong at ${where}`;
    throw badRequest(`the body must be JSON${at}`, null, 'invalid_json');
  }
}

/** Far beyond any schema or message, and what every recursion over a body can bear. */
const DEPTH_MAX = 100;

function checkDepth(value: unknown, depth = 0): void {
  if (typeof value !== 'object' || value === null) return;
  const children: readonly unknown[] = Array.isArray(value) ? value : Object.values(value);
  if (depth === DEPTH_MAX) {
    throw badRequest(`the body must nest at most ${DEPTH_MAX} levels deep`, null, 'invalid_json');
  }
  for (const each of children) if (typeof each === 'object') checkDepth(each, depth + 1);
}

type Issue = z.core.$ZodIssue;

/** As clients write paths: messages[0].content. */
function pathText(path: readonly PropertyKey[]): string {
  let text = '';
  for (const key of path) {
    text += typeof key === 'number' ? `[${key}]` : text === '' ? String(key) : `.${String(key)}`;
  }
  return text;
}

/** The first wrong field, in a sentence that names it and what is allowed. */
function fieldError(issue: Issue): ApiError {
  const inner = innermost(issue);
  if (inner.code === 'unrecognized_keys') {
    const field = pathText([...inner.path, inner.keys[0]]);
    return badRequest(`unknown field ${field.slice(0, 200)}`, field.slice(0, 200), 'unknown_field');
  }
  const field = pathText(inner.path);
  const message = inner.message.replace(/^Invalid input: /, '').replace(/^Too (big|small): /, '');
  const name = field === '' ? 'the body' : field;
  const missing = inner.code === 'invalid_type' && inner.input === undefined;
  if (missing) {
    return badRequest(`${name} is missing: ${message}`, field, 'missing_required_parameter');
  }
  return badRequest(`${name} is not valid: ${message}`, field === '' ? null : field);
}

/** Of alternatives, the one that the value comes nearest to tells most. */
function innermost(issue: Issue): Issue {
  if (issue.code !== 'invalid_union' || issue.errors.length === 0) return issue;
  const wrongType = (issues: readonly Issue[]): boolean =>
    issues[0].path.length === 0 && issues[0].code === 'invalid_type';
  const near = issue.errors.filter((issues) => issues.length > 0 && !wrongType(issues));
  if (near.length === 0) {
    const types = issue.errors.map(([first]) => (first as { expected?: string }).expected);
    const message = `expected ${[...new Set(types)].join(' or ')}`;
    return { ...issue, message };
  }
  const depth = (issues: readonly Issue[]): number => issues[0].path.length;
  near.sort((a, b) => a.length - b.length || depth(b) - depth(a));
  const [first] = near[0];
  return innermost({ ...first, path: [...issue.path, ...first.path] } as Issue);
}
