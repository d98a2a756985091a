/**
 * What browsers may do: nothing from other origins unless the operator allows it, and nothing by
 * way of a name that was made to point at this machine (DNS rebinding).
 * @module
 */
import { ApiError } from './api-error.ts';
import type { Settings } from './server-options.ts';

export const SECURITY_HEADERS: Readonly<Record<string, string>> = {
  'x-content-type-options': 'nosniff',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
};

const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[::1\]|::1)$/i;

const isLoopback = (host: string): boolean => LOOPBACK.test(host);

/**
 * A server for this machine alone answers only under this machine's own names: a page whose name
 * was rebound to 127.0.0.1 would be of the same origin otherwise. With keys it is safe anyway.
 * @throws ApiError 403
 */
export function checkHost({ host, apiKeys }: Settings, given: string | undefined): void {
  if (apiKeys.length > 0 || !isLoopback(host)) return;
  const name = (given ?? '').replace(/:\d+$/, '');
  if (isLoopback(name)) return;
  throw new ApiError(403, 'this server answers only as localhost', { code: 'host_not_allowed' });
}

/** Headers that let pages of the allowed origins call. */
export function corsHeaders(
  { corsOrigins }: Settings,
  origin: string | undefined,
): Record<string, string> {
  if (origin === undefined) return {};
  const any = corsOrigins.includes('*');
  if (!any && !corsOrigins.includes(origin)) return {};
  return {
    'access-control-allow-origin': any ? '*' : origin,
    'access-control-allow-methods': 'GET, POST, DELETE',
    'access-control-allow-headers': 'authorization, content-type, x-request-id',
    'access-control-expose-headers': 'x-request-id, retry-after, x-flashforge-kv-bytes-read',
    'access-control-max-age': '600',
    'cross-origin-resource-policy': 'cross-origin',
    vary: 'origin',
  };
}
