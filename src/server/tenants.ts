/**
 * Who asks: keys compared in constant time, and the namespace of the cache that each key gets, so
 * that nobody can tell by timing what others have asked (CVE-2025-46570).
 * @module
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { ApiError } from './api-error.ts';
import type { Settings } from './server-options.ts';

export interface Tenant {
  /** Same for all requests of one key; empty where keys do not separate. */
  readonly id: string;
  /** May make prefixes public. */
  readonly operator: boolean;
}

const BEARER = /^Bearer +(\S+) *$/i;
const ID_LENGTH = 16;

const digest = (text: string): Buffer => createHash('sha256').update(text).digest();

export class Tenants {
  readonly #keys: readonly { readonly digest: Buffer; readonly tenant: Tenant }[];

  constructor({ apiKeys, operatorKeys, shareAcrossKeys }: Settings) {
    this.#keys = apiKeys.map((key) => ({
      digest: digest(key),
      tenant: {
        id: shareAcrossKeys ? '' : digest(`tenant ${key}`).toString('hex').slice(0, ID_LENGTH),
        operator: operatorKeys.includes(key),
      },
    }));
  }

  /** @throws ApiError 401 where a key is needed and none of the known ones was given. */
  identify(authorization: string | undefined): Tenant {
    if (this.#keys.length === 0) return { id: '', operator: true };
    const given = BEARER.exec(authorization ?? '')?.[1];
    if (given === undefined) {
      throw unauthorized('an API key is needed: Authorization: Bearer KEY');
    }
    // Digests have one length, and every key is compared, so that time tells nothing.
    const wanted = digest(given);
    let found: Tenant | null = null;
    for (const { digest, tenant } of this.#keys) {
      if (timingSafeEqual(digest, wanted)) found = tenant;
    }
    if (found === null) throw unauthorized('the API key is not known here');
    return found;
  }
}

const unauthorized = (message: string): ApiError =>
  new ApiError(401, message, {
    code: 'invalid_api_key',
    headers: { 'www-authenticate': 'Bearer' },
  });

/** The cache's salt of a request: tenants are never mixed, whatever salt they choose. */
export function saltOf(tenant: Tenant, cacheSalt: string | null | undefined): string {
  if (cacheSalt == null) return tenant.id;
  return `${tenant.id}/${cacheSalt}`;
}
